"""Depthwise convolutions that read their input where it lies, against the interpreter: edges, strides, dilations, multipliers."""

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


def _check(op: Convolution, shapes: tuple[Shape, Shape], element: ElementType) -> None:
    """With an epilogue that reads the position and the feature."""
    x, w = (Value(tensor(s, element)) for s in shapes)
    result = apply(op, x, w)
    shape = build.shape_of(result)
    other, bias = Value(tensor(shape, element)), Value(tensor((shape[1],), element))
    shifted = build.add(result, build.broadcast_along(bias, shape, 1))
    graph = Graph((x, w, other, bias), [build.add(build.maximum(shifted, build.full_like(result, 0)), other)])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype(element.numpy) for v in graph.parameters]  # type: ignore[attr-defined]
    (expected,) = interpreter.evaluate(graph, arrays)
    (actual,) = run_graph(graph, arrays)
    tolerance = {f32: 2e-5, f64: 1e-13}[element]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The plans of the depthwise convolutions that were lowered."""
    plans: list[object] = []
    lower = contractions.lower_depthwise_convolution

    def spy(ctx: object, operation: object, plan: object) -> None:
        plans.append(plan)
        lower(ctx, operation, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(contractions, "lower_depthwise_convolution", spy)
    return plans


@pytest.mark.parametrize("element", [f32, f64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, element: ElementType, taken: list[object]) -> None:
    op, *shapes = CASES[name]
    _check(op, (shapes[0], shapes[1]), element)
    assert taken, "the case must reach the code under test"


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape(data: st.DataObject) -> None:
    integers = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, multiplier = integers(2, 5), integers(1, 2)
    space = (integers(1, 40), integers(2, 70))
    window = (integers(1, 5), integers(1, 5))
    strides, dilation = (integers(1, 3), integers(1, 2)), (integers(1, 3), integers(1, 3))
    padding = tuple([(integers(-1, 4), integers(-1, 4)) for _ in range(2)])
    for n, k, d, (low, high) in zip(space, window, dilation, padding, strict=True):
        assume(n + low + high >= (k - 1) * d + 1)
    op = replace(convolution_of(2, strides, 0, dilation, groups), padding=padding)
    _check(op, ((integers(1, 2), groups, *space), (groups * multiplier, 1, *window)), f32)


def test_any_number_of_images(taken: list[object]) -> None:
    layer = flambeau.nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
    compiled = flambeau.compile(layer)
    for images in (1, 2, 3, 5):
        x = flambeau.randn(images, 6, 15, 33)
        numbers = [torch.from_numpy(v.detach().numpy()) for v in (x, layer.weight, layer.bias)]
        expected = torch.nn.functional.conv2d(*numbers, stride=2, padding=1, groups=6)
        np.testing.assert_allclose(compiled(x).detach().numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert taken
