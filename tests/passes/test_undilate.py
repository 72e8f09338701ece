"""Convolutions of dilated inputs without the zeros: the value and the gradients are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import f64, tensor
from flambeau.compiler.passes.undilate import undilate
from flambeau.execution import run_graph

torch = pytest.importorskip("torch")


def _graph(op: Convolution, x: tuple[Index, ...], w: tuple[Index, ...], element: object = f64) -> Graph:
    left, right = Value(tensor(x, element)), Value(tensor(w, element))  # type: ignore[arg-type]
    return Graph([left, right], [apply(op, left, right)])


def _names(graph: Graph) -> list[str]:
    return [o.definition.name for o in graph.operations]


def test_an_input_gradient_is_a_product_and_a_sum_of_windows() -> None:
    op = replace(
        convolution_of(2), padding=((1, 2), (1, 2)), lhs_dilation=(2, 2), window_reversal=(True, True)
    )
    graph = undilate(_graph(op, (2, 8, 5, 5), (4, 8, 3, 3)))
    assert "graph.pad" not in _names(graph)
    assert "graph.overlap_add" in _names(graph)
    assert all(
        o.definition.lhs_dilation == (1, 1) for o in graph.operations if isinstance(o.definition, Convolution)
    )


def test_a_weight_gradient_of_a_transposed_convolution_exchanges_operands() -> None:
    op = replace(convolution_of(2), padding=((0, 1), (0, 1)), lhs_dilation=(2, 2))
    graph = undilate(_graph(op, (3, 2, 20, 20), (4, 2, 39, 39)))
    assert _names(graph) == ["graph.convolution", "graph.reverse"]


def test_undilated_inputs_and_strided_groups_stay() -> None:
    for op, x, w in (
        (convolution_of(2), (2, 4, 5, 5), (4, 4, 3, 3)),
        (replace(convolution_of(2, 2, groups=2), lhs_dilation=(2, 2)), (2, 4, 5, 5), (4, 2, 3, 3)),
    ):
        graph = _graph(op, x, w)
        assert undilate(graph).key() == graph.key()


def test_products_of_depthwise_kernels_need_no_convolution() -> None:
    op = replace(convolution_of(2, groups=6), lhs_dilation=(2, 2))
    names = _names(undilate(_graph(op, (2, 6, 5, 5), (12, 1, 3, 3))))
    assert "graph.overlap_add" in names and "graph.multiply" in names and "graph.convolution" not in names


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_values_of_groups(data: st.DataObject) -> None:
    rank, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    gradient = data.draw(st.booleans())
    images, window = each(1, 9), each(1, 24 if gradient and rank == 1 else 6)
    op = replace(
        convolution_of(rank),
        padding=tuple(zip(each(-2, 6), each(-2, 6), strict=True)),
        lhs_dilation=each(1, 3),
        rhs_dilation=each(1, data.draw(st.sampled_from([1, 2]))),
        window_reversal=tuple(data.draw(st.booleans()) for _ in range(rank)),
    )
    batch, channels, features = (data.draw(st.integers(1, 3)) for _ in range(3))
    if gradient:
        op = replace(op, batch_group_count=groups)
        x, w = (batch * groups, channels, *images), (features * groups, channels, *window)
    else:
        op = replace(op, feature_group_count=groups)
        x, w = (batch, channels * groups, *images), (features * groups, channels, *window)
    graph = _graph(op, x, w)
    assume(0 not in graph.results[0].type.shape)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 10, shape).astype(np.float64) for shape in (x, w)]
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


def test_a_grouped_weight_gradient_of_a_transposed_convolution_exchanges_operands() -> None:
    op = replace(convolution_of(2), padding=((0, 1), (0, 1)), lhs_dilation=(2, 2), batch_group_count=3)
    graph = _graph(op, (3, 2, 20, 20), (6, 2, 39, 39))
    found = undilate(graph)
    assert all(
        o.definition.lhs_dilation == (1, 1) for o in found.operations if isinstance(o.definition, Convolution)
    )
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 10, p.type.shape).astype(np.float64) for p in graph.parameters]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(run_graph(graph, arrays)[0], op.reference(*arrays))


def test_few_output_features_are_a_product_with_all_taps() -> None:
    op = convolution_of(2, 1, 1)
    graph = undilate(_graph(op, (2, 32, 9, 9), (3, 32, 3, 3)))
    assert "graph.overlap_add" in _names(graph)
    windows = [o.definition for o in graph.operations if isinstance(o.definition, Convolution)]
    assert [w.padding for w in windows] == [((0, 0), (0, 0))]
    for x, w in (
        ((2, 32, 9, 9), (8, 32, 3, 3)),  # enough for vectors
        ((2, 8, 9, 9), (3, 8, 3, 3)),  # more rows than there are features to sum
        ((2, 32, 9, 9), (3, 32, 1, 1)),  # a product already
    ):
        assert undilate(_graph(op, x, w)).key() == _graph(op, x, w).key()
    strided = _graph(convolution_of(2, 2, 1), (2, 32, 9, 9), (3, 32, 3, 3))
    assert undilate(strided).key() == strided.key()


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_values_of_few_output_features(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    images, window = each(1, 21 if rank == 1 else 9), each(1, 9 if rank == 1 else 3)
    op = replace(
        convolution_of(rank),
        padding=tuple(zip(each(-2, 4), each(-2, 4), strict=True)),
        rhs_dilation=each(1, 2),
        window_reversal=tuple(data.draw(st.booleans()) for _ in range(rank)),
    )
    batch, channels, features = (
        data.draw(st.integers(low, high)) for low, high in ((1, 3), (30, 40), (1, 7))
    )
    x, w = (batch, channels, *images), (features, channels, *window)
    graph = _graph(op, x, w)
    assume(0 not in graph.results[0].type.shape)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 10, shape).astype(np.float64) for shape in (x, w)]
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


@pytest.mark.parametrize(("window", "count"), [((16, 16), (2, 3)), ((9, 11), (3, 1)), ((70,), (4,))], ids=str)
def test_windows_side_by_side_are_a_transpose(window: tuple[int, ...], count: tuple[int, ...]) -> None:
    rank = len(window)
    op = replace(
        convolution_of(rank),
        padding=tuple((n - 1, n - 1) for n in window),
        lhs_dilation=window,
        window_reversal=(True,) * rank,
    )
    graph = _graph(op, (2, 5, *count), (3, 5, *window))
    names = _names(undilate(graph))
    assert "graph.transpose" in names and "graph.overlap_add" not in names
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 10, p.type.shape).astype(np.float64) for p in graph.parameters]  # type: ignore[attr-defined]
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_value_is_the_same(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    images, window = each(1, 9), each(1, 24 if rank == 1 else 6)
    op = replace(
        convolution_of(rank),
        window_strides=each(1, data.draw(st.sampled_from([1, 2]))),
        padding=tuple(zip(each(-2, 6), each(-2, 6), strict=True)),
        lhs_dilation=each(1, 4),
        rhs_dilation=each(1, data.draw(st.sampled_from([1, 3]))),
        window_reversal=tuple(data.draw(st.booleans()) for _ in range(rank)),
    )
    batch, channels, features = (data.draw(st.integers(1, 3)) for _ in range(3))
    x, w = (batch, channels, *images), (features, channels, *window)
    graph = _graph(op, x, w)
    assume(0 not in graph.results[0].type.shape)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 10, shape).astype(np.float64) for shape in (x, w)]
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_transposed_convolutions_and_their_gradients(data: st.DataObject) -> None:
    stride, padding = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2))
    window, dilation = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    extra = data.draw(st.integers(0, max(stride, dilation) - 1))
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 19))
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
    for n in (height, width):
        assume((n - 1) * stride - 2 * padding + dilation * (window - 1) + extra + 1 > 0)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, height, width)), rng.standard_normal((3, 4, window, window))]
    results = []
    for m in (torch, fb):
        x, w = (m.tensor(a, dtype=m.float64, requires_grad=True) for a in arrays)
        y = m.nn.functional.conv_transpose2d(x, w, **options)
        gx, gw = m.autograd.grad((y * y).sum(), (x, w), create_graph=True)
        second = m.autograd.grad((gx * gx).sum() + (gw * gw).sum(), (x, w))
        results.append([v.detach().numpy() for v in (y, gx, gw, *second)])
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("image", "window", "stride", "padding", "dilation"),
    [((9, 11), 3, 2, 1, 1), ((8, 8), 1, 2, 0, 1), ((17, 23), 7, 2, 3, 1), ((12, 13), 3, 3, 2, 2)],
)
def test_strided_convolutions_have_the_gradients_of_torch(
    image: tuple[int, int], window: int, stride: int, padding: int, dilation: int
) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, *image)), rng.standard_normal((5, 3, window, window))]
    results = []
    for m in (torch, fb):
        x, w = (m.tensor(a, dtype=m.float64, requires_grad=True) for a in arrays)
        y = m.nn.functional.conv2d(x, w, stride=stride, padding=padding, dilation=dilation)
        gx, gw = m.autograd.grad((y * y).sum(), (x, w), create_graph=True)
        second = m.autograd.grad((gx * gx).sum() + (gw * gw).sum(), (x, w))
        results.append([v.detach().numpy() for v in (y, gx, gw, *second)])
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_half_precision_is_added_up_in_f32() -> None:
    """A sum of windows in f16 would round between them."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 64, 4, 4)), rng.standard_normal((64, 3, 4, 4)) / 8
    halves = [a.astype(np.float16) for a in (x, w)]
    found = fb.nn.functional.conv_transpose2d(*(fb.tensor(a) for a in halves), stride=2).numpy()
    exact = torch.nn.functional.conv_transpose2d(
        *(torch.tensor(a.astype(np.float64)) for a in halves), stride=2
    ).numpy()
    assert np.abs(found - exact).max() <= np.abs(exact).max() * 2.0**-11 * 1.1
