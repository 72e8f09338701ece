"""Convolutions of few input features, whose vectors run along rows, against the interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau
from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.ir.types import ElementType, f32, f64
from tests.lowering import convolution_harness as harness

CASES: dict[str, harness.Case] = {
    "7 x 7, stride 2": (convolution_of(2, 2, 3, 1), (1, 3, 62, 62), (16, 3, 7, 7)),
    "3 x 3, stride 2": (convolution_of(2, 2, 1, 1), (2, 3, 64, 64), (32, 3, 3, 3)),
    "stride 1": (convolution_of(2, 1, 1, 1), (1, 3, 20, 32), (24, 3, 3, 3)),
    "features left over": (convolution_of(2, 1, 1, 1), (1, 2, 9, 47), (13, 2, 3, 3)),
    "a prime number of rows": (convolution_of(2, 1, 1, 1), (1, 1, 31, 48), (8, 1, 3, 3)),
    "lanes left over": (convolution_of(2, 1, 0, 1), (1, 1, 30, 32), (8, 1, 3, 3)),
    "strides that differ": (convolution_of(2, (3, 2), 2, 1), (1, 3, 25, 61), (8, 3, 5, 5)),
    "dilation": (convolution_of(2, (1, 2), (2, 3), (2, 3)), (1, 2, 19, 64), (9, 2, 3, 3)),
    "stride 2 of windows of one column": (convolution_of(2, (1, 2), (1, 0), 1), (1, 3, 20, 63), (8, 3, 3, 1)),
    "wide padding": (convolution_of(2, 2, (2, 20), 1), (1, 3, 9, 24), (8, 3, 3, 3)),
    "cut by negative padding": (
        replace(convolution_of(2, 1, 0, 1), padding=((-1, 2), (3, -2))), (1, 3, 20, 33), (8, 3, 3, 3),
    ),
    "turned kernel": (
        replace(convolution_of(2, 1, 1, 1), window_reversal=(True, True)), (1, 3, 17, 32), (8, 3, 3, 3),
    ),
    "one dimension": (convolution_of(1, 2, 2, 1), (3, 4, 255), (10, 4, 5)),
}  # fmt: skip


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The plans of the convolutions that were lowered in this way."""
    return harness.spy(monkeypatch, "lower_shallow_convolution")


@pytest.mark.parametrize("element", [f32, f64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, element: ElementType, taken: list[object]) -> None:
    harness.check(CASES[name], element, computed=True)
    assert taken, "the case must reach the code under test"


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape(data: st.DataObject) -> None:
    integers = harness.drawing(data)
    channels, features = integers(1, 4), integers(1, 20)
    op, space, window = harness.any_image(integers, (20, 70), (3, 3))
    harness.check((op, (integers(1, 2), channels, *space), (features, channels, *window)), f32, computed=True)


def test_any_number_of_images(taken: list[object]) -> None:
    harness.check_any_number_of_images(flambeau.nn.Conv2d(3, 12, 3, stride=2, padding=1), (15, 63))
    assert taken


def test_kernels_of_16_bits_are_left_to_others(taken: list[object]) -> None:
    layer = flambeau.nn.Conv2d(3, 16, 3, padding=1, dtype=flambeau.bfloat16)
    x = flambeau.randn(1, 3, 12, 32).to(flambeau.bfloat16)
    expected = flambeau.nn.functional.conv2d(x.float(), layer.weight.float(), layer.bias.float(), padding=1)
    actual = layer(x).float().detach().numpy()
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=2e-2, atol=2e-2)
    assert len(taken) == 1  # the second
