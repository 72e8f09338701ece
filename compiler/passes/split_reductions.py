"""Reductions of much to little, in two steps: parts of the input first, which threads share, then the parts' results.

How the input is cut depends on its size alone, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.reduction import Reduce
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.passes.bodies import through_bodies

#: Reductions of fewer elements stay whole.
LEAST = 1 << 18
#: So do reductions with as many results that threads can compute apart; each run of neighbouring results counts once.
ENOUGH = 8
RUN = 2048
#: Elements of a part, at least. Parts, at most: enough for threads where each part has many results, and many more, since
#: errors grow with the number of additions in a row, where it has few.
PART = 1 << 14
PARTS, MANY = 64, 1024


def split_reductions(graph: Graph) -> Graph:
    """An equal graph (sums are reassociated) in which large reductions to few results have two steps."""

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        definition = operation.definition
        if not isinstance(definition, Reduce):
            return through_bodies(operation, operands, split_reductions)
        split = _split(definition, operands[0])
        return None if split is None else (split,)

    return rebuild(graph, replace)


def _split(definition: Reduce, x: Value) -> Value | None:
    shape: list[int] = []
    for d in build.shape_of(x):
        if not isinstance(d, int):
            return None
        shape.append(d)
    size = 1
    for d in shape:
        size *= d
    if size < LEAST or _apart(shape, definition.dimensions) >= ENOUGH:
        return None
    axis = max(definition.dimensions, key=lambda a: shape[a])
    results = size // math.prod(shape[a] for a in definition.dimensions)
    parts = _parts(shape[axis], min(max(PARTS, MANY // results), size // PART))
    if parts < 2:
        return None
    element = build.element_of(x)
    x = build.convert(x, definition.accumulator(element))
    length = shape[axis] // parts
    whole = parts * length
    total = _in_two_steps(
        definition, build.slice_axis(x, axis, 0, whole) if whole < shape[axis] else x, axis, parts
    )
    if whole < shape[axis]:
        rest = build.reduce(
            build.slice_axis(x, axis, whole, shape[axis]), definition.kind, definition.dimensions
        )
        both = [build.expand_dims(v, 0) for v in (total, rest)]
        total = build.reduce(build.concatenate(both, 0), definition.kind, (0,))
    return build.convert(total, element)


def _apart(shape: Sequence[int], dimensions: Sequence[int]) -> int:
    """How many tasks the reduction has as it is."""
    kept = [a for a in range(len(shape)) if a not in dimensions]
    tasks = 1
    for a in kept:
        tasks *= -(-shape[a] // RUN) if a == len(shape) - 1 else shape[a]
    return tasks


def _parts(extent: int, most: int) -> int:
    """Into how many equal parts to cut: the largest divisor that is not much smaller than `most`, else `most`."""
    most = min(most, extent)
    divisors = [n for n in range(max(2, most // 2), most + 1) if extent % n == 0]
    return divisors[-1] if divisors else most


def _in_two_steps(definition: Reduce, x: Value, axis: int, parts: int) -> Value:
    shape = build.shape_of(x)
    cut = build.reshape(x, (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :]))
    inner = [a if a < axis else a + 1 for a in definition.dimensions]
    partial = build.reduce(cut, definition.kind, inner)
    before = sum(a not in definition.dimensions for a in range(axis))
    return build.reduce(partial, definition.kind, (before,))


@dataclass(frozen=True)
class SplitReductions(Pass):
    """Cut large reductions to few results into two steps."""

    name: ClassVar[str] = "split_reductions"

    def run(self, graph: Graph) -> Graph:
        return split_reductions(graph)
