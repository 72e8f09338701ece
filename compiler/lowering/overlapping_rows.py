"""Rows that overlap: the last loop over a row runs in the same loop as the one before it over the next row.

A row kernel with large results reads in its first loop, computes in the middle, and writes in its last one; one row after the
other, memory waits while the processor computes and the other way round. Here the last loop over row r - 1, which has nothing
left to sum, shares its iterations with the last but one over row r, where row r + 1 is also prefetched: a softmax reads,
computes and writes all the time, 4096 rows of 4096 in 4.4 ms instead of 8.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, minimum, product
from flambeau.compiler.lowering.context import LoweringContext, decode, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.prefetching import distant_reads, prefetch
from flambeau.compiler.lowering.probe import COSTS
from flambeau.compiler.lowering.row_loops import Row, Stage, Store
from flambeau.compiler.passes.fuse import RowDomain

#: Rows of a task, which begins and ends with loops of their own; and tasks, at least.
ROWS = 32
TASKS = 8


def overlaps(
    ctx: LoweringContext, index: tuple[Index, ...], stages: Sequence[Stage], domain: RowDomain
) -> bool:
    """Can the rows of these stages overlap, and is there something to win? `index`: to which their reads refer."""
    rows = product(tuple(domain.shape[a] for a in domain.kept))
    inner = [domain.shape[a] for a in domain.inner]
    if len(inner) != 1 or not isinstance(inner[0], int) or not isinstance(rows, int):
        return False
    # Two rows should stay in L2, and the one that is prefetched.
    if inner[0] % ctx.lanes or inner[0] * 4 * 4 > ctx.target.l2_bytes or rows < ROWS * TASKS:
        return False
    top = max(s.level for s in stages)
    last = [s for s in stages if s.level == top]
    if top < 1 or any(s.role != "full" for s in last) or not all(s.reads.straight for s in stages):
        return False
    # Cheap rows read and write all the time as they are.
    if sum(s.reads.cost for s in stages if s.level < top and s.role != "outer") < COSTS["math"]:
        return False
    # A row of a value has one place on the stack, where the next row's elements follow those that this one has read.
    made = {s.value: s.level for s in stages if s.role == "full"}
    full = [(made[v], at) for s in last for v, at in s.reads.accesses if v in made]
    return all(level >= top - 1 and at == index for level, at in full)


def lower_overlapping(
    ctx: LoweringContext, stages: list[Stage], domain: RowDomain, results: set[Value], past: frozenset[Value]
) -> None:
    """Emit all rows."""
    _Overlapping(ctx, stages, domain, results, past).emit()


class _Overlapping:
    """The loops over rows, in tasks."""

    def __init__(
        self,
        ctx: LoweringContext,
        stages: list[Stage],
        domain: RowDomain,
        results: set[Value],
        past: frozenset[Value],
    ) -> None:
        self.ctx, self.stages, self.domain, self.results, self.past = ctx, stages, domain, results, past
        self.kept = tuple(domain.shape[a] for a in domain.kept)
        self.inner = tuple(domain.shape[a] for a in domain.inner)
        self.top = max(s.level for s in stages)
        self.last = [s for s in stages if s.level == self.top]
        scalars = {s.value for s in stages if s.role != "full"}
        #: What the last loop needs to know of its row.
        self.state = list(dict.fromkeys(v for s in self.last for v, _ in s.reads.accesses if v in scalars))

    def emit(self) -> None:
        count = product(self.kept)
        with self.ctx.b.parallel((count + ROWS - 1) // ROWS) as task:
            first = task.index * ROWS
            self._task(first, minimum(first + ROWS, count))

    def _row(self, number: Index, buffers: dict[Value, Value]) -> Row:
        row = Row(
            self.ctx, self.stages, self.domain, decode(number, self.kept), self.inner, self.results, self.past
        )
        row.row_buffers = buffers
        return row

    def _task(self, first: Index, end: Index) -> None:
        b = self.ctx.b
        opening = self._row(first, {})
        opening.give_row_buffers()
        buffers = opening.row_buffers
        opening.activate()
        opening.outer(-1)
        for level in range(self.top):
            opening.level(level)
        opening.deactivate()
        with b.for_(first + 1, end, init=self._known(opening)) as loop:
            before, row = self._row(loop.index - 1, buffers), self._row(loop.index, buffers)
            self._tell(before, loop.carried)
            row.activate()
            row.outer(-1)
            for level in range(self.top - 1):
                row.level(level)
            self._together(before, row, self._row(loop.index + 1, buffers))
            row.outer(self.top - 1)
            row.deactivate()
            loop.yield_(*self._known(row))
        closing = self._row(end - 1, buffers)
        self._tell(closing, loop.results)
        closing.activate()
        closing.level(self.top)
        closing.deactivate()

    def _known(self, row: Row) -> list[Value]:
        return [row.here[v][1].value for v in self.state]

    def _tell(self, row: Row, state: Sequence[Value]) -> None:
        for value, known in zip(self.state, state, strict=True):
            row.here[value] = ((), Scalar(known, tensor_of(value).element))

    def _together(self, before: Row, row: Row, following: Row) -> None:
        """The last loop over `before`, and the last but one over `row`."""
        ctx, b, lanes = self.ctx, self.ctx.b, self.ctx.lanes
        stages = [s for s in self.stages if s.level == self.top - 1 and s.role != "outer"]
        reductions = [s for s in stages if s.role == "reduce"]
        with b.for_(0, self.inner[0], lanes, init=[row.initial(s, lanes) for s in reductions]) as loop:
            self._prefetch(following.position((loop.index,)))
            with b.lanes_of(lanes) as lane:
                place = (loop.index + lane,)
                # Loads first, and stores past the caches last: a load that follows a store to an address with equal low digits
                # waits for it, and rows lie multiples of a page apart.
                stores: list[Store] = []
                before.activate()
                before.element(self.last, [], before.position(place), (), None, stores)
                row.activate()
                out = row.element(stages, reductions, row.position(place), loop.carried, None, stores)
                for store in reversed(stores):
                    ctx.e.store(*store)
            loop.yield_(*out)
        for stage, total in zip(reductions, loop.results, strict=True):
            row.finish(stage, total, lanes)
        for stage in stages:
            if stage.role == "full":
                row.here.pop(stage.value, None)
        ctx.forget()

    def _prefetch(self, index: tuple[Index, ...]) -> None:
        """What the first loop over the row of `index` will read there."""
        group = {s.value for s in self.stages}
        for stage in self.stages:
            if stage.level > 0 or stage.role == "outer":
                continue
            assert stage.value.owner is not None
            source = stage.value if stage.role == "full" else stage.value.owner.operands[0]
            if stage.role == "full" or source not in group:
                prefetch(self.ctx, distant_reads(self.ctx, source, index, group), locality=2)


__all__ = ["lower_overlapping", "overlaps"]
