"""Gives weights the layout in which contractions read them without packing: a `graph.pack_panels` before each, which
`split_weights` then moves to the preparation."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.packing import PackPanels, UnpackPanels
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.passes.split_weights import weight_bytes
from flambeau.compiler.schedule.cpu_contraction import cpu_shape, panel_width
from flambeau.compiler.targets.machine import TargetDescription


def pack_weights(graph: Graph, weights: Collection[Value], target: TargetDescription) -> Graph:
    """An equal graph in which matrix products read weights on their right side from panels, where that pays on `target`."""
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
        if rhs.element is not d.accumulator:
            return None
        width = panel_width(d.m, d.n, d.k, d.accumulator, cpu)
        if width == 0:
            return None
        layout = PackPanels(*d.rhs_axes, width)
        panels = packed.get((layout, right))
        if panels is None:
            panels = packed[layout, right] = apply(layout, operands[1])
        unpacked = apply(UnpackPanels(*d.rhs_axes, width, rhs.shape), panels)
        return (apply(definition, operands[0], unpacked),)

    return rebuild(graph, replace)


def _type(value: Value) -> TensorType:
    assert isinstance(value.type, TensorType)
    return value.type
