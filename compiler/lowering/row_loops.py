"""One row of a row kernel: vector loops that compute elements and reductions.

A group's values have levels. Loop 0 of a row computes what needs no reduction; a reduction of loop 0 is known after it,
so what reads it belongs to loop 1, and so on. A softmax is three loops over a row that stays in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, minimum, of_symbol, product
from flambeau.compiler.ir.types import ElementType, i1
from flambeau.compiler.lowering.context import LoweringContext, decode, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.prefetching import gathered_position, is_distant, prefetch
from flambeau.compiler.lowering.probe import Reads, axis_symbols, probe
from flambeau.compiler.passes.fuse import RowDomain, outer_axes, position_in, role

#: Accumulators that a cheap reduction has side by side, and up to which cost of an element it counts as cheap.
CHAINS = 4
CHEAP = 6
#: At least so many steps of a reduction add up by themselves before they are added to the sum of the row.
RUN = 8
#: Bytes whose addresses the processor tells apart when it looks for stores that a load depends on.
PAGE = 4096
#: Rows that are prefetched ahead of those that are read, where data says which.
ROWS_AHEAD = 2


#: An element, a buffer, a position in it, and whether it goes past the caches.
Store = tuple[Scalar, Value, tuple[Index, ...], bool]


class Stage:
    """A value of the group: its role, its loop, what it reads."""

    def __init__(self, value: Value, what: str, reads: Reads) -> None:
        self.value, self.role, self.reads, self.level = value, what, reads, 0


def read_later(stages: Sequence[Stage], stage: Stage) -> bool:
    """Does a later loop over the row read the value?"""
    return any(
        other.level > stage.level and any(v is stage.value for v, _ in other.reads.accesses)
        for other in stages
    )


def levelled_stages(
    values: Sequence[Value], domain: RowDomain, joined: int = 1
) -> tuple[tuple[Index, ...], list[Stage]]:
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


def _stage(value: Value, domain: RowDomain, index: tuple[Index, ...], group: set[Value]) -> Stage:
    what = role(value, domain)
    assert what is not None

    def inline(v: Value) -> bool:
        return v not in group and v.owner is not None

    if what != "reduce":
        return Stage(value, what, probe(value, position_in(value, domain, index), inline))
    assert value.owner is not None
    operand = value.owner.operands[0]
    if operand in group or operand.owner is None:
        return Stage(value, what, Reads([(operand, index)], 1, True, 0))
    return Stage(value, what, probe(operand, index, inline))


def _assign_levels(stages: list[Stage], domain: RowDomain, index: tuple[Index, ...]) -> None:
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


class Row:
    """The code of one row."""

    def __init__(
        self,
        ctx: LoweringContext,
        stages: list[Stage],
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
        #: Values in large operands' rows that data chooses, and these operands.
        self.gathered: list[tuple[Value, Value]] = []

    def emit(self) -> None:
        self.activate()
        self.give_row_buffers()
        self.outer(-1)
        for level in range(max((s.level for s in self.stages), default=-1) + 1):
            self.level(level)
        self.deactivate()

    def activate(self) -> None:
        """From now on whoever reads a value of the group gets it from this row."""
        for stage in self.stages:
            self.ctx.overrides[stage.value] = self._known(stage.value)

    def deactivate(self) -> None:
        for stage in self.stages:
            del self.ctx.overrides[stage.value]

    def give_row_buffers(self) -> None:
        """Places on the stack for values that later loops read, and that are no results."""
        for stage in self.stages:
            if stage.role == "full" and stage.value not in self.results and read_later(self.stages, stage):
                self.row_buffers[stage.value] = self.stack_row(stage.value)

    def level(self, level: int) -> None:
        """One loop over the row, and what is known after it."""
        self._loop([s for s in self.stages if s.level == level and s.role != "outer"])
        self.outer(level)

    def _known(self, value: Value) -> Callable[[tuple[Index, ...]], Scalar | None]:
        def known(index: tuple[Index, ...]) -> Scalar | None:
            found = self.here.get(value)
            if found is not None and (role(value, self.domain) != "full" or found[0] == index):
                return found[1]
            if value in self.row_buffers:
                return self.ctx.e.load(self.row_buffers[value], tuple(index[a] for a in self.domain.inner))
            return None

        return known

    def stack_row(self, value: Value) -> Value:
        """Room on the stack for a row of a value."""
        sizes = [d for a in self.domain.inner if isinstance(d := self.domain.shape[a], int)]
        assert len(sizes) == len(self.domain.inner), "values kept in a row have static rows: fuse sees to it"
        element, b = tensor_of(value).element, self.ctx.b
        # A load that follows a store to an address with equal low digits waits for it. Large operands begin near the start of
        # a page, and buffers in the middle.
        middle = PAGE // 2 // element.itemsize
        room = b.alloca((math.prod(sizes) + middle,), element, PAGE)
        return b.subview(room, middle, sizes)

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

    def outer(self, level: int) -> None:
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
    def _loop(self, stages: list[Stage]) -> None:
        if not stages:
            return
        ctx = self.ctx
        reductions = [s for s in stages if s.role == "reduce"]
        last = self.inner[-1] if self.inner else 1
        straight = all(s.reads.straight for s in stages)
        lanes = ctx.lanes if straight and not (isinstance(last, int) and last < ctx.lanes) else 0
        if self.joined > 1 and isinstance(last, int) and last < ctx.lanes:
            lanes = 1 << last.bit_length() - 1
        elif lanes and ctx.target.vector_bits >= 512 and self._only_reads():
            lanes //= 2
        initial = [self.initial(s, lanes) for s in reductions]
        totals = self._nest(stages, reductions, 0, (), initial, lanes)
        for stage, total in zip(reductions, totals, strict=True):
            self.finish(stage, total, lanes)
        for stage in stages:
            if stage.role == "full":
                self.here.pop(stage.value, None)
        ctx.forget()

    def _accumulator(self, stage: Stage) -> ElementType:
        assert stage.value.owner is not None
        element: ElementType = definition_of(stage.value.owner).accumulator(tensor_of(stage.value).element)
        return element

    def initial(self, stage: Stage, lanes: int) -> Value:
        assert stage.value.owner is not None
        definition = definition_of(stage.value.owner)
        scalar = definition.init(self.ctx.e, tensor_of(stage.value).element)
        return self.ctx.b.broadcast(scalar.value, lanes) if lanes else scalar.value

    def _nest(
        self,
        stages: list[Stage],
        reductions: list[Stage],
        axis: int,
        inner: tuple[Index, ...],
        carried: Sequence[Value],
        lanes: int,
    ) -> Sequence[Value]:
        b = self.ctx.b
        if not self.inner:
            return self.element(stages, reductions, self.position(()), carried, None)
        extent = self.inner[axis]
        innermost = axis == len(self.inner) - 1
        if extent == 1:
            # Position 0, as what reads through a broadcast says it: a loop's index would not be known as the same.
            if innermost:
                return self.element(stages, reductions, self.position((*inner, 0)), carried, None)
            return self._nest(stages, reductions, axis + 1, (*inner, 0), carried, lanes)
        if not innermost:
            with b.for_(0, extent, init=carried) as loop:
                loop.yield_(
                    *self._nest(stages, reductions, axis + 1, (*inner, loop.index), loop.carried, lanes)
                )
            return loop.results
        if not lanes:
            return self._one_by_one(stages, reductions, inner, extent, carried)
        whole = extent // lanes * lanes
        start, values = self._side_by_side(stages, reductions, inner, extent, carried, lanes)
        if whole - start != 0:
            with b.for_(start, whole, lanes, init=values) as loop:
                self._prefetch((*inner, loop.index))
                with b.lanes_of(lanes) as lane:
                    out = self.element(
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

    def _one_by_one(
        self,
        stages: list[Stage],
        reductions: list[Stage],
        inner: tuple[Index, ...],
        extent: Index,
        carried: Sequence[Value],
    ) -> Sequence[Value]:
        """A row without vectors. Long sums are made in runs as long as there are runs: errors grow with the number of
        additions one after the other."""
        b = self.ctx.b

        def run(low: Index, high: Index, init: Sequence[Value]) -> Sequence[Value]:
            with b.for_(low, high, init=init) as loop:
                at = self.position((*inner, loop.index))
                loop.yield_(*self.element(stages, reductions, at, loop.carried, None))
            return loop.results

        if not reductions or isinstance(extent, Dim) or extent < RUN * RUN:
            return run(0, extent, carried)
        length = 1 << extent.bit_length() // 2
        done = extent // length * length
        fresh = [self.initial(s, 0) for s in reductions]
        with b.for_(0, done, length, init=carried) as blocks:
            block = run(blocks.index, blocks.index + length, fresh)
            blocks.yield_(*self._combined(reductions, blocks.carried, block))
        return blocks.results if done == extent else run(done, extent, blocks.results)

    def _side_by_side(
        self,
        stages: list[Stage],
        reductions: list[Stage],
        inner: tuple[Index, ...],
        extent: Index,
        carried: Sequence[Value],
        lanes: int,
    ) -> tuple[Index, Sequence[Value]]:
        """Cheap reductions with several accumulators each, since one waits for its own last sum: how far they came along
        the row, and the accumulators, combined."""
        # As many accumulators whatever the width.
        number = CHAINS * self.ctx.lanes // lanes
        step = number * lanes
        cheap = sum(s.reads.cost for s in stages) <= CHEAP
        if not reductions or not cheap or isinstance(extent, Dim) or extent < 4 * step:
            return 0, carried
        b = self.ctx.b
        fresh = [self.initial(s, lanes) for s in reductions]
        count = len(carried)
        whole = extent // step * step

        def run(low: Index, high: Index, chains: Sequence[Value]) -> Sequence[Value]:
            with b.for_(low, high, step, init=chains) as loop:
                out: list[Value] = []
                for chain in range(number):
                    place = loop.index + chain * lanes
                    with b.lanes_of(lanes) as lane:
                        before = loop.carried[chain * count : (chain + 1) * count]
                        out += self.element(
                            stages, reductions, self.position((*inner, place + lane)), before, None
                        )
                loop.yield_(*out)
            return loop.results

        chains: Sequence[Value] = [*carried, *fresh * (number - 1)]
        # Errors grow with the number of additions one after the other: runs as long as there are runs, about.
        length = step * max(RUN, 1 << (whole // step).bit_length() // 2)
        done = whole // length * length if whole > length else 0
        if done:
            with b.for_(0, done, length, init=chains) as blocks:
                block = run(blocks.index, blocks.index + length, fresh * number)
                blocks.yield_(*self._combined(reductions * number, blocks.carried, block))
            chains = blocks.results
        if whole != done:
            chains = run(done, whole, chains)
        parts = [list(chains[c * count : (c + 1) * count]) for c in range(number)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [self._combined(reductions, parts[c], parts[c + half]) for c in range(half)]
        return whole, parts[0]

    def _only_reads(self) -> bool:
        """Are these cheap reductions of operands that only memory holds? Such loads are faster if they are not as wide as a
        line of the caches: 64 M elements, not aligned to lines, sum up in 8.4 ms instead of 9.3."""
        if any(s.role == "full" or s.level > 0 for s in self.stages):
            return False
        read = [v for s in self.stages if s.role == "reduce" for v, _ in s.reads.accesses]
        return bool(read) and all(is_distant(self.ctx, v) for v in read)

    def _prefetch(self, inner: tuple[Index, ...]) -> None:
        """Elements of later rows, where data chooses them."""
        for value, operand in self.gathered:
            *outer, last = self.row
            extent = self.domain.shape[self.domain.kept[-1]]
            row, self.row = self.row, (*outer, minimum(last + ROWS_AHEAD, extent - 1))
            at = gathered_position(self.ctx, value, self.position(inner), operand)
            self.row = row
            if at is not None:
                prefetch(self.ctx, [(operand, at)], locality=2)

    def _combined(
        self, reductions: list[Stage], left: Sequence[Value], right: Sequence[Value]
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
        stages: list[Stage],
        reductions: list[Stage],
        inner: tuple[Index, ...],
        whole: Index,
        rest: Index,
        values: Sequence[Value],
        lanes: int,
    ) -> Sequence[Value]:
        b = self.ctx.b
        with b.lanes_of(lanes, rest) as lane:
            return self.element(stages, reductions, self.position((*inner, whole + lane)), values, b.mask)

    def element(
        self,
        stages: list[Stage],
        reductions: list[Stage],
        index: tuple[Index, ...],
        carried: Sequence[Value],
        mask: Value | None,
        stores: list[Store] | None = None,
    ) -> list[Value]:
        """All of a loop's values at one position (or one vector of positions); the reductions' next accumulators.

        Stores come last: a result may lie where an operand does. With `stores` they are only added to it, for later.
        """
        ctx, e = self.ctx, self.ctx.e
        later, stores = stores is not None, [] if stores is None else stores
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
        if not later:
            for store in stores:
                e.store(*store)
        return after

    def finish(self, stage: Stage, total: Value, lanes: int) -> None:
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
