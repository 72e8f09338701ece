"""Depthwise convolutions that read their input where it lies, against the interpreter: edges, strides, dilations, multipliers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau
from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.ir.types import ElementType, f32, f64
from tests.lowering import convolution_harness as harness

CASES: dict[str, harness.Case] = {
    "rows and columns in loops": (convolution_of(2, 1, 1, 1, 3), (2, 3, 57, 83), (3, 1, 3, 3)),
    "rows and columns in loops, stride 2": (convolution_of(2, 2, 1, 1, 3), (1, 3, 113, 167), (3, 1, 3, 3)),
    "one tile": (convolution_of(2, 1, 1, 1, 20), (1, 20, 7, 7), (20, 1, 3, 3)),
    "one tile, stride 2": (convolution_of(2, 2, 1, 1, 20), (1, 20, 14, 14), (20, 1, 3, 3)),
    "5 x 5, stride 2": (convolution_of(2, 2, 2, 1, 4), (1, 4, 57, 91), (4, 1, 5, 5)),
    "7 x 7": (convolution_of(2, 1, 3, 1, 4), (1, 4, 56, 56), (4, 1, 7, 7)),
    "strides that differ": (convolution_of(2, (3, 2), 1, 1, 4), (2, 4, 40, 40), (4, 1, 3, 3)),
    "dilation": (convolution_of(2, 1, (2, 4), (2, 4), 4), (1, 4, 30, 41), (4, 1, 3, 3)),
    "dilation and stride 2": (convolution_of(2, 2, (3, 3), (3, 3), 4), (1, 4, 33, 70), (4, 1, 3, 3)),
    "three features a channel": (convolution_of(2, 1, 1, 1, 4), (1, 4, 20, 20), (12, 1, 3, 3)),
    "padding wider than a vector": (convolution_of(2, 1, (2, 40), 1, 3), (1, 3, 9, 50), (3, 1, 3, 3)),
    "only padding under some windows": (convolution_of(2, 2, 9, 1, 3), (1, 3, 6, 6), (3, 1, 3, 3)),
    "cut by negative padding": (
        replace(convolution_of(2, 1, 0, 1, 3), padding=((-1, 2), (3, -2))), (1, 3, 20, 33), (3, 1, 3, 3),
    ),
    "turned kernel": (
        replace(convolution_of(2, 1, 1, 1, 3), window_reversal=(True, True)), (1, 3, 17, 40), (3, 1, 3, 3),
    ),
    "one dimension": (convolution_of(1, 2, 2, 1, 6), (3, 6, 301), (6, 1, 5)),
}  # fmt: skip


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The plans of the depthwise convolutions that were lowered."""
    return harness.spy(monkeypatch, "lower_depthwise_convolution")


@pytest.mark.parametrize("element", [f32, f64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, element: ElementType, taken: list[object]) -> None:
    harness.check(CASES[name], element, tolerance=2e-5)
    assert taken, "the case must reach the code under test"


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape(data: st.DataObject) -> None:
    integers = harness.drawing(data)
    groups, multiplier = integers(2, 5), integers(1, 2)
    op, space, window = harness.any_image(integers, (40, 70), (3, 2), groups)
    x, w = (integers(1, 2), groups, *space), (groups * multiplier, 1, *window)
    harness.check((op, x, w), f32, tolerance=2e-5)


def test_any_number_of_images(taken: list[object]) -> None:
    layer = flambeau.nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
    harness.check_any_number_of_images(layer, (15, 33), groups=6)
    assert taken
