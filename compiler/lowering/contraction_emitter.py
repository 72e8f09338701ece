"""What the contraction template needs of a loop builder, and that interface over `LoopBuilder`.

Sizes and positions are `Index`: numbers or `Dim` expressions over loop variables, so that the template computes with
them in plain Python and constants fold before any operation is made. Values (scalars, vectors, masks, buffers) are
opaque to the template, so tests can execute it directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias

from flambeau.compiler.dialects.loops.base import signless
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, VectorType, f32
from flambeau.compiler.lowering.half import HalfFormats

Value: TypeAlias = Any
Buffer: TypeAlias = Any
Body: TypeAlias = "Callable[[Index, list[Value]], Sequence[Value] | None]"
Branch: TypeAlias = "Callable[[], None]"


class Emitter(Protocol):
    """Emits loop-level operations in order, at one insertion point. `builder` is what element functions receive."""

    @property
    def builder(self) -> Any: ...
    def for_(
        self, low: Index, high: Index, step: int, body: Body, carried: Sequence[Value] = ()
    ) -> list[Value]:
        """`scf.for`; `body(position, carried)` returns the carried values of the next iteration."""

    def parallel(self, extents: Sequence[Index], body: Callable[[list[Index]], None]) -> None:
        """Independent iterations from 0 by 1 over each extent."""

    def if_equal(self, a: Index, b: Index, then: Branch, otherwise: Branch | None = None) -> None:
        """`scf.if` without results, on a == b."""

    def load(self, buffer: Buffer, at: Sequence[Index]) -> Value: ...
    def store(self, value: Value, buffer: Buffer, at: Sequence[Index]) -> None: ...
    def vector_load(
        self, buffer: Buffer, at: Sequence[Index], lanes: int, mask: Value | None = None
    ) -> Value:
        """Consecutive elements from `at`; lanes whose mask is unset are not read and give zero."""

    def vector_store(
        self, value: Value, buffer: Buffer, at: Sequence[Index], mask: Value | None = None
    ) -> None: ...
    def prefetch(self, buffer: Buffer, at: Sequence[Index], write: bool = False, locality: int = 3) -> None:
        """The element will be read (written) soon: from L1 if the locality is 3, from L2 if it is 2."""

    def lanes_of(self, lanes: int, count: Index | None) -> AbstractContextManager[Index]:
        """Inside, the expression given stands for 0 ... lanes - 1 at once (or for those below `count`)."""

    def some_lanes(self, lanes: int, mask: Value) -> AbstractContextManager[Index]:
        """The same for the lanes that are set in `mask`."""

    def between(self, low: Index, high: Index, lanes: int) -> Value:
        """The mask of the lanes from `low` to below `high`."""

    def select(self, mask: Value, x: Value, y: Value) -> Value:
        """x where the mask is set, else y."""

    def symbol(self, expression: Index, low: Index, high: Index) -> Index:
        """The same number, of which the bounds (inclusive) are now taken for granted."""

    def mask(self, count: Index, lanes: int) -> Value:
        """The first `count` lanes are set (none if it is negative, all if it is larger)."""

    def splat(self, scalar: Value, lanes: int) -> Value: ...
    def zero(self, element: ElementType, lanes: int) -> Value: ...
    def multiply_add(self, x: Value, y: Value, z: Value, element: ElementType) -> Value:
        """x * y + z: rounded once for floats, wrapping for integers."""

    def add(self, x: Value, y: Value, element: ElementType) -> Value: ...
    def reduce_add(self, x: Value) -> Value:
        """The sum of a vector's lanes, reassociated."""

    def shuffle(self, x: Value, y: Value, lanes: Sequence[int]) -> Value: ...
    def cast(self, x: Value, source: ElementType, target: ElementType) -> Value:
        """A scalar or a vector of `source` as `target` (exactly, or rounded to nearest)."""

    def alloca(self, shape: Sequence[int], element: ElementType) -> Buffer:
        """A buffer on the stack, aligned to 64 bytes, that lives as long as the innermost parallel iteration."""


