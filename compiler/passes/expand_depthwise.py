"""Joins pointwise convolutions with the depthwise ones that alone read them, so that what lies between stays in the caches.

In the blocks of MobileNets and their like the features between are several times those before and after, and each is
computed from all features before and read by nothing but its own window: some features at a time are made and used up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Elementwise
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.dialects.graph.expanded_depthwise import ExpandedDepthwise
from flambeau.compiler.dialects.graph.shape import BroadcastInDim
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.lowering.expanded_depthwise import expanded_plan
from flambeau.compiler.schedule.cpu_contraction import CpuShape

#: Elementwise operations between the two, at most.
BETWEEN = 16


def expand_depthwise(graph: Graph, cpu: CpuShape) -> Graph:
    """An equal graph in which pairs of convolutions that are worth it are one operation."""
    uses = Counter([v for operation in graph.operations for v in operation.operands])
    uses.update(graph.results)
    inputs: dict[Operation, tuple[Value, ...]] = {}

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        inputs[operation] = operands
        op = operation.definition
        if not isinstance(op, Convolution) or op.feature_group_count == 1:
            return None
        between = _Between(uses)
        if not between.collect(operation.operands[0]) or not between.closed():
            return None
        made, operands = between.joined(operation, inputs)
        return (apply(made, *operands),) if expanded_plan(made, cpu) is not None else None

    return rebuild(graph, replace)


class _Between:
    """The elementwise operations between a pointwise convolution, `root`, and the depthwise one that reads the last."""

    def __init__(self, uses: Counter[Value]) -> None:
        self.uses = uses
        self.root: Operation | None = None
        self.operations: dict[Operation, None] = {}
        self.vectors: dict[Operation, None] = {}
        self.seen: Counter[Value] = Counter()

    def collect(self, value: Value) -> bool:
        """Goes up from a value; False if it does not come from a pointwise convolution, numbers and vectors alone."""
        self.seen[value] += 1
        owner = value.owner
        if owner is None:
            return False
        if self.seen[value] > 1 or build.splat_value(value) is not None:
            return True
        definition = owner.definition
        if isinstance(definition, Convolution):
            if self.root is not None or any(n != 1 for n in _window(owner)):
                return False
            self.root = owner
            return True
        if isinstance(definition, BroadcastInDim):
            self.vectors[owner] = None
            return definition.dimensions == (1,) and build.shape_of(owner.operands[0])[0] != 1
        if not isinstance(definition, Elementwise) or len(self.operations) == BETWEEN:
            return False
        if not all(self.collect(v) for v in owner.operands):
            return False
        self.operations[owner] = None
        return True

    def closed(self) -> bool:
        """Does nobody else read what is computed between?"""
        if self.root is None:
            return False
        return all(self.uses[o.results[0]] == self.seen[o.results[0]] for o in (self.root, *self.operations))

    def joined(
        self, depthwise: Operation, inputs: dict[Operation, tuple[Value, ...]]
    ) -> tuple[ExpandedDepthwise, tuple[Value, ...]]:
        """The operation for all of them, and its operands."""
        assert self.root is not None
        given = [*inputs[self.root], inputs[depthwise][1], *[inputs[o][0] for o in self.vectors]]
        parameters = [Value(v.type) for v in given]
        new = dict(zip([o.results[0] for o in self.vectors], parameters[3:], strict=True))
        made: dict[Value, Value] = {self.root.results[0]: apply(self.root.definition, *parameters[:2])}
        shape = build.shape_of(self.root.results[0])
        for old, vector in new.items():
            made[old] = build.broadcast_along(vector, shape, 1)
        for operation in self.operations:
            for v in operation.operands:
                if v not in made:
                    made[v] = build.full_like(v, build.splat_value(v))
            made[operation.results[0]] = apply(operation.definition, *[made[v] for v in operation.operands])
        last = apply(depthwise.definition, made[depthwise.operands[0]], parameters[2])
        return ExpandedDepthwise(Graph(parameters, [last], "body")), tuple(given)


def _window(operation: Operation) -> list[object]:
    """Extents of a convolution's window, its strides, and the number of its groups."""
    op = operation.definition
    assert isinstance(op, Convolution)
    shape = build.shape_of(operation.operands[1])
    return [*[shape[a] for a in op.kernel_spatial], *op.window_strides, op.feature_group_count]


@dataclass(frozen=True)
class ExpandDepthwise(Pass):
    """Make one operation of a pointwise convolution and the depthwise one that reads it."""

    name: ClassVar[str] = "expand_depthwise"
    vector_bits: int = 512
    registers: int = 32

    def run(self, graph: Graph) -> Graph:
        return expand_depthwise(graph, CpuShape(self.vector_bits, self.registers))
