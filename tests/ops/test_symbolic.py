"""Operations on symbolic shapes, evaluated and compiled: one graph, several sizes."""

from collections.abc import Callable

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.types import f64, i64, tensor
from flambeau.execution import run_graph

N, M = dim("N"), dim("M")
CASES: dict[str, Callable[[Value, Value], Value]] = {
    "mean": lambda x, i: build.reduce_mean(x),
    "row maximum": lambda x, i: build.reduce_max(x, 1),
    "column sum": lambda x, i: build.reduce_sum(x, 0),
    "last row": lambda x, i: build.squeeze(build.slice_axis(x, 0, N - 1, N), 0),
    "every other column": lambda x, i: build.slice_axis(x, 1, 0, M, 2),
    "iota": lambda x, i: build.iota((N, M), i64, 0),
    "flatten": lambda x, i: build.reshape(x, (N * M,)),
    "other split": lambda x, i: build.reshape(build.exp(x), (M, N)),
    "transpose": lambda x, i: build.transpose(x, (1, 0)),
    "concatenate": lambda x, i: build.concatenate([x, x], 0),
    "pad": lambda x, i: build.pad(x, (1, 0), (0, 2), value=3.0),
    "reverse": lambda x, i: build.reverse(x, 1),
    "broadcast": lambda x, i: build.broadcast_in_dim(x, (3, N, M), (1, 2)),
    "gather": lambda x, i: build.gather(x, [i], (0,)),
    "scatter": lambda x, i: build.scatter(x, build.constant(1.0, f64, (2, M)), [i], (0,)),
    "sort": lambda x, i: build.sort(x, 1)[0],
    "running sum": lambda x, i: build.cumulative(x, 1),
    "argmax": lambda x, i: build.arg_reduce(x, "argmax", 1),
}


@pytest.mark.parametrize("shape", [(3, 5), (2, 1), (7, 40)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_compiled_code_agrees_with_the_interpreter(name: str, shape: tuple[int, int]) -> None:
    x, i = Value(tensor((N, M), f64)), Value(tensor((2,), i64))
    graph = Graph([x, i], [CASES[name](x, i)])
    arrays = [np.random.default_rng(0).standard_normal(shape), np.array([1, 0])]
    (expected,), (actual,) = evaluate(graph, arrays), run_graph(graph, arrays)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, 1e-12, strict=True)
