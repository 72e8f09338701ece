"""Elementwise kernels: flat loops, rows, boxes in which operands end, squares that lie across."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Elementwise
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, Symbol, minimum, of_symbol, product
from flambeau.compiler.ir.types import MemRefType
from flambeau.compiler.lowering.boxes import Box, box_reads, boxes_of
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.probe import probe
from flambeau.compiler.lowering.row_loops import Row, Stage
from flambeau.compiler.lowering.rows import lower_rows
from flambeau.compiler.lowering.streaming import either_way, streamed
from flambeau.compiler.lowering.transposing import crossing_of, lower_transposing
from flambeau.compiler.passes.fuse import RowDomain

#: Elements of a flat kernel that one iteration of the parallel loop computes.
BLOCK = 4096


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
    size, b = product(shape), ctx.b
    if len(shape) > 1:
        for value, buffer in list(ctx.memory.items()):
            assert isinstance(buffer.type, MemRefType)
            if buffer.type.rank > 1:
                ctx.memory[value] = b.flat(buffer)
    index = (0 if size == 1 else of_symbol(Symbol("i", 0, size - 1, 0)),)

    group = set(values)

    def inline(v: Value) -> bool:
        # Values of the kernel are computed one after the other, also those that get no memory.
        return v.owner is not None and v not in ctx.memory and v not in group

    with _scalars(ctx, values):
        _lower_blocks(ctx, values, index, inline, results)


@contextmanager
def _scalars(ctx: LoweringContext, values: Sequence[Value]) -> Iterator[None]:
    """Inside, what the values compute from single numbers is known, computed here once."""
    found: list[Value] = []
    pending, seen = list(values), set(values)
    while pending:
        value = pending.pop()
        for operand in value.owner.operands if value.owner is not None else ():
            if operand in seen:
                continue
            seen.add(operand)
            if tensor_of(operand).shape != ():
                pending.append(operand)
            elif (
                operand.owner is not None and operand not in ctx.memory and build.splat_value(operand) is None
            ):
                found.append(operand)
    with ExitStack() as known:
        for value in found:
            known.enter_context(ctx.known(value, (), ctx.compute(value, ())))
        yield


def _lower_blocks(
    ctx: LoweringContext,
    values: Sequence[Value],
    index: tuple[Index, ...],
    inline: Callable[[Value], bool],
    results: set[Value],
) -> None:
    """The loop of `_lower_flat`. `index`: of a position in it."""
    b = ctx.b
    size = product(tensor_of(values[0]).shape)
    probes = [probe(v, index, inline) for v in values]
    cost = sum(p.cost + 1 for p in probes)
    lanes = ctx.lanes if all(p.straight for p in probes) else 0
    stages = [Stage(v, "full", p) for v, p in zip(values, probes, strict=True)]
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
    stages = [Stage(v, "full", box_reads(v, box, set(values))) for v in values]
    starts = tuple([low for low, _ in box])
    extents = tuple([high - low for low, high in box])
    domain = RowDomain(extents, (len(box) - 1,))
    cost = sum(s.reads.cost + 1 for s in stages)
    with ctx.rows(extents[:-1], product(extents) * cost) as row:
        _BoxRow(ctx, stages, domain, row, extents[-1:], results, starts).emit()


class _Elements(Row):
    """Elementwise values only: one loop, in which a value is known where it was just computed."""

    def emit(self) -> None:
        for stage in self.stages:
            self.ctx.overrides[stage.value] = self._here_only(stage.value)
        self._loop(self.stages)
        for stage in self.stages:
            del self.ctx.overrides[stage.value]

    def _here_only(self, value: Value) -> Callable[[tuple[Index, ...]], Scalar | None]:
        def known(index: tuple[Index, ...]) -> Scalar | None:
            found = self.here.get(value)
            return found[1] if found is not None and found[0] == index else None

        return known


class _BoxRow(_Elements):
    """A row of a box, which begins at `starts`."""

    def __init__(
        self,
        ctx: LoweringContext,
        stages: list[Stage],
        domain: RowDomain,
        row: tuple[Index, ...],
        inner: tuple[Index, ...],
        results: set[Value],
        starts: tuple[Index, ...],
    ) -> None:
        super().__init__(ctx, stages, domain, row, inner, results, frozenset())
        self.starts = starts

    def position(self, inner: tuple[Index, ...]) -> tuple[Index, ...]:
        return tuple([low + at for low, at in zip(self.starts, super().position(inner), strict=True)])


class _FlatRow(_Elements):
    """A block of a flat loop: position i is element `start + i`."""

    def __init__(
        self,
        ctx: LoweringContext,
        stages: list[Stage],
        domain: RowDomain,
        start: Index,
        extent: Index,
        lanes: int,
        results: set[Value],
        past: frozenset[Value],
    ) -> None:
        super().__init__(ctx, stages, domain, (0,), (extent,), results, past)
        self.start = start

    def position(self, inner: tuple[Index, ...]) -> tuple[Index, ...]:
        return (self.start + inner[0],)
