"""What follows a contraction element by element is computed where its sums are stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import bf16, f32, tensor
from flambeau.compiler.passes.fuse import fuse
from flambeau.execution import run_graph

Epilogue = Callable[[Value, Value], list[Value]]


def relu(x: Value) -> Value:
    return build.maximum(x, build.full_like(x, 0))


def biased(x: Value, bias: Value) -> Value:
    return build.add(x, build.broadcast_in_dim(bias, x.type.shape, (1,)))  # type: ignore[attr-defined]


def gelu(x: Value) -> Value:
    half = build.mul(x, build.full_like(x, 0.5))
    inner = build.erf(build.mul(x, build.full_like(x, 0.5**0.5)))
    return build.mul(half, build.add(inner, build.full_like(x, 1)))


EPILOGUES: dict[str, Epilogue] = {
    "bias": lambda x, bias: [biased(x, bias)],
    "bias, relu": lambda x, bias: [relu(biased(x, bias))],
    "gelu": lambda x, bias: [gelu(biased(x, bias))],
    "sum and its activation": lambda x, bias: [x, build.tanh(x)],
    "activation and mask": lambda x, bias: [relu(x), build.gt(x, build.full_like(x, 0))],
    "to bf16": lambda x, bias: [build.convert(biased(x, bias), bf16)],
}
SIZES = [(5, 7, 3), (64, 70, 48), (1, 100, 300), (130, 140, 900), (9, 1, 40)]


def graph_of(epilogue: Epilogue, m: object, n: object, k: object) -> Graph:
    x, w, bias = Value(tensor((m, k), f32)), Value(tensor((k, n), f32)), Value(tensor((n,), f32))  # type: ignore[arg-type]
    product = build.dot_general(x, w, ((1,), (0,)), ((), ()))
    return Graph((x, w, bias), epilogue(product, bias))


def check(graph: Graph, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n), (n,))]
    expected = interpreter.evaluate(graph, arrays)
    for actual, wanted in zip(run_graph(graph, arrays), expected, strict=True):
        tolerance = 1e-2 if wanted.dtype.itemsize == 2 else 2e-5 * k**0.5
        if wanted.dtype == np.bool_:
            assert (actual != wanted).mean() < 0.01  # sums next to zero may have either sign
            continue
        np.testing.assert_allclose(
            actual.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name: str, size: tuple[int, int, int]) -> None:
    graph = graph_of(EPILOGUES[name], *size)
    assert [call.kernel.family for call in fuse(graph).calls] == ["contraction"]
    check(graph, *size)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "size", [(256, 272, 64), (336, 264, 75), (512, 130, 128), (264, 260, 90), (288, 272, 200)], ids=str
)
def test_long_epilogues_run_within_the_next_tile(size: tuple[int, int, int], transposed: bool) -> None:
    """As an optimizer's step behind a weight's gradient."""
    m, n, k = size
    x, w, state = (
        Value(tensor((k, m) if transposed else (m, k), f32)),
        Value(tensor((k, n), f32)),
        Value(tensor((m, n), f32)),
    )
    product = build.dot_general(x, w, ((0,), (0,)) if transposed else ((1,), (0,)), ((), ()))
    moment = build.add(build.mul(state, 0.9), product)
    step = build.div(product, build.add(build.sqrt(build.abs(moment)), 0.5))
    graph = Graph((x, w, state), [product, moment, step])
    assert [call.kernel.family for call in fuse(graph).calls] == ["contraction"]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.parameters]  # type: ignore[attr-defined]
    for actual, wanted in zip(run_graph(graph, arrays), interpreter.evaluate(graph, arrays), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues_of_symbolic_sizes(name: str) -> None:
    graph = graph_of(EPILOGUES[name], dim("M"), 70, dim("K"))
    check(graph, 33, 70, 600)


def test_what_reads_other_elements_stays_outside() -> None:
    def transposed(x: Value, bias: Value) -> list[Value]:
        return [build.add(x, build.transpose(x, (1, 0)))]

    graph = graph_of(transposed, 24, 24, 8)
    assert [call.kernel.family for call in fuse(graph).calls] == ["contraction", "element"]
    check(graph, 24, 24, 8)
