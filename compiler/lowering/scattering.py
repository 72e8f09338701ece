"""Scatter kernels: the operand is copied, then updates go in one after the other, so equal indices have an order.

Threads share the axes that no index tensor addresses; along these, updates never meet.
"""

from __future__ import annotations

from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.probe import Accessor


def lower_scatter(ctx: LoweringContext, operation: Operation) -> None:
    """Emit a scatter."""
    operand, updates, *indices = operation.operands
    result = operation.results[0]
    definition = definition_of(operation)
    shape, parts = tensor_of(operand).shape, tensor_of(updates).shape
    e = ctx.e
    target = ctx.memory[result]
    with ctx.rows(shape, product(shape)) as index:
        e.store(ctx.read(operand, index), target, index)
    ctx.forget()
    first = definition.position
    count = len(tensor_of(indices[0]).shape) if indices else 0
    serial = parts[first : first + count]
    free = (*parts[:first], *parts[first + count :])
    accessors = [Accessor(v, ctx.read) for v in indices]
    with ctx.rows(free, product(parts) * 4) as outside:

        def update(inside: tuple[Index, ...]) -> None:
            at = (*outside[:first], *inside, *outside[first:])
            place = definition.source(e, at, shape, accessors)
            value = definition.combine(e, e.load(target, place), ctx.read(updates, at))
            e.store(value, target, place)

        ctx.nest(serial, update)
    ctx.forget()
