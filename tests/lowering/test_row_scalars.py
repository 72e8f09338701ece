"""What is one number a row is computed once a row; what only looks like it, because the domain is square, is not."""

from __future__ import annotations

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.lowering.rows import _with_scalars
from flambeau.compiler.passes.fuse import RowDomain
from flambeau.execution import ArrayExecutable

SIDE = 20
SQUARE = RowDomain((SIDE, SIDE), (1,))


def _graph(axis: int) -> tuple[Graph, Value]:
    """Sums of a square's rows, of what is scaled by a function of a vector along `axis`; and that function's value."""
    x, y = Value(tensor((SIDE, SIDE), f32)), Value(tensor((SIDE,), f32))
    scale = build.add(build.mul(y, y), 1)
    scaled = build.mul(x, build.broadcast_in_dim(scale, (SIDE, SIDE), (axis,)))
    total = build.reduce_sum(scaled, (1,))
    return Graph([x, y], [build.sub(scaled, build.broadcast_in_dim(total, (SIDE, SIDE), (0,)))]), scale


def test_only_numbers_of_the_row_itself() -> None:
    for axis in (0, 1):
        graph, scale = _graph(axis)
        (result,) = graph.results
        total = next(o.results[0] for o in graph.operations if o.name == "graph.reduce")
        assert (scale in _with_scalars([total, result], SQUARE)) == (axis == 0)


def test_the_numbers() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((SIDE, SIDE)).astype(np.float32), rng.standard_normal(SIDE).astype(np.float32)
    for axis in (0, 1):
        graph, _ = _graph(axis)
        scaled = x * (y * y + 1)[:, None] if axis == 0 else x * (y * y + 1)
        np.testing.assert_allclose(
            ArrayExecutable(graph)([x, y])[0], scaled - scaled.sum(1, keepdims=True), rtol=1e-5, atol=1e-5
        )


def test_single_numbers_before_a_flat_loop() -> None:
    x, rate = Value(tensor((7, 9), f32)), Value(tensor((), f32))
    factor = build.div(build.exp(rate), 3)
    graph = Graph([x, rate], [build.mul(x, build.broadcast_in_dim(factor, (7, 9), ()))])
    array = np.arange(63, dtype=np.float32).reshape(7, 9)
    made = ArrayExecutable(graph)([array, np.array(0.5, np.float32)])[0]
    np.testing.assert_allclose(made, array * np.exp(np.float32(0.5)) / 3, rtol=1e-6)
