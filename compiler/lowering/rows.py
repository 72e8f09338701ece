"""Element and row kernels: loops over rows, and inside each row vector loops that compute elements and reductions.

A group's values have levels. Loop 0 of a row computes what needs no reduction; a reduction of loop 0 is known after it,
so what reads it belongs to loop 1, and so on. A softmax is three loops over a row that stays in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flambeau.compiler.dialects.graph.base import Elementwise
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, minimum, of_symbol, product, recombine
from flambeau.compiler.ir.types import ElementType, MemRefType, i1
from flambeau.compiler.lowering.boxes import Box, box_reads, boxes_of
from flambeau.compiler.lowering.context import LoweringContext, decode, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.probe import Reads, axis_symbols, probe
from flambeau.compiler.lowering.streaming import either_way, streamed
from flambeau.compiler.lowering.transposing import crossing_of, lower_transposing
from flambeau.compiler.lowering.views import coefficient_of
from flambeau.compiler.passes.fuse import RowDomain, outer_axes, position_in, role

#: Elements of a flat element kernel that one iteration of the parallel loop computes.
BLOCK = 4096
#: Accumulators that a cheap reduction has side by side, and up to which cost of an element it counts as cheap.
CHAINS = 4
CHEAP = 6
#: Elements from which on several axes at a row's end are one loop of vectors.
SHORTEST = 4


class _Stage:
    """A value of the group: its role, its loop, what it reads."""

    def __init__(self, value: Value, what: str, reads: Reads) -> None:
        self.value, self.role, self.reads, self.level = value, what, reads, 0


def lower_rows(ctx: LoweringContext, values: Sequence[Value], domain: RowDomain, results: set[Value]) -> None:
    """Emit a group of values (operands before users) over `domain`. Those in `results` have a buffer in `ctx.memory`."""
    joined = _joined(values, domain, ctx.lanes)
    _, stages = levelled_stages(values, domain, joined)
    cost = sum(s.reads.cost + 1 for s in stages)
    sizes = tuple([domain.shape[a] for a in domain.inner])
    inner = (*sizes[: len(sizes) - joined], product(sizes[len(sizes) - joined :]))
    rows = tuple(domain.shape[a] for a in domain.kept)
    whole = bool(inner) and isinstance(inner[-1], int) and inner[-1] % ctx.lanes == 0
    full = [s.value for s in stages if s.role == "full" and s.value in results and not _read_later(stages, s)]

    def emit(past: frozenset[Value]) -> None:
        with ctx.rows(rows, product(domain.shape) * cost) as row:
            _Row(ctx, stages, domain, row, inner, results, past, joined).emit()

    either_way(ctx, streamed(ctx, full) if whole else frozenset(), emit)


def _joined(values: Sequence[Value], domain: RowDomain, lanes: int) -> int:
    """How many of a row's axes are one loop: those at its end, if the last one does not fill its vectors, and if whatever is
    read there lies on end or stays the same."""
    shape, axes = domain.shape, domain.inner
    together: list[int] = []
    for axis in reversed(range(len(shape))):
        extent = shape[axis]
        if axis not in axes or not isinstance(extent, int):
            break
        together.append(extent)
    count = len(together)
    if count < 2 or together[0] == 1 or together[0] % lanes == 0 or math.prod(together) < SHORTEST:
        return min(1, len(axes))
    index, stages = levelled_stages(values, domain, count)
    symbols = frozenset(index[-1].symbols()) if isinstance(index[-1], Dim) else frozenset()
    accesses = [access for stage in stages for access in stage.reads.accesses]
    ends = all(s.reads.straight for s in stages) and all(_on_end(v, at, symbols) for v, at in accesses)
    return count if ends else 1


def _on_end(value: Value, at: tuple[Index, ...], symbols: frozenset[Symbol]) -> bool:
    """Is the element at `at` the next one in memory, or the same, when the only one of `symbols` moves on by one?"""
    offset: Index = 0
    for extent, position in zip(tensor_of(value).shape, at, strict=True):
        offset = offset * extent + position
    return all(coefficient_of(recombine(offset), symbol) in (0, 1) for symbol in symbols)


def _read_later(stages: Sequence[_Stage], stage: _Stage) -> bool:
    """Does a later loop over the row read the value?"""
    return any(
        other.level > stage.level and any(v is stage.value for v, _ in other.reads.accesses)
        for other in stages
    )


def levelled_stages(
    values: Sequence[Value], domain: RowDomain, joined: int = 1
) -> tuple[tuple[Index, ...], list[_Stage]]:
    """A group's values with their loops, and the position in the domain that their reads refer to. The last `joined` axes
    have one symbol together."""
    group, index = set(values), axis_symbols(domain.shape)
    if joined > 1:
        sizes = domain.shape[-joined:]
        at = of_symbol(Symbol("joined", 0, product(sizes) - 1, 0))
        index = (*index[:-joined], *decode(at, sizes))
    stages = [_stage(value, domain, index, group) for value in values]
    _assign_levels(stages, domain, index)
    return index, stages


def _stage(value: Value, domain: RowDomain, index: tuple[Index, ...], group: set[Value]) -> _Stage:
    what = role(value, domain)
    assert what is not None

    def inline(v: Value) -> bool:
        return v not in group and v.owner is not None

    if what != "reduce":
        return _Stage(value, what, probe(value, position_in(value, domain, index), inline))
    assert value.owner is not None
    operand = value.owner.operands[0]
    if operand in group or operand.owner is None:
        return _Stage(value, what, Reads([(operand, index)], 1, True, 0))
    return _Stage(value, what, probe(operand, index, inline))


def _assign_levels(stages: list[_Stage], domain: RowDomain, index: tuple[Index, ...]) -> None:
    """An outer value's level is the loop after which it is computed (-1: before all)."""
    known = {s.value: s for s in stages}
    for stage in stages:
        level = -1 if stage.role == "outer" else 0
        for value, at in stage.reads.accesses:
            other = known.get(value)
            if other is None:
                continue
            if other.role == "full":
                level = max(level, other.level if at == index else other.level + 1)
            else:
                level = max(level, other.level + (stage.role != "outer"))
        stage.level = level


