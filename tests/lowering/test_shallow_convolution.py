"""Convolutions of few input features, whose vectors run along rows, against the interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import flambeau
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import ElementType, f32, f64, tensor
from flambeau.compiler.lowering import contractions
from flambeau.execution import run_graph

Shape = tuple[int, ...]
#: Operation, input, kernel.
CASES: dict[str, tuple[Convolution, Shape, Shape]] = {
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


def _check(op: Convolution, shapes: tuple[Shape, Shape], element: ElementType, kernel: ElementType) -> None:
    """With an input that is computed, and an epilogue that reads the position and the feature."""
    x, w = Value(tensor(shapes[0], element)), Value(tensor(shapes[1], kernel))
    result = apply(replace(op, element=kernel), build.mul(x, 2), w)
    shape = build.shape_of(result)
    other, bias = Value(tensor(shape, kernel)), Value(tensor((shape[1],), kernel))
    shifted = build.add(result, build.broadcast_along(bias, shape, 1))
    graph = Graph((x, w, other, bias), [build.add(build.maximum(shifted, build.full_like(result, 0)), other)])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype(v.type.element.numpy) for v in graph.parameters]  # type: ignore[attr-defined]
    (expected,) = interpreter.evaluate(graph, arrays)
    (actual,) = run_graph(graph, arrays)
    tolerance = {f32: 5e-5, f64: 1e-13}[kernel]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The plans of the convolutions that were lowered in this way."""
    plans: list[object] = []
    lower = contractions.lower_shallow_convolution

    def spy(ctx: object, operation: object, plan: object) -> None:
        plans.append(plan)
        lower(ctx, operation, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(contractions, "lower_shallow_convolution", spy)
    return plans


@pytest.mark.parametrize("element", [f32, f64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, element: ElementType, taken: list[object]) -> None:
    op, *shapes = CASES[name]
    _check(op, (shapes[0], shapes[1]), element, element)
    assert taken, "the case must reach the code under test"


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape(data: st.DataObject) -> None:
    integers = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    channels, features = integers(1, 4), integers(1, 20)
    space = (integers(1, 20), integers(2, 70))
    window = (integers(1, 5), integers(1, 5))
    strides, dilation = (integers(1, 3), integers(1, 3)), (integers(1, 3), integers(1, 3))
    padding = tuple([(integers(-1, 4), integers(-1, 4)) for _ in range(2)])
    for n, k, d, (low, high) in zip(space, window, dilation, padding, strict=True):
        assume(n + low + high >= (k - 1) * d + 1)
    op = replace(convolution_of(2, strides, 0, dilation), padding=padding)
    _check(op, ((integers(1, 2), channels, *space), (features, channels, *window)), f32, f32)


def test_any_number_of_images(taken: list[object]) -> None:
    layer = flambeau.nn.Conv2d(3, 12, 3, stride=2, padding=1)
    compiled = flambeau.compile(layer)
    for images in (1, 2, 3, 5):
        x = flambeau.randn(images, 3, 15, 63)
        numbers = [torch.from_numpy(v.detach().numpy()) for v in (x, layer.weight, layer.bias)]
        expected = torch.nn.functional.conv2d(*numbers, stride=2, padding=1)
        np.testing.assert_allclose(compiled(x).detach().numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert taken


def test_kernels_of_16_bits_are_left_to_others(taken: list[object]) -> None:
    layer = flambeau.nn.Conv2d(3, 16, 3, padding=1, dtype=flambeau.bfloat16)
    x = flambeau.randn(1, 3, 12, 32).to(flambeau.bfloat16)
    expected = flambeau.nn.functional.conv2d(x.float(), layer.weight.float(), layer.bias.float(), padding=1)
    actual = layer(x).float().detach().numpy()
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=2e-2, atol=2e-2)
    assert len(taken) == 1  # the second
