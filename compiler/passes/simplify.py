"""Folds operations by their own rules, computes what is constant, and shares equal operations. Dead code falls away
because a graph consists of what its results need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.dialects.graph.constants import Constant, Literal
from flambeau.compiler.ir.core import Graph, Operation, Value, infer_types, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.ir.types import TensorType

#: Constants larger than this are not computed at compile time: the result would only take up room in the executable.
LARGEST = 1 << 12


def simplify(graph: Graph) -> Graph:
    """An equal graph with fewer or cheaper operations."""
    known: dict[tuple[Any, ...], Sequence[Value]] = {}

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value]:
        assert isinstance(operation.definition, GraphOp)
        definition = operation.definition.map_bodies(simplify)
        for _ in range(8):  # a fold may give something that folds again
            key = (definition, operands)
            found = known.get(key)
            if found is not None:
                return found
            folded = definition.fold(*operands)
            if folded is None:
                folded = _computed(definition, operands)
            if folded is None:
                break
            values = (folded,) if isinstance(folded, Value) else tuple(folded)
            fresh = values[0].owner
            if (
                len(values) > 1
                or fresh is None
                or fresh.results[0] is not values[0]
                or not _new(values[0], operands)
            ):
                known[key] = values
                return values
            assert isinstance(fresh.definition, GraphOp)
            known_before = known.get((fresh.definition, fresh.operands))
            if known_before is not None:
                return known_before
            definition, operands = fresh.definition, fresh.operands
        types = [r.type for r in operation.results]
        if definition is not operation.definition or any(
            a.type is not b.type for a, b in zip(operands, operation.operands, strict=False)
        ):
            types = list(infer_types(definition, tuple([v.type for v in operands])))
        if definition is operation.definition and operands == operation.operands:
            made: Sequence[Value] = operation.results
        else:
            made = Operation(definition, operands, types, operation._location).results
        known[(definition, operands)] = made
        return made

    return rebuild(graph, replace)


def _new(value: Value, operands: tuple[Value, ...]) -> bool:
    """Did the fold make `value`'s operation, rather than return something that was there?"""
    return value not in operands and all(value is not v for v in operands)


def _computed(definition: GraphOp, operands: tuple[Value, ...]) -> Value | None:
    """The constant that an operation on constants is."""
    if not operands or isinstance(definition, Constant):
        return None
    arrays = []
    for operand in operands:
        owner = operand.owner
        if owner is None or not isinstance(owner.definition, Constant):
            return None
        arrays.append(owner.definition.literal.array)
    types = infer_types(definition, tuple([v.type for v in operands]))
    if len(types) != 1:
        return None
    type = types[0]
    assert isinstance(type, TensorType)
    if not type.is_static or not isinstance(type.size, int) or type.size > LARGEST:
        return None
    with np.errstate(all="ignore"):
        result = np.asarray(definition.reference(*arrays)).astype(type.element.numpy)
    return Operation(Constant(Literal(result, type.element)), (), (type,), None).results[0]


@dataclass(frozen=True)
class Simplify(Pass):
    """Fold, compute constants, share equal operations."""

    name: ClassVar[str] = "simplify"

    def run(self, graph: Graph) -> Graph:
        return simplify(graph)
