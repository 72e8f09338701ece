"""Normalisation by mean and variance, or by a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes

from flambeau.autograd import no_grad
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.composites_norm import (
    BatchNormInference,
    BatchNormTraining,
    LayerNorm,
    RmsNorm,
)
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import number, record, record_all, stop_gradient
from flambeau.nn.functional.common import floating, scaled, shifted
from flambeau.operands import broadcast_shapes
from flambeau.tensor import Tensor, read, wrap, write


def _affine(weight: Tensor | None, bias: Tensor | None) -> list[Value]:
    if weight is None:
        return []
    return [read(weight)] if bias is None else [read(weight), read(bias)]


def _check_shape(input: Tensor, normalized_shape: Any) -> int:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [*, {', '.join(map(str, shape))}], "
            f"but got input of size{list(input.shape)}"
        )
    return len(shape)


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes."""
    rank = _check_shape(input, normalized_shape)
    y = record(LayerNorm(rank, eps), read(input), *_affine(weight, bias))
    if weight is None and bias is not None:
        y = build.add(y, build.broadcast_to(read(bias), build.shape_of(y)))
    return wrap(y, "NativeLayerNorm")


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axes; `eps` None is the dtype's machine epsilon."""
    rank = _check_shape(input, normalized_shape)
    if eps is None:
        eps = float(ml_dtypes.finfo(floating(input, "rms_norm").numpy).eps)
    return wrap(record(RmsNorm(rank, eps), read(input), *_affine(weight, None)), "FusedRmsNorm")


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each group of channels (axis 1) normalised together with all that follows."""
    if input.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.ndim}")
    if input.shape[1] % num_groups != 0:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    x = read(input)
    shape = build.shape_of(x)
    rest = shape[1] // num_groups * math.prod(shape[2:])
    y = record(LayerNorm(1, eps), build.reshape(x, (shape[0], num_groups, rest)))
    y = build.reshape(y, shape)
    if weight is not None:
        y = scaled(y, read(weight), 1)
    if bias is not None:
        y = shifted(y, read(bias), 1)
    return wrap(y, "NativeGroupNorm")


def _per_channel(tensor: Tensor | None, fill: int, like: Value) -> Value:
    if tensor is not None:
        return read(tensor)
    return build.constant(fill, build.element_of(like), (build.shape_of(like)[1],))


def _mixed(running: Tensor, fresh: Value, momentum: Any) -> Value:
    """running + momentum * (fresh - running), as ATen computes it."""
    old = read(running)
    element, shape = build.element_of(old), build.shape_of(old)
    fresh = build.convert(fresh, element)
    if isinstance(momentum, Tensor):
        m = build.convert(read(momentum), element)
        keep = build.sub(build.ones_like(m), m)
    else:
        m, keep = number(momentum, element), number(1 - momentum, element)
    return build.add(
        build.mul(fresh, build.broadcast_to(m, shape)), build.mul(old, build.broadcast_to(keep, shape))
    )


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: Any = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Each channel (axis 1) normalised by its statistics: the batch's in training (which then move the running ones)."""
    x = read(input)
    if build.type_of(x).rank < 2 and 0 in build.shape_of(x):
        return wrap(build.mul(x, 1), "NativeBatchNorm")
    scale, offset = _per_channel(weight, 1, x), _per_channel(bias, 0, x)
    if not training:
        if running_mean is None or running_var is None:
            raise RuntimeError("Expected running_mean and running_var to be defined when training=False")
        y = record(BatchNormInference(eps), x, scale, offset, read(running_mean), read(running_var))
        return wrap(y, "NativeBatchNorm")
    shape = build.shape_of(x)
    count = math.prod([n for d, n in enumerate(shape) if d != 1])
    if isinstance(count, int) and count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"
        )
    y, mean, variance = record_all(BatchNormTraining(eps), x, scale, offset)
    with no_grad():
        if running_mean is not None:
            write(running_mean, _mixed(running_mean, stop_gradient(mean), momentum))
        if running_var is not None:
            variance = stop_gradient(variance)
            element = build.element_of(variance)
            if isinstance(count, int):
                unbiased = build.mul(
                    variance,
                    build.broadcast_to(number(count / (count - 1), element), build.shape_of(variance)),
                )
            else:
                unbiased = build.div(
                    build.mul(variance, build.dimension_value(count, element)),
                    build.dimension_value(count - 1, element),
                )
            write(running_var, _mixed(running_var, unbiased, momentum))
    return wrap(y, "NativeBatchNorm")


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Each channel of each sample normalised by itself, or by running statistics where `use_input_stats` is False."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or running_var is not None:
        _move_statistics(input, running_mean, running_var, momentum)
    return group_norm(input, input.shape[1], weight, bias, eps)


def _move_statistics(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> None:
    """Towards the mean over samples of each sample's own statistics."""
    axes = tuple(range(2, input.ndim))
    with no_grad():
        if running_mean is not None:
            mean = input.mean(axes).mean(0)  # type: ignore[attr-defined]
            write(running_mean, _mixed(running_mean, read(mean), momentum))
        if running_var is not None:
            variance = input.var(axes).mean(0)  # type: ignore[attr-defined]
            write(running_var, _mixed(running_var, read(variance), momentum))


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """x divided by its p-norm along `dim`, but by `eps` at least."""
    denominator = input.norm(p, dim, keepdim=True).clamp_min(eps).expand_as(input)  # type: ignore[attr-defined]
    return input / denominator  # type: ignore[operator, no-any-return]


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 · x2 / (|x1| |x2|) along `dim`, each norm at least `eps`."""
    shape = broadcast_shapes(x1.shape, x2.shape)
    x1, x2 = x1.expand(*shape), x2.expand(*shape)  # type: ignore[attr-defined]
    a = x1 / x1.norm(2, dim, keepdim=True).clamp_min(eps)  # type: ignore[attr-defined, operator]
    b = x2 / x2.norm(2, dim, keepdim=True).clamp_min(eps)  # type: ignore[attr-defined, operator]
    return (a * b).sum(dim)  # type: ignore[no-any-return]


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """The p-norm of x1 - x2 + eps along the last axis."""
    return (x1 - x2 + eps).norm(p, -1, keepdim=keepdim)  # type: ignore[operator, no-any-return]


__all__ = [
    "batch_norm", "cosine_similarity", "group_norm", "instance_norm", "layer_norm", "normalize", "pairwise_distance",
    "rms_norm",
]  # fmt: skip
