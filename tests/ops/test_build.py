"""Building graph values: identities fold away, scalars are broadcast, symbolic shapes are inferred."""

from collections.abc import Callable

import numpy as np
import pytest

from flambeau.compiler.diagnostics import TypeInferenceError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.constants import Literal
from flambeau.compiler.dialects.graph.shape import matching_groups
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.types import bf16, f32, f64, i1, i32, i64, tensor

N, M = dim("N"), dim("M")


@pytest.mark.parametrize(
    "identity",
    [
        lambda x: build.add(x, 0),
        lambda x: build.add(0, x),
        lambda x: build.sub(x, 0),
        lambda x: build.mul(x, 1),
        lambda x: build.div(x, 1),
        lambda x: build.pow(x, 1),
        lambda x: build.neg(build.neg(x)),
        lambda x: build.maximum(x, x),
        lambda x: build.transpose(build.transpose(x, (1, 0)), (1, 0)),
        lambda x: build.reshape(build.reshape(x, (6,)), (2, 3)),
        lambda x: build.broadcast_to(x, (2, 3)),
        lambda x: build.reverse(build.reverse(x, 1), 1),
        lambda x: build.convert(x, f32),
        lambda x: build.slice(x, (0, 0), (2, 3)),
        lambda x: build.pad(x, (0, 0), (0, 0)),
        lambda x: build.concatenate([x], 0),
        lambda x: build.reduce_sum(x, ()),
        lambda x: build.select(build.constant(True, i1, (2, 3)), x, 0),
        lambda x: build.dynamic_slice(x, [build.constant(0, i64)] * 2, (2, 3)),
    ],
)
def test_identities_fold_away(identity: Callable[[Value], Value]) -> None:
    x = Value(tensor((2, 3), f32))
    assert identity(x) is x


def test_what_must_not_fold() -> None:
    x = Value(tensor((2,), f32))
    assert build.splat_value(build.mul(x, 0)) is None  # 0 * NaN is NaN
    narrow = build.convert(build.convert(x, bf16), f32)
    assert narrow is not x
    count = Value(tensor((2,), i64))
    assert build.convert(build.convert(count, i32), i64) is not count


def test_python_numbers_and_scalars_are_broadcast() -> None:
    x, scalar = Value(tensor((2, 3), f32)), Value(tensor((), f32))
    assert build.add(x, 2).type is x.type
    assert build.sub(scalar, x).type is x.type
    assert build.select(build.gt(x, 0), scalar, 0).type is x.type


def test_element_types_do_not_mix() -> None:
    with pytest.raises(
        TypeInferenceError, match=r"graph\.add: operands must have the same type.*2xf32.*2xf64"
    ):
        build.add(Value(tensor((2,), f32)), Value(tensor((2,), f64)))


def test_symbolic_shapes() -> None:
    x = Value(tensor((N, 4), f32))
    assert build.shape_of(build.reshape(x, (N, 2, 2))) == (N, 2, 2)
    assert build.shape_of(build.reshape(x, (N * 4,))) == (N * 4,)
    assert build.shape_of(build.concatenate([x, x], 0)) == (N * 2, 4)
    assert build.shape_of(build.slice_axis(x, 0, 1, N)) == (N - 1, 4)
    assert build.shape_of(build.pad(x, (1, 0), (2, 0))) == (N + 3, 4)
    assert build.shape_of(build.broadcast_in_dim(build.reduce_sum(x, 1), (M, N), (1,))) == (M, N)
    with pytest.raises(TypeInferenceError, match=r"graph\.reshape: the number of elements changes"):
        build.reshape(x, (N, 3))


def test_symbolic_graphs_take_their_sizes_from_the_arrays() -> None:
    x = Value(tensor((N, M), f64))
    last = build.slice_axis(x, 0, N - 1, N)
    graph = Graph([x], [build.reduce_mean(x), build.squeeze(last, 0), build.iota((N, M), i64, 0)])
    for shape in ((3, 2), (1, 5)):
        data = np.random.default_rng(0).standard_normal(shape)
        mean, row, count = evaluate(graph, [data])
        assert mean == pytest.approx(data.mean())
        np.testing.assert_array_equal(row, data[-1])
        np.testing.assert_array_equal(count, np.arange(shape[0])[:, None] + np.zeros((1, shape[1]), int))


def test_a_reshape_splits_into_the_smallest_reshapes() -> None:
    assert matching_groups((N, 8, 16), (N, 128)) == [([0], [0]), ([1, 2], [1])]
    assert matching_groups((2, 6), (3, 4)) == [([0, 1], [0, 1])]
    assert matching_groups((N * M, 3), (N, M, 3)) == [([0], [0, 1]), ([1], [2])]


def test_literals_compare_by_bits() -> None:
    assert Literal(np.nan, f32) == Literal(np.nan, f32)
    assert Literal(0.0, f32) != Literal(-0.0, f32)
    assert Literal(1.0, f32) != Literal(1.0, f64)
    assert Literal([3.0, 3.0], bf16).splat == 3.0
    assert Literal([3.0, 4.0], bf16).splat is None
    copy = Literal.from_bytes(Literal([1, 2], i32).tobytes(), i32, (2,))
    assert copy == Literal([1, 2], i32)


def test_floor_division_and_remainder_follow_python() -> None:
    x, y = Value(tensor((4,), i64)), Value(tensor((4,), i64))
    graph = Graph([x, y], [build.floor_div(x, y), build.floor_mod(x, y)])
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    quotient, rest = evaluate(graph, [a, b])
    np.testing.assert_array_equal(quotient, a // b)
    np.testing.assert_array_equal(rest, a % b)
