"""Scans whose rows have nothing to do with one another: which they are, and that parts of them give the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.types import TensorType, f32, f64, i1, tensor
from flambeau.compiler.lowering.scan_loop import Rows
from flambeau.compiler.passes.autodiff import vjp
from flambeau.compiler.passes.scan_rows import with_rows
from flambeau.compiler.pipeline import compile_stages
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.compiler.schedule.cpu_scan import rows_of_part
from flambeau.execution import run_graph
from flambeau.runtime import threads


def gated(batch: int, hidden: int, element=f32) -> Graph:
    """A gated step with a mask, a table row that all rows share, and outputs of several kinds."""
    h, x, keep, shared = (
        Value(t)
        for t in (
            tensor((batch, hidden), element),
            tensor((batch, 2 * hidden), element),
            tensor((batch,), i1),
            tensor((hidden,), element),
        )
    )
    w = Value(tensor((2 * hidden, hidden), element))
    sums = build.add(x, build.dot_general(h, w, ((1,), (1,))))
    gate, new = (build.slice_axis(sums, 1, i * hidden, (i + 1) * hidden) for i in range(2))
    new = build.tanh(build.add(new, build.broadcast_in_dim(shared, (batch, hidden), (1,))))
    after = build.add(h, build.mul(build.logistic(gate), build.sub(new, h)))
    after = build.select(build.broadcast_in_dim(keep, (batch, hidden), (0,)), after, h)
    turned = build.transpose(build.mul(after, 2), (1, 0))
    back = build.reshape(build.transpose(turned, (1, 0)), (batch, 1, hidden))
    return Graph([h, x, keep, shared, w], [after, back, build.reduce_sum(after, (1,)), h], "gated")


def scan_of(body: Graph, length: int, carries: int, sequences: int, reverse: bool = False) -> Graph:
    types: list[TensorType] = [build.type_of(p) for p in body.parameters]
    for i in range(carries, carries + sequences):
        types[i] = types[i].with_shape((length, *types[i].shape))
    parameters = [Value(t) for t in types]
    made = create(Scan(body, length, carries, sequences, reverse), *parameters).results
    return Graph(parameters, made, "scan")


def gradient(graph: Graph) -> Graph:
    real = [p for p in graph.parameters if build.element_of(p).is_float]
    cotangents = [Value(r.type) for r in graph.results]
    found = vjp(graph.results, real, cotangents)
    return Graph([*graph.parameters, *cotangents], [g for g in found if g is not None], "gradient")


def arrays(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    made = []
    for p in graph.parameters:
        shape, element = build.shape_of(p), build.element_of(p)
        made.append(
            rng.random(shape) < 0.8
            if element is i1
            else (rng.standard_normal(shape) / 4).astype(element.numpy)
        )
    return made


def on_threads(graph: Graph, given_arrays: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The results with 1 to 4 threads."""
    before, found = threads.num_threads(), []
    try:
        for count in range(1, 5):
            threads.set_num_threads(count)
            found.append(run_graph(graph, given_arrays))
    finally:
        threads.set_num_threads(before)
    return found


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from([11, 12, 14, 16, 22, 24, 33, 40]),
    st.integers(1, 37),
    st.booleans(),
    st.sampled_from([f32, f64]),
)
def test_parts_give_the_same_bits(length: int, batch: int, hidden: int, reverse: bool, element) -> None:
    forward = scan_of(gated(batch, hidden, element), length, 1, 3, reverse)
    tolerance = 1e-10 if element is f64 else 2e-5
    for graph in (forward, gradient(forward)):
        given_arrays = arrays(graph)
        expected = evaluate(graph, given_arrays)
        found = on_threads(graph, given_arrays)
        for ours, theirs in zip(found[0], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, tolerance, tolerance, strict=True)
        for other in found[1:]:
            for ours, theirs in zip(other, found[0], strict=True):
                np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("hidden", [32, 256])
def test_threads_take_parts_of_the_rows(hidden: int) -> None:
    """The kernels for a part of the rows are there, and stay on their thread."""
    whole = scan_of(gated(16, hidden), 9, 1, 3)
    loops = compile_stages(whole, stop_after="loops").kernels
    (scan,) = [k for k in loops.values() if any("_part" in f.definition.sym_name for f in k.functions)]
    inner = [f for f in scan.functions if "_part" in f.definition.sym_name]
    parallel = [o for f in inner for o in f.regions[0].block.operations if o.name == "scf.parallel"]
    assert all(len(o.operands) == 3 for o in parallel)  # no pool
    odd = compile_stages(scan_of(gated(13, 32), 9, 1, 3), stop_after="loops").kernels
    assert not any("_part" in f.definition.sym_name for k in odd.values() for f in k.functions)


def test_a_part_of_the_rows() -> None:
    scan = Scan(gated(24, 5), 4, 1, 3)
    part = with_rows(scan, 6)
    assert part is not None
    assert part.body == gated(6, 5)
    value = Value(tensor((24, 5), f32))
    assert Rows(scan, 2).offset(value, Value(tensor((6, 5), f32)), 3) == 3 * 120 + 2 * 30
    assert Rows(scan, 2).offset(value, value, 3) == 3 * 120


Step = Callable[[Value, Value], Value]


def _step(make: Step, *extents: int) -> Scan:
    h, x = (Value(tensor((12, *extents), f32)) for _ in range(2))
    after = make(h, x)
    return Scan(Graph([h, x], [after, after]), 3, 1, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda h, x: build.sub(h, build.broadcast_in_dim(build.reduce_sum(x, (0,)), (12, 12), (1,))),
        lambda h, x: build.add(x, build.transpose(h, (1, 0))),
        lambda h, x: build.dot_general(h, x, ((1,), (1,))),
        lambda h, x: build.dot_general(x, h, ((1,), (0,))),
        lambda h, x: build.pad(build.slice_axis(h, 0, 1, 12), (1, 0), (0, 0), (0, 0)),
        lambda h, x: build.add(h, build.convert(build.iota((12, 12), dimension=0), f32)),
    ],
    ids=["reduced", "transposed", "contracted", "batch contracted", "shifted", "numbered"],
)
def test_rows_that_depend_on_one_another_stay_together(make: Step) -> None:
    assert with_rows(_step(make, 12), 6) is None


def test_rows_of_batched_products() -> None:
    scan = _step(lambda h, x: build.dot_general(h, x, ((2,), (1,)), ((0,), (0,))), 3, 3)
    part = with_rows(scan, 6)
    assert part is not None
    assert [build.shape_of(p) for p in part.body.parameters] == [(6, 3, 3), (6, 3, 3)]


@pytest.mark.parametrize(
    ("count", "rows"), [(16, 8), (64, 8), (12, 6), (14, 7), (22, 11), (13, None), (8, None), (1, None)]
)
def test_rows_of_parts(count: int, rows: int | None) -> None:
    cpu = CpuShape()
    assert rows_of_part(count, 1 << 20, cpu) == rows
    assert rows_of_part(count, 5 * cpu.l2, cpu) is None
