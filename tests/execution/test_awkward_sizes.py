"""Every schedule from the outside: awkward sizes, one to four threads, operands anywhere in memory.

Each family draws a program and its arrays. The program runs as evaluated operations and compiled, with its gradients,
from memory that is aligned to an element and no more; PyTorch in float64 says what is right. A second call must give the
same bits. Errors are relative to the largest element, as in the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import flambeau as fb

Array = np.ndarray[Any, Any]
Program = Callable[..., Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Case:
    """`program(library, *tensors)`: floating arrays are differentiated where `gradients` says so."""

    program: Program
    arrays: tuple[Array, ...]
    gradients: bool = True
    tolerance: float = 5e-6


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def size(most: int) -> st.SearchStrategy[int]:
    """Sizes about the powers of two and the vector widths, and anything else up to `most`."""
    edges = [
        n for p in (1, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512) for n in (p - 1, p, p + 1) if 1 <= n <= most
    ]
    return st.sampled_from(edges) | st.integers(1, most)


def product(draw: Draw) -> Case:
    m, n, k = draw(size(200)), draw(size(200)), draw(size(300))
    left, right = draw(st.booleans()), draw(st.booleans())
    a, b = numbers(*((k, m) if left else (m, k))), numbers(*((n, k) if right else (k, n)))
    return Case(lambda t, x, y: (x.T if left else x) @ (y.T if right else y), (a, b))


def skinny_product(draw: Draw) -> Case:
    m, n, k = draw(st.integers(1, 40)), draw(size(600)), draw(size(600))
    right = draw(st.booleans())
    return Case(
        lambda t, x, y: x @ (y.T if right else y), (numbers(m, k), numbers(*((n, k) if right else (k, n))))
    )


def batched_product(draw: Draw) -> Case:
    batch, m, n, k = draw(st.integers(1, 9)), draw(size(70)), draw(size(70)), draw(size(70))
    right = draw(st.booleans())
    a, b = numbers(batch, m, k), numbers(batch, *((n, k) if right else (k, n)))
    return Case(lambda t, x, y: x @ (y.transpose(1, 2) if right else y), (a, b))


def convolution(draw: Draw) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    inputs, outputs = groups * draw(size(40)), groups * draw(size(70))
    kernel = draw(st.tuples(*[st.sampled_from([1, 2, 3, 3, 5, 7])] * 2))
    image = tuple(draw(st.integers(max(2, k), 30)) for k in kernel)
    dilation = draw(st.sampled_from([1, 1, 1, 5]))
    edge = 0 if dilation == 1 else dilation  # so much padding that a window fits
    options = {
        "stride": draw(st.sampled_from([1, 1, 2, 3])),
        "padding": tuple(draw(st.integers(k // 2 * edge, k // 2 * dilation)) for k in kernel),
        "dilation": dilation,
        "groups": groups,
    }
    arrays = (
        numbers(draw(st.integers(1, 3)), inputs, *image),
        numbers(outputs, inputs // groups, *kernel),
        numbers(outputs),
    )
    return Case(lambda t, x, w, b: t.nn.functional.relu(t.nn.functional.conv2d(x, w, b, **options)), arrays)


def patches(draw: Draw) -> Case:
    inputs, outputs = draw(st.integers(1, 5)), draw(size(70))
    kernel = draw(st.tuples(*[st.integers(2, 19)] * 2))
    image = tuple(draw(st.integers(k, 70)) for k in kernel)
    arrays = (numbers(draw(st.integers(1, 3)), inputs, *image), numbers(outputs, inputs, *kernel))
    return Case(lambda t, x, w: t.nn.functional.conv2d(x, w, stride=kernel), arrays)


def volume_convolution(draw: Draw) -> Case:
    inputs, outputs = draw(size(20)), draw(size(40))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * 3))
    image = tuple(draw(st.integers(k, 10)) for k in kernel)
    options = {
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "stride": draw(st.sampled_from([1, 2])),
    }
    arrays = (numbers(draw(st.integers(1, 2)), inputs, *image), numbers(outputs, inputs, *kernel))
    return Case(lambda t, x, w: t.nn.functional.conv3d(x, w, **options), arrays)


def depthwise_convolution(draw: Draw) -> Case:
    channels, multiplier, kernel = (
        draw(size(40)),
        draw(st.sampled_from([1, 1, 2])),
        draw(st.sampled_from([3, 3, 5])),
    )
    dilation = draw(st.sampled_from([1, 1, 2]))
    image = tuple(draw(st.integers(dilation * (kernel - 1) + 1, 40)) for _ in range(2))
    options = {
        "stride": draw(st.sampled_from([1, 2])),
        "padding": draw(st.integers(0, kernel // 2)),
        "dilation": dilation,
        "groups": channels,
    }
    arrays = (
        numbers(draw(st.integers(1, 3)), channels, *image),
        numbers(channels * multiplier, 1, kernel, kernel),
    )
    return Case(lambda t, x, w: t.nn.functional.conv2d(x, w, **options).clamp(0, 6), arrays)


def transposed_convolution(draw: Draw) -> Case:
    inputs, outputs, kernel, stride = (
        draw(size(33)),
        draw(size(33)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
    )
    image = tuple(draw(st.integers(2, 17)) for _ in range(2))
    arrays = (numbers(draw(st.integers(1, 2)), inputs, *image), numbers(inputs, outputs, kernel, kernel))
    return Case(lambda t, x, w: t.nn.functional.conv_transpose2d(x, w, stride=stride), arrays)


def sequence_convolution(draw: Draw) -> Case:
    inputs, outputs, kernel = draw(size(40)), draw(size(40)), draw(st.integers(1, 9))
    arrays = (
        numbers(draw(st.integers(1, 3)), inputs, draw(st.integers(kernel, 200))),
        numbers(outputs, inputs, kernel),
    )
    return Case(lambda t, x, w: t.nn.functional.conv1d(x, w, padding=kernel // 2), arrays)


def pooling(draw: Draw) -> Case:
    kernel, stride = draw(st.integers(2, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, kernel // 2))
    function = draw(st.sampled_from(["max_pool2d", "avg_pool2d"]))
    x = numbers(draw(st.integers(1, 3)), draw(size(20)), *(draw(st.integers(3, 50)) for _ in range(2)))
    return Case(lambda t, x: getattr(t.nn.functional, function)(x, kernel, stride, padding), (x,))


def rows(draw: Draw) -> Case:
    axis = draw(st.sampled_from([-1, 0]))
    function = draw(
        st.sampled_from(
            [
                lambda t, x: t.nn.functional.softmax(x, axis),
                lambda t, x: t.nn.functional.log_softmax(x, axis),
                lambda t, x: x.sum(axis) * x.mean(axis),
                lambda t, x: x.var(axis, correction=0) + x.amax(axis),
                lambda t, x: x.cumsum(axis),
                lambda t, x: t.logsumexp(x, axis),
            ]
        )
    )
    return Case(function, (numbers(draw(size(300)), draw(size(600))),))


def normalization(draw: Draw) -> Case:
    n, width = draw(size(70)), draw(st.integers(2, 600))

    def program(t: Any, x: Any, residual: Any, w: Any, b: Any) -> Any:
        return t.nn.functional.gelu(t.nn.functional.layer_norm(x + residual, (width,), w, b))

    return Case(
        program, (numbers(n, width), numbers(n, width)[::-1].copy(), numbers(width), numbers(1 + width)[1:])
    )


def batch_normalization(draw: Draw) -> Case:
    shape = (draw(st.integers(2, 5)), draw(size(20)), draw(st.integers(1, 20)), draw(st.integers(2, 20)))

    def program(t: Any, x: Any, w: Any, b: Any) -> Any:
        return t.nn.functional.relu(t.nn.functional.batch_norm(x, None, None, w, b, training=True))

    return Case(program, (numbers(*shape), numbers(shape[1]), numbers(shape[1] + 1)[1:]), tolerance=2e-5)


def transposition(draw: Draw) -> Case:
    shape = draw(st.lists(size(40), min_size=2, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    other = numbers(*(shape[i] for i in order))
    return Case(lambda t, x, y: x.permute(*order) * y + t.tanh(y), (numbers(*shape), other))


def attention(draw: Draw) -> Case:
    heads, queries, keys = draw(st.integers(1, 3)), draw(size(130)), draw(size(130))
    width, causal = draw(size(70)), draw(st.booleans())
    q, k, v = (
        numbers(2, heads, queries, width),
        numbers(2, heads, keys, width),
        numbers(2, heads, keys, width) + 1,
    )
    return Case(
        lambda t, *qkv: t.nn.functional.scaled_dot_product_attention(*qkv, is_causal=causal),
        (q, k, v),
        tolerance=2e-5,
    )


def gathering(draw: Draw) -> Case:
    count, width = draw(size(100)), draw(size(200))
    index = np.random.default_rng(width).integers(0, count, (draw(size(20)), draw(size(20))))
    return Case(lambda t, table, i: t.nn.functional.embedding(i, table) * 2, (numbers(count, width), index))


def joining(draw: Draw) -> Case:
    axis, shape = draw(st.integers(0, 2)), [draw(size(40)) for _ in range(3)]
    parts = [
        numbers(*shape[:axis], draw(st.integers(1, 20)), *shape[axis + 1 :])
        for _ in range(draw(st.integers(2, 4)))
    ]
    return Case(lambda t, *xs: t.nn.functional.pad(t.cat(xs, axis), (1, 2, 0, 3)).exp(), tuple(parts))


def ordering(draw: Draw) -> Case:
    axis, descending = draw(st.sampled_from([0, -1])), draw(st.booleans())
    x = numbers(draw(size(70)), draw(size(700))).round(1)
    return Case(
        lambda t, x: (
            t.sort(x, dim=axis, descending=descending, stable=True)[1] + x.argmax(axis, keepdim=True)
        ),
        (x,),
        gradients=False,
    )


FAMILIES = (
    product,
    skinny_product,
    batched_product,
    convolution,
    depthwise_convolution,
    transposed_convolution,
    sequence_convolution,
    patches,
    volume_convolution,
    pooling,
    rows,
    normalization,
    batch_normalization,
    transposition,
    attention,
    gathering,
    joining,
    ordering,
)


def placed(array: Array, offset: int) -> Array:
    """A copy of `array`, `offset` elements behind a boundary of 64 bytes."""
    room = np.empty(array.nbytes + 64 + offset * array.itemsize, np.uint8)
    start = -room.ctypes.data % 64 + offset * array.itemsize
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def results(t: Any, case: Case, program: Program, inputs: list[Any]) -> list[Array]:
    """The program's result and its gradients for a fixed cotangent."""
    return [x.detach().numpy() for x in tensors(t, case, program, inputs)]


