"""Large reductions to few results have two steps and the same value."""

from __future__ import annotations

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.reduction import Reduce
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import ElementType, f16, f32, i1, i32, tensor
from flambeau.compiler.passes.split_reductions import split_reductions
from flambeau.execution import run_graph


def reductions(graph: Graph) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(operand's shape, axes) of each reduction."""
    return [
        (o.operands[0].type.shape, o.definition.dimensions)  # type: ignore[attr-defined]
        for o in graph.operations
        if isinstance(o.definition, Reduce)
    ]


def split(
    shape: tuple[int, ...], axes: tuple[int, ...], kind: str = "sum", element: ElementType = f32
) -> Graph:
    x = Value(tensor(shape, element))
    return split_reductions(Graph([x], [build.reduce(x, kind, axes)]))


def test_a_large_sum_has_two_steps() -> None:
    assert reductions(split((1 << 20,), (0,))) == [((64, 1 << 14), (1,)), ((64,), (0,))]


def test_columns_are_cut_along_their_rows() -> None:
    assert reductions(split((4096, 300), (0,))) == [((64, 64, 300), (1,)), ((64, 300), (0,))]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((1000, 100), (0,)), ((1024, 1024), (1,)), ((64, 20000), (1,)), ((32, 64, 32, 32), (0, 2, 3))],
    ids=["small", "rows", "few rows", "channels"],
)
def test_others_stay_whole(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    assert reductions(split(shape, axes)) == [(shape, axes)]


def test_symbolic_sizes_stay_whole() -> None:
    x = Value(tensor((dim("n"), 1 << 20), f32))
    graph = Graph([x], [build.reduce(x, "sum", (0, 1))])
    assert split_reductions(graph).key() == graph.key()


@pytest.mark.parametrize("kind", ["sum", "max", "min", "any", "all", "prod"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((262147,), (0,)), ((2, 131101, 3), (1,)), ((3, 300, 301), (1, 2)), ((70001, 5), (0, 1))],
)
def test_the_value_is_the_same(shape: tuple[int, ...], axes: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    element = i1 if kind in ("any", "all") else f32
    if element is i1:
        array = rng.random(shape) < (0.00001 if kind == "any" else 0.99999)
    else:
        array = rng.standard_normal(shape).astype(np.float32)
    if kind == "prod":
        array = np.sign(array)
    graph = split(shape, axes, kind, element)
    assert len(reductions(graph)) >= 3 or shape == (3, 300, 301)
    (found,) = run_graph(graph, [array])
    (whole,) = Reduce(axes, kind).reference(array.astype(np.float64) if element is f32 else array)[None]
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-2)


def test_halves_add_up_in_f32() -> None:
    array = np.full((1 << 19,), 0.1, np.float16)
    (found,) = run_graph(split(array.shape, (0,), "sum", f16), [array])
    np.testing.assert_allclose(found, 52416, rtol=1e-3)


def test_integers_wrap_alike() -> None:
    array = np.random.default_rng(0).integers(-(2**31), 2**31 - 1, 1 << 19).astype(np.int32)
    (found,) = run_graph(split(array.shape, (0,), "sum", i32), [array])
    assert found == array.sum(dtype=np.int32)
