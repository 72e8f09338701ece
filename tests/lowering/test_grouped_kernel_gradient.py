"""Gradients of kernels with few channels a group, by their own schedule: awkward sizes, epilogues, threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import Index, Symbol, of_symbol
from flambeau.compiler.ir.types import ElementType, element_type, f32, tensor
from flambeau.compiler.lowering.grouped_kernel_gradient import grouped_gradient_plan
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.execution import run_graph
from flambeau.runtime import threads

torch = pytest.importorskip("torch")


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


def _planned(graph: Graph, op: Convolution) -> bool:
    return grouped_gradient_plan(op, *[p.type for p in graph.parameters], CpuShape()) is not None  # type: ignore[misc]


def _integers(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    types = [p.type for p in graph.parameters]
    return [rng.integers(-4, 5, t.shape).astype(t.element.numpy) for t in types]  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_sums_are_exact_for_small_integers(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    window = tuple(data.draw(st.integers(1, (16, 5, 3)[rank - 1])) for _ in range(rank))
    options: dict[str, int | tuple[int, ...]] = {
        name: tuple(data.draw(st.integers(low, high)) for _ in range(rank))
        for name, low, high in (("stride", 1, 3), ("padding", 0, 2), ("dilation", 1, 2))
    }
    space = tuple(data.draw(st.integers(1, n)) for n in (5, 37, 40)[-rank:])
    for n, k, p, d in zip(space, window, options["padding"], options["dilation"], strict=True):  # type: ignore[arg-type]
        assume(n + 2 * p >= (k - 1) * d + 1)
    batch, groups, channels, features = (
        data.draw(st.integers(low, n)) for low, n in ((1, 3), (1, 5), (1, 3), (1, 40))
    )
    element = element_type(data.draw(st.sampled_from(["f32", "f32", "f64", "f16"])))
    x, w = (batch, groups * channels, *space), (groups * features, channels, *window)
    graph, op = _gradient(x, w, element, groups=groups, **options)
    patches = groups == 1 and op.rhs_dilation[-1] > max(2, window[-1] - 1)
    assert _planned(graph, op) != patches, "the case must reach the code under test"
    arrays = _integers(graph)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


@pytest.mark.parametrize("features", [37, 48, 64, 67])
def test_features_in_parts(features: int) -> None:
    graph, op = _gradient((2, 3, 29, 31), (features, 3, 7, 7), f32, stride=2, padding=3)
    arrays = _integers(graph)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("w", [(64, 3, 7, 7), (35, 1, 3, 3), (6, 2, 5, 5), (7, 1, 1, 1)], ids=str)
def test_tiles_fit_the_registers(w: tuple[int, ...], registers: int) -> None:
    graph, op = _gradient((1, w[1], 20, 20), w, f32)
    plan = grouped_gradient_plan(op, *[p.type for p in graph.parameters], CpuShape(256, registers))  # type: ignore[misc]
    assert plan is not None
    assert plan.block * plan.part + plan.block < registers
    assert w[0] % plan.chunk == 0 and plan.chunk % plan.block == 0


@pytest.mark.parametrize("size", [96, 97, 101])
def test_images_in_parts(size: int) -> None:
    graph, op = _gradient((2, 3, size, 75), (6, 1, 3, 3), f32, groups=3, padding=1)
    arrays = _integers(graph)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


def test_who_has_the_schedule() -> None:
    assert _planned(*_gradient((1, 144, 56, 56), (144, 1, 3, 3), f32, groups=144, padding=1))
    assert _planned(*_gradient((1, 64, 14, 14), (64, 4, 5, 5), f32, groups=16, padding=2, stride=2))
    assert _planned(*_gradient((1, 3, 64, 64), (64, 3, 7, 7), f32, padding=3, stride=2))
    assert not _planned(*_gradient((1, 64, 14, 14), (64, 64, 3, 3), f32, padding=1))  # many channels
    assert not _planned(*_gradient((1, 3, 64, 64), (96, 3, 4, 4), f32, stride=4))  # patches
    assert not _planned(
        *_gradient((1, 64, 14, 14), (64, 32, 3, 3), f32, groups=2)
    )  # 32 features and channels a group
    assert not _planned(*_gradient((1, 4, 20, 20), (4, 1, 9, 9), f32, groups=4))  # 81 taps
    x, w = Value(tensor((4, 3, 12, 20), f32)), Value(tensor((4, 3, 3, 3), f32))
    forward = convolution_of(2, 1, 1, 1, 1)
    assert not _planned(Graph([x, w], [apply(forward, x, w)]), forward)


def test_an_optimizer_step_is_the_epilogue() -> None:
    graph, op = _gradient((2, 5, 9, 11), (10, 1, 3, 3), f32, padding=1, groups=5)
    (gradient,) = graph.results
    weights, momentum = Value(gradient.type), Value(gradient.type)
    moved = build.add(build.mul(momentum, 0.5), gradient)
    whole = Graph(
        [*graph.parameters, weights, momentum], [build.sub(weights, build.mul(moved, 0.25)), moved, gradient]
    )
    arrays = _integers(whole)
    expected = op.reference(*arrays[:2])
    after, kept, plain = run_graph(whole, arrays)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(kept, arrays[3] * np.float32(0.5) + expected)
    np.testing.assert_array_equal(after, arrays[2] - kept * np.float32(0.25))


def test_any_batch() -> None:
    n = of_symbol(Symbol("N", 1))
    graph, op = _gradient((n, 6, 7, 9), (6, 1, 3, 3), f32, padding=1, groups=6)
    for batch in (1, 2, 5):
        rng = np.random.default_rng(batch)
        arrays = [rng.integers(-4, 5, (batch, 6, 7, 9)).astype(np.float32) for _ in range(2)]
        (found,) = run_graph(graph, arrays)
        np.testing.assert_array_equal(found, op.reference(*arrays))


def test_threads_give_the_same_bits() -> None:
    graph, _ = _gradient((3, 50, 19, 23), (50, 1, 3, 3), f32, padding=1, groups=50)
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


def test_errors_are_no_larger_than_numpy_in_f32() -> None:
    graph, op = _gradient((8, 4, 56, 56), (4, 1, 3, 3), f32, padding=1, groups=4)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape) for p in graph.parameters]  # type: ignore[attr-defined]
    exact = op.reference(*arrays)
    (found,) = run_graph(graph, [a.astype(np.float32) for a in arrays])
    assert np.abs(found - exact).max() <= 3e-6 * np.abs(exact).max()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("channels", "features", "groups", "options"),
    [
        (6, 6, 6, {"padding": 1}),
        (6, 12, 3, {"padding": 2, "stride": 2}),
        (4, 8, 2, {"padding": 1, "dilation": 2}),
        (3, 17, 1, {"padding": 3, "stride": 3}),
    ],
    ids=["depthwise", "groups, stride", "groups, dilation", "first layer"],
)
def test_first_and_second_gradients_are_pytorchs(
    channels: int, features: int, groups: int, options: dict, transposed: bool
) -> None:
    rng = np.random.default_rng(0)
    window = 7 if groups == 1 else 3
    kernel = (channels, features // groups) if transposed else (features, channels // groups)
    arrays = [rng.standard_normal((2, channels, 13, 11)), rng.standard_normal((*kernel, window, window))]
    weights = rng.standard_normal(arrays[0].shape), rng.standard_normal(arrays[1].shape)

    def second(m: object) -> list[np.ndarray]:
        x, w = (m.tensor(a, requires_grad=True) for a in arrays)  # type: ignore[attr-defined]
        vx, vw = (m.tensor(a) for a in weights)  # type: ignore[attr-defined]
        functional = m.nn.functional  # type: ignore[attr-defined]
        function = functional.conv_transpose2d if transposed else functional.conv2d
        y = function(x, w, groups=groups, **options)
        first = m.autograd.grad((y * y * y).sum(), (x, w), create_graph=True)  # type: ignore[attr-defined]
        total = (first[0] * vx).sum() + (first[1] * vw).sum()
        then = m.autograd.grad(total, (x, w))  # type: ignore[attr-defined]
        return [v.detach().numpy() for v in (y, *first, *then)]

    for found, expected in zip(second(fb), second(torch), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
