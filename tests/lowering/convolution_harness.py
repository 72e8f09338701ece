"""What tests of direct convolutions share: comparison with the interpreter, any shapes, any number of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume
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
Case = tuple[Convolution, Shape, Shape]


def spy(monkeypatch: pytest.MonkeyPatch, lowering: str) -> list[object]:
    """The plans that are lowered by a function of `contractions` from now on."""
    plans: list[object] = []
    lower: Callable[..., None] = getattr(contractions, lowering)

    def spying(ctx: object, operation: object, plan: object) -> None:
        plans.append(plan)
        lower(ctx, operation, plan)

    monkeypatch.setattr(contractions, lowering, spying)
    return plans


def check(case: Case, element: ElementType, computed: bool = False, tolerance: float = 5e-5) -> None:
    """Against the interpreter, with an epilogue that reads the position and the feature; `computed`: the input is not in memory.
    `tolerance`: of f32."""
    op, *shapes = case
    x, w = (Value(tensor(s, element)) for s in shapes)
    result = apply(op, build.mul(x, 2) if computed else x, w)
    shape = build.shape_of(result)
    other, bias = Value(tensor(shape, element)), Value(tensor((shape[1],), element))
    shifted = build.add(result, build.broadcast_along(bias, shape, 1))
    graph = Graph((x, w, other, bias), [build.add(build.maximum(shifted, build.full_like(result, 0)), other)])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype(element.numpy) for v in graph.parameters]  # type: ignore[attr-defined]
    (expected,) = interpreter.evaluate(graph, arrays)
    (actual,) = run_graph(graph, arrays)
    tolerance = {f32: tolerance, f64: 1e-13}[element]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def any_image(
    integers: Callable[[int, int], int], spaces: Sequence[int], strides: Sequence[int], groups: int = 1
) -> tuple[Convolution, Shape, Shape]:
    """A convolution of two dimensions, an image of up to `spaces` and a window; strides are up to `strides`. Padding may cut."""
    space = (integers(1, spaces[0]), integers(2, spaces[1]))
    window = (integers(1, 5), integers(1, 5))
    stride, dilation = tuple([integers(1, n) for n in strides]), (integers(1, 3), integers(1, 3))
    padding = tuple([(integers(-1, 4), integers(-1, 4)) for _ in range(2)])
    for n, k, d, (low, high) in zip(space, window, dilation, padding, strict=True):
        assume(n + low + high >= (k - 1) * d + 1)
    return replace(convolution_of(2, stride, 0, dilation, groups), padding=padding), space, window


def drawing(data: st.DataObject) -> Callable[[int, int], int]:
    return lambda low, high: data.draw(st.integers(low, high))


def check_any_number_of_images(layer: Any, space: Shape, groups: int = 1) -> None:
    """A compiled layer with stride 2 and padding 1 against PyTorch's, for batches of several sizes."""
    compiled = flambeau.compile(layer)
    for images in (1, 2, 3, 5):
        x = flambeau.randn(images, layer.weight.shape[1] * groups, *space)
        numbers = [torch.from_numpy(v.detach().numpy()) for v in (x, layer.weight, layer.bias)]
        expected = torch.nn.functional.conv2d(*numbers, stride=2, padding=1, groups=groups)
        np.testing.assert_allclose(compiled(x).detach().numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
