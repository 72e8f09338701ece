"""Long lines, sorted by digits: every element type, both directions, stability, NaN and signed zeros."""

from __future__ import annotations

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.sorting import Sort
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import bf16, f16, f32, f64, i1, i8, i16, i32, i64, tensor, u8
from flambeau.compiler.lowering.radix import LEAST, layout_of
from flambeau.execution import run_graph

ELEMENTS = {str(e): e for e in (f32, f64, f16, bf16, i8, i16, i32, i64, u8, i1)}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:  # type: ignore[type-arg]
    """Many ties; for floats infinities, NaN and both zeros, for integers the extremes."""
    rng = np.random.default_rng(len(name) + shape[0])
    element = ELEMENTS[name]
    if element is i1:
        return rng.random(shape) < 0.5
    if element.is_float:
        array = (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4, shape)).astype(element.numpy)
        special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0]).astype(element.numpy)
        return np.where(rng.random(shape) < 0.3, rng.choice(special, shape), array)
    limits = np.iinfo(element.numpy)
    array = rng.integers(limits.min, limits.max, shape, dtype=element.numpy, endpoint=True)
    near = rng.integers(0, 5, shape).astype(element.numpy)
    extreme = rng.choice(np.array([limits.min, limits.max], element.numpy), shape)
    kind = rng.random(shape)
    return np.where(kind < 0.3, near, np.where(kind < 0.4, extreme, array))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize(("shape", "axis"), [((257,), 0), ((3, 300), 1), ((261, 2), 0)])
def test_long_lines(shape: tuple[int, ...], axis: int, name: str, descending: bool) -> None:
    x = Value(tensor(shape, ELEMENTS[name]))
    definition = Sort(axis, descending)
    assert layout_of(x.type, axis) is not None  # type: ignore[arg-type]
    array = values(name, shape)
    found = run_graph(Graph([x], list(build.sort(x, axis, descending))), [array])
    expected = definition.reference(array)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[0].tobytes() == expected[0].tobytes()


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_symbolic_lines(count: int) -> None:
    x = Value(tensor((2, dim("n")), f32))
    array = values("f32", (2, count))
    found = run_graph(Graph([x], list(build.sort(x, 1))), [array])
    np.testing.assert_array_equal(found[1], Sort(1).reference(array)[1])


def test_short_lines_are_merged() -> None:
    assert layout_of(tensor((1000, LEAST - 1), f32), 1) is None


def test_only_the_positions() -> None:
    x = Value(tensor((1000,), f64))
    array = values("f64", (1000,))
    (found,) = run_graph(Graph([x], [build.sort(x, 0)[1]]), [array])
    np.testing.assert_array_equal(found, Sort(0).reference(array)[1])
