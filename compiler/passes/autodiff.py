"""Reverse-mode differentiation of graphs (Griewank & Walther, Evaluating Derivatives, 2008, chapter 3).

The derivative is made of graph operations, so differentiating it again gives derivatives of any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flambeau.compiler.diagnostics import NotDifferentiableError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable
from flambeau.compiler.ir.core import Operation, Value, topological
from flambeau.compiler.ir.types import TensorType


def vjp(
    results: Sequence[Value],
    wrt: Sequence[Value],
    cotangents: Sequence[Value | None],
    needs: Callable[[Value], bool] | None = None,
) -> list[Value | None]:
    """Gradients, with respect to `wrt`, of the sum of the products of `results` and `cotangents`.

    Walks back from `results` along paths that lead to a value of `wrt`; None where there is no such path, or only ones
    through operations whose derivative is zero. `needs(value)` may stop the walk at values through which no derivative
    shall flow. A value of `wrt` may depend on another. A cotangent of None is zero. Raises NotDifferentiableError, with
    the user's location, where a path crosses an operation without a derivative.
    """
    for result, cotangent in zip(results, cotangents, strict=True):
        if cotangent is not None and cotangent.type is not result.type:
            raise NotDifferentiableError(
                f"the cotangent of a {result.type} must have its type, got {cotangent.type}"
            )
    order = topological(results, set())
    active = _active(order, wrt, needs)
    totals: dict[Value, Value] = {}

    def accumulate(value: Value, cotangent: Value) -> None:
        known = totals.get(value)
        totals[value] = cotangent if known is None else build.add(known, cotangent)

    for result, cotangent in zip(results, cotangents, strict=True):
        if cotangent is not None and result in active:
            accumulate(result, cotangent)
    for operation in reversed(order):
        arriving = [totals.get(r) if r in active else None for r in operation.results]
        if all(c is None for c in arriving) or not any(v in active for v in operation.operands):
            continue
        for value, cotangent in zip(operation.operands, _gradient(operation, arriving), strict=True):
            if cotangent is not None and value in active:
                accumulate(value, cotangent)
    return [totals.get(v) for v in wrt]


def _active(
    order: Sequence[Operation], wrt: Sequence[Value], needs: Callable[[Value], bool] | None
) -> set[Value]:
    """Float values on a path from a value of `wrt`, these included."""
    active = {v for v in wrt if _is_float(v)}
    for operation in order:
        if not any(v in active for v in operation.operands):
            continue
        rule = getattr(operation.definition, "vjp", None)
        if isinstance(rule, NotDifferentiable) and rule.zero:
            continue
        active.update([r for r in operation.results if _is_float(r) and (needs is None or needs(r))])
    return active


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.element.is_float


def _gradient(operation: Operation, cotangents: Sequence[Value | None]) -> tuple[Value | None, ...]:
    definition = operation.definition
    if not isinstance(definition, GraphOp):
        raise NotDifferentiableError(
            f"{definition.name} is not an operation of the graph level", operation.location
        )
    try:
        found = definition.gradient(cotangents, operation.operands, operation.results)
    except NotDifferentiableError as error:
        if error.location is not None or operation.location is None:
            raise
        raise NotDifferentiableError(error.message, operation.location) from None
    if len(found) != len(operation.operands):
        raise NotDifferentiableError(
            f"{definition.name}: its vjp gives {len(found)} cotangents for {len(operation.operands)} operands",
            operation.location,
        )
    for value, cotangent in zip(operation.operands, found):
        if cotangent is not None and cotangent.type is not value.type:
            raise NotDifferentiableError(
                f"{definition.name}: its vjp gives a cotangent of {cotangent.type} for an operand of {value.type}",
                operation.location,
            )
    return found
