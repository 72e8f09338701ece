"""Pointwise and depthwise convolutions at once, against the interpreter: images in parts, edges, what lies between."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.dialects.graph.expanded_depthwise import ExpandedDepthwise
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import ElementType, f32, f64, tensor
from flambeau.compiler.passes.expand_depthwise import expand_depthwise
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.execution import run_graph
from flambeau.runtime import threads

#: (images, features before, features between, height, width), window, stride, padding, dilation
Case = tuple[tuple[int, int, int, int, int], int, int, int, int]
CASES: dict[str, Case] = {
    "one part": ((2, 5, 16, 14, 14), 3, 1, 1, 1),
    "fewer pixels than two vectors": ((1, 20, 24, 7, 7), 3, 1, 1, 1),
    "large images": ((1, 4, 8, 112, 112), 3, 2, 1, 1),
    "large images, stride 1": ((1, 3, 16, 119, 60), 3, 1, 1, 1),
    "the last part is not full": ((1, 3, 8, 126, 75), 3, 2, 1, 1),
    "5 x 5": ((2, 6, 12, 40, 33), 5, 2, 2, 1),
    "dilation": ((1, 6, 10, 31, 40), 3, 1, 2, 2),
    "without padding": ((1, 33, 8, 21, 17), 3, 1, 0, 1),
    "blocks of seven": ((1, 8, 21, 10, 10), 3, 1, 1, 1),
    "many features before": ((1, 160, 32, 9, 9), 3, 2, 1, 1),
}


def _graph(case: Case, element: ElementType, between: Callable[[Value, Value], Value]) -> Graph:
    """Epilogues read the position and the feature."""
    (n, c, f, h, w), k, stride, padding, dilation = case
    shapes = ((n, c, h, w), (f, c, 1, 1), (f, 1, k, k), (f,), (f,))
    x, first, second, bias, shift = (Value(tensor(s, element)) for s in shapes)
    made = apply(convolution_of(2), x, first)
    made = between(made, build.broadcast_along(bias, build.shape_of(made), 1))
    made = apply(convolution_of(2, stride, padding, dilation, f), made, second)
    made = build.add(made, build.broadcast_along(shift, build.shape_of(made), 1))
    other = Value(build.type_of(made))
    return Graph([x, first, second, bias, shift, other], [build.mul(build.maximum(made, 0), other)])


def _relu6(x: Value, bias: Value) -> Value:
    return build.clamp(0, build.add(x, bias), 6)


def _silu(x: Value, bias: Value) -> Value:
    y = build.add(x, bias)
    return build.div(y, build.add(build.exp(build.neg(y)), 1))


def _nothing(x: Value, bias: Value) -> Value:
    return x


def _joined(graph: Graph) -> bool:
    made = expand_depthwise(graph, CpuShape())
    return any(isinstance(o.definition, ExpandedDepthwise) for o in made.operations)


def _check(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    types = [build.type_of(p) for p in graph.parameters]
    arrays = [rng.standard_normal(t.shape).astype(t.element.numpy) for t in types]  # type: ignore[arg-type]
    (expected,) = interpreter.evaluate(graph, arrays)
    (actual,) = run_graph(graph, arrays)
    tolerance = {f32: 1e-4, f64: 1e-12}[types[0].element]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("element", [f32, f64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, element: ElementType) -> None:
    graph = _graph(CASES[name], element, _relu6)
    assert _joined(graph), "the case must reach the code under test"
    _check(graph)


@pytest.mark.parametrize("between", [_silu, _nothing])
@pytest.mark.parametrize("name", ["one part", "large images"])
def test_between(name: str, between: Callable[[Value, Value], Value]) -> None:
    graph = _graph(CASES[name], f32, between)
    assert _joined(graph)
    _check(graph)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_shape(data: st.DataObject) -> None:
    integers = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    k, dilation = integers(1, 5), integers(1, 2)
    reach = (k - 1) * dilation + 1
    size = integers(1, 2), integers(1, 20), 8 * integers(1, 2), integers(reach, 50), integers(reach, 60)
    _check(_graph((size, k, integers(1, 2), integers(0, 3), dilation), f32, _relu6))


@pytest.fixture(params=[1, 2, 3, 4])
def thread_count(request: pytest.FixtureRequest) -> Iterator[int]:
    before = threads.num_threads()
    threads.set_num_threads(request.param)
    yield request.param
    threads.set_num_threads(before)


def test_threads(thread_count: int) -> None:
    _check(_graph(CASES["large images"], f32, _relu6))


def test_what_stays_apart() -> None:
    graph = _graph(CASES["one part"], f32, _relu6)
    (between,) = (
        o.operands[0] for o in graph.operations if getattr(o.definition, "feature_group_count", 1) > 1
    )
    assert not _joined(Graph(graph.parameters, [*graph.results, between]))  # somebody else reads it
    assert not _joined(_graph(((1, 200, 16, 14, 14), 3, 1, 1, 1), f32, _relu6))  # long sums
    assert not _joined(_graph(((1, 8, 11, 14, 14), 3, 1, 1, 1), f32, _relu6))  # a prime number of features


def test_any_number_of_images() -> None:
    nn = flambeau.nn
    model = nn.Sequential(
        nn.Conv2d(6, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
    ).eval()  # fmt: skip
    compiled = flambeau.compile(model)
    with flambeau.no_grad():
        for images in (1, 2, 3, 5):
            x = flambeau.randn(images, 6, 17, 33)
            y = model[2](model[1](model[0](x)))
            y.numpy()  # so that the two are computed one after the other
            expected = model[5](model[4](model[3](y)))
            np.testing.assert_allclose(compiled(x).numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
