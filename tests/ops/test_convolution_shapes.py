"""Convolution and pooling against torch over many shapes: results, and gradients of every operand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import flambeau.compiler.dialects.graph  # noqa: F401  (registers the operations)
from flambeau.compiler.diagnostics import TypeInferenceError
from flambeau.compiler.dialects.graph.composites_nn import Dropout
from flambeau.compiler.dialects.graph.convolution import convolution_of, transposed_convolution
from flambeau.compiler.dialects.graph.random_bits import RandomNormal, RandomUniform, philox_reference
from flambeau.compiler.dialects.graph.reduce_window import ReduceWindowIndex, pooling
from flambeau.compiler.ir import dims, interpreter
from flambeau.compiler.ir.core import Graph, Value, apply, infer_types
from flambeau.compiler.ir.types import f32, f64, from_numpy, tensor
from flambeau.compiler.passes.autodiff import vjp

torch = pytest.importorskip("torch")
F = torch.nn.functional
Array = np.ndarray[Any, Any]
Make = Callable[..., Value]
EXAMPLES = 40


def check(make: Make, reference: Callable[..., Any], operands: Sequence[Array]) -> None:
    """`make` on graph values and `reference` on torch tensors agree in their result and in all gradients."""
    parameters = [Value(tensor(a.shape, from_numpy(a.dtype))) for a in operands]
    result = make(*parameters)
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in operands]
    expected = reference(*leaves)
    assert result.type.shape == tuple(expected.shape)  # type: ignore[attr-defined]
    (actual,) = interpreter.evaluate(Graph(parameters, [result]), operands)
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-9, atol=1e-9)
    ct = np.random.default_rng(1).standard_normal(actual.shape)
    cotangent = Value(tensor(ct.shape, f64))
    gradients = vjp([result], parameters, [cotangent])
    assert all(g is not None for g in gradients)
    graph = Graph([*parameters, cotangent], [g for g in gradients if g is not None])
    theirs = torch.autograd.grad(expected, leaves, torch.from_numpy(ct))
    for ours, other in zip(interpreter.evaluate(graph, [*operands, ct]), theirs, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-9, atol=1e-9)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    return {
        "batch": draw(st.integers(1, 3)),
        "groups": draw(st.integers(1, 3)),
        "inside": draw(st.integers(1, 3)),
        "outside": draw(st.integers(1, 3)),
        "size": each(1, 7 if rank < 3 else 4),
        "window": each(1, 3),
        "stride": each(1, 3),
        "padding": each(0, 3),
        "dilation": each(1, 2),
    }


@settings(max_examples=EXAMPLES)
@given(convolutions())
def test_convolution(c: dict[str, Any]) -> None:
    sizes = zip(c["size"], c["window"], c["padding"], c["dilation"], strict=True)
    assume(all(n + 2 * p > (w - 1) * d for n, w, p, d in sizes))
    rank, groups = len(c["size"]), c["groups"]
    op = convolution_of(rank, c["stride"], c["padding"], c["dilation"], groups)
    torch_convolution = getattr(F, f"conv{rank}d")
    check(
        lambda x, w: apply(op, x, w),
        lambda x, w: torch_convolution(x, w, None, c["stride"], c["padding"], c["dilation"], groups),
        (
            numbers(c["batch"], c["inside"] * groups, *c["size"]),
            numbers(c["outside"] * groups, c["inside"], *c["window"]),
        ),
    )


@settings(max_examples=EXAMPLES)
@given(convolutions(), st.integers(0, 1))
def test_transposed_convolution(c: dict[str, Any], extra: int) -> None:
    rank, groups = len(c["size"]), c["groups"]
    extras = tuple(min(extra, max(s, d) - 1) for s, d in zip(c["stride"], c["dilation"], strict=True))
    reach = zip(c["size"], c["window"], c["stride"], c["padding"], c["dilation"], extras, strict=True)
    assume(all((n - 1) * s - 2 * p + d * (w - 1) + e + 1 > 0 for n, w, s, p, d, e in reach))
    torch_convolution = getattr(F, f"conv_transpose{rank}d")
    check(
        lambda x, w: transposed_convolution(x, w, c["stride"], c["padding"], extras, c["dilation"], groups),
        lambda x, w: torch_convolution(x, w, None, c["stride"], c["padding"], extras, groups, c["dilation"]),
        (
            numbers(c["batch"], c["inside"] * groups, *c["size"]),
            numbers(c["inside"] * groups, c["outside"], *c["window"]),
        ),
    )


@st.composite
def poolings(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    window = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    return {
        "window": window,
        "stride": tuple(draw(st.integers(1, 4)) for _ in range(rank)),
        "padding": tuple(draw(st.integers(0, w // 2)) for w in window),
        "dilation": tuple(draw(st.integers(1, 2)) for _ in range(rank)),
        "size": tuple(draw(st.integers(1, 6 if rank < 3 else 4)) for _ in range(rank)),
        "ties": draw(st.booleans()),
    }


@settings(max_examples=EXAMPLES)
@given(poolings())
@example({"window": (3,), "stride": (2,), "padding": (1,), "dilation": (1,), "size": (6,), "ties": True})
def test_max_pool(c: dict[str, Any]) -> None:
    sizes = zip(c["size"], c["window"], c["padding"], c["dilation"], strict=True)
    assume(all(n + 2 * p > (w - 1) * d for n, w, p, d in sizes))
    rank = len(c["size"])
    x = numbers(2, 2, *c["size"])
    if c["ties"]:
        x = np.round(x)
    op = pooling("max", c["window"], c["stride"], c["padding"], c["dilation"])
    # torch picks some element even for a window that holds nothing but padding.
    assume(np.isfinite(op.reference(x)).all())
    torch_pool = getattr(F, f"max_pool{rank}d")
    arguments = (c["window"], c["stride"], c["padding"], c["dilation"])
    check(lambda x: apply(op, x), lambda x: torch_pool(x, *arguments), (x,))
    indices = ReduceWindowIndex(
        op.window_dimensions, op.window_strides, op.padding, op.base_dilations, op.window_dilations, "max", 2
    )
    expected = torch_pool(torch.from_numpy(x), *arguments, return_indices=True)[1].numpy()
    np.testing.assert_array_equal(indices.reference(x), expected)


@settings(max_examples=EXAMPLES)
@given(poolings())
def test_sum_pool(c: dict[str, Any]) -> None:
    # torch refuses windows larger than the input even where padding makes room.
    assume(all(n >= w for n, w in zip(c["size"], c["window"], strict=True)))
    rank, count = len(c["size"]), int(np.prod(c["window"]))
    op = pooling("sum", c["window"], c["stride"], c["padding"])
    torch_pool = getattr(F, f"avg_pool{rank}d")
    check(
        lambda x: apply(op, x),
        lambda x: torch_pool(x, c["window"], c["stride"], c["padding"]) * count,
        (numbers(2, 2, *c["size"]),),
    )


def test_a_window_of_padding_passes_no_gradient() -> None:
    op, x = pooling("max", (2,), (1,), (1,), (2,)), Value(tensor((1, 2, 1), f64))
    y = apply(op, x)
    (gradient,) = vjp([y], [x], [Value(y.type)])
    assert gradient is not None
    ct = next(v for v in gradient.owner.operands if v.owner is None)  # type: ignore[union-attr]
    (ours,) = interpreter.evaluate(Graph([x, ct], [gradient]), [numbers(1, 2, 1), np.ones((1, 2, 1))])
    np.testing.assert_array_equal(ours, np.zeros((1, 2, 1)))


def test_dimension_numbers_only_move_axes() -> None:
    x, w = numbers(2, 4, 6, 5), numbers(3, 4, 3, 2)
    plain = convolution_of(2, (2, 1), 1)
    moved = replace(
        plain,
        input_batch=3, input_feature=0, input_spatial=(2, 1),
        kernel_input_feature=2, kernel_output_feature=3, kernel_spatial=(1, 0),
        output_batch=1, output_feature=3, output_spatial=(2, 0),
    )  # fmt: skip
    expected = plain.reference(x, w)
    actual = moved.reference(x.transpose(1, 3, 2, 0), w.transpose(3, 2, 1, 0))
    np.testing.assert_allclose(actual, expected.transpose(3, 0, 2, 1), rtol=1e-12)


def test_symbolic_sizes_take_part_in_shapes_and_gradients() -> None:
    n, h = dims.dim("N"), dims.dim("H")
    x, w = Value(tensor((n, 4, h, 9), f32)), Value(tensor((6, 2, 3, 3), f32))
    y = apply(convolution_of(2, 2, 1, 1, 2), x, w)
    assert y.type is tensor((n, 6, (h - 1) // 2 + 1, 5), f32)
    ct = Value(y.type)
    gradients = vjp([y], [x, w], [ct])
    for size in (7, 8):
        arrays = [numbers(2, 4, size, 9), numbers(6, 2, 3, 3)]
        arrays = [a.astype(np.float32) for a in arrays]
        leaves = [torch.from_numpy(a).requires_grad_() for a in arrays]
        expected = F.conv2d(leaves[0], leaves[1], None, 2, 1, 1, 2)
        theirs = torch.autograd.grad(expected.sum(), leaves)
        given = [*arrays, np.ones(expected.shape, np.float32)]
        for gradient, other, parameter in zip(gradients, theirs, (x, w), strict=True):
            assert gradient is not None and gradient.type is parameter.type
            (ours,) = interpreter.evaluate(Graph([x, w, ct], [gradient]), given)
            np.testing.assert_allclose(ours, other.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"feature_group_count": 3}, "divided by 3 groups"),
        ({"window_strides": (0, 1)}, "window_strides must be at least 1"),
        ({"padding": ((0, 0),)}, "padding needs one entry a spatial dimension"),
        ({"kernel_output_feature": 1}, "kernel's dimension numbers"),
        ({"feature_group_count": 2, "batch_group_count": 2}, "only one of"),
    ],
)
def test_errors_name_the_rule(change: dict[str, Any], rule: str) -> None:
    op = replace(convolution_of(2), **change)
    with pytest.raises(TypeInferenceError, match=rule) as caught:
        infer_types(op, (tensor((2, 4, 5, 5), f32), tensor((6, 4, 3, 3), f32)))
    assert "graph.convolution" in str(caught.value)


def test_philox_known_answers() -> None:
    """The vectors of Random123's `kat_vectors` (philox4x32, 10 rounds)."""
    ones = np.uint64(0xFFFFFFFF)
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        assert tuple(int(w) for w in philox_reference(counter, key)) == expected  # type: ignore[arg-type]


