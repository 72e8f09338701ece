"""Gradients of kernels with few channels a group, by their own schedule: awkward sizes, epilogues, threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.lowering.grouped_kernel_gradient import GroupedGradientPlan
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from tests.lowering import kernel_gradient_harness as harness
from tests.lowering.kernel_gradient_harness import gradient

torch = pytest.importorskip("torch")


def _planned(x: harness.Shape, w: harness.Shape, **options: int) -> bool:
    return isinstance(harness.planned(*gradient(x, w, f32, **options)), GroupedGradientPlan)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_sums_are_exact_for_small_integers(data: st.DataObject) -> None:
    most = {"images": 3, "groups": 5, "channels": 3, "features": 40}
    x, w, options = harness.any_case(data, (16, 5, 3), (5, 37, 40), **most)
    harness.check_exact(*gradient(x, w, harness.any_element(data), **options))


@pytest.mark.parametrize("features", [37, 48, 64, 67])
def test_features_in_parts(features: int) -> None:
    harness.check_exact(*gradient((2, 3, 29, 31), (features, 3, 7, 7), f32, stride=2, padding=3))


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("w", [(64, 3, 7, 7), (35, 1, 3, 3), (6, 2, 5, 5), (7, 1, 1, 1)], ids=str)
def test_tiles_fit_the_registers(w: harness.Shape, registers: int) -> None:
    plan = harness.planned(*gradient((1, w[1], 20, 20), w), CpuShape(256, registers))
    assert isinstance(plan, GroupedGradientPlan)
    assert plan.block * plan.part + plan.block < registers
    assert w[0] % plan.chunk == 0 and plan.chunk % plan.block == 0


@pytest.mark.parametrize("size", [96, 97, 101])
def test_images_in_parts(size: int) -> None:
    harness.check_exact(*gradient((2, 6, size, 75), (6, 2, 3, 3), f32, groups=3, padding=1))


def test_who_has_the_schedule() -> None:
    assert _planned((1, 144, 56, 56), (144, 2, 3, 3), groups=72, padding=1)
    assert _planned((1, 64, 14, 14), (64, 4, 5, 5), groups=16, padding=2, stride=2)
    assert _planned((1, 3, 64, 64), (64, 3, 7, 7), padding=3, stride=2)
    assert _planned((1, 8, 200), (8, 1, 31), padding=15, groups=8)  # depthwise, of a wide window
    assert not _planned((1, 144, 56, 56), (144, 1, 3, 3), groups=144, padding=1)  # depthwise
    assert not _planned((1, 64, 14, 14), (64, 64, 3, 3), padding=1)  # many channels
    assert not _planned((1, 3, 64, 64), (96, 3, 4, 4), stride=4)  # patches
    assert not _planned((1, 64, 14, 14), (64, 32, 3, 3), groups=2)  # 32 features and channels a group
    assert not _planned((1, 4, 20, 20), (4, 1, 9, 9), groups=4)  # 81 taps
    x, w = Value(tensor((4, 3, 12, 20), f32)), Value(tensor((4, 3, 3, 3), f32))
    forward = convolution_of(2, 1, 1, 1, 1)
    plan = harness.planned(Graph([x, w], [apply(forward, x, w)]), forward)
    assert not isinstance(plan, GroupedGradientPlan)


def test_an_optimizer_step_is_the_epilogue() -> None:
    harness.check_optimizer_step(*gradient((2, 10, 9, 11), (10, 2, 3, 3), f32, padding=1, groups=5))


def test_any_batch() -> None:
    harness.check_any_batch((6, 7, 9), (6, 2, 3, 3), padding=1, groups=3)


def test_threads_give_the_same_bits() -> None:
    harness.check_threads(gradient((3, 50, 19, 23), (50, 2, 3, 3), f32, padding=1, groups=25)[0])


def test_errors_are_small() -> None:
    harness.check_error(*gradient((8, 4, 56, 56), (4, 2, 3, 3), f32, padding=1, groups=2), 5e-7)


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
