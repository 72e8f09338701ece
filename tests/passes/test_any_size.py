"""Pointwise kernels that differ in their size alone are one kernel."""

from __future__ import annotations

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.passes.any_size import any_size
from flambeau.compiler.passes.fuse import fuse
from flambeau.compiler.pipeline import compile_stages
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads

SHAPES = [(1,), (3,), (16,), (7, 9), (1000,), (5, 4, 3), (4099,), (2, 40_000), (70_001,)]


def update(p: Value, g: Value, rate: Value) -> tuple[Value, Value]:
    """A step with momentum: the new parameter and the new mean."""
    mean = build.add(build.mul(p, 0.9), build.mul(g, 0.1))
    spread = build.broadcast_in_dim(build.mul(rate, 2), build.shape_of(p), ())
    return build.sub(p, build.mul(build.div(mean, build.add(build.sqrt(build.abs(g)), 1)), spread)), mean


def updates(shapes: list[tuple[int, ...]]) -> Graph:
    rate = Value(tensor((), f32))
    pairs = [(Value(tensor(s, f32)), Value(tensor(s, f32))) for s in shapes]
    results = [r for p, g in pairs for r in update(p, g, rate)]
    return Graph([rate, *[v for pair in pairs for v in pair]], results)


def test_one_kernel_for_all_shapes() -> None:
    c = compile_stages(updates(SHAPES), stop_after="llvm")
    assert set(c.names) == {"kernel0"}
    assert list(c.sizes) == [(int(np.prod(s)),) for s in SHAPES]


def test_one_shape_alone_is_compiled_for_its_size() -> None:
    c = compile_stages(updates([(40,), (40,)]), stop_after="llvm")
    assert set(c.sizes) == {()}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_numbers_as_alone(workers: int) -> None:
    rng = np.random.default_rng(0)
    rate = np.array(0.01, np.float32)
    pairs = [[rng.standard_normal(s).astype(np.float32) for _ in range(2)] for s in SHAPES]
    expected = [
        r for s, pair in zip(SHAPES, pairs, strict=True) for r in ArrayExecutable(updates([s]))([rate, *pair])
    ]
    before = threads.num_threads()
    threads.set_num_threads(workers)
    try:
        run = ArrayExecutable(updates(SHAPES))
        for actual, wanted in zip(run([rate, *[a for pair in pairs for a in pair]]), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
        own = [a.copy() for pair in pairs for a in pair]
        # Results come in pairs as parameters do: each takes the place of its own.
        into = {result: own[parameter - 1] for result, parameter in run.overwrites if result == parameter - 1}
        assert len(into) == len(own)
        for actual, wanted in zip(run([rate, *own], into=into), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
    finally:
        threads.set_num_threads(before)


def test_what_depends_on_the_place_stays() -> None:
    x, y = Value(tensor((4, 8), f32)), Value(tensor((8,), f32))
    across = build.add(x, build.broadcast_in_dim(y, (4, 8), (1,)))
    graphs = [
        Graph([x, y], [across]),
        Graph([x], [build.transpose(build.add(x, 1), (1, 0))]),
        Graph([x], [build.reduce_sum(x, (1,))]),
        Graph([y], [build.add(y, build.iota((8,), f32))]),
    ]
    for graph in graphs:
        (call,) = fuse(graph).calls
        assert any_size(call.kernel) is None
