"""Factors behind convolutions move into the kernels, if both are weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import ElementType, bf16, f32, f64, tensor
from flambeau.compiler.passes.fold_scales import fold_scales
from flambeau.compiler.passes.split_weights import split_weights

FEATURES = 6


def names(graph: Graph) -> list[str]:
    return [o.name.removeprefix("graph.") for o in graph.operations]


def convolved(groups: int = 1, element: ElementType = f32) -> tuple[Value, Value, Value]:
    """An input, a kernel, and their convolution."""
    x, w = Value(tensor((2, 4, 5, 3), element)), Value(tensor((FEATURES, 4 // groups, 3, 2), element))
    return x, w, apply(convolution_of(2, 1, 1, 1, groups), x, w)


def along(vector: Value, y: Value) -> Value:
    return build.broadcast_along(vector, build.shape_of(y), 1)


def vectors(count: int, element: ElementType = f32) -> list[Value]:
    return [Value(tensor((FEATURES,), element)) for _ in range(count)]


def same(graph: Graph, folded: Graph) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape).astype(p.type.element.numpy) for p in graph.parameters]  # type: ignore[attr-defined]
    expected, got = interpreter.evaluate(graph, arrays), interpreter.evaluate(folded, arrays)
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("element", [f32, f64])
def test_batch_norm(groups: int, element: ElementType) -> None:
    x, w, y = convolved(groups, element)
    mean, factor, shift = vectors(3, element)
    normed = build.add(
        build.mul(build.sub(y, along(mean, y)), along(build.rsqrt(build.square(factor)), y)), along(shift, y)
    )
    graph = Graph([x, w, mean, factor, shift], [build.maximum(normed, 0)])
    folded = fold_scales(graph, [w, mean, factor, shift])
    same(graph, folded)
    split = split_weights(folded, [w, mean, factor, shift])
    assert names(split.main) == [
        "convolution",
        "broadcast_in_dim",
        "add",
        "constant",
        "broadcast_in_dim",
        "maximum",
    ]
    assert split.preparation is not None and len(split.preparation.results) == 2


STEPS: Sequence[Callable[[Value, Value], Value]] = (
    build.add,
    build.sub,
    build.mul,
    lambda y, v: build.add(v, y),
    lambda y, v: build.mul(v, y),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=5))
def test_any_chain(steps: list[int]) -> None:
    x, w, y = convolved()
    given_vectors = vectors(len(steps))
    result = y
    for step, vector in zip(steps, given_vectors, strict=True):
        result = STEPS[step](result, along(vector, y))
    graph = Graph([x, w, *given_vectors], [result])
    folded = fold_scales(graph, [w, *given_vectors])
    same(graph, folded)
    main = names(split_weights(folded, [w, *given_vectors]).main)
    assert main.count("convolution") == 1
    if any(step in (2, 4) for step in steps):
        assert "multiply" not in main and len(main) <= 3


def test_what_stays() -> None:
    x, w, y = convolved()
    factor, other = vectors(2)
    scaled = build.mul(y, along(factor, y))
    # The unscaled result is wanted too; the factor is no weight; the factor does not run along features.
    for graph, weights in (
        (Graph([x, w, factor], [scaled, build.exp(y)]), [w, factor]),
        (Graph([x, w, factor], [scaled, y]), [w, factor]),
        (Graph([x, w, factor], [scaled]), [w]),
        (Graph([x, w, factor], [scaled]), [factor]),
        (Graph([x, w, factor, other], [build.sub(along(factor, y), y)]), [w, factor]),
    ):
        assert fold_scales(graph, weights) == graph
    row = Value(tensor((4,), f32))
    wide = build.shape_of(y)[3]
    assert wide == 4
    graph = Graph([x, w, row], [build.mul(y, build.broadcast_along(row, build.shape_of(y), 3))])
    assert fold_scales(graph, [w, row]) == graph


def test_narrow_types_stay() -> None:
    x, w, y = convolved(1, bf16)
    (factor,) = vectors(1, bf16)
    graph = Graph([x, w, factor], [build.mul(y, along(factor, y))])
    assert fold_scales(graph, [w, factor]) == graph


def test_two_convolutions() -> None:
    """A chain: each kernel takes its own factor, and the second reads the first's new result."""
    x, w, y = convolved()
    a, b = vectors(2)
    v = Value(tensor((FEATURES, FEATURES, 1, 1), f32))
    first = build.mul(y, along(a, y))
    second = apply(convolution_of(2), first, v)
    graph = Graph([x, w, v, a, b], [build.add(build.mul(second, along(b, second)), first)])
    folded = fold_scales(graph, [w, v, a, b])
    same(graph, folded)
    assert names(split_weights(folded, [w, v, a, b]).main) == ["convolution", "convolution", "add"]
