"""Large results go to memory past the caches, where they would not survive until somebody reads them.

An ordinary store of a line that is in no cache reads the line first; a non-temporal one does not, so that a copy moves two
thirds of the bytes. It wants whole vectors at addresses that are multiples of their size, which only the call knows: code
with and without such stores is made, and the addresses choose. A result in an operand's place is in the cache already.

Such stores come in no order with others. x86 completes them before any locked instruction, and a thread that ends a task or
starts one executes one (the pool's counters), so the other threads see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import i1
from flambeau.compiler.ir.types import index as index_type
from flambeau.compiler.lowering.context import LoweringContext, tensor_of

#: Bytes of a kernel's results from which they are taken to leave the caches before they are read.
LARGE = 16 << 20


def streamed(ctx: LoweringContext, results: Iterable[Value]) -> frozenset[Value]:
    """Those results that would go past the caches, if the kernel writes enough. Their rows are whole vectors."""
    found = [r for r in results if isinstance(tensor_of(r).size, int)]
    total = sum(_bytes(r) for r in found)
    return frozenset(found) if total >= LARGE and ctx.target.architecture == "x86_64" else frozenset()


def _bytes(value: Value) -> int:
    type = tensor_of(value)
    assert isinstance(type.size, int)
    return type.size * type.element.itemsize


def either_way(
    ctx: LoweringContext, past: frozenset[Value], emit: Callable[[frozenset[Value]], None]
) -> None:
    """``emit(past)`` where the addresses allow it, else ``emit(frozenset())``."""
    if not past:
        emit(past)
        return
    b = ctx.b
    zero = b.constant(index_type, 0)
    allowed = b.constant(i1, 1)
    for result in past:
        address = b.address(ctx.memory[result])
        vector = ctx.lanes * tensor_of(result).element.itemsize
        rest = b.iand(address, b.constant(index_type, vector - 1))
        allowed = b.iand(allowed, b.icmp("eq", rest, zero))
        for other, buffer in ctx.memory.items():
            same = tensor_of(other).size == tensor_of(result).size
            if other.owner is None and same:
                allowed = b.iand(allowed, b.icmp("ne", address, b.address(buffer)))
    b.if_(allowed, lambda: emit(past), lambda: emit(frozenset()))
