"""Loss functions. `reduction` is "mean", "sum" or "none"."""

from __future__ import annotations

import math
import warnings

from flambeau import arithmetic
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.composites_activation import LogSigmoid
from flambeau.compiler.dialects.graph.composites_nn import CrossEntropy
from flambeau.compiler.dialects.graph.composites_norm import LogSoftmax
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import record
from flambeau.nn.functional.common import reduced, scaled
from flambeau.tensor import Tensor, read, wrap


def _difference(input: Tensor, target: Tensor, what: str) -> Value:
    if tuple(input.shape) != tuple(target.shape):
        warnings.warn(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}). This will "
            "likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
            stacklevel=4,
        )
    return read(arithmetic.sub(input, target))


def mse_loss(input: Tensor, target: Tensor, size_average: None = None, reduce: None = None,
             reduction: str = "mean", weight: Tensor | None = None) -> Tensor:  # fmt: skip
    """(input - target)^2"""
    squares = build.square(_difference(input, target, "mse_loss"))
    if weight is not None:
        squares = build.mul(squares, build.broadcast_to(read(weight), build.shape_of(squares)))
    return reduced(squares, reduction, "MseLoss")


def l1_loss(input: Tensor, target: Tensor, size_average: None = None, reduce: None = None,
            reduction: str = "mean") -> Tensor:  # fmt: skip
    """|input - target|"""
    name = {"mean": "Mean", "sum": "Sum"}.get(reduction, "Abs")
    return reduced(build.abs(_difference(input, target, "l1_loss")), reduction, name)


def smooth_l1_loss(input: Tensor, target: Tensor, size_average: None = None, reduce: None = None,
                   reduction: str = "mean", beta: float = 1.0) -> Tensor:  # fmt: skip
    """d^2 / (2 beta) where d = |input - target| < beta, else d - beta / 2."""
    if beta < 0:
        raise RuntimeError(f"smooth_l1_loss does not support negative values for beta. Got: [{beta}]")
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    d = build.abs(_difference(input, target, "smooth_l1_loss"))
    near = build.div(build.mul(build.square(d), 0.5), beta)
    return reduced(build.select(build.lt(d, beta), near, build.sub(d, 0.5 * beta)), reduction, "SmoothL1Loss")