def test_distributions_have_their_moments() -> None:
    state = np.array([123, 4])
    for element in (f32, f64):
        uniform = RandomUniform((200_000,), element).reference(state).astype(np.float64)
        assert uniform.min() >= 0 and uniform.max() < 1
        assert abs(uniform.mean() - 0.5) < 5e-3 and abs(uniform.var() - 1 / 12) < 2e-3
        normal = RandomNormal((200_000,), element).reference(state).astype(np.float64)
        assert abs(normal.mean()) < 1e-2 and abs(normal.std() - 1) < 1e-2
        assert abs((normal**3).mean()) < 3e-2 and abs((normal**4).mean() - 3) < 8e-2


def test_dropout_keeps_the_share_it_says_and_its_gradient_has_the_same_mask() -> None:
    x, state = np.ones(100_000, np.float32), np.array([5, 9])
    y = Dropout(0.3).reference(x, state)
    assert abs((y == 0).mean() - 0.3) < 1e-2
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    assert not np.array_equal(y, Dropout(0.3).reference(x, state + [0, 1]))
    kinds = [tensor(x.shape, f32), tensor((2,), from_numpy(state.dtype)), tensor(x.shape, f32)]
    parameters = [Value(kind) for kind in kinds]
    result = apply(Dropout(0.3), *parameters[:2])
    (gradient,) = vjp([result], parameters[:1], [parameters[2]])
    assert gradient is not None
    (ours,) = interpreter.evaluate(Graph(parameters, [gradient]), [x, state, x])
    np.testing.assert_array_equal(ours, y)
