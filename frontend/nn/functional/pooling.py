"""Pooling over windows, adaptive pooling, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.reduce_window import ReduceWindowIndex, pooling
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import leaf, record
from flambeau.nn.functional.common import each
from flambeau.tensor import Tensor, read, wrap


def _leading(input: Tensor, rank: int, name: str) -> int:
    if input.ndim not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"{name}: Expected {rank + 1}D or {rank + 2}D (batch mode) tensor, but got input of size: {list(input.shape)}"
        )
    return input.ndim - rank


def _sides(
    shape: Sequence[Any], window: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil_mode: bool,
) -> list[tuple[int, int]]:  # fmt: skip
    """(low, high) padding an axis, with what the last partial windows need in `ceil_mode`."""
    sides = []
    for size, k, s, p, d in zip(shape, window, strides, padding, dilation):
        if p > k // 2:
            raise RuntimeError(
                f"pad should be at most half of effective kernel size, but got pad={p}, kernel_size={k}"
            )
        if not ceil_mode:
            sides.append((p, p))
            continue
        reach = d * (k - 1) + 1
        count = math.ceil((size + 2 * p - reach) / s) + 1
        if (count - 1) * s >= size + p:  # a window must start inside the input or its left padding
            count -= 1
        sides.append((p, max(p, (count - 1) * s + reach - size - p)))
    return sides


def _max_pool(
    input: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, return_indices: bool,
    rank: int,
) -> Any:  # fmt: skip
    leading = _leading(input, rank, f"max_pool{rank}d")
    window = each(kernel_size, rank)
    strides = window if stride is None or stride == [] else each(stride, rank)
    dilations = each(dilation, rank)
    x = read(input)
    sides = _sides(build.shape_of(x)[leading:], window, strides, each(padding, rank), dilations, ceil_mode)
    definition = pooling("max", window, strides, sides, dilations, leading)
    y = wrap(record(definition, x), f"MaxPool{rank}DWithIndices")
    if not return_indices:
        return y
    where = ReduceWindowIndex(
        definition.window_dimensions, definition.window_strides, definition.padding, definition.base_dilations,
        definition.window_dilations, "max", leading,
    )  # fmt: skip
    return y, wrap(record(where, x))


def max_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:  # fmt: skip
    """The largest element of each window of (N, C, L) or (C, L)."""
    return _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 1)


def max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:  # fmt: skip
    """The largest element of each window of (N, C, H, W) or (C, H, W)."""
    return _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 2)


def max_pool3d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:  # fmt: skip
    """The largest element of each window of (N, C, D, H, W) or (C, D, H, W)."""
    return _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 3)


def _counts(
    size: int, window: int, stride: int, side: tuple[int, int], padding: int, inside: bool
) -> list[int]:
    """How many elements each window of one axis counts; with `inside`, only those of the input itself."""
    windows = (size + side[0] + side[1] - window) // stride + 1
    found = []
    for i in range(windows):
        low = i * stride - padding
        high = min(low + window, size + padding)
        found.append(min(high, size) - max(low, 0) if inside else high - low)
    return found


def _avg_pool(
    input: Tensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool,
    divisor_override: int | None, rank: int,
) -> Tensor:  # fmt: skip
    leading = _leading(input, rank, f"avg_pool{rank}d")
    window = each(kernel_size, rank)
    strides = window if stride is None or stride in ([], ()) else each(stride, rank)
    pads = each(padding, rank)
    x = read(input)
    space = build.shape_of(x)[leading:]
    sides = _sides(space, window, strides, pads, (1,) * rank, ceil_mode)
    y = record(pooling("sum", window, strides, sides, (), leading), x)
    if divisor_override is not None:
        if divisor_override == 0:
            raise RuntimeError("divisor must be not zero")
        return wrap(build.div(y, divisor_override), f"AvgPool{rank}D")
    if sides == [(p, p) for p in pads] and (count_include_pad or not any(pads)):
        return wrap(build.div(y, math.prod(window)), f"AvgPool{rank}D")
    counts = np.ones((), np.float64)
    for axis in range(rank):
        along = _counts(
            space[axis], window[axis], strides[axis], sides[axis], pads[axis], not count_include_pad
        )
        counts = counts[..., None] * np.asarray(along, np.float64)
    element = build.element_of(y)
    divisor = build.literal(np.ascontiguousarray(counts.astype(element.numpy)), element)
    return wrap(build.div(y, build.broadcast_to(divisor, build.shape_of(y))), f"AvgPool{rank}D")


def avg_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """The mean of each window of (N, C, L) or (C, L)."""
    return _avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, None, 1)


def avg_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean of each window of (N, C, H, W) or (C, H, W)."""
    return _avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, 2)