def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d^2 / 2 where d = |input - target| <= delta, else delta (d - delta / 2)."""
    if delta <= 0:
        raise RuntimeError(f"huber_loss does not support non-positive values for delta. Got: [{delta}]")
    d = build.abs(_difference(input, target, "huber_loss"))
    far = build.mul(build.sub(d, 0.5 * delta), delta)
    return reduced(
        build.select(build.le(d, delta), build.mul(build.square(d), 0.5), far), reduction, "HuberLoss"
    )


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: None = None, ignore_index: int = -100,
    reduce: None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Minus the log-probability, under softmax of the logits (N, C, …) or (C), of the target classes.

    `target` holds class indices (N, …), or probabilities in the logits' shape.
    """
    if target.is_floating_point():
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    if input.ndim > 1 and target.ndim and input.shape[0] != target.shape[0]:
        raise ValueError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({target.shape[0]})."
        )
    definition = CrossEntropy(reduction, ignore_index, label_smoothing)
    given = [read(input), read(target)] + ([] if weight is None else [read(weight)])
    return wrap(record(definition, *given), "NllLoss")


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    if tuple(input.shape) != tuple(target.shape):
        raise RuntimeError(
            f"Expected floating point type for target with class probabilities of shape {input.shape}, got {target.shape}"
        )
    x, t = read(input), read(target)
    shape = build.shape_of(x)
    axis = min(1, len(shape) - 1)
    if smoothing:
        t = build.add(build.mul(t, 1 - smoothing), smoothing / shape[axis])
    each = build.mul(record(LogSoftmax(axis), x), t)
    if weight is not None:
        each = scaled(each, read(weight), axis)
    loss = build.neg(build.reduce_sum(each, (axis,)))
    if reduction != "mean":
        return reduced(loss, reduction, "Neg")
    samples = math.prod(build.shape_of(loss))
    return wrap(
        build.div(build.reduce_sum(loss), build.dimension_value(samples, build.element_of(loss))), "Div"
    )


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: None = None, ignore_index: int = -100,
    reduce: None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Minus the log-probability (N, C, …) or (C) of the target classes (N, …)."""
    x, t = read(input), read(target)
    axis = min(1, len(build.shape_of(x)) - 1)
    if build.shape_of(x)[:axis] + build.shape_of(x)[axis + 1 :] != build.shape_of(t):
        raise ValueError(
            f"Expected target of size {[*input.shape[:axis], *input.shape[axis + 1 :]]}, got {list(target.shape)}"
        )
    counts = build.ne(t, ignore_index)
    safe = build.select(counts, t, build.zeros_like(t))
    chosen = build.squeeze(build.take_along(x, build.expand_dims(safe, axis), axis), axis)
    weights = build.ones_like(chosen) if weight is None else build.gather(read(weight), (safe,), (0,))
    weights = build.select(counts, weights, build.zeros_like(weights))
    # Where a target does not count the loss is 0 even if the log-probability there is infinite.
    loss = build.select(counts, build.neg(build.mul(chosen, weights)), build.zeros_like(chosen))
    if reduction == "mean":
        return wrap(build.div(build.reduce_sum(loss), build.reduce_sum(weights)), "NllLoss")
    return reduced(loss, reduction, "NllLoss")


def _log_limited(x: Value) -> Value:
    """max(log(x), -100) with a finite derivative at 0."""
    zero = build.le(x, 0)
    log = build.log(build.select(zero, build.ones_like(x), x))
    return build.maximum(build.select(zero, build.full_like(x, -100), log), -100)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: None = None, reduce: None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """-(t log(x) + (1 - t) log(1 - x)) of probabilities; logarithms are at least -100."""
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(
            f"Using a target size ({target.shape}) that is different to the input size ({input.shape}) is deprecated. "
            "Please ensure they have the same size."
        )
    x, t = read(input), read(target)
    loss = build.sub(
        build.mul(build.sub(t, 1), _log_limited(build.sub(build.ones_like(x), x))),
        build.mul(t, _log_limited(x)),
    )
    if weight is not None:
        loss = build.mul(loss, build.broadcast_to(read(weight), build.shape_of(loss)))
    return reduced(loss, reduction, "BinaryCrossEntropy")


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: None = None, reduce: None = None,
    reduction: str = "mean", pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Binary cross entropy of sigmoid(input), computed without overflow."""
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(f"Target size ({target.shape}) must be the same as input size ({input.shape})")
    x, t = read(input), read(target)
    log, rest = record(LogSigmoid(), x), build.sub(build.ones_like(t), t)
    if pos_weight is None:
        loss = build.sub(build.mul(rest, x), log)
    else:  # (1 - t) x - (1 + (w - 1) t) log(sigmoid(x))
        extra = build.sub(build.broadcast_to(read(pos_weight), build.shape_of(x)), 1)
        loss = build.sub(build.mul(rest, x), build.mul(log, build.add(build.mul(extra, t), 1)))
    if weight is not None:
        loss = build.mul(loss, build.broadcast_to(read(weight), build.shape_of(loss)))
    return reduced(loss, reduction, "BinaryCrossEntropyWithLogits")


def kl_div(
    input: Tensor, target: Tensor, size_average: None = None, reduce: None = None, reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:  # fmt: skip
    """t (log(t) - input) of log-probabilities `input`; "batchmean" divides the sum by the first size."""
    x, t = read(input), read(target)
    if log_target:
        loss = build.mul(build.exp(t), build.sub(t, x))
    else:
        positive = build.gt(t, 0)
        log = build.log(build.select(positive, t, build.ones_like(t)))
        loss = build.sub(build.mul(t, log), build.mul(t, x))
    if reduction == "batchmean":
        return wrap(build.div(build.reduce_sum(loss), build.shape_of(x)[0]), "Div")
    return reduced(loss, reduction, "KlDiv")


__all__ = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss", "kl_div", "l1_loss",
    "mse_loss", "nll_loss", "smooth_l1_loss",
]  # fmt: skip
