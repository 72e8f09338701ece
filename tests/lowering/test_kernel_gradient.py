"""Gradients of convolutions' kernels by their own schedule, at awkward sizes, with an epilogue, with threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import ElementType, f32, f64, tensor
from flambeau.compiler.schedule.cpu_kernel_gradient import GradientPlan
from tests.lowering import kernel_gradient_harness as harness
from tests.lowering.kernel_gradient_harness import gradient


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_sums_are_exact_for_small_integers(data: st.DataObject) -> None:
    x, w, options = harness.any_case(data, (16, 5), (7, 18), images=3, groups=1, channels=70, features=20)
    harness.check_exact(*gradient(x, w, harness.any_element(data), **options))


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_groups_and_windows_of_one_element(data: st.DataObject) -> None:
    integer = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, stride, size = integer(1, 3), integer(1, 3), integer(4, 40)
    channels, features, window = integer(1, 3) * 16, integer(6, 20), integer(0, 1) * 2 + 1
    shape = integer(1, 9), groups * channels, size, integer(4, 20)
    options = {"groups": groups, "stride": stride, "padding": window // 2}
    harness.check_exact(*gradient(shape, (groups * features, channels, window, window), f32, **options))


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
def test_pixels_in_parts(
    x: harness.Shape, w: harness.Shape, options: harness.Options, element: ElementType
) -> None:
    graph, op = gradient(x, w, element, **options)
    plan = harness.planned(graph, op)
    assert isinstance(plan, GradientPlan) and not plan.at_once
    harness.check_exact(graph, op)


def test_who_has_the_schedule() -> None:
    def planned(x: harness.Shape, w: harness.Shape, **options: int) -> bool:
        return isinstance(harness.planned(*gradient(x, w, f32, **options)), GradientPlan)

    assert planned((8, 64, 16, 16), (64, 64, 3, 3), padding=1)
    assert planned((8, 64, 16, 16), (64, 64, 3, 3), padding=1, stride=2)
    assert planned((8, 64, 64, 64), (64, 64, 3, 3), padding=1)
    assert planned((8, 64, 16, 16), (64, 64, 1, 1))
    assert planned((1, 64, 16, 16), (64, 64, 1, 1), stride=2)
    assert not planned((1, 64, 16, 16), (64, 64, 1, 1))  # a plain product
    assert planned((8, 64, 16, 16), (64, 16, 3, 3), groups=4)
    assert not planned((8, 80, 16, 16), (80, 20, 3, 3), groups=4)  # vectors of two groups
    assert not planned((8, 3, 16, 16), (64, 3, 3, 3))  # few channels
    x, w = Value(tensor((8, 64, 4, 4), f32)), Value(tensor((64, 64, 3, 3), f32))
    forward = convolution_of(2, 1, 1)
    for op in (forward, replace(forward, window_reversal=(True, True))):
        assert not isinstance(harness.planned(Graph([x, w], [apply(op, x, w)]), op), GradientPlan)


@pytest.mark.parametrize("w", [(11, 37, 3, 3), (11, 37, 1, 1)], ids=str)
def test_an_optimizer_step_is_the_epilogue(w: harness.Shape) -> None:
    harness.check_optimizer_step(*gradient((2, 37, 5, 4), w, f32, padding=w[-1] // 2))


@pytest.mark.parametrize("w", [(9, 20, 3, 3), (9, 20, 1, 1)], ids=str)
def test_any_batch(w: harness.Shape) -> None:
    harness.check_any_batch((20, 6, 6), w, padding=w[-1] // 2)


def test_threads_give_the_same_bits() -> None:
    harness.check_threads(gradient((3, 50, 19, 21), (30, 50, 3, 3), f32, padding=1)[0])


@pytest.mark.parametrize(
    ("x", "w", "options", "most"),
    [
        ((4, 64, 16, 16), (32, 64, 3, 3), {"padding": 1}, 5e-7),
        ((4, 64, 16, 16), (32, 64, 3, 3), {"padding": 1, "stride": 2}, 5e-7),
        ((8, 256, 7, 7), (128, 256, 1, 1), {}, 2.5e-7),
    ],
    ids=["3 x 3", "stride 2", "1 x 1"],
)
def test_errors_are_small(x: harness.Shape, w: harness.Shape, options: harness.Options, most: float) -> None:
    harness.check_error(*gradient(x, w, f32, **options), most)
