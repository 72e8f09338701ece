"""Gives weights the layout in which contractions read them without packing: a `graph.pack_panels` before each, which
`split_weights` then moves to the preparation."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.indexing import Gather
from flambeau.compiler.dialects.graph.packing import PackPanels, UnpackPanels
from flambeau.compiler.dialects.graph.shape import Transpose
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.passes.split_weights import weight_bytes
from flambeau.compiler.schedule.cpu_contraction import cpu_shape, panel_width
from flambeau.compiler.targets.dots import dot_instruction
from flambeau.compiler.targets.machine import TargetDescription

#: A gather reads panels if they have at least this many times the elements that it reads.
PART = 8


def pack_weights(
    graph: Graph, weights: Collection[Value], target: TargetDescription, repeated: bool = False
) -> Graph:
    """An equal graph in which matrix products read weights on their right side from panels, where that pays on `target`.
    `repeated`: the graph runs many times for each packing, which then counts for nothing."""
    known = weight_bytes(graph, weights)
    cpu = cpu_shape(target)
    packed: dict[tuple[PackPanels, Value], Value] = {}

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        definition = operation.definition
        if not isinstance(definition, DotGeneral):
            return None
        left, right = operation.operands
        if right not in known or left in known:
            return None
        lhs, rhs = (_type(v) for v in operation.operands)
        d = definition.contraction(lhs, rhs)
        assert d.rhs_axes is not None
        dot = dot_instruction(lhs.element, rhs.element, target)
        if rhs.element is not d.accumulator and dot is None:
            return None
        transposed = not repeated and not d.batch and _innermost(right) in d.rhs_axes[2]
        width = panel_width(d.m, d.n, d.k, d.accumulator, cpu, dot is not None, transposed)
        if width == 0:
            return None
        if repeated and dot is None:
            # Few rows meet each panel, which three vectors of columns make too large for L1: a step of an LSTM takes 2 % longer.
            width = min(width, 2 * cpu.vector_bits // d.accumulator.bits)
        group, flip = (1, False) if dot is None else (dot.group, dot.correction != 0)
        layout = PackPanels(*d.rhs_axes, width, group, flip)
        panels = packed.get((layout, right))
        if panels is None:
            panels = packed[layout, right] = _laid_out(layout, operands[1])
        unpacked = apply(UnpackPanels(*d.rhs_axes, width, rhs.shape, group, flip), panels)
        return (apply(definition, operands[0], unpacked),)

    return rebuild(graph, replace)


def _innermost(x: Value) -> int | None:
    """The axis of a weight, or of one transposed, along which its elements are neighbours in memory; None of other values."""
    axis = _type(x).rank - 1
    permutations = []
    while x.owner is not None:
        if not isinstance(x.owner.definition, Transpose):
            return None
        permutations.append(x.owner.definition.permutation)
        (x,) = x.owner.operands
    for permutation in reversed(permutations):
        axis = permutation.index(axis)
    return axis


def _laid_out(layout: PackPanels, x: Value) -> Value:
    """x in panels, of a weight itself where x is a transposed one: then another function may have the same panels."""
    panels = apply(layout, x)
    while (folded := layout.fold(x)) is not None and isinstance(folded.owner, Operation):
        panels = folded
        if not isinstance(folded.owner.definition, PackPanels):
            break
        layout, (x,) = folded.owner.definition, folded.owner.operands
    return panels


def read_from_panels(graph: Graph, weights: Collection[Value]) -> Graph:
    """An equal graph in which gathers read the panels of a weight that products read from panels: a table of embeddings
    that is the last layer's matrix too. Then nobody reads the weight itself, and its memory need not be kept."""
    panels: dict[Value, Value] = {}
    readers: dict[Value, list[Operation]] = {w: [] for w in weights}
    for operation in graph.operations:
        for operand in operation.operands:
            if operand in readers:
                readers[operand].append(operation)
        if isinstance(operation.definition, PackPanels):
            panels.setdefault(operation.operands[0], operation.result)
    chosen = {
        w: panels[w]
        for w, users in readers.items()
        if w in panels and w not in graph.results and any(_gathers(o, w) for o in users)
        if all(_gathers(o, w) or isinstance(o.definition, PackPanels) for o in users)
    }

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        if not isinstance(operation.definition, Gather) or operation.operands[0] not in chosen:
            return None
        table = operation.operands[0]
        packed = chosen[table]
        assert packed.owner is not None and isinstance(packed.owner.definition, PackPanels)
        unpacked = apply(packed.owner.definition.inverse(_type(table)), packed)
        return (apply(operation.definition, unpacked, *operands[1:]),)

    return rebuild(graph, replace) if chosen else graph


def _gathers(operation: Operation, table: Value) -> bool:
    """Does it read a small part of `table`? Panels are slower to read by rows."""
    if not isinstance(operation.definition, Gather) or table in operation.operands[1:]:
        return False
    size, all_of_it = _type(operation.result).size, _type(table).size
    return isinstance(size, int) and isinstance(all_of_it, int) and PART * size <= all_of_it


def _type(value: Value) -> TensorType:
    assert isinstance(value.type, TensorType)
    return value.type
