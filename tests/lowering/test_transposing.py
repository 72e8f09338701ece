"""Kernels that read operands across their rows: transposes, alone and fused, at awkward sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import ElementType, bf16, f16, f32, f64, i1, i64, tensor, u8
from flambeau.compiler.lowering import elementwise
from flambeau.execution import run_graph
from flambeau.runtime import threads


def filled(shape: tuple[int, ...], element: ElementType, seed: int = 0) -> np.ndarray[Any, Any]:
    numbers = np.random.default_rng(seed).integers(-100, 100, shape)
    return (numbers > 0) if element is i1 else numbers.astype(element.numpy)


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The crossings that were lowered."""
    found: list[Any] = []
    original = elementwise.lower_transposing

    def spy(ctx: Any, values: Any, crossing: Any, results: Any) -> None:
        found.append(crossing)
        original(ctx, values, crossing, results)

    monkeypatch.setattr(elementwise, "lower_transposing", spy)
    return found


@pytest.mark.parametrize("element", [f32, f64, f16, bf16, i64, u8, i1], ids=str)
@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (64, 9), (9, 64), (200, 33)])
def test_a_transpose(shape: tuple[int, int], element: ElementType, lowered: list[Any]) -> None:
    x = Value(tensor(shape, element))
    array = filled(shape, element)
    (found,) = run_graph(Graph([x], [build.transpose(x, (1, 0))]), [array])
    assert found.tobytes() == array.T.copy().tobytes()
    assert lowered


@given(
    st.permutations(range(4)),
    st.tuples(*[st.integers(1, 24)] * 4),
    st.integers(1, 4),
)
def test_any_permutation_fused_with_arithmetic(order: list[int], shape: tuple[int, ...], count: int) -> None:
    x = Value(tensor(shape, f32))
    moved = tuple(shape[a] for a in order)
    y = Value(tensor(moved, f32))
    turned = build.transpose(x, order)
    results = [build.add(build.mul(turned, y), y), build.maximum(turned, y)]
    a, b = filled(shape, f32), filled(moved, f32, 1)
    t = a.transpose(order)
    before = threads.num_threads()
    threads.set_num_threads(count)
    try:
        found = run_graph(Graph([x, y], results), [a, b])
    finally:
        threads.set_num_threads(before)
    np.testing.assert_array_equal(found[0], t * b + b)
    np.testing.assert_array_equal(found[1], np.maximum(t, b))


def test_two_operands_crossed_at_different_places(lowered: list[Any]) -> None:
    x, y = Value(tensor((40, 50), f32)), Value(tensor((60, 50), f32))
    turned = build.add(build.transpose(x, (1, 0)), build.slice(build.transpose(y, (1, 0)), (0, 20), (50, 60)))
    a, b = filled((40, 50), f32), filled((60, 50), f32, 1)
    (found,) = run_graph(Graph([x, y], [turned]), [a, b])
    np.testing.assert_array_equal(found, a.T + b.T[:, 20:])
    assert len(lowered) == 1 and lowered[0].reads == (0, 1)


def test_symbolic_sizes(lowered: list[Any]) -> None:
    m, n = dim("m"), dim("n")
    x = Value(tensor((m, n), f32))
    graph = Graph([x], [build.neg(build.transpose(x, (1, 0)))])
    for sizes in [(1, 1), (3, 100), (70, 65), (32, 16)]:
        array = filled(sizes, f32)
        np.testing.assert_array_equal(run_graph(graph, [array])[0], -array.T)
    assert lowered
