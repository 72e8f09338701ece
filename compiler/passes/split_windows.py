"""Maxima and minima over large windows of several axes, one axis after the other: a 5 x 5 window reads ten elements, not 25."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flambeau.compiler.dialects.graph.reduce_window import ReduceWindow
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.passes.bodies import through_bodies

#: Windows of up to this many elements stay whole: what is between the steps would be written and read.
WHOLE = 16


def split_windows(graph: Graph) -> Graph:
    """An equal graph in which extremes over large windows have windows along one axis each."""

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        window = operation.definition
        if not isinstance(window, ReduceWindow):
            return through_bodies(operation, operands, split_windows)
        if window.kind == "sum":
            return None
        axes = [a for a, n in enumerate(window.window_dimensions) if n > 1]
        if len(axes) < 2 or window.taps() <= WHOLE:
            return None
        x = operands[0]
        first = axes[-1]
        # Axes without a window may still be strided, padded or dilated: they go with the last step.
        for axis in (first, None):
            x = apply(_only(window, first, axis is not None), x)
        return (x,)

    while True:
        split = rebuild(graph, replace)
        if split is graph or split.key() == graph.key():
            return graph
        graph = split


def _only(window: ReduceWindow, axis: int, along: bool) -> ReduceWindow:
    """The part of the window along `axis`, or all the rest of it."""

    def part(values: Sequence[Any], none: Any) -> tuple[Any, ...]:
        return tuple([v if (a == axis) == along else none for a, v in enumerate(values)])

    return ReduceWindow(
        part(window.window_dimensions, 1),
        part(window.window_strides, 1),
        part(window.padding, (0, 0)),
        part(window.base_dilations, 1),
        part(window.window_dilations, 1),
        window.kind,
    )


@dataclass(frozen=True)
class SplitWindows(Pass):
    """Take extremes over large windows one axis after the other."""

    name: ClassVar[str] = "split_windows"

    def run(self, graph: Graph) -> Graph:
        return split_windows(graph)
