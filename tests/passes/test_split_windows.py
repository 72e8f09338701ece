"""Extremes over windows, one axis after the other, at edges and with NaN."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph.reduce_window import ReduceWindow
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.passes.split_windows import split_windows
from flambeau.execution import run_graph


def pool(shape: tuple[int, ...], *attributes: tuple[object, ...], kind: str = "max") -> Graph:
    x = Value(tensor(shape, f32))
    return Graph([x], [apply(ReduceWindow(*attributes, kind), x)])  # type: ignore[arg-type]


def test_a_window_of_two_axes_becomes_two() -> None:
    graph = split_windows(
        pool((1, 2, 9, 9), (1, 1, 5, 5), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), (1,) * 4, (1,) * 4)
    )
    found = [o.definition.window_dimensions for o in graph.operations]  # type: ignore[attr-defined]
    assert found == [(1, 1, 1, 5), (1, 1, 5, 1)]


def test_sums_small_windows_and_single_axes_stay() -> None:
    for kind, window in (("sum", (5, 5)), ("max", (1, 5)), ("max", (3, 3))):
        graph = pool((9, 9), window, (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), kind=kind)
        assert split_windows(graph).key() == graph.key()


@given(st.data())
def test_the_value_is_the_same(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(3, 20)), data.draw(st.integers(3, 40)))
    sizes = (1, data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    strides = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    padding = tuple((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))) for n in sizes)
    dilations = (1, data.draw(st.integers(1, 2)), 1)
    kind = data.draw(st.sampled_from(["max", "min"]))
    graph = pool(shape, sizes, strides, padding, (1, 1, data.draw(st.integers(1, 2))), dilations, kind=kind)
    rng = np.random.default_rng(0)
    array = rng.standard_normal(shape).astype(np.float32)
    array[rng.random(shape) < 0.02] = np.nan
    (found,) = run_graph(graph, [array])
    np.testing.assert_array_equal(found, graph.operations[0].definition.reference(array))  # type: ignore[attr-defined]
