"""Kernels that read more than L2 holds: what is prefetched, or read by half vectors, gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.types import f32, i64, tensor
from flambeau.compiler.pipeline import compile_stages
from flambeau.compiler.targets.machine import host_target
from flambeau.execution import run_graph

LARGE = host_target().l2_bytes // 4 + 1


@settings(max_examples=8)
@given(st.integers(16, 100), st.lists(st.integers(-3, 20000), min_size=1, max_size=9), st.booleans())
def test_rows_that_data_chooses(width: int, chosen: list[int], fused: bool) -> None:
    rows = -(-LARGE // width)
    table, where = Value(tensor((rows, width), f32)), Value(tensor((len(chosen),), i64))
    taken = build.gather(table, [where], (0,))
    graph = Graph([table, where], [build.mul(build.exp(taken), 2.0) if fused else taken])
    arrays = [np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32), np.array(chosen)]
    np.testing.assert_allclose(run_graph(graph, arrays)[0], evaluate(graph, arrays)[0], rtol=1e-6)


def test_rows_that_data_chooses_are_prefetched() -> None:
    for rows, expected in ((LARGE // 64 + 1, True), (100, False)):
        table, where = Value(tensor((rows, 64), f32)), Value(tensor((30,), i64))
        text = compile_stages(
            Graph([table, where], [build.gather(table, [where], (0,))]), stop_after="llvm"
        ).llvm
        assert ("llvm.prefetch" in text) == expected


@pytest.mark.parametrize("kind", ["sum", "max"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("width", [64, 257, 1024, 5000])
def test_large_reductions(kind: str, axis: int, width: int) -> None:
    rows = LARGE // width + 3
    array = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    x = Value(tensor(array.shape, f32))
    (found,) = run_graph(Graph([x], [build.reduce(x, kind, (axis,))]), [array])
    exact = getattr(array.astype(np.float64), kind)(axis)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=2e-7 * np.sqrt(array.shape[axis]) * 4)
