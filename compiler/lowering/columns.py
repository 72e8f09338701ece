"""Reductions that keep the last axis.

Few rows: each vector of neighbouring columns has its sums in registers. Many: the sums of a stretch of columns lie on the
stack, and rows are added to them a few at a time, so that memory is read in long runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Dim, Index, divide, minimum, product
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar, register_type
from flambeau.compiler.lowering.prefetching import distant_reads, prefetch
from flambeau.compiler.lowering.probe import axis_symbols, probe
from flambeau.compiler.passes.fuse import reduced_axes
from flambeau.compiler.schedule.cpu_contraction import balanced

Position = tuple[Index, ...]


#: Elements of a row that are read in a run, and rows that are added at a time: 8192 x 2048 sums at 14 GB/s with runs of
#: 512 elements, 19 with 1024 and 4 rows, 26 with these (a triad: 30).
STRETCH = 2048
TOGETHER = 8


def lower_columns(ctx: LoweringContext, operation: Operation) -> None:
    """Emit a reduction over axes other than the last."""
    _Columns(ctx, operation).emit()


class _Columns:
    """The loops of one reduction."""

    def __init__(self, ctx: LoweringContext, operation: Operation) -> None:
        self.ctx = ctx
        self.operand, self.result = operation.operands[0], operation.results[0]
        self.shape, self.axes = tensor_of(self.operand).shape, reduced_axes(operation)
        self.kept = tuple(a for a in range(len(self.shape)) if a not in self.axes)
        self.definition = definition_of(operation)
        self.element = tensor_of(self.result).element
        self.accumulator = self.definition.accumulator(self.element)
        self.cost, straight = 1, True
        if self.operand not in ctx.memory:
            index = axis_symbols(self.shape)
            reads = probe(self.operand, index, lambda v: v.owner is not None and v not in ctx.memory)
            self.cost, straight = reads.cost + 1, reads.straight
        self.last = last = self.shape[self.kept[-1]]
        self.lanes = ctx.lanes if straight and not (isinstance(last, int) and last == 1) else 0

    def emit(self) -> None:
        ctx, lanes, last = self.ctx, self.lanes, self.last
        rows = self.shape[self.axes[-1]]
        narrow = isinstance(last, int) and last < 4 * lanes
        work = product(self.shape) * self.cost
        outer = tuple(self.shape[a] for a in self.kept[:-1])
        if lanes and not narrow and not (isinstance(rows, int) and rows < 4 * TOGETHER):
            size = STRETCH if isinstance(last, Dim) else lanes * balanced(-(-last // lanes), STRETCH // lanes)
            with ctx.rows((*outer, (last + size - 1) // size), work) as position:
                self._stretch(position[:-1], position[-1] * size, size)
            return
        # Four vectors of columns at once use whole cache lines of each row and hide the additions' latency.
        wide = 4 if lanes and not narrow else 1
        step = max(lanes, 1) * wide
        with ctx.rows((*outer, (last + step - 1) // step), work) as position:
            self._registers(position[:-1], position[-1] * step, wide)

    # -- the arithmetic ------------------------------------------------------------------------------------------------
    def _initial(self) -> Value:
        value = self.definition.init(self.ctx.e, self.element).value
        return self.ctx.b.broadcast(value, self.lanes) if self.lanes else value

    def _at(self, outer: Position, reduced: Position, place: Index) -> Position:
        index: list[Index] = [0] * len(self.shape)
        for axis, position in zip(self.kept, (*outer, place), strict=True):
            index[axis] = position
        for axis, position in zip(self.axes, reduced, strict=True):
            index[axis] = position
        return tuple(index)

    def _combine(self, at: Position, total: Value) -> Value:
        x = self.ctx.read(self.operand, at)
        with self.ctx.b.fast("reassoc", "contract"):
            following = self.definition.combine(self.ctx.e, Scalar(total, self.accumulator), x)
        return self.ctx.spread(following.value)

    def _combined(self, positions: Sequence[Position], total: Value) -> Value:
        """With the elements at these positions, which are combined among one another first: a long sum of short ones has
        smaller errors."""
        ctx, e, combine = self.ctx, self.ctx.e, self.definition.combine
        parts = [e.convert(ctx.read(self.operand, at), self.accumulator) for at in positions]
        with ctx.b.fast("reassoc", "contract"):
            while len(parts) > 1:
                pairs = [combine(e, x, y) for x, y in zip(parts[::2], parts[1::2], strict=False)]
                parts = [*pairs, *parts[len(pairs) * 2 :]]
            following = combine(e, Scalar(total, self.accumulator), parts[0])
        return ctx.spread(following.value)

    def _prefetch(
        self, outer: Position, reduced: Sequence[Position], first: Index, column: Index, size: int
    ) -> None:
        """As many of the next rows' vectors as are read now, in the order of memory: the processor would see as many streams
        as there are rows, which it fetches more slowly than one."""
        *others, row = reduced[0]
        for number in range(len(reduced)):
            down, place = divide(column * len(reduced) + number * self.lanes, size)
            at = self._at(outer, (*others, row + len(reduced) + down), first + place)
            prefetch(self.ctx, distant_reads(self.ctx, self.operand, at), locality=2)

    def _store(self, outer: Position, place: Index, total: Value) -> None:
        e, result = self.ctx.e, self.result
        index = self._at(outer, tuple(0 for _ in self.axes), place)
        if len(tensor_of(result).shape) != len(self.shape):
            index = tuple(index[a] for a in self.kept)
        e.store(e.convert(Scalar(total, self.accumulator), self.element), self.ctx.memory[result], index)

    # -- sums in registers ---------------------------------------------------------------------------------------------
    def _registers(self, outer: Position, first: Index, count: int) -> None:
        """`count` vectors (or one element) of columns from `first`."""
        b, lanes = self.ctx.b, self.lanes
        starts = [first + v * lanes for v in range(count)]

        def step(reduced: Position, totals: Sequence[Value]) -> list[Value]:
            if not lanes:
                return [self._combine(self._at(outer, reduced, first), totals[0])]
            out = []
            for start, total in zip(starts, totals, strict=True):
                with b.lanes_of(lanes, _count(start, self.last, lanes)) as lane:
                    out.append(self._combine(self._at(outer, reduced, start + lane), total))
            return out

        def nest(axis: int, reduced: Position, totals: Sequence[Value]) -> Sequence[Value]:
            if axis == len(self.axes):
                return step(reduced, totals)
            with b.for_(0, self.shape[self.axes[axis]], init=totals) as loop:
                loop.yield_(*nest(axis + 1, (*reduced, loop.index), loop.carried))
            return loop.results

        totals = nest(0, (), [self._initial()] * count)
        if not lanes:
            self._store(outer, first, totals[0])
            return
        for start, total in zip(starts, totals, strict=True):
            with b.lanes_of(lanes, _count(start, self.last, lanes)) as lane:
                self._store(outer, start + lane, total)

    # -- sums on the stack ---------------------------------------------------------------------------------------------
    def _stretch(self, outer: Position, first: Index, size: int) -> None:
        """`size` columns from `first`, or those that exist."""
        b, lanes = self.ctx.b, self.lanes
        initial = self._initial()
        sums = b.alloca((size,), register_type(self.accumulator))
        with b.for_(0, size, lanes) as loop:
            b.vstore(initial, sums, (loop.index,))
        end = (
            size if isinstance(self.last, int) and self.last % size == 0 else minimum(self.last - first, size)
        )

        def columns(body: Callable[[Index, Index], None]) -> None:
            """``body(column, lane)`` for each vector of the stretch."""
            whole = end // lanes * lanes
            with b.for_(0, whole, lanes) as loop, b.lanes_of(lanes) as lane:
                body(loop.index, lane)
            if end - whole != 0:
                with b.for_(whole, end, lanes) as loop, b.lanes_of(lanes, end - whole) as lane:
                    body(loop.index, lane)

        def add(reduced: Sequence[Position]) -> None:
            def body(column: Index, lane: Index) -> None:
                self._prefetch(outer, reduced, first, column, size)
                total = b.vload(sums, (column,), lanes)
                b.vstore(
                    self._combined([self._at(outer, row, first + column + lane) for row in reduced], total),
                    sums,
                    (column,),
                )

            columns(body)

        def nest(axis: int, reduced: Position) -> None:
            extent = self.shape[self.axes[axis]]
            if axis < len(self.axes) - 1:
                with b.for_(0, extent) as loop:
                    nest(axis + 1, (*reduced, loop.index))
                return
            whole = extent // TOGETHER * TOGETHER
            with b.for_(0, whole, TOGETHER) as loop:
                add([(*reduced, loop.index + r) for r in range(TOGETHER)])
            if extent - whole != 0:
                with b.for_(whole, extent) as loop:
                    add([(*reduced, loop.index)])

        nest(0, ())
        columns(
            lambda column, lane: self._store(outer, first + column + lane, b.vload(sums, (column,), lanes))
        )


def _count(start: Index, extent: Index, lanes: int) -> Index | None:
    """How many lanes exist at `start`; None if certainly all."""
    if isinstance(extent, int) and extent % lanes == 0 and not isinstance(start, int):
        whole = extent // lanes
        steps = {abs(c) // lanes for m, c in start.terms.items() if m}
        if all(s and whole % s == 0 for s in steps):
            return None
    if isinstance(start, int) and isinstance(extent, int) and start + lanes <= extent:
        return None
    return extent - start
