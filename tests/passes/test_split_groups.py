"""Convolutions of a few large groups: one for each group, with the same values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import f64, tensor
from flambeau.compiler.passes.split_groups import split_groups
from flambeau.execution import run_graph

torch = pytest.importorskip("torch")


def _graph(op: Convolution, x: tuple[int, ...], w: tuple[int, ...]) -> Graph:
    left, right = Value(tensor(x, f64)), Value(tensor(w, f64))
    return Graph([left, right], [apply(op, left, right)])


def _count(graph: Graph) -> int:
    return sum(isinstance(o.definition, Convolution) for o in graph.operations)


def test_who_is_split() -> None:
    op = convolution_of(2, 1, 1, 1, 2)
    split = split_groups(_graph(op, (2, 32, 9, 9), (48, 16, 3, 3)))
    assert _count(split) == 2
    for o in split.operations:
        if isinstance(o.definition, Convolution):
            assert o.definition.feature_group_count == 1
    for groups, x, w in (
        (2, (2, 30, 9, 9), (48, 15, 3, 3)),  # few channels a group
        (2, (2, 32, 9, 9), (30, 16, 3, 3)),  # few features a group
        (2, (2, 32, 9, 9), (48, 16, 1, 1)),  # a product
        (9, (2, 144, 9, 9), (144, 16, 3, 3)),  # many groups
        (1, (2, 32, 9, 9), (48, 32, 3, 3)),
    ):
        graph = _graph(convolution_of(2, 1, 1, 1, groups), x, w)
        assert split_groups(graph).key() == graph.key()


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_values_and_gradients(data: st.DataObject) -> None:
    rank, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 3))
    channels, features = (data.draw(st.integers(16, 20)) for _ in range(2))
    stride, padding, dilation = (data.draw(st.integers(low, 2)) for low in (1, 0, 1))
    space = tuple(data.draw(st.integers(5, 9)) for _ in range(rank))
    window = tuple(data.draw(st.integers(2, 3)) for _ in range(rank))
    op = convolution_of(rank, stride, padding, dilation, groups)
    x, w = (
        Value(tensor((2, channels * groups, *space), f64)),
        Value(tensor((features * groups, channels, *window), f64)),
    )
    made = apply(op, x, w)
    ct = Value(made.type)
    gradients = op.vjp(ct, x, w, result=made)
    graph = Graph([x, w, ct], [made, *gradients])
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 10, p.type.shape).astype(np.float64) for p in graph.parameters]  # type: ignore[attr-defined]
    assert _count(split_groups(graph)) >= groups
    y, gx, gw = run_graph(graph, arrays)
    left, right = (torch.tensor(a, requires_grad=True) for a in arrays[:2])
    function = torch.nn.functional.conv1d if rank == 1 else torch.nn.functional.conv2d
    expected = function(left, right, stride=stride, padding=padding, dilation=dilation, groups=groups)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    expected.backward(torch.tensor(arrays[2]))
    np.testing.assert_array_equal(gx, left.grad.numpy())
    np.testing.assert_array_equal(gw, right.grad.numpy())


def test_second_gradients_are_pytorchs() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 32, 7, 6)), rng.standard_normal((32, 16, 3, 3))]

    def second(m: object) -> list[np.ndarray]:
        x, w = (m.tensor(a, requires_grad=True) for a in arrays)  # type: ignore[attr-defined]
        y = m.nn.functional.conv2d(x, w, padding=1, groups=2)  # type: ignore[attr-defined]
        first = m.autograd.grad((y * y * y).sum(), (x, w), create_graph=True)  # type: ignore[attr-defined]
        then = m.autograd.grad(sum((g * g).sum() for g in first), (x, w))  # type: ignore[attr-defined]
        return [v.detach().numpy() for v in (y, *first, *then)]

    for found, expected in zip(second(fb), second(torch), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