def tensors(t: Any, case: Case, program: Program, inputs: list[Any]) -> list[Any]:
    """As `results`, before anything is looked at."""
    if not case.gradients:
        return [program(*inputs)]
    leaves = [x.requires_grad_() for x in inputs if x.dtype.is_floating_point]
    y = program(*inputs)
    weights = np.cos(np.arange(y.numel())).reshape(tuple(y.shape))
    cotangent = t.from_numpy(weights.astype(np.float64 if y.dtype is t.float64 else np.float32))
    return [y, *t.autograd.grad(y, leaves, cotangent)]


def assert_close(found: list[Array], wanted: list[Array], single: list[Array], tolerance: float) -> None:
    """`single` is PyTorch's result in the arrays' own precision: where that is bad (a row of two equal numbers has no
    normal form), ours may be four times as bad."""
    for ours, right, theirs in zip(found, wanted, single, strict=False):
        assert ours.shape == right.shape
        if right.dtype.kind != "f":
            np.testing.assert_array_equal(ours, right)
            continue
        largest = max(float(np.abs(right).max(initial=0)), 1.0)
        allowed = tolerance * largest + 4 * float(np.abs(theirs - right).max(initial=0))
        np.testing.assert_allclose(ours, right, rtol=0, atol=allowed)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_agrees_with_float64(family: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = family(data.draw)
    offsets = [data.draw(st.integers(0, 17), label="offset") for _ in case.arrays]
    exact = [torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a.copy()) for a in case.arrays]
    theirs = lambda *xs: case.program(torch, *xs)  # noqa: E731
    wanted = results(torch, case, theirs, exact)
    single = results(torch, case, theirs, [torch.from_numpy(a.copy()) for a in case.arrays])

    def inputs() -> list[Any]:
        return [fb.from_numpy(placed(a, o)) for a, o in zip(case.arrays, offsets, strict=True)]

    evaluated = lambda *xs: case.program(fb, *xs)  # noqa: E731
    before = fb.get_num_threads()
    fb.set_num_threads(data.draw(st.integers(1, 4), label="threads"))
    try:
        first = results(fb, case, evaluated, inputs())
        assert len(first) == len(wanted)
        assert_close(first, wanted, single, case.tolerance)
        for a, b in zip(first, results(fb, case, evaluated, inputs()), strict=True):
            np.testing.assert_array_equal(a, b)
        compiled = fb.compile(evaluated)
        for _ in range(2):
            assert_close([compiled(*inputs()).numpy()], wanted, single, case.tolerance)
    finally:
        fb.set_num_threads(before)
