"""Replaces composite operations by the primitives that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.passes.bodies import through_bodies


def decompose(graph: Graph) -> Graph:
    """An equal graph in which every operation is primitive, or a composite that has a kernel of its own."""

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        definition = operation.definition
        assert isinstance(definition, GraphOp)
        if not _has_parts(operation):
            return through_bodies(operation, operands, decompose)
        values = definition.decompose(*operands)
        return (values,) if isinstance(values, Value) else tuple(values)

    while any(_has_parts(o) for o in graph.operations):
        graph = rebuild(graph, replace)
    return rebuild(graph, replace)  # bodies


def _has_parts(operation: Operation) -> bool:
    definition = operation.definition
    if not isinstance(definition, GraphOp) or not definition.is_composite:
        return False
    types = [v.type for v in operation.operands]
    return not definition.has_kernel(*[t for t in types if isinstance(t, TensorType)])


@dataclass(frozen=True)
class Decompose(Pass):
    """Replace composite operations by primitives."""

    name: ClassVar[str] = "decompose"

    def run(self, graph: Graph) -> Graph:
        return decompose(graph)
