"""How a pass over graphs reaches the graphs that operations have as attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Graph, Operation, Value


def through_bodies(
    operation: Operation, operands: tuple[Value, ...], transform: Callable[[Graph], Graph]
) -> Sequence[Value] | None:
    """For `rebuild`: the operation's results with `transform` applied to its bodies; None if that changes nothing."""
    definition = operation.definition
    assert isinstance(definition, GraphOp)
    inside = definition.map_bodies(transform)
    if inside is definition:
        return None
    types = [r.type for r in operation.results]
    return Operation(inside, operands, types, operation._location).results
