"""Splits off what depends on weights only: a *preparation*, run once, whose results the main graph takes as parameters.

Weights are parameters whose content stays the same from call to call. Layouts (`GraphOp.layout`) and arithmetic on weights
move to the preparation. Views of weights do not, since kernels read those where they lie, nor does what takes much more
room than the weights that it is made of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.dialects.graph.constants import Constant, Iota
from flambeau.compiler.dialects.graph.packing import UnpackPanels
from flambeau.compiler.dialects.graph.shape import BroadcastInDim, Reshape, Slice, Transpose
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import TensorType

#: What kernels read in place: not worth memory of its own.
VIEWS = (BroadcastInDim, Reshape, Slice, Transpose, UnpackPanels)
#: Operations that a preparation may hold, beside layouts; products and sorts of weights are left where they are.
FAMILIES = ("element", "constant", "reduce")
#: A prepared value has at most this many times its weights' bytes (a widened type has two), and SMALL bytes more.
GROWTH = 2
SMALL = 1 << 16


@dataclass(frozen=True)
class Split:
    """`main` has the old graph's parameters and then one for each result of `preparation`, whose parameters are the
    weights; None if nothing is worth preparing, and `main` is the old graph."""

    preparation: Graph | None
    main: Graph


def weight_bytes(graph: Graph, weights: Collection[Value]) -> dict[Value, int]:
    """The values that depend on at least one weight and on nothing but weights and constants, each with the number of
    bytes of the weights below it (counted as often as they are used). Passes ask here whether an operand is a weight."""
    known = {w: _bytes(w) for w in weights}
    constant: set[Value] = set()
    for operation in graph.operations:
        definition = operation.definition
        assert isinstance(definition, GraphOp)
        if not all(_static(v) for v in operation.results) or _has_symbols(definition):
            continue
        if isinstance(definition, Constant | Iota) or (
            operation.operands and all(v in constant for v in operation.operands)
        ):
            constant.update(operation.results)
            continue
        if not operation.operands or not all(v in known or v in constant for v in operation.operands):
            continue
        if definition.schedule_family in FAMILIES or definition.layout:
            total = sum(known.get(v, 0) for v in operation.operands)
            known.update(dict.fromkeys(operation.results, total))
    return known


def split_weights(graph: Graph, weights: Sequence[Value]) -> Split:
    """Cut `graph` (primitive operations) in two; `weights` are parameters of it."""
    known = weight_bytes(graph, weights)
    prepared: dict[Value, Value] = {}
    for operation in graph.operations:
        if all(r in known for r in operation.results):
            continue
        for operand in operation.operands:
            if operand in known:
                for value in _worth_keeping(operand, known):
                    prepared.setdefault(value, Value(value.type))
    if not prepared:
        return Split(None, graph)

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        if not any(r in prepared for r in operation.results):
            return None
        return [prepared.get(r, r) for r in operation.results]

    main = rebuild(graph, replace)
    parameters = [*main.parameters, *prepared.values()]
    return Split(
        Graph(tuple(weights), tuple(prepared), f"{graph.name}_weights"),
        Graph(parameters, main.results, graph.name),
    )


@dataclass(frozen=True)
class Layout:
    """Result number `result` of a preparation is parameter number `weight` in the layout that `definition` makes."""

    result: int
    weight: int
    definition: GraphOp


def separate_layouts(preparation: Graph) -> tuple[tuple[Layout, ...], Graph | None]:
    """The results that are one layout of one weight, and what computes the other results (None if there are none).

    Layouts alone can be made one at a time, be shared between functions, and (`GraphOp.inverse`) replace the weight.
    """
    numbers = {p: n for n, p in enumerate(preparation.parameters)}
    layouts = []
    for n, result in enumerate(preparation.results):
        operation = result.owner
        if operation is None or len(operation.operands) != 1 or operation.operands[0] not in numbers:
            continue
        definition = operation.definition
        assert isinstance(definition, GraphOp)
        if definition.layout:
            layouts.append(Layout(n, numbers[operation.operands[0]], definition))
    alone = {x.result for x in layouts}
    others = [r for n, r in enumerate(preparation.results) if n not in alone]
    rest = Graph(preparation.parameters, others, preparation.name) if others else None
    return tuple(layouts), rest


def _worth_keeping(value: Value, known: dict[Value, int]) -> list[Value]:
    """The values at or below `value` to be prepared."""
    found: dict[Value, None] = {}
    pending = [value]
    while pending:
        value = pending.pop()
        operation = value.owner
        if operation is None or value not in known:
            continue
        definition = operation.definition
        assert isinstance(definition, GraphOp)
        fits = _bytes(value) <= GROWTH * known[value] + SMALL
        if definition.layout or (fits and not isinstance(definition, VIEWS)):
            found[value] = None
        else:
            pending.extend(operation.operands)
    return list(found)


def _static(value: Value) -> bool:
    assert isinstance(value.type, TensorType)
    return value.type.is_static


def _has_symbols(definition: GraphOp) -> bool:
    def symbolic(attribute: object) -> bool:
        return isinstance(attribute, Dim) or (
            isinstance(attribute, tuple) and any(symbolic(part) for part in attribute)
        )

    return any(symbolic(attribute) for _, attribute in definition.attribute_items())


def _bytes(value: Value) -> int:
    assert isinstance(value.type, TensorType) and isinstance(value.type.size, int)
    return value.type.size * value.type.element.itemsize