class _Row:
    """The code of one row."""

    def __init__(
        self,
        ctx: LoweringContext,
        stages: list[_Stage],
        domain: RowDomain,
        row: tuple[Index, ...],
        inner: tuple[Index, ...],
        results: set[Value],
        past: frozenset[Value],
        joined: int = 1,
    ) -> None:
        #: How many of the domain's axes are the row's last loop.
        self.joined = joined
        self.ctx, self.stages, self.domain, self.row, self.inner, self.results = (
            ctx,
            stages,
            domain,
            row,
            inner,
            results,
        )
        #: Results that are stored past the caches.
        self.past = past
        self.here: dict[Value, tuple[tuple[Index, ...], Scalar]] = {}
        #: Rows of values that later loops read and nobody else does.
        self.row_buffers: dict[Value, Value] = {}

    def emit(self) -> None:
        for stage in self.stages:
            self.ctx.overrides[stage.value] = self._known(stage.value)
            if stage.role == "full" and stage.value not in self.results and _read_later(self.stages, stage):
                self._give_row_buffer(stage.value)
        self._outer(-1)
        for level in range(max((s.level for s in self.stages), default=-1) + 1):
            self._loop([s for s in self.stages if s.level == level and s.role != "outer"])
            self._outer(level)
        for stage in self.stages:
            del self.ctx.overrides[stage.value]

    def _known(self, value: Value) -> Callable[[tuple[Index, ...]], Scalar | None]:
        def known(index: tuple[Index, ...]) -> Scalar | None:
            found = self.here.get(value)
            if found is not None and (role(value, self.domain) != "full" or found[0] == index):
                return found[1]
            if value in self.row_buffers:
                return self.ctx.e.load(self.row_buffers[value], tuple(index[a] for a in self.domain.inner))
            return None

        return known

    def _give_row_buffer(self, value: Value) -> None:
        sizes = [d for a in self.domain.inner if isinstance(d := self.domain.shape[a], int)]
        assert len(sizes) == len(self.domain.inner), "values kept in a row have static rows: fuse sees to it"
        self.row_buffers[value] = self.ctx.b.alloca(sizes, tensor_of(value).element)

    def position(self, inner: tuple[Index, ...]) -> tuple[Index, ...]:
        """The domain's index from the row and the position in it."""
        index: list[Index] = [0] * len(self.domain.shape)
        for axis, at in zip(self.domain.kept, self.row, strict=True):
            index[axis] = at
        if self.joined > 1:
            inner = (*inner[:-1], *decode(inner[-1], self.domain.shape[-self.joined :]))
        for axis, at in zip(self.domain.inner, inner, strict=True):
            index[axis] = at
        return tuple(index)

    def _outer(self, level: int) -> None:
        ctx = self.ctx
        zero = self.position(tuple(0 for _ in self.inner))
        for stage in self.stages:
            if stage.role != "outer" or stage.level != level:
                continue
            axes = outer_axes(tensor_of(stage.value).shape, self.domain)
            assert axes is not None
            at = tuple(0 if a is None else zero[a] for a in axes)
            scalar = ctx.compute(stage.value, at)
            self.here[stage.value] = (at, scalar)
            if stage.value in self.results:
                ctx.e.store(scalar, ctx.memory[stage.value], at)

    # -- one loop over the row -----------------------------------------------------------------------------------------
    def _loop(self, stages: list[_Stage]) -> None:
        if not stages:
            return
        ctx = self.ctx
        reductions = [s for s in stages if s.role == "reduce"]
        last = self.inner[-1] if self.inner else 1
        straight = all(s.reads.straight for s in stages)
        lanes = ctx.lanes if straight and not (isinstance(last, int) and last < ctx.lanes) else 0
        if self.joined > 1 and isinstance(last, int) and last < ctx.lanes:
            lanes = 1 << last.bit_length() - 1
        initial = [self._initial(s, lanes) for s in reductions]
        totals = self._nest(stages, reductions, 0, (), initial, lanes)
        for stage, total in zip(reductions, totals, strict=True):
            self._finish(stage, total, lanes)
        for stage in stages:
            if stage.role == "full":
                self.here.pop(stage.value, None)
        ctx.forget()

    def _accumulator(self, stage: _Stage) -> ElementType:
        assert stage.value.owner is not None
        element: ElementType = definition_of(stage.value.owner).accumulator(tensor_of(stage.value).element)
        return element

    def _initial(self, stage: _Stage, lanes: int) -> Value:
        assert stage.value.owner is not None
        definition = definition_of(stage.value.owner)
        scalar = definition.init(self.ctx.e, tensor_of(stage.value).element)
        return self.ctx.b.broadcast(scalar.value, lanes) if lanes else scalar.value

    def _nest(
        self,
        stages: list[_Stage],
        reductions: list[_Stage],
        axis: int,
        inner: tuple[Index, ...],
        carried: Sequence[Value],
        lanes: int,
    ) -> Sequence[Value]:
        b = self.ctx.b
        if not self.inner:
            return self._element(stages, reductions, self.position(()), carried, None)
        extent = self.inner[axis]
        innermost = axis == len(self.inner) - 1
        if extent == 1:
            # Position 0, as what reads through a broadcast says it: a loop's index would not be known as the same.
            if innermost:
                return self._element(stages, reductions, self.position((*inner, 0)), carried, None)
            return self._nest(stages, reductions, axis + 1, (*inner, 0), carried, lanes)
        if not innermost:
            with b.for_(0, extent, init=carried) as loop:
                loop.yield_(
                    *self._nest(stages, reductions, axis + 1, (*inner, loop.index), loop.carried, lanes)
                )
            return loop.results
        if not lanes:
            with b.for_(0, extent, init=carried) as loop:
                at = self.position((*inner, loop.index))
                loop.yield_(*self._element(stages, reductions, at, loop.carried, None))
            return loop.results
        whole = extent // lanes * lanes
        start, values = self._side_by_side(stages, reductions, inner, extent, carried, lanes)
        if whole - start != 0:
            with b.for_(start, whole, lanes, init=values) as loop:
                with b.lanes_of(lanes) as lane:
                    out = self._element(
                        stages, reductions, self.position((*inner, loop.index + lane)), loop.carried, None
                    )
                loop.yield_(*out)
            values = loop.results
        rest = extent - whole
        if rest == 0:
            return values
        if isinstance(rest, int):
            return self._tail(stages, reductions, inner, whole, rest, values, lanes)
        done = b.icmp("sgt", b.index(rest), b.index(0))
        return (
            b.if_(
                done,
                lambda: self._tail(stages, reductions, inner, whole, rest, values, lanes),
                lambda: list(values),
            )
            if values
            else b.if_(done, lambda: self._tail(stages, reductions, inner, whole, rest, values, lanes))
        )

    def _side_by_side(
        self,
        stages: list[_Stage],
        reductions: list[_Stage],
        inner: tuple[Index, ...],
        extent: Index,
        carried: Sequence[Value],
        lanes: int,
    ) -> tuple[Index, Sequence[Value]]:
        """Cheap reductions with several accumulators each, since one waits for its own last sum: how far they came along
        the row, and the accumulators, combined."""
        step = CHAINS * lanes
        cheap = sum(s.reads.cost for s in stages) <= CHEAP
        if not reductions or not cheap or isinstance(extent, Dim) or extent < 4 * step:
            return 0, carried
        b = self.ctx.b
        fresh = [self._initial(s, lanes) for s in reductions]
        count = len(carried)
        whole = extent // step * step
        with b.for_(0, whole, step, init=[*carried, *fresh * (CHAINS - 1)]) as loop:
            out: list[Value] = []
            for chain in range(CHAINS):
                with b.lanes_of(lanes) as lane:
                    at = self.position((*inner, loop.index + chain * lanes + lane))
                    before = loop.carried[chain * count : (chain + 1) * count]
                    out += self._element(stages, reductions, at, before, None)
            loop.yield_(*out)
        chains = [list(loop.results[c * count : (c + 1) * count]) for c in range(CHAINS)]
        while len(chains) > 1:
            half = len(chains) // 2
            chains = [self._combined(reductions, chains[c], chains[c + half]) for c in range(half)]
        return whole, chains[0]

    def _combined(
        self, reductions: list[_Stage], left: Sequence[Value], right: Sequence[Value]
    ) -> list[Value]:
        combined = []
        for stage, x, y in zip(reductions, left, right, strict=True):
            assert stage.value.owner is not None
            element = self._accumulator(stage)
            scalar = definition_of(stage.value.owner).combine(
                self.ctx.e, Scalar(x, element), Scalar(y, element)
            )
            combined.append(self.ctx.spread(scalar.value))
        return combined

    def _tail(
        self,
        stages: list[_Stage],
        reductions: list[_Stage],
        inner: tuple[Index, ...],
        whole: Index,
        rest: Index,
        values: Sequence[Value],
        lanes: int,
    ) -> Sequence[Value]:
        b = self.ctx.b
        with b.lanes_of(lanes, rest) as lane:
            return self._element(stages, reductions, self.position((*inner, whole + lane)), values, b.mask)

    def _element(
        self,
        stages: list[_Stage],
        reductions: list[_Stage],
        index: tuple[Index, ...],
        carried: Sequence[Value],
        mask: Value | None,
    ) -> list[Value]:
        """All of a loop's values at one position (or one vector of positions); the reductions' next accumulators.

        Stores come last: a result may lie where an operand does.
        """
        ctx, e = self.ctx, self.ctx.e
        stores: list[tuple[Scalar, Value, tuple[Index, ...], bool]] = []
        before = dict(zip([s.value for s in reductions], carried, strict=True))
        after: list[Value] = []
        for stage in stages:
            if stage.role == "full":
                scalar = ctx.compute(stage.value, index)
                self.here[stage.value] = (index, scalar)
                if stage.value in self.results:
                    stores.append((scalar, ctx.memory[stage.value], index, stage.value in self.past))
                elif stage.value in self.row_buffers:
                    at = tuple(index[a] for a in self.domain.inner)
                    stores.append((scalar, self.row_buffers[stage.value], at, False))
                continue
            assert stage.value.owner is not None
            element = self._accumulator(stage)
            total = Scalar(before[stage.value], element)
            x = ctx.read(stage.value.owner.operands[0], index)
            with ctx.b.fast("reassoc", "contract"):
                following = definition_of(stage.value.owner).combine(e, total, x)
            value = following.value if mask is None else e.select(Scalar(mask, i1), following, total).value
            after.append(ctx.spread(value))
        for scalar, buffer, at, past in stores:
            e.store(scalar, buffer, at, past)
        return after

    def _finish(self, stage: _Stage, total: Value, lanes: int) -> None:
        """Combine the lanes, convert, keep and store the reduction's result."""
        ctx, e = self.ctx, self.ctx.e
        assert stage.value.owner is not None
        definition = definition_of(stage.value.owner)
        element = self._accumulator(stage)
        scalar = combine_lanes(ctx, definition, Scalar(total, element), lanes)
        scalar = e.convert(scalar, tensor_of(stage.value).element)
        at = position_in(stage.value, self.domain, self.position(tuple(0 for _ in self.inner)))
        self.here[stage.value] = (at, scalar)
        if stage.value in self.results:
            e.store(scalar, ctx.memory[stage.value], at)


