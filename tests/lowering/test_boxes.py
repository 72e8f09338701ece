"""Concatenations and pads are computed box by box, without conditions in their loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.lowering.boxes import boxes_of
from flambeau.compiler.passes.decompose import decompose
from flambeau.compiler.passes.fuse import fuse
from flambeau.compiler.passes.simplify import simplify
from flambeau.execution import run_graph


def check(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(build.shape_of(p)).astype(np.float32) for p in graph.parameters]
    for ours, theirs in zip(run_graph(graph, arrays), evaluate(graph, arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, 2e-6, 2e-6, strict=True)


@st.composite
def joins(draw: Any) -> Graph:
    """A concatenation of computed, padded and plain operands, with something computed from it."""
    rank = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, 5)) for _ in range(rank - 1)] + [draw(st.integers(1, 40))]
    axis = draw(st.integers(0, rank - 1))
    parameters, parts = [], []
    for _ in range(draw(st.integers(1, 4))):
        shape[axis] = draw(st.integers(1, 37))
        x = Value(tensor(tuple(shape), f32))
        parameters.append(x)
        kind = draw(st.sampled_from(["plain", "computed", "padded", "reversed"]))
        if kind == "computed":
            x = build.tanh(build.mul(x, x))
        elif kind == "padded":
            low, high = ([draw(st.integers(0, 3)) if a == axis else 0 for a in range(rank)] for _ in range(2))
            x = build.pad(x, low, high, value=1.5)
        elif kind == "reversed":
            x = build.reverse(x, axis)
        parts.append(x)
    joined = build.concatenate(parts, axis)
    results = [build.mul(build.exp(build.neg(build.abs(joined))), 2.0)]
    if draw(st.booleans()):
        results.append(build.add(joined, results[0]))
    return Graph(parameters, results)


@settings(max_examples=40, deadline=None)
@given(joins())
def test_compiled_code_agrees_with_the_interpreter(graph: Graph) -> None:
    check(graph)


def test_the_gradient_of_slices_is_one_kernel_of_boxes() -> None:
    x = Value(tensor((16, 4 * 33), f32))
    parts = [build.tanh(build.slice_axis(x, 1, i * 33, (i + 1) * 33)) for i in range(4)]
    padded = [
        build.pad(build.exp(p), (0, i * 33), (0, (3 - i) * 33)) for i, p in enumerate(parts)
    ]  # as the slices' derivatives are
    total = padded[0]
    for p in padded[1:]:
        total = build.add(total, p)
    graph = Graph([x], [total])
    (call,) = fuse(simplify(decompose(graph))).calls
    values = list(call.kernel.graph.results)
    boxes = boxes_of(values, set(values))
    assert boxes == [((0, 16), (i * 33, (i + 1) * 33)) for i in range(4)]
    check(graph)


def test_a_pad_on_all_sides() -> None:
    x = Value(tensor((3, 5, 18), f32))
    check(Graph([x], [build.add(build.pad(build.exp(x), (1, 2, 3), (0, 1, 2), value=-1.0), 0.5)]))


def test_many_parts_are_one_loop_with_conditions() -> None:
    parts = [Value(tensor((3, 7), f32)) for _ in range(20)]
    joined = build.concatenate(parts, 1)
    assert boxes_of([joined], {joined}) is None
    check(Graph(parts, [build.exp(joined)]))
