"""Rows whose last axes are one loop of vectors: statistics of small images, and what must keep its axes apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import ElementType, f16, f32, f64, tensor
from flambeau.compiler.lowering.rows import _joined
from flambeau.compiler.passes.fuse import RowDomain
from flambeau.execution import run_graph
from flambeau.runtime import threads

torch = pytest.importorskip("torch")


def _normalised(shape: tuple[int, ...], axes: tuple[int, ...], element: ElementType) -> Graph:
    """Mean and variance over `axes`, and ((x - mean) / deviation) * y."""
    x, y = Value(tensor(shape, element)), Value(tensor(shape, element))
    kept = [a for a in range(len(shape)) if a not in axes]

    def spread(v: Value) -> Value:
        return build.broadcast_in_dim(v, shape, kept)

    mean = build.reduce_mean(x, axes)
    centred = build.sub(x, spread(mean))
    variance = build.reduce_mean(build.square(centred), axes)
    scaled = build.mul(centred, spread(build.rsqrt(build.add(variance, 1e-3))))
    return Graph([x, y], [build.mul(scaled, y), mean, variance])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_statistics_of_images(data: st.DataObject) -> None:
    rank = data.draw(st.integers(2, 4))
    shape = tuple(data.draw(st.integers(1, 11)) for _ in range(rank))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=1))))
    element = data.draw(st.sampled_from([f32, f32, f64, f16]))
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(element.numpy) for _ in range(2))
    scaled, mean, variance = run_graph(_normalised(shape, axes, element), [x, y])
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axes, keepdims=True)
    expected = centred / np.sqrt(wide.var(axes, keepdims=True) + 1e-3) * y
    tolerance = {f64: 1e-12, f32: 2e-5, f16: 3e-2}[element]
    np.testing.assert_allclose(mean, wide.mean(axes), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(variance, wide.var(axes), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(scaled, expected, rtol=tolerance, atol=tolerance * 10)


def test_which_axes_are_joined() -> None:
    def joined(shape: tuple[int, ...], axes: tuple[int, ...], operand: Value | None = None) -> int:
        x = Value(tensor(shape, f32))
        total = build.reduce_sum(build.mul(x, x if operand is None else operand), axes)
        return _joined([total], RowDomain(shape, axes), 16)

    assert joined((8, 64, 7, 7), (0, 2, 3)) == 2
    assert joined((8, 64, 2, 2), (0, 2, 3)) == 2
    assert joined((8, 4, 3, 7), (1, 2, 3)) == 3
    assert joined((8, 64, 32, 32), (0, 2, 3)) == 1  # whole vectors already
    assert joined((8, 64, 7, 1), (0, 2, 3)) == 1
    assert joined((8, 7, 7, 64), (0, 1, 2)) == 1  # features last
    assert joined((8, 64, 7), (0, 2)) == 1  # features between
    column = build.broadcast_in_dim(Value(tensor((7,), f32)), (8, 64, 7, 7), (3,))
    assert joined((8, 64, 7, 7), (0, 2, 3), column) == 1  # begins anew in each row
    image = build.broadcast_in_dim(Value(tensor((7, 7), f32)), (8, 64, 7, 7), (2, 3))
    assert joined((8, 64, 7, 7), (0, 2, 3), image) == 2
    turned = build.transpose(Value(tensor((8, 64, 7, 7), f32)), (0, 1, 3, 2))
    assert joined((8, 64, 7, 7), (0, 2, 3), turned) == 1


@pytest.mark.parametrize("size", [2, 3, 7, 8, 14])
def test_batch_norm_and_its_gradients_are_pytorchs(size: int) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 5, size, size)), rng.standard_normal(5), rng.standard_normal(5)]
    weight = rng.standard_normal(arrays[0].shape)

    def second(m: object) -> list[np.ndarray]:
        x, w, b = (m.tensor(a, requires_grad=True) for a in arrays)  # type: ignore[attr-defined]
        y = m.nn.functional.batch_norm(x, None, None, w, b, training=True)  # type: ignore[attr-defined]
        first = m.autograd.grad((y * y * m.tensor(weight)).sum(), (x, w, b), create_graph=True)  # type: ignore[attr-defined]
        then = m.autograd.grad(sum((g * g).sum() for g in first), (x, w))  # type: ignore[attr-defined]
        return [v.detach().numpy() for v in (y, *first, *then)]

    for found, expected in zip(second(fb), second(torch), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max())


def test_threads_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    graph = _normalised((8, 300, 7, 7), (0, 2, 3), f32)
    arrays = [rng.standard_normal((8, 300, 7, 7), np.float32) for _ in range(2)]
    before, results = threads.num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            threads.set_num_threads(count)
            results.append(run_graph(graph, arrays))
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        for left, right in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(left, right)
