"""What depends on weights alone is split off, and only what is worth it."""

from __future__ import annotations

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.packing import PackPanels, UnpackPanels
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import f32, i32, tensor
from flambeau.compiler.passes.pack_weights import pack_weights
from flambeau.compiler.passes.split_weights import split_weights
from flambeau.compiler.targets.machine import host_target


def names(graph: Graph | None) -> list[str]:
    return [] if graph is None else [o.name for o in graph.operations]


def same(graph: Graph, weights: list[Value]) -> None:
    """The two parts compute what the whole does."""
    rng = np.random.default_rng(0)
    arrays = [rng.random(p.type.shape).astype(p.type.element.numpy) for p in graph.parameters]  # type: ignore[attr-defined]
    split = split_weights(graph, weights)
    assert split.preparation is not None
    given = [a for p, a in zip(graph.parameters, arrays, strict=True) if p in weights]
    prepared = interpreter.evaluate(split.preparation, given)
    for got, expected in zip(
        interpreter.evaluate(split.main, [*arrays, *prepared]),
        interpreter.evaluate(graph, arrays),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_arithmetic_on_weights() -> None:
    x, v, g = Value(tensor((8, 5), f32)), Value(tensor((5,), f32)), Value(tensor((5,), f32))
    scale = build.mul(g, build.rsqrt(build.add(v, 1e-5)))
    graph = Graph([x, v, g], [build.mul(x, build.broadcast_in_dim(scale, (8, 5), (1,)))])
    split = split_weights(graph, [v, g])
    assert split.preparation is not None and split.preparation.results == (scale,)
    assert split.main.parameters[:3] == graph.parameters and len(split.main.parameters) == 4
    assert names(split.main) == ["graph.broadcast_in_dim", "graph.multiply"]
    same(graph, [v, g])


def test_views_and_results_stay() -> None:
    x, w = Value(tensor((4, 6), f32)), Value(tensor((5, 6), f32))
    view = build.transpose(w, (1, 0))
    graph = Graph([x, w], [build.matmul(x, view), build.mul(w, w)])
    assert split_weights(graph, [w]).preparation is None
    assert split_weights(graph, [w]).main is graph


def test_what_grows_stays() -> None:
    x, a, b = Value(tensor((999, 999), f32)), Value(tensor((999,), f32)), Value(tensor((999,), f32))
    rows = build.broadcast_in_dim(build.exp(a), (999, 999), (0,))
    columns = build.broadcast_in_dim(b, (999, 999), (1,))
    graph = Graph([x, a, b], [build.add(x, build.mul(rows, columns))])
    split = split_weights(graph, [a, b])
    assert names(split.preparation) == ["graph.exponential"]
    same(graph, [a, b])


def test_symbols_stay() -> None:
    n = dim("N")
    x, w = Value(tensor((n, 3), f32)), Value(tensor((3,), f32))
    scaled = build.div(w, build.broadcast_in_dim(build.dimension_value(n, f32), (3,), ()))
    graph = Graph([x, w], [build.mul(x, build.broadcast_in_dim(scaled, (n, 3), (1,)))])
    assert split_weights(graph, [w]).preparation is None


def test_products_read_panels() -> None:
    x, w = Value(tensor((200, 96), f32)), Value(tensor((128, 96), f32))
    view = build.transpose(w, (1, 0))
    graph = Graph([x, w], [build.matmul(x, view), build.matmul(build.exp(x), view)])
    packed = pack_weights(graph, [w], host_target())
    assert sum(isinstance(o.definition, PackPanels) for o in packed.operations) == 1
    split = split_weights(packed, [w])
    assert "graph.pack_panels" in names(split.preparation)
    assert not any(isinstance(o.definition, PackPanels) for o in split.main.operations)
    assert any(isinstance(o.definition, UnpackPanels) for o in split.main.operations)
    same(packed, [w])


@pytest.mark.parametrize(
    ("rows", "transposed", "count"), [(48, 1, 0), (42, 1, 1), (48, 0, 1), (200, 1, 1), (48, 2, 1)]
)
def test_few_rows_read_transposed_weights_as_they_lie(rows: int, transposed: int, count: int) -> None:
    """`transposed` times; panels would be as fast, once they are made, but where rows do not fill vectors."""
    x, w = Value(tensor((rows, 200), f32)), Value(tensor((128, 200) if transposed == 1 else (200, 128), f32))
    right = w
    for _ in range(transposed):
        right = build.transpose(right, (1, 0))
    packed = pack_weights(Graph([x, w], [build.matmul(x, right)]), [w], host_target())
    assert sum(isinstance(o.definition, PackPanels) for o in packed.operations) == count
    if count:
        same(packed, [w])


def test_only_weights_of_the_accumulators_type_are_packed() -> None:
    x, w = Value(tensor((40, 96), i32)), Value(tensor((96, 128), i32))
    assert len(pack_weights(Graph([x, w], [build.matmul(x, w)]), [], host_target()).operations) == 1