def combine_lanes(ctx: LoweringContext, definition: object, total: Scalar, lanes: int) -> Scalar:
    """The reduction of a vector's lanes, by halves, so that the order does not depend on anything."""
    if not lanes:
        return total
    parts = [Scalar(ctx.b.extract(total.value, i), total.element) for i in range(lanes)]
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [definition.combine(ctx.e, parts[i], parts[i + half]) for i in range(half)]  # type: ignore[attr-defined]
    return parts[0]


def lower_elements(ctx: LoweringContext, values: Sequence[Value], results: set[Value]) -> None:
    """Emit elementwise results of one shape: flat where every index is only passed through, in boxes where operands end
    inside, in squares where they lie across, else row by row."""
    shape = tensor_of(values[0]).shape
    group = set(values)
    if len(shape) == 0:
        for value in values:
            scalar = ctx.compute(value, ())
            ctx.overrides[value] = lambda index, s=scalar: s  # type: ignore[misc]
            if value in results:
                ctx.e.store(scalar, ctx.memory[value], ())
        return
    if len(shape) > 1 and all(_flat(value, shape) for value in values):
        _lower_flat(ctx, values, shape, results)
        return
    boxes = boxes_of(values, group)
    if boxes is not None:
        for box in boxes:
            _lower_box(ctx, values, box, results)
        return
    if len(shape) == 1:
        _lower_flat(ctx, values, shape, results)
        return
    crossing = crossing_of(ctx, values)
    if crossing is not None:
        lower_transposing(ctx, values, crossing, results)
        return
    lower_rows(ctx, values, RowDomain(shape, (len(shape) - 1,)), results)


