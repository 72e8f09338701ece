"""Rows that overlap: the last loop over a row runs in the same loop as the one before it over the next row.

A row kernel with large results reads in its first loop, computes in the middle, and writes in its last one; one row after the
other, memory waits while the processor computes and the other way round. Here the last loop over row r - 1, which has nothing
left to sum, shares its iterations with the last but one over row r, where row r + 1 is also prefetched: a softmax reads,
computes and writes all the time, 4096 rows of 4096 in 4.4 ms instead of 8.2. If the first of three loops looks for extremes, it
runs there too, over row r + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, minimum, product
from flambeau.compiler.lowering.context import LoweringContext, decode, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.prefetching import distant_reads, is_distant, prefetch
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
    ctx: LoweringContext,
    index: tuple[Index, ...],
    stages: list[Stage],
    domain: RowDomain,
    results: set[Value],
    past: frozenset[Value],
) -> None:
    """Emit all rows."""
    _Overlapping(ctx, index, stages, domain, results, past).emit()


class _Overlapping:
    """The loops over rows, in tasks."""

    def __init__(
        self,
        ctx: LoweringContext,
        index: tuple[Index, ...],
        stages: list[Stage],
        domain: RowDomain,
        results: set[Value],
        past: frozenset[Value],
    ) -> None:
        self.ctx, self.stages, self.domain, self.results, self.past = ctx, stages, domain, results, past
        #: The position that the stages' reads refer to.
        self.index = index
        self.kept = tuple(domain.shape[a] for a in domain.kept)
        self.inner = tuple(domain.shape[a] for a in domain.inner)
        self.top = max(s.level for s in stages)
        self.middle, self.last = self._loop(self.top - 1), self._loop(self.top)
        #: The first of three loops, if it runs with the others, over the row after theirs: of extremes, whose order is free.
        self.early = self._loop(0) if self.top == 2 and all(map(_is_extreme, self._loop(0))) else []
        scalars = {s.value: s.level for s in stages if s.role != "full"}
        #: What the last loop needs to know of its row, and what is known of a row after the first loop, if that is early.
        self.state = list(dict.fromkeys(v for s in self.last for v, _ in s.reads.accesses if v in scalars))
        self.known = [v for v, level in scalars.items() if self.early and level == 0]

    def _loop(self, level: int) -> list[Stage]:
        return [s for s in self.stages if s.level == level and s.role != "outer"]

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
        opening = self._row(first, {})
        opening.give_row_buffers()
        buffers = opening.row_buffers
        copies = {v: opening.stack_row(v) for v in self._read_twice()}
        opening.activate()
        opening.outer(-1)
        for level in range(self.top):
            opening.level(level)
        opening.deactivate()
        self._copy(opening, copies)
        second = self._row(minimum(first + 1, end - 1), buffers)
        if self.early:
            second.activate()
            second.outer(-1)
            second.level(0)
            second.deactivate()
        count = len(self.state)
        start = [*_told(opening, self.state), *_told(second, self.known)]
        with self.ctx.b.for_(first + 1, end, init=start) as loop:
            before, row = self._row(loop.index - 1, buffers), self._row(loop.index, buffers)
            after = self._row(minimum(loop.index + 1, end - 1), buffers)
            _tell(before, self.state, loop.carried[:count])
            _tell(row, self.known, loop.carried[count:])
            if self.early:
                after.activate()
                after.outer(-1)
            row.activate()
            row.outer(-1)
            for level in range(0 if self.early else self.top - 1):
                row.level(level)
            ahead = self._row(loop.index + (2 if self.early else 1), buffers)
            self._together(before, row, after, ahead, copies)
            if self.early:
                after.activate()
                after.outer(0)
            row.activate()
            row.outer(self.top - 1)
            row.deactivate()
            loop.yield_(*_told(row, self.state), *_told(after, self.known))
        closing = self._row(end - 1, buffers)
        _tell(closing, self.state, loop.results[:count])
        closing.activate()
        with self._from_copies(closing, copies):
            closing.level(self.top)
        closing.deactivate()

    def _together(self, before: Row, row: Row, after: Row, ahead: Row, copies: dict[Value, Value]) -> None:
        """The last loop over `before`, the middle one over `row`, the first over `after`, if that is early; what the row
        `ahead` needs first is prefetched."""
        ctx, b, lanes = self.ctx, self.ctx.b, self.ctx.lanes
        sums = [s for s in self.middle if s.role == "reduce"]
        count = len(sums)
        init = [*[row.initial(s, lanes) for s in sums], *[after.initial(s, lanes) for s in self.early]]
        with b.for_(0, self.inner[0], lanes, init=init) as loop:
            self._prefetch(ahead.position((loop.index,)))
            with b.lanes_of(lanes) as lane:
                place = (loop.index + lane,)
                # Loads first, and stores past the caches last: a load that follows a store to an address with equal low digits
                # waits for it, and rows lie multiples of a page apart.
                stores: list[Store] = []
                before.activate()
                with self._from_copies(before, copies):
                    before.element(self.last, [], before.position(place), (), None, stores)
                row.activate()
                out = row.element(self.middle, sums, row.position(place), loop.carried[:count], None, stores)
                stores += self._copied(row, place, copies)
                if self.early:
                    after.activate()
                    at = after.position(place)
                    out += after.element(self.early, self.early, at, loop.carried[count:], None)
                for store in reversed(stores):
                    ctx.e.store(*store)
            loop.yield_(*out)
        for stage, total in zip(sums, loop.results[:count], strict=True):
            row.finish(stage, total, lanes)
        for stage, total in zip(self.early, loop.results[count:], strict=True):
            after.finish(stage, total, lanes)
        for stage in self.middle:
            if stage.role == "full":
                row.here.pop(stage.value, None)
        ctx.forget()

    # -- operands that the last loop reads as the middle one does ------------------------------------------------------
    def _read_twice(self) -> list[Value]:
        """Large operands of which both loops read the row's own elements: the last one finds them on the stack, not where L1
        has lost them. (A log_softmax of 4096 rows of 4096 takes 4.4 ms instead of 5.8.)"""
        read = [
            {v for s in stages for v, at in s.reads.accesses if at == self.index}
            for stages in (self.middle, self.last)
        ]
        elsewhere = {v for s in self.last for v, at in s.reads.accesses if at != self.index}
        return [v for v in self.ctx.memory if v in read[0] & read[1] - elsewhere and is_distant(self.ctx, v)]

    def _copied(self, row: Row, place: tuple[Index, ...], copies: dict[Value, Value]) -> list[Store]:
        return [(self.ctx.read(v, row.position(place)), buffer, place, False) for v, buffer in copies.items()]

    def _copy(self, row: Row, copies: dict[Value, Value]) -> None:
        if not copies:
            return
        ctx = self.ctx
        with ctx.b.for_(0, self.inner[0], ctx.lanes) as loop, ctx.b.lanes_of(ctx.lanes) as lane:
            for store in self._copied(row, (loop.index + lane,), copies):
                ctx.e.store(*store)
        ctx.forget()

    @contextmanager
    def _from_copies(self, row: Row, copies: dict[Value, Value]) -> Iterator[None]:
        """Inside, elements of the row are read from the copies."""
        for value, buffer in copies.items():
            self.ctx.overrides[value] = lambda at, b=buffer: self.ctx.e.load(b, (at[-1],))  # type: ignore[misc]
        yield
        for value in copies:
            del self.ctx.overrides[value]

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


def _is_extreme(stage: Stage) -> bool:
    if stage.role != "reduce":
        return False
    assert stage.value.owner is not None
    return definition_of(stage.value.owner).kind in ("max", "min")


def _told(row: Row, values: Sequence[Value]) -> list[Value]:
    return [row.here[v][1].value for v in values]


def _tell(row: Row, values: Sequence[Value], state: Sequence[Value]) -> None:
    for value, known in zip(values, state, strict=True):
        row.here[value] = ((), Scalar(known, tensor_of(value).element))


__all__ = ["lower_overlapping", "overlaps"]
