"""Stores past the caches: chosen by size and address, and with the same bits as others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler import options
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.composites_norm import Softmax
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.types import ElementType, bf16, f32, f64, tensor
from flambeau.compiler.lowering import streaming
from flambeau.compiler.pipeline import compile_stages
from flambeau.compiler.targets.machine import host_target
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads
from flambeau.runtime.buffer import Allocator, as_numpy

x86 = pytest.mark.skipif(host_target().architecture != "x86_64", reason="only x86 orders such stores")

GRAPHS: dict[str, Callable[[Value, Value], list[Value]]] = {
    "flat": lambda x, y: [build.add(x, build.mul(y, 0.5)), build.exp(x)],
    "rows": lambda x, y: [create(Softmax(1), x).result],
    "broadcast": lambda x, y: [
        build.add(x, build.broadcast_in_dim(build.reduce_sum(y, (0,)), x.type.shape, (1,)))  # type: ignore[attr-defined]
    ],
    "transpose": lambda x, y: [build.add(build.transpose(x, (1, 0)), 1.0)],
    "half": lambda x, y: [build.convert(x, bf16)],
    "comparison": lambda x, y: [build.compare(x, y, "LT")],
}


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("shape", [(70, 48), (64, 50), (16, 16), (100, 4096)])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_bits(
    kind: str, shape: tuple[int, int], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = Value(tensor(shape, f32)), Value(tensor(shape, f32))
    graph = Graph([x, y], GRAPHS[kind](x, y))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for _ in range(2)]
    expected = ArrayExecutable(graph)(arrays)
    monkeypatch.setattr(streaming, "LARGE", 1)
    before = threads.num_threads()
    threads.set_num_threads(workers)
    try:
        with options.override(cache_dir="off"):
            run = ArrayExecutable(graph)
        for offset in (0, 4, 32):  # results at addresses of any kind
            into = {n: _at(offset, r) for n, r in enumerate(expected)}
            for actual, wanted in zip(run(arrays, into=into), expected, strict=True):
                np.testing.assert_array_equal(actual, wanted)
        for result, parameter in run.overwrites:
            own = [a.copy() for a in arrays]
            np.testing.assert_array_equal(run(own, into={result: own[parameter]})[result], expected[result])
    finally:
        threads.set_num_threads(before)


def _at(offset: int, like: np.ndarray) -> np.ndarray:
    return as_numpy(Allocator().allocate(like.nbytes + offset), like.dtype, like.shape, offset)


@x86
def test_large_results_go_past_the_caches_and_small_ones_do_not() -> None:
    for rows, expected in ((4096, True), (256, False)):
        x = Value(tensor((rows, 1024), f32))
        text = compile_stages(Graph([x], [build.exp(x)]), stop_after="llvm").llvm
        assert ("!nontemporal" in text) == expected


TURNED: dict[str, Callable[[Value, Value], Value]] = {
    "alone": lambda x, y: build.transpose(x, (0, 2, 1)),
    "long": lambda x, y: build.exp(build.transpose(x, (0, 2, 1))),
    "beside": lambda x, y: build.add(build.transpose(x, (0, 2, 1)), y),
    "two": lambda x, y: build.add(build.transpose(x, (0, 2, 1)), build.transpose(build.neg(x), (0, 2, 1))),
}


@x86
@settings(max_examples=12)
@given(
    st.sampled_from(sorted(TURNED)),
    st.sampled_from([f32, f64]),
    st.integers(1, 3),
    st.integers(1, 20).map(lambda n: 16 * n),
    st.integers(1, 300),
    st.integers(0, 15),
    st.integers(1, 3),
)
def test_transposes_of_operands_at_any_place_in_a_line(
    kind: str, element: ElementType, images: int, rows: int, columns: int, offset: int, workers: int
) -> None:
    x, y = Value(tensor((images, rows, columns), element)), Value(tensor((images, columns, rows), element))
    graph = Graph([x, y], [TURNED[kind](x, y)])
    rng = np.random.default_rng(0)
    contents = [rng.standard_normal(p.type.shape).astype(element.numpy) for p in (x, y)]  # type: ignore[attr-defined]
    arrays = [_at(offset * element.itemsize, a) for a in contents]
    for array, content in zip(arrays, contents, strict=True):
        array[...] = content
    expected = ArrayExecutable(graph)(arrays)[0]
    before = threads.num_threads()
    threads.set_num_threads(workers)
    try:
        with pytest.MonkeyPatch.context() as patch, options.override(cache_dir="off"):
            patch.setattr(streaming, "LARGE", 1)
            run = ArrayExecutable(graph)
        np.testing.assert_array_equal(run(arrays, into={0: _at(0, expected)})[0], expected)
        for result, parameter in run.overwrites:
            own = [a.copy() for a in arrays]
            np.testing.assert_array_equal(run(own, into={result: own[parameter]})[result], expected)
    finally:
        threads.set_num_threads(before)
