"""Reductions that keep the last axis: each vector of neighbouring columns has its sums in registers."""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.probe import axis_symbols, probe
from flambeau.compiler.passes.fuse import reduced_axes


def lower_columns(ctx: LoweringContext, operation: Operation) -> None:
    """Emit a reduction over axes other than the last."""
    operand, result = operation.operands[0], operation.results[0]
    shape, axes = tensor_of(operand).shape, reduced_axes(operation)
    kept = tuple(a for a in range(len(shape)) if a not in axes)
    cost, straight = 1, True
    if operand not in ctx.memory:
        reads = probe(operand, axis_symbols(shape), lambda v: v.owner is not None and v not in ctx.memory)
        cost, straight = reads.cost + 1, reads.straight
    last = shape[kept[-1]]
    lanes = ctx.lanes if straight and not (isinstance(last, int) and last == 1) else 0
    # Four vectors of columns at once use whole cache lines of each row and hide the additions' latency.
    wide = 4 if lanes and not (isinstance(last, int) and last < 4 * lanes) else 1
    step = max(lanes, 1) * wide
    blocks = (last + step - 1) // step
    element = tensor_of(result).element
    definition = definition_of(operation)
    accumulator = definition.accumulator(element)
    b, e = ctx.b, ctx.e

    def column(outer: tuple[Index, ...], first: Index, count: int) -> None:
        """`count` vectors (or one element) of columns from `first`."""
        initial = definition.init(e, element).value
        starts = [first + v * lanes for v in range(count)]
        values: Sequence[Value] = [b.broadcast(initial, lanes) if lanes else initial] * count

        def at(reduced: tuple[Index, ...], place: Index) -> tuple[Index, ...]:
            index: list[Index] = [0] * len(shape)
            for axis, position in zip(kept, (*outer, place), strict=True):
                index[axis] = position
            for axis, position in zip(axes, reduced, strict=True):
                index[axis] = position
            return tuple(index)

        def combine(reduced: tuple[Index, ...], place: Index, total: Value) -> Value:
            x = ctx.read(operand, at(reduced, place))
            with b.fast("reassoc", "contract"):
                return ctx.spread(definition.combine(e, Scalar(total, accumulator), x).value)

        def step_all(reduced: tuple[Index, ...], totals: Sequence[Value]) -> list[Value]:
            if not lanes:
                return [combine(reduced, first, totals[0])]
            out = []
            for start, total in zip(starts, totals, strict=True):
                with b.lanes_of(lanes, _count(start, last, lanes)) as lane:
                    out.append(combine(reduced, start + lane, total))
            return out

        def nest(axis: int, reduced: tuple[Index, ...], totals: Sequence[Value]) -> Sequence[Value]:
            if axis == len(axes):
                return step_all(reduced, totals)
            with b.for_(0, shape[axes[axis]], init=totals) as loop:
                loop.yield_(*nest(axis + 1, (*reduced, loop.index), loop.carried))
            return loop.results

        totals = nest(0, (), values)
        buffer = ctx.memory[result]
        keep = len(tensor_of(result).shape) == len(shape)

        def store(total: Value, place: Index) -> None:
            full = at(tuple(0 for _ in axes), place)
            index = full if keep else tuple(full[a] for a in kept)
            e.store(e.convert(Scalar(total, accumulator), element), buffer, index)

        if not lanes:
            store(totals[0], first)
            return
        for start, total in zip(starts, totals, strict=True):
            with b.lanes_of(lanes, _count(start, last, lanes)) as lane:
                store(total, start + lane)

    outer_shape = tuple(shape[a] for a in kept[:-1])
    with ctx.rows((*outer_shape, blocks), product(shape) * cost) as position:
        column(position[:-1], position[-1] * step, wide)


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
