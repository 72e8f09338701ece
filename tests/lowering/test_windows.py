"""Kernels of sliding windows against the operations' NumPy rules, at awkward sizes, with one thread and several."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.overlap_add import OverlapAdd
from flambeau.compiler.dialects.graph.reduce_window import ReduceWindow, ReduceWindowIndex, WindowScatter
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import element_type, tensor
from flambeau.compiler.passes.fuse import fuse
from flambeau.execution import run_graph
from flambeau.runtime import threads

ELEMENTS = ("f32", "f64", "f16", "i32")


def _array(data: st.DataObject, shape: tuple[int, ...], element: str) -> np.ndarray:
    """Few different numbers, so that there are ties; zeros of both signs and, of floats, NaN and infinities."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    array = rng.integers(-3, 4, shape).astype(element_type(element).numpy)
    if element != "i32" and data.draw(st.booleans()):
        array[rng.random(shape) < 0.05] = np.nan
        array[rng.random(shape) < 0.1] = -np.inf
    return array


def _window(data: st.DataObject, kind: type, rank: int) -> tuple[tuple, ...]:
    """Sizes, strides, padding, operand's dilations, window's dilations; the first axis has a window rarely."""
    lead = rank - data.draw(st.integers(1, min(rank, 2)))
    sizes = tuple(1 if a < lead else data.draw(st.integers(1, 4)) for a in range(rank))
    strides = tuple(1 if a < lead else data.draw(st.integers(1, 4)) for a in range(rank))
    dilations = tuple(1 if a < lead else data.draw(st.integers(1, 2)) for a in range(rank))
    padding = tuple(
        (0, 0) if a < lead else (data.draw(st.integers(-1, 3)), data.draw(st.integers(-1, 3)))
        for a in range(rank)
    )
    return sizes, strides, padding, (1,) * rank, dilations


def _shape(data: st.DataObject) -> tuple[int, ...]:
    rank = data.draw(st.integers(1, 4))
    small = [data.draw(st.integers(1, 3)) for _ in range(rank - 2)]
    return (*small, *[data.draw(st.integers(1, n)) for n in (20, 70)][-min(rank, 2) :])


def _check(operation: object, arrays: list[np.ndarray]) -> None:
    parameters = [Value(tensor(a.shape, build.type_from_numpy(a))) for a in arrays]
    graph = Graph(parameters, [apply(operation, *parameters)])  # type: ignore[arg-type]
    (found,) = run_graph(graph, arrays)
    expected = operation.reference(*arrays)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_reductions_of_windows(data: st.DataObject) -> None:
    shape, element = _shape(data), data.draw(st.sampled_from(ELEMENTS))
    kind = data.draw(st.sampled_from(["sum", "max", "min"]))
    _check(ReduceWindow(*_window(data, ReduceWindow, len(shape)), kind), [_array(data, shape, element)])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_where_extremes_are(data: st.DataObject) -> None:
    shape, element = _shape(data), data.draw(st.sampled_from(ELEMENTS))
    window = _window(data, ReduceWindowIndex, len(shape))
    op = ReduceWindowIndex(
        *window, data.draw(st.sampled_from(["max", "min"])), data.draw(st.integers(0, len(shape)))
    )
    _check(op, [_array(data, shape, element)])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_scattering_to_windows(data: st.DataObject) -> None:
    shape, element = _shape(data), data.draw(st.sampled_from(ELEMENTS))
    window = _window(data, WindowScatter, len(shape))
    index = ReduceWindowIndex(*window).reference(_array(data, shape, "i32"))
    ct = np.random.default_rng(0).integers(-3, 4, index.shape).astype(element_type(element).numpy)
    _check(WindowScatter(*window, shape), [ct, index])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_adding_windows(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))
    lead = tuple(data.draw(st.integers(1, 3)) for _ in range(data.draw(st.integers(0, 2))))
    sizes = tuple(data.draw(st.integers(1, 4)) for _ in range(rank))
    counts = tuple(data.draw(st.integers(1, n)) for n in (7, 40)[-rank:])
    shape = tuple(data.draw(st.integers(1, n)) for n in (20, 90)[-rank:])
    strides = tuple(data.draw(st.integers(1, 4)) for _ in range(rank))
    dilations = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    low = tuple(data.draw(st.integers(-5, 5)) for _ in range(rank))
    element = data.draw(st.sampled_from(ELEMENTS))
    x = _array(data, (*lead, *sizes, *counts), "i32").astype(element_type(element).numpy)
    _check(OverlapAdd(shape, strides, dilations, low), [x])


def test_an_epilogue_and_a_prologue() -> None:
    x, bias = Value(tensor((2, 3, 9, 33), element_type("f32"))), Value(tensor((3,), element_type("f32")))
    moved = build.add(x, build.broadcast_along(bias, (2, 3, 9, 33), 1))
    window = (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), (1,) * 4, (1,) * 4
    pooled = apply(ReduceWindow(*window, "max"), moved)
    graph = Graph([x, bias], [build.maximum(build.mul(pooled, 2.0), 0.5), pooled])
    assert len(fuse(graph).calls) == 1
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, 9, 33), np.float32), rng.standard_normal(3, np.float32)]
    scaled, plain = run_graph(graph, arrays)
    expected = ReduceWindow(*window, "max").reference(arrays[0] + arrays[1][:, None, None])
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(scaled, np.maximum(expected * 2, np.float32(0.5)))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_threads_give_the_same_bits(count: int) -> None:
    window = (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), (1,) * 4, (1,) * 4
    x = np.random.default_rng(0).standard_normal((4, 16, 31, 45), np.float32)
    before = threads.num_threads()
    threads.set_num_threads(count)
    try:
        _check(ReduceWindow(*window, "max"), [x])
        _check(ReduceWindowIndex(*window), [x])
        where = ReduceWindowIndex(*window).reference(x)
        ct = np.random.default_rng(1).integers(-9, 9, where.shape).astype(np.float32)
        _check(WindowScatter(*window, x.shape), [ct, where])
    finally:
        threads.set_num_threads(before)
