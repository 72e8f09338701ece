"""Gradients of convolutions' kernels by their own schedule, at awkward sizes, with an epilogue, with threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import Index, Symbol, of_symbol
from flambeau.compiler.ir.types import ElementType, element_type, f32, f64, tensor
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.compiler.schedule.cpu_kernel_gradient import gradient_plan
from flambeau.execution import run_graph
from flambeau.runtime import threads


def _gradient(
    x: tuple[Index, ...], w: tuple[int, ...], element: ElementType, **options: int | tuple[int, ...]
) -> tuple[Graph, Convolution]:
    """The gradient of the kernel `w` of a convolution of `x`, as autodiff makes it; its parameters are x and ct."""
    op = convolution_of(len(w) - 2, **options)  # type: ignore[arg-type]
    source, kernel = Value(tensor(x, element)), Value(tensor(w, element))
    ct = Value(apply(op, source, kernel).type)
    made = op.vjp(ct, source, kernel, result=apply(op, source, kernel))[1]
    definition = made.owner.definition  # type: ignore[union-attr]
    assert isinstance(definition, Convolution)
    return Graph([source, ct], [made]), definition


def _arrays(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    types = [p.type for p in graph.parameters]
    return [rng.integers(-4, 5, t.shape).astype(t.element.numpy) for t in types]  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_sums_are_exact_for_small_integers(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))
    window = tuple(data.draw(st.integers(1, 5 if rank == 2 else 16)) for _ in range(rank))
    options = {
        name: tuple(data.draw(st.integers(low, high)) for _ in range(rank))
        for name, low, high in (("stride", 1, 3), ("padding", 0, 2), ("dilation", 1, 2))
    }
    space = tuple(data.draw(st.integers(1, n)) for n in (7, 18)[-rank:])
    for n, k, p, d in zip(space, window, options["padding"], options["dilation"], strict=True):
        assume(n + 2 * p >= (k - 1) * d + 1)
    batch, channels, features = (data.draw(st.integers(1, n)) for n in (3, 70, 20))
    element = element_type(data.draw(st.sampled_from(["f32", "f32", "f64", "f16"])))
    graph, op = _gradient((batch, channels, *space), (features, channels, *window), element, **options)
    arrays = _arrays(graph)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


@pytest.mark.parametrize("element", [f32, f64], ids=str)
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((2, 49, 41, 37), (70, 49, 3, 3), {"padding": 1}),
        ((3, 33, 50, 45), (70, 33, 4, 2), {"padding": (0, 2), "stride": 2}),
        ((1, 35, 33, 40), (96, 35, 3, 3), {"padding": 4, "dilation": 3}),
        ((2, 64, 1500), (64, 64, 9), {"padding": 4}),
        ((5, 64, 15, 17), (70, 64, 3, 3), {}),
        ((19, 50, 8, 9), (512, 50, 3, 3), {"padding": 1}),
        ((3, 64, 30, 31), (70, 64, 1, 1), {}),
        ((11, 272, 9, 7), (256, 272, 1, 1), {"stride": (2, 1)}),
        ((7, 96, 17, 16), (72, 48, 3, 3), {"padding": 1, "groups": 2}),
    ],
    ids=[
        "rows in bands", "strides", "more padding than window", "one dimension", "images in groups",
        "chains of images", "no window", "no window, strides", "groups",
    ],
)  # fmt: skip
def test_pixels_in_parts(x: tuple[int, ...], w: tuple[int, ...], options: dict, element: ElementType) -> None:
    graph, op = _gradient(x, w, element, **options)
    plan = gradient_plan(op, *[p.type for p in graph.parameters], CpuShape())  # type: ignore[misc]
    assert plan is not None and not plan.at_once
    arrays = _arrays(graph)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


def test_who_has_the_schedule() -> None:
    def planned(graph: Graph, op: Convolution) -> bool:
        return gradient_plan(op, *[p.type for p in graph.parameters], CpuShape()) is not None  # type: ignore[misc]

    assert planned(*_gradient((8, 64, 16, 16), (64, 64, 3, 3), f32, padding=1))
    assert planned(*_gradient((8, 64, 16, 16), (64, 64, 3, 3), f32, padding=1, stride=2))
    assert planned(*_gradient((8, 64, 64, 64), (64, 64, 3, 3), f32, padding=1))
    assert planned(*_gradient((8, 64, 16, 16), (64, 64, 1, 1), f32))
    assert planned(*_gradient((1, 64, 16, 16), (64, 64, 1, 1), f32, stride=2))
    assert not planned(*_gradient((1, 64, 16, 16), (64, 64, 1, 1), f32))  # a plain product
    assert planned(*_gradient((8, 64, 16, 16), (64, 16, 3, 3), f32, groups=4))
    assert not planned(*_gradient((8, 80, 16, 16), (80, 20, 3, 3), f32, groups=4))  # vectors of two groups
    assert not planned(*_gradient((8, 3, 16, 16), (64, 3, 3, 3), f32))  # few channels
    forward = convolution_of(2, 1, 1)
    x, w = Value(tensor((8, 64, 4, 4), f32)), Value(tensor((64, 64, 3, 3), f32))
    assert not planned(Graph([x, w], [apply(forward, x, w)]), forward)
    turned = replace(forward, window_reversal=(True, True))
    assert not planned(Graph([x, w], [apply(turned, x, w)]), turned)


def test_an_optimizer_step_is_the_epilogue() -> None:
    graph, op = _gradient((2, 37, 5, 4), (11, 37, 3, 3), f32, padding=1)
    (gradient,) = graph.results
    weights, momentum = Value(gradient.type), Value(gradient.type)
    moved = build.add(build.mul(momentum, 0.5), gradient)
    whole = Graph(
        [*graph.parameters, weights, momentum], [build.sub(weights, build.mul(moved, 0.25)), moved, gradient]
    )
    arrays = _arrays(whole)
    expected = op.reference(*arrays[:2])
    after, kept, plain = run_graph(whole, arrays)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(kept, arrays[3] * np.float32(0.5) + expected)
    np.testing.assert_array_equal(after, arrays[2] - kept * np.float32(0.25))


def test_any_batch() -> None:
    n = of_symbol(Symbol("N", 1))
    graph, op = _gradient((n, 20, 6, 6), (9, 20, 3, 3), f32, padding=1)
    for batch in (1, 2, 5):
        rng = np.random.default_rng(batch)
        arrays = [rng.integers(-4, 5, (batch, c, 6, 6)).astype(np.float32) for c in (20, 9)]
        (found,) = run_graph(graph, arrays)
        np.testing.assert_array_equal(found, op.reference(*arrays))


def test_threads_give_the_same_bits() -> None:
    graph, _ = _gradient((3, 50, 19, 21), (30, 50, 3, 3), f32, padding=1)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape, np.float32) for p in graph.parameters]  # type: ignore[attr-defined]
    before, results = threads.num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            threads.set_num_threads(count)
            results.append(run_graph(graph, arrays)[0])
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("stride", [1, 2])
def test_errors_are_no_larger_than_numpy_in_f32(stride: int) -> None:
    graph, op = _gradient((4, 64, 16, 16), (32, 64, 3, 3), f32, padding=1, stride=stride)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape) for p in graph.parameters]  # type: ignore[attr-defined]
    exact = op.reference(*arrays)
    (found,) = run_graph(graph, [a.astype(np.float32) for a in arrays])
    assert np.abs(found - exact).max() <= 3e-6 * np.abs(exact).max()