class LoopEmitter:
    """`Emitter` over a `LoopBuilder`. `half` converts f16 and bf16 (by integer operations unless given)."""

    def __init__(self, builder: LoopBuilder, half: HalfFormats | None = None) -> None:
        self.builder = builder
        self.half = half or HalfFormats(builder, False)
        self.load = builder.load
        self.store = builder.store
        self.vector_load = builder.vload
        self.vector_store = builder.vstore
        self.prefetch = builder.prefetch
        self.lanes_of = builder.lanes_of
        self.splat = builder.broadcast
        self.mask = builder.create_mask
        self.shuffle = builder.shuffle
        self.select = builder.select
        self.alloca = builder.alloca

    @contextmanager
    def some_lanes(self, lanes: int, mask: Value) -> Iterator[Index]:
        with self.builder.lanes_of(lanes) as lane:
            self.builder.mask = mask
            yield lane

    def between(self, low: Index, high: Index, lanes: int) -> Value:
        upper = self.builder.create_mask(high, lanes)
        if isinstance(low, int) and low <= 0:
            return upper
        return self.builder.iand(upper, self.builder.not1(self.builder.create_mask(low, lanes)))

    def symbol(self, expression: Index, low: Index, high: Index) -> Index:
        return self.builder.symbol(self.builder.index(expression), low, high)

    def for_(
        self, low: Index, high: Index, step: int, body: Body, carried: Sequence[Value] = ()
    ) -> list[Value]:
        with self.builder.for_(low, high, step, list(carried), unroll=1) as loop:
            values = body(loop.index, list(loop.carried))
            if values is not None:
                loop.yield_(*values)
        return list(loop.results)

    def parallel(self, extents: Sequence[Index], body: Callable[[list[Index]], None]) -> None:
        total: Index = 1
        for extent in extents:
            total = total * extent
        if total == 0:
            return
        if total == 1:
            body([0] * len(extents))
            return
        with self.builder.parallel(total) as loop:
            left, at = loop.index, []
            for extent in reversed(extents):
                at.append(0 if extent == 1 else left % extent)
                left = left if extent == 1 else left // extent
            body(at[::-1])

    def if_equal(self, a: Index, b: Index, then: Branch, otherwise: Branch | None = None) -> None:
        if isinstance(a, int) and isinstance(b, int):
            branch = then if a == b else otherwise
            if branch is not None:
                branch()
            return
        condition = self.builder.icmp("eq", self.builder.index(a), self.builder.index(b))
        self.builder.if_(condition, then, otherwise)

    def zero(self, element: ElementType, lanes: int) -> Value:
        return self.builder.constant(VectorType.get((lanes,), signless(element)), 0)

    def multiply_add(self, x: Value, y: Value, z: Value, element: ElementType) -> Value:
        if element.is_float:
            return self.builder.fma(x, y, z)
        return self.builder.iadd(self.builder.imul(x, y), z)

    def add(self, x: Value, y: Value, element: ElementType) -> Value:
        return self.builder.fadd(x, y) if element.is_float else self.builder.iadd(x, y)

    def reduce_add(self, x: Value) -> Value:
        return self.builder.vector_reduce("add", x)

    def cast(self, x: Value, source: ElementType, target: ElementType) -> Value:
        b = self.builder
        if signless(source) is signless(target):
            return x
        if source.bits == 16 and source.is_float:
            return self.cast(self.half.widen(x, source), f32, target)
        if target.bits == 16 and target.is_float:
            narrow = self.cast(x, source, f32)
            return self.half.narrow(self.half.round(narrow, target), target)
        if source.is_float and target.is_float:
            return b.fpext(x, target) if target.bits > source.bits else b.fptrunc(x, target)
        unsigned = source.kind in ("uint", "bool")
        if target.is_float:
            return b.uitofp(x, target) if unsigned else b.sitofp(x, target)
        if source.is_float:
            return b.fptoui(x, target) if target.kind == "uint" else b.fptosi(x, target)
        if target.bits < source.bits:
            return b.trunci(x, target)
        return b.extui(x, target) if unsigned else b.extsi(x, target)
