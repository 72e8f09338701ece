"""Rows whose last loop runs with the next row's: the same numbers as one row after the other, in results of any place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flambeau.compiler import options
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.composites_norm import LogSoftmax, Softmax
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.lowering import overlapping_rows, rows, streaming
from flambeau.compiler.targets.machine import host_target
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads

pytestmark = pytest.mark.skipif(
    host_target().architecture != "x86_64", reason="where results go past the caches"
)


def _spread(x: Value, of: Value) -> Value:
    return build.broadcast_in_dim(x, build.shape_of(of), tuple(range(len(build.shape_of(of)) - 1)))


def _standardised(x: Value, y: Value) -> list[Value]:
    """Three loops; the last one reads an operand again, another operand and two scalars."""
    last = len(build.shape_of(x)) - 1
    centred = build.sub(x, _spread(build.mul(build.reduce_sum(x, (last,)), 1 / 64), x))
    weights = build.exp(build.mul(centred, 0.5))
    total = build.reduce_sum(build.mul(weights, weights), (last,))
    return [build.add(build.div(centred, _spread(total, x)), y), total]


def _softmax(x: Value, y: Value) -> list[Value]:
    return [create(Softmax(len(build.shape_of(x)) - 1), build.add(x, y)).result]


def _log_softmax(x: Value, y: Value) -> list[Value]:
    return [create(LogSoftmax(len(build.shape_of(x)) - 1), x).result]


def _gradient(x: Value, y: Value) -> list[Value]:
    """Of a softmax: its last loop reads two rows."""
    last = len(build.shape_of(x)) - 1
    weights = build.exp(build.mul(x, y))
    total = build.reduce_sum(build.mul(weights, y), (last,))
    return [build.mul(weights, build.sub(y, _spread(total, x)))]


@pytest.mark.parametrize("make", [_softmax, _log_softmax, _standardised, _gradient])
@pytest.mark.parametrize("shape", [(256, 16), (300, 64), (7, 50, 112)])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_numbers(
    make: Callable[[Value, Value], list[Value]],
    shape: tuple[int, ...],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = Value(tensor(shape, f32)), Value(tensor(shape, f32))
    graph = Graph([x, y], make(x, y))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for _ in range(2)]
    expected = ArrayExecutable(graph)(arrays)
    lowered: list[bool] = []
    original = rows.lower_overlapping

    def spy(*given: object) -> None:
        lowered.append(True)
        original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "lower_overlapping", spy)
    monkeypatch.setattr(streaming, "LARGE", 1)
    before = threads.num_threads()
    threads.set_num_threads(workers)
    try:
        with options.override(cache_dir="off"):
            run = ArrayExecutable(graph)
        assert lowered
        for actual, wanted in zip(run(arrays), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=2e-6, atol=2e-6)
        for result, parameter in run.overwrites:
            own = [a.copy() for a in arrays]
            np.testing.assert_allclose(
                run(own, into={result: own[parameter]})[result], expected[result], rtol=2e-6, atol=2e-6
            )
    finally:
        threads.set_num_threads(before)


def test_what_the_last_loop_reads_again_comes_from_the_stack() -> None:
    """As in a log_softmax of many rows."""
    shape = (4096, 4096)
    x = Value(tensor(shape, f32))
    made: list[int] = []
    original = overlapping_rows._Overlapping._read_twice

    def spy(self: overlapping_rows._Overlapping) -> list[Value]:
        found = original(self)
        made.append(len(found))
        return found

    with pytest.MonkeyPatch.context() as patch, options.override(cache_dir="off"):
        patch.setattr(overlapping_rows._Overlapping, "_read_twice", spy)
        run = ArrayExecutable(Graph([x], [create(LogSoftmax(1), x).result]))
    assert made == [1]
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wide = array.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    exact = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    np.testing.assert_allclose(run([array])[0], exact, rtol=1e-6, atol=1e-6)
