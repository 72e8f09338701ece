"""Operands that are views: found as such, and contracted from where they lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.lowering.views import view_of
from flambeau.execution import ArrayExecutable


def parameter(*shape: int) -> Value:
    return Value(tensor(shape, f32))


def test_a_chain_of_views_is_one_position_of_the_base() -> None:
    x = parameter(4, 6, 5)
    sliced = build.slice(x, (1, 0, 2), (4, 6, 5), (2, 3, 1))  # (2, 2, 3)
    view = build.reshape(build.transpose(sliced, (2, 0, 1)), (3, 4))
    found = view_of(view, {x})
    assert found is not None
    base, position = found
    assert base is x
    assert position((1, 3)) == (1 + 2 * 1, 3 * 1, 2 + 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: build.add(x, x),
        lambda x: build.pad(x, (1, 0), (0, 0), (0, 0)),
        lambda x: build.concatenate([x, x], 0),
        lambda x: build.reduce_sum(x, (0,)),
    ],
    ids=["arithmetic", "pad", "join", "reduction"],
)
def test_what_computes_is_no_view(make: Callable[[Value], Value]) -> None:
    x = parameter(4, 6)
    assert view_of(make(x), {x}) is None


def test_a_view_of_nothing_in_memory_is_none() -> None:
    x = parameter(4, 6)
    assert view_of(build.transpose(x, (1, 0)), set()) is None


@pytest.mark.parametrize("size", [3, 17, 70])
@pytest.mark.parametrize("left", ["t", "slice", "heads"])
@pytest.mark.parametrize("right", ["t", "reverse", "broadcast"])
def test_contractions_read_through_views(size: int, left: str, right: str) -> None:
    rng = np.random.default_rng(size)
    a, b = parameter(2, size, 3, 40), parameter(40, 2, size)
    A, B = (rng.standard_normal(v.type.shape).astype(np.float32) for v in (a, b))
    if left == "heads":  # (2, size, 40): the middle third of each row
        x, X = build.reshape(build.slice(a, (0, 0, 1, 0), (2, size, 2, 40)), (2, size, 40)), A[:, :, 1]
    elif left == "slice":
        x = build.reshape(build.slice(a, (0, 0, 0, 0), (2, size, 3, 40), (1, 1, 3, 1)), (2, size, 40))
        X = A[:, :, 0]
    else:
        x = build.transpose(
            build.transpose(
                build.reshape(build.slice(a, (0, 0, 2, 0), (2, size, 3, 40)), (2, size, 40)), (2, 0, 1)
            ),
            (1, 2, 0),
        )
        X = A[:, :, 2]
    if right == "t":
        y, Y = build.transpose(b, (1, 0, 2)), B.transpose(1, 0, 2)
    elif right == "reverse":
        y, Y = build.reverse(build.transpose(b, (1, 0, 2)), (1,)), B.transpose(1, 0, 2)[:, ::-1]
    else:
        one = build.reshape(build.slice(b, (0, 0, 0), (40, 1, size)), (40, size))
        y, Y = build.broadcast_in_dim(one, (2, 40, size), (1, 2)), np.broadcast_to(B[:, 0], (2, 40, size))
    (found,) = ArrayExecutable(Graph([a, b], [build.matmul(x, y)]))([A, B])
    np.testing.assert_allclose(found, X @ Y, rtol=1e-4, atol=1e-4)
