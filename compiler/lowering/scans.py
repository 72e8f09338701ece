"""Loops that carry something along one axis: positions of extremes, running sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.types import i64
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar

At = Callable[[Index], tuple[Index, ...]]


@contextmanager
def _lines(
    ctx: LoweringContext, shape: tuple[Index, ...], axis: int, cost: int
) -> Iterator[tuple[tuple[Index, ...], At, bool]]:
    """For each line along `axis`: the other axes' position, and the whole index at a place on the line.

    Where the axis is not the last, a vector of neighbouring lines is done at once; the flag says so.
    """
    others = tuple(d for a, d in enumerate(shape) if a != axis)
    work = product(shape) * cost
    lanes = ctx.lanes
    last = shape[-1]
    if axis == len(shape) - 1 or (isinstance(last, int) and last < lanes):
        with ctx.rows(others, work) as row:
            yield row, lambda place: (*row[:axis], place, *row[axis:]), False
        return
    blocks = (last + lanes - 1) // lanes
    with ctx.rows((*others[:-1], blocks), work) as block:
        start = block[-1] * lanes
        whole = isinstance(last, int) and last % lanes == 0
        with ctx.b.lanes_of(lanes, None if whole else last - start) as lane:
            row = (*block[:-1], start + lane)
            yield row, lambda place: (*row[:axis], place, *row[axis:]), True


def lower_arg_reduce(ctx: LoweringContext, operation: Operation) -> None:
    """Emit argmax or argmin."""
    operand, result = operation.operands[0], operation.results[0]
    definition = definition_of(operation)
    shape, axis = tensor_of(operand).shape, definition.dimension
    b, e = ctx.b, ctx.e
    with _lines(ctx, shape, axis, 4) as (row, at, _):
        best = ctx.spread(ctx.read(operand, at(0)).value)
        where = ctx.spread(e.constant(0, i64).value)
        element = tensor_of(operand).element
        with b.for_(1, shape[axis], init=[best, where]) as loop:
            x = ctx.read(operand, at(loop.index))
            better = definition.better(e, x, Scalar(loop.carried[0], element))
            place = e.index_to_scalar(loop.index, i64)
            loop.yield_(
                ctx.spread(e.select(better, x, Scalar(loop.carried[0], element)).value),
                ctx.spread(e.select(better, place, Scalar(loop.carried[1], i64)).value),
            )
        e.store(Scalar(loop.results[1], i64), ctx.memory[result], row)


def lower_cumulative(ctx: LoweringContext, operation: Operation) -> None:
    """Emit a running reduction."""
    operand, result = operation.operands[0], operation.results[0]
    definition = definition_of(operation)
    type = tensor_of(operand)
    shape, axis = type.shape, definition.dimension
    accumulator = definition.accumulator(type.element)
    b, e = ctx.b, ctx.e
    with _lines(ctx, shape, axis, 4) as (_, at, _vector):
        start = ctx.spread(definition.init(e, type.element).value)
        with b.for_(0, shape[axis], init=[start]) as loop:
            place = shape[axis] - 1 - loop.index if definition.reverse else loop.index
            total = definition.combine(e, Scalar(loop.carried[0], accumulator), ctx.read(operand, at(place)))
            e.store(e.convert(total, type.element), ctx.memory[result], at(place))
            loop.yield_(ctx.spread(total.value))
