"""Gradients of depthwise kernels from where their input lies: edges, strides, dilations, multipliers, epilogues, threads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.ir.types import ElementType, f32, f64
from flambeau.compiler.lowering.depthwise_gradient import DepthwiseGradientPlan
from tests.lowering import kernel_gradient_harness as harness
from tests.lowering.kernel_gradient_harness import gradient

CASES: dict[str, harness.Case] = {
    "rows and columns in loops": ((2, 3, 57, 83), (3, 1, 3, 3), {"padding": 1}),
    "the same, stride 2": ((1, 3, 113, 167), (3, 1, 3, 3), {"padding": 1, "stride": 2}),
    "one tile": ((3, 20, 7, 7), (20, 1, 3, 3), {"padding": 1}),
    "one tile, stride 2": ((2, 20, 14, 14), (20, 1, 3, 3), {"padding": 1, "stride": 2}),
    "5 x 5, stride 2": ((2, 4, 57, 91), (4, 1, 5, 5), {"padding": 2, "stride": 2}),
    "a window in parts": ((2, 3, 40, 56), (3, 1, 7, 7), {"padding": 3}),
    "strides that differ": ((2, 4, 40, 40), (4, 1, 3, 3), {"padding": 1, "stride": (3, 2)}),
    "dilation": ((1, 4, 30, 41), (4, 1, 3, 3), {"padding": (2, 4), "dilation": (2, 4)}),
    "dilation and stride": ((1, 4, 33, 70), (4, 1, 3, 3), {"padding": 3, "dilation": 3, "stride": 2}),
    "three features a channel": ((2, 4, 20, 20), (12, 1, 3, 3), {"padding": 1}),
    "padding wider than a vector": ((1, 3, 9, 50), (3, 1, 3, 3), {"padding": (2, 40)}),
    "one element": ((2, 3, 9, 20), (3, 1, 1, 1), {}),
    "one dimension": ((3, 6, 301), (6, 1, 5), {"padding": 2, "stride": 2}),
}


@pytest.mark.parametrize("element", [f32, f64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, element: ElementType) -> None:
    x, w, options = CASES[name]
    graph, op = gradient(x, w, element, groups=x[1], **options)
    assert isinstance(harness.planned(graph, op), DepthwiseGradientPlan)
    harness.check_exact(graph, op)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_sums_are_exact_for_small_integers(data: st.DataObject) -> None:
    most = {"images": 3, "groups": 5, "channels": 1, "features": 2}
    x, w, options = harness.any_case(data, (16, 5), (37, 70), **most)
    harness.check_exact(*gradient(x, w, harness.any_element(data), **options))


def test_who_has_the_schedule() -> None:
    def planned(x: harness.Shape, w: harness.Shape, **options: int) -> bool:
        return isinstance(harness.planned(*gradient(x, w, f32, **options)), DepthwiseGradientPlan)

    assert planned((1, 96, 112, 112), (96, 1, 3, 3), groups=96, padding=1, stride=2)
    assert not planned((1, 8, 20, 20), (8, 2, 3, 3), groups=4)  # two channels a group
    assert not planned((1, 8, 40, 40), (8, 1, 3, 3), groups=8, stride=3)
    assert not planned((1, 8, 200), (8, 1, 31), groups=8)  # more sums than registers


def test_an_optimizer_step_is_the_epilogue() -> None:
    harness.check_optimizer_step(*gradient((2, 5, 9, 11), (10, 1, 3, 3), f32, padding=1, groups=5))


def test_any_batch() -> None:
    harness.check_any_batch((6, 7, 9), (6, 1, 3, 3), padding=1, groups=6)


def test_threads_give_the_same_bits() -> None:
    harness.check_threads(gradient((3, 50, 19, 23), (50, 1, 3, 3), f32, padding=1, groups=50)[0])


def test_errors_are_small() -> None:
    harness.check_error(*gradient((8, 4, 56, 56), (4, 1, 3, 3), f32, padding=1, groups=4), 1e-6)
