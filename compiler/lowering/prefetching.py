"""What lies in memory and will be read soon: prefetches where the processor would not find the order by itself, or in time."""

from __future__ import annotations

from collections.abc import Container, Iterable

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.probe import Reads, probe

Position = tuple[Index, ...]


def _reads(value: Value, index: Position, group: Container[Value]) -> Reads:
    if value.owner is None:
        return Reads([(value, index)], 0, True, 0)
    return probe(value, index, lambda v: v.owner is not None and v not in group)


def is_distant(ctx: LoweringContext, value: Value) -> bool:
    """Is it an operand of the kernel, and more than L2 holds?"""
    size = tensor_of(value).size
    large = isinstance(size, int) and size * tensor_of(value).element.itemsize > ctx.target.l2_bytes
    return large and value.owner is None and value in ctx.memory


def distant_reads(
    ctx: LoweringContext, value: Value, index: Position, group: Container[Value] = ()
) -> list[tuple[Value, Position]]:
    """The large operands and positions in them from which the element of `value` at `index` comes, unless by way of a value
    in `group`; none if positions depend on data."""
    reads = _reads(value, index, group)
    return [(v, at) for v, at in reads.accesses if is_distant(ctx, v)] if reads.static else []


def prefetch(ctx: LoweringContext, reads: Iterable[tuple[Value, Position]], locality: int) -> None:
    """Hints that these elements will be read soon. They may lie behind their operand's end."""
    for value, at in dict.fromkeys(reads):
        ctx.b.prefetch(ctx.memory[value], at, locality=locality)


def gathered_from(
    ctx: LoweringContext, value: Value, index: Position, group: Container[Value] = ()
) -> list[Value]:
    """The large operands from which the elements of `value` come by positions that depend on data."""
    known = {s for at in index if isinstance(at, Dim) for s in at.symbols()}
    found = []
    for operand, at in _reads(value, index, group).accesses:
        symbols = {s for position in at if isinstance(position, Dim) for s in position.symbols()}
        if is_distant(ctx, operand) and not symbols <= known:
            found.append(operand)
    return list(dict.fromkeys(found))


def gathered_position(ctx: LoweringContext, value: Value, index: Position, operand: Value) -> Position | None:
    """Where in `operand` the element of `value` at `index` lies: its element function runs, and only the last read is left
    out."""
    found: list[Position] = []

    def note(at: Position) -> Scalar:
        found.append(at)
        return ctx.e.constant(0, tensor_of(operand).element)

    before = ctx.overrides.get(operand)
    ctx.overrides[operand] = note
    try:
        ctx.compute(value, index)
    finally:
        del ctx.overrides[operand]
        if before is not None:
            ctx.overrides[operand] = before
    return found[0] if found else None