def _flat(value: Value, shape: tuple[Index, ...]) -> bool:
    """Does `value` depend on elements at its own position only, through operations that pass the index on?"""
    pending, seen = [(value, shape)], set[Value]()
    while pending:
        value, wanted = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        here = tensor_of(value).shape
        if value.owner is None:
            if here not in (wanted, ()):
                return False
            continue
        operands = value.owner.operands
        if here != wanted:
            # A scalar that is computed here from anything but scalars reads a buffer at an index of its own.
            if here != ():
                return False
            pending.extend((v, ()) for v in operands)
            continue
        scalars = operands and all(tensor_of(v).shape == () for v in operands)
        if not isinstance(value.owner.definition, Elementwise) and not (
            scalars and value.owner.name == "graph.broadcast_in_dim"
        ):
            return False
        pending.extend((v, wanted) for v in operands)
    return True


def _lower_flat(
    ctx: LoweringContext, values: Sequence[Value], shape: tuple[Index, ...], results: set[Value]
) -> None:
    """One loop over all elements, in blocks that threads share."""
    size = product(shape)
    rank = len(shape)
    b = ctx.b
    if rank > 1:
        for value, buffer in list(ctx.memory.items()):
            assert isinstance(buffer.type, MemRefType)
            if buffer.type.rank > 1:
                ctx.memory[value] = b.flat(buffer)
    index = (0 if size == 1 else of_symbol(Symbol("i", 0, size - 1, 0)),)

    group = set(values)

    def inline(v: Value) -> bool:
        # Values of the kernel are computed one after the other, also those that get no memory.
        return v.owner is not None and v not in ctx.memory and v not in group

    probes = [probe(v, index, inline) for v in values]
    cost = sum(p.cost + 1 for p in probes)
    lanes = ctx.lanes if all(p.straight for p in probes) else 0
    stages = [_Stage(v, "full", p) for v, p in zip(values, probes, strict=True)]
    small = isinstance(size, int) and size * cost < 1 << 16
    domain = RowDomain((1, size), (1,))
    if small:
        _FlatRow(ctx, stages, domain, 0, size, lanes, results, frozenset()).emit()
        return

    def emit(past: frozenset[Value]) -> None:
        with b.parallel((size + BLOCK - 1) // BLOCK) as loop:
            start = loop.index * BLOCK
            extent = BLOCK if isinstance(size, int) and size % BLOCK == 0 else minimum(size - start, BLOCK)
            _FlatRow(ctx, stages, domain, start, extent, lanes, results, past).emit()

    either_way(ctx, streamed(ctx, [v for v in values if v in results]) if lanes else frozenset(), emit)


def _lower_box(ctx: LoweringContext, values: Sequence[Value], box: Box, results: set[Value]) -> None:
    """The elements in one box of elementwise results."""
    stages = [_Stage(v, "full", box_reads(v, box, set(values))) for v in values]
    starts = tuple([low for low, _ in box])
    extents = tuple([high - low for low, high in box])
    domain = RowDomain(extents, (len(box) - 1,))
    cost = sum(s.reads.cost + 1 for s in stages)
    with ctx.rows(extents[:-1], product(extents) * cost) as row:
        _BoxRow(ctx, stages, domain, row, extents[-1:], results, starts).emit()


class _BoxRow(_Row):
    """A row of a box, which begins at `starts`."""

    def __init__(
        self,
        ctx: LoweringContext,
        stages: list[_Stage],
        domain: RowDomain,
        row: tuple[Index, ...],
        inner: tuple[Index, ...],
        results: set[Value],
        starts: tuple[Index, ...],
    ) -> None:
        super().__init__(ctx, stages, domain, row, inner, results, frozenset())
        self.starts = starts

    def emit(self) -> None:
        for stage in self.stages:
            self.ctx.overrides[stage.value] = here_only(self, stage.value)
        self._loop(self.stages)
        for stage in self.stages:
            del self.ctx.overrides[stage.value]

    def position(self, inner: tuple[Index, ...]) -> tuple[Index, ...]:
        return tuple([low + at for low, at in zip(self.starts, super().position(inner), strict=True)])


def here_only(row: _Row, value: Value) -> Callable[[tuple[Index, ...]], Scalar | None]:
    """What is known of a value: the element that was computed last."""

    def known(index: tuple[Index, ...]) -> Scalar | None:
        found = row.here.get(value)
        return found[1] if found is not None and found[0] == index else None

    return known


class _FlatRow(_Row):
    """A block of a flat loop: position i is element `start + i`."""

    def __init__(
        self,
        ctx: LoweringContext,
        stages: list[_Stage],
        domain: RowDomain,
        start: Index,
        extent: Index,
        lanes: int,
        results: set[Value],
        past: frozenset[Value],
    ) -> None:
        super().__init__(ctx, stages, domain, (0,), (extent,), results, past)
        self.start = start

    def emit(self) -> None:
        for stage in self.stages:
            self.ctx.overrides[stage.value] = here_only(self, stage.value)
        self._loop(self.stages)
        for stage in self.stages:
            del self.ctx.overrides[stage.value]

    def position(self, inner: tuple[Index, ...]) -> tuple[Index, ...]:
        return (self.start + inner[0],)
