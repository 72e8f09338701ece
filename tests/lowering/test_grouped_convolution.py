"""Grouped convolutions that run directly, against the interpreter: rows in parts, strides, dilations, epilogues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import ElementType, bf16, f32, f64, tensor
from flambeau.compiler.lowering.grouped_convolution import direct_plan
from flambeau.execution import run_graph

Shape = tuple[int, ...]
#: Operation, input, kernel.
CASES: dict[str, tuple[Convolution, Shape, Shape]] = {
    "depthwise, rows in parts": (convolution_of(2, 1, 1, 1, 5), (2, 5, 96, 75), (5, 1, 3, 3)),
    "a prime number of rows": (convolution_of(2, 1, 1, 1, 2), (1, 2, 97, 61), (2, 1, 3, 3)),
    "strides": (convolution_of(2, (2, 3), 1, 1, 4), (2, 4, 57, 56), (4, 1, 3, 3)),
    "strides and dilation": (convolution_of(2, 2, 3, 3, 4), (1, 4, 40, 41), (4, 1, 3, 3)),
    "window 7 x 7": (convolution_of(2, 1, 3, 1, 3), (1, 3, 28, 28), (3, 1, 7, 7)),
    "two features of three channels": (convolution_of(2, 1, 1, 1, 4), (2, 12, 14, 14), (8, 3, 3, 3)),
    "five features": (convolution_of(2, 2, 1, 1, 2), (1, 8, 15, 13), (10, 4, 3, 3)),
    "one dimension": (convolution_of(1, 2, 4, 2, 3), (2, 6, 1000), (6, 2, 5)),
    "three dimensions": (convolution_of(3, (1, 2, 1), 1, 1, 2), (1, 4, 9, 10, 11), (4, 2, 3, 3, 3)),
    "cut by negative padding": (
        replace(convolution_of(2, 1, 0, 1, 3), padding=((-1, 2), (3, -2))), (1, 3, 20, 33), (3, 1, 3, 3),
    ),
    "input's gradient of strides": (
        replace(convolution_of(2, 1, 1, 1, 3), lhs_dilation=(2, 3), window_reversal=(True, True)),
        (1, 3, 17, 19), (3, 1, 3, 3),
    ),
    "batch groups": (replace(convolution_of(2, 1, 1), batch_group_count=2), (4, 3, 12, 20), (4, 3, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("element", [f32, f64, bf16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_direct(name: str, element: ElementType) -> None:
    op, x_shape, w_shape = CASES[name]
    x, w = Value(tensor(x_shape, element)), Value(tensor(w_shape, element))
    assert direct_plan(op, x.type, w.type, 16) is not None, "the case must reach the code under test"  # type: ignore[arg-type]
    result = apply(op, x, w)
    graph = Graph((x, w), [build.maximum(result, build.full_like(result, 0))])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(element.numpy) for s in (x_shape, w_shape)]
    (expected,) = interpreter.evaluate(graph, arrays)
    (actual,) = run_graph(graph, arrays)
    tolerance = {f32: 2e-5, f64: 1e-13, bf16: 4e-2}[element]
    np.testing.assert_allclose(
        actual.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
    )


def test_kernels_worth_packing_are_left_to_the_template() -> None:
    x, w = tensor((1, 64, 20, 20), f32), tensor((64, 32, 3, 3), f32)
    assert direct_plan(convolution_of(2, 1, 1, 1, 2), x, w, 16) is None  # 32 products an input element
    assert direct_plan(convolution_of(2, 1, 1), x, tensor((8, 64, 3, 3), f32), 16) is None  # one group
    wide = tensor((64, 1, 17, 17), f32)
    assert (
        direct_plan(convolution_of(2, 1, 1, 1, 64), x, wide, 16) is None
    )  # the gradient of a kernel looks so
