"""Positions of extremes in long rows: ties, NaN, every rest after the vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.reduction import ArgReduce
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.types import bf16, f32, f64, i64, tensor, u8
from flambeau.execution import run_graph

ELEMENTS = {"f32": f32, "f64": f64, "bf16": bf16, "i64": i64, "u8": u8}


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("kind", ["argmax", "argmin"])
@pytest.mark.parametrize("extent", [127, 128, 129, 191, 192, 1000])
def test_ties_go_to_the_first(extent: int, kind: str, element: str) -> None:
    array = np.random.default_rng(extent).integers(0, 4, (5, extent)).astype(ELEMENTS[element].numpy)
    x = Value(tensor(array.shape, ELEMENTS[element]))
    (found,) = run_graph(Graph([x], [build.make(ArgReduce(1, kind), x)]), [array])
    np.testing.assert_array_equal(found, getattr(array.astype(np.float64), kind)(1))


@given(
    st.lists(st.integers(0, 299), max_size=4), st.sampled_from(["argmax", "argmin"]), st.integers(200, 300)
)
def test_the_first_nan_wins(places: list[int], kind: str, extent: int) -> None:
    array = np.arange(extent, dtype=np.float32) % 7
    array[[p for p in places if p < extent]] = np.nan
    array[array == 5] = np.inf
    x = Value(tensor((extent,), f32))
    (found,) = run_graph(Graph([x], [build.make(ArgReduce(0, kind), build.neg(x))]), [array])
    assert found == getattr(-array, kind)(0)


@given(
    st.sampled_from(["sum", "prod", "max", "min"]),
    st.booleans(),
    st.sampled_from(sorted(ELEMENTS)),
    st.integers(1, 5),
    st.integers(1, 90),
    st.booleans(),
)
def test_running_reductions_along_rows(
    kind: str, reverse: bool, element: str, rows: int, extent: int, computed: bool
) -> None:
    array = np.random.default_rng(extent).integers(1, 4, (rows, extent)).astype(ELEMENTS[element].numpy)
    x = Value(tensor(array.shape, ELEMENTS[element]))
    graph = Graph([x], [build.cumulative(build.add(x, x) if computed else x, 1, kind, reverse)])
    (found,) = run_graph(graph, [array])
    np.testing.assert_array_equal(found, evaluate(graph, [array])[0])


def test_nan_and_infinity_stay_in_a_running_sum() -> None:
    array = np.ones((2, 100), np.float32)
    array[0, 37], array[1, 5], array[1, 70] = np.nan, np.inf, -np.inf
    x = Value(tensor(array.shape, f32))
    (found,) = run_graph(Graph([x], [build.cumulative(x, 1)]), [array])
    np.testing.assert_array_equal(found, np.cumsum(array, 1))


def test_a_long_running_sum_is_as_good_as_one_in_f64() -> None:
    array = np.random.default_rng(0).standard_normal((3, 5003)).astype(np.float32)
    x = Value(tensor(array.shape, f32))
    (found,) = run_graph(Graph([x], [build.cumulative(x, 1)]), [array])
    exact = np.cumsum(array, 1, dtype=np.float64)
    np.testing.assert_array_less(np.abs(found - exact), 0.51 * np.spacing(np.abs(exact).astype(np.float32)))