def avg_pool3d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean of each window of (N, C, D, H, W) or (C, D, H, W)."""
    return _avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, 3)


def _targets(output_size: Any, space: Sequence[Any], rank: int) -> list[int]:
    given = list(output_size) if isinstance(output_size, Sequence) else [output_size] * rank
    return [s if o is None else int(o) for o, s in zip(given, space)]


def _pieces(size: int, count: int) -> list[tuple[int, int]]:
    """The window of each output along one axis (ATen's start_index and end_index)."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _adaptive(input: Tensor, output_size: Any, rank: int, kind: str) -> Tensor:
    leading = _leading(input, rank, f"adaptive_{kind}_pool{rank}d")
    x = read(input)
    space = build.shape_of(x)[leading:]
    for axis, (size, count) in enumerate(zip(space, _targets(output_size, space, rank)), leading):
        if count != size:
            x = _adapted(x, axis, size, count, kind)
    return wrap(x, f"Adaptive{kind.title()}Pool{rank}D")


def _adapted(x: Value, axis: int, size: Any, count: int, kind: str) -> Value:
    """Pooling is separable: one axis at a time."""
    fold = build.reduce_mean if kind == "avg" else build.reduce_max
    if count == 1:
        return fold(x, (axis,), True)
    shape = build.shape_of(x)
    if size % count == 0:
        return fold(build.reshape(x, (*shape[:axis], count, size // count, *shape[axis + 1 :])), (axis + 1,))
    parts = [fold(build.slice_axis(x, axis, low, high), (axis,), True) for low, high in _pieces(size, count)]
    return build.concatenate(parts, axis)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Means of as many windows along L as asked."""
    return _adaptive(input, output_size, 1, "avg")


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Means of as many windows along H and W as asked; None keeps a size."""
    return _adaptive(input, output_size, 2, "avg")


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Means of as many windows along D, H and W as asked; None keeps a size."""
    return _adaptive(input, output_size, 3, "avg")


def _adaptive_max(input: Tensor, output_size: Any, return_indices: bool, rank: int) -> Any:
    """The maxima, and if asked the positions of the first of each in the flattened space."""
    if not return_indices:
        return _adaptive(input, output_size, rank, "max")
    leading = _leading(input, rank, f"adaptive_max_pool{rank}d")
    x = read(input)
    space = build.shape_of(x)[leading:]
    places = build.reshape(build.iota((math.prod(space),), ir.i64), space)
    where = build.broadcast_to(places, build.shape_of(x))
    targets = _targets(output_size, space, rank)
    for axis in range(
        leading + rank - 1, leading - 1, -1
    ):  # the last axis first: ties go to the first in memory
        values, indices = [], []
        for low, high in _pieces(space[axis - leading], targets[axis - leading]):
            part, place = (build.slice_axis(v, axis, low, high) for v in (x, where))
            best = build.expand_dims(build.arg_reduce(part, "argmax", axis), axis)
            values.append(build.take_along(part, best, axis))
            indices.append(build.take_along(place, best, axis))
        x, where = build.concatenate(values, axis), build.concatenate(indices, axis)
    return wrap(x, f"AdaptiveMaxPool{rank}D"), wrap(where)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima of as many windows along L as asked; with `return_indices` (maxima, positions)."""
    return _adaptive_max(input, output_size, return_indices, 1)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima of as many windows along H and W as asked; None keeps a size. As `adaptive_max_pool1d`."""
    return _adaptive_max(input, output_size, return_indices, 2)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima of as many windows along D, H and W as asked; None keeps a size. As `adaptive_max_pool1d`."""
    return _adaptive_max(input, output_size, return_indices, 3)


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Pad the last axes: `pad` is (low, high) of the last axis, then of the one before, …; negative numbers cut.

    `mode` is "constant" (with `value`, 0 by default), "reflect", "replicate" or "circular".
    """
    x = read(input)
    shape = build.shape_of(x)
    if len(pad) % 2 or len(pad) // 2 > len(shape):
        raise RuntimeError(
            f"Padding length should be less than or equal to two times the input dimension, got {pad}"
        )
    sides = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)]
    if mode == "constant":
        low, high = [0] * len(shape), [0] * len(shape)
        for i, (a, b) in enumerate(sides):
            low[-1 - i], high[-1 - i] = a, b
        return wrap(build.pad(x, low, high, [0] * len(shape), 0 if value is None else value), "ConstantPadNd")
    for i, (a, b) in enumerate(sides):
        axis = len(shape) - 1 - i
        index = np.ascontiguousarray(_border(np.arange(-a, shape[axis] + b), shape[axis], mode, max(a, b)))
        x = build.gather(x, (leaf(index, ir.i64),), (axis,), axis)
    return wrap(x, f"{mode.title()}Pad")


def _border(at: np.ndarray[Any, Any], size: int, mode: str, most: int) -> np.ndarray[Any, Any]:
    if mode == "replicate":
        return np.clip(at, 0, size - 1)
    if mode == "circular":
        if most > size:
            raise RuntimeError("Padding value causes wrapping around more than once.")
        return at % size
    if mode != "reflect":
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    if most >= size:
        raise RuntimeError(
            f"Padding size should be less than the corresponding input dimension, got {most} for {size}"
        )
    return size - 1 - np.abs(size - 1 - np.abs(at))


__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "pad",
]  # fmt: skip
