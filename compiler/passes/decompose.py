"""Replaces composite operations by the primitives that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.passes.bodies import through_bodies


def decompose(graph: Graph) -> Graph:
    """An equal graph in which every operation is primitive."""

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        definition = operation.definition
        assert isinstance(definition, GraphOp)
        if not definition.is_composite:
            return through_bodies(operation, operands, decompose)
        values = definition.decompose(*operands)
        return (values,) if isinstance(values, Value) else tuple(values)

    while any(o.definition.is_composite for o in graph.operations if isinstance(o.definition, GraphOp)):
        graph = rebuild(graph, replace)
    return rebuild(graph, replace)  # bodies


@dataclass(frozen=True)
class Decompose(Pass):
    """Replace composite operations by primitives."""

    name: ClassVar[str] = "decompose"

    def run(self, graph: Graph) -> Graph:
        return decompose(graph)
