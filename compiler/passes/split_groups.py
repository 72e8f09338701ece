"""Convolutions of a few large groups become a convolution a group.

Every schedule for many features (blocks of output features, Winograd, small images, gradients tap by tap) is for one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.dims import product
from flambeau.compiler.ir.passes import Pass

#: Groups at most, and features and channels of a group at least.
GROUPS, FEWEST = 8, 16


def split_groups(graph: Graph) -> Graph:
    """An equal graph in which few large groups are convolutions of their own, whose results are joined."""

    def replace_one(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        op = operation.definition
        if not isinstance(op, Convolution):
            return None
        x, w = operands
        groups = op.feature_group_count * op.batch_group_count
        axis = op.input_feature if op.feature_group_count > 1 else op.input_batch
        width, features = build.shape_of(x)[axis], build.shape_of(w)[op.kernel_output_feature]
        if not 1 < groups <= GROUPS or not isinstance(width, int) or not isinstance(features, int):
            return None
        if width < FEWEST * groups or features < FEWEST * groups:
            return None
        window = [build.shape_of(w)[a] for a in op.kernel_spatial]
        space = [build.shape_of(operation.results[0])[a] for a in op.output_spatial]
        if product(window) == 1 or product(space) == 1:
            return None  # products of matrices, which are run as a batch
        one = replace(op, feature_group_count=1, batch_group_count=1)
        parts = [
            apply(one, _part(x, axis, g, groups), _part(w, op.kernel_output_feature, g, groups))
            for g in range(groups)
        ]
        return (build.concatenate(parts, op.output_feature),)

    return rebuild(graph, replace_one)


def _part(x: Value, axis: int, number: int, groups: int) -> Value:
    """Group `number` along an axis."""
    extent = build.shape_of(x)[axis] // groups
    return build.slice_axis(x, axis, number * extent, (number + 1) * extent)


@dataclass(frozen=True)
class SplitGroups(Pass):
    """Make a convolution of each of a few large groups."""

    name: ClassVar[str] = "split_groups"

    def run(self, graph: Graph) -> Graph:
        return split_groups(graph)
