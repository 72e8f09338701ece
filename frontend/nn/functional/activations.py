"""Activation functions, softmax, dropout."""

from __future__ import annotations

from flambeau import pointwise, random, reduction
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph import composites_activation as activation
from flambeau.compiler.dialects.graph.composites_nn import Dropout
from flambeau.dtypes import dtype as DType
from flambeau.evaluation import record
from flambeau.nn.functional.common import in_place
from flambeau.tensor import Tensor, axis, made, method, read, wrap, write

_RELU = activation.Relu()


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)"""
    return in_place(input, made(_RELU, "Relu", input), inplace)


@method("relu_")
def relu_(input: Tensor) -> Tensor:
    """max(x, 0), in place."""
    return relu(input, True)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    return in_place(input, made(activation.LeakyRelu(negative_slope), "LeakyRelu", input), inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha (exp(x) - 1)."""
    return in_place(input, made(activation.Elu(alpha), "Elu", input), inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """ELU with the constants of G. Klambauer et al., 2017."""
    definition = activation.Elu(1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
    return in_place(input, made(definition, "Elu", input), inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))"""
    return in_place(input, made(activation.Elu(alpha, 1.0, 1 / alpha), "Celu", input), inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function at x, exactly or by the "tanh" approximation."""
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return made(activation.Gelu(approximate), "Gelu", input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x)"""
    return in_place(input, made(activation.Silu(), "Silu", input), inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(softplus(x))"""
    return in_place(input, made(activation.Mish(), "Mish", input), inplace)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""
    return made(activation.Softplus(beta, threshold), "Softplus", input)


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x))"""
    return made(activation.LogSigmoid(), "LogSigmoid", input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val]."""
    return in_place(input, made(activation.Hardtanh(min_val, max_val), "Hardtanh", input), inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """x limited to [0, 6]."""
    return hardtanh(input, 0.0, 6.0, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """(x + 3) / 6 limited to [0, 1]."""
    return in_place(input, made(activation.Hardsigmoid(), "Hardsigmoid", input), inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x hardsigmoid(x)"""
    return in_place(input, made(activation.Hardswish(), "Hardswish", input), inplace)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))"""
    return wrap(build.logistic(read(input)), "Sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return wrap(build.tanh(read(input)), "Tanh")


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)"""
    x = read(input)
    return wrap(build.div(x, build.add(build.abs(x), 1)), "Div")


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x)"""
    x = read(input)
    return wrap(build.sub(x, build.tanh(x)), "Sub")


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where x > threshold, else value."""
    x = read(input)
    made = wrap(build.select(build.gt(x, threshold), x, build.full_like(x, value)), "Threshold")
    return in_place(input, made, inplace)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """0 within lambd of zero, else x."""
    x = read(input)
    return wrap(build.select(build.le(build.abs(x), lambd), build.zeros_like(x), x), "Hardshrink")


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved by lambd towards zero, and 0 within lambd of it."""
    x = read(input)
    low = build.select(build.lt(x, -lambd), build.add(x, lambd), build.mul(x, 0))
    return wrap(build.select(build.gt(x, lambd), build.sub(x, lambd), low), "Softshrink")


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight * x; one weight, or one a channel (axis 1)."""
    x, w = read(input), read(weight)
    shape = build.shape_of(x)
    if weight.numel() == 1:
        slope = build.broadcast_to(build.reshape(w, ()), shape)
    else:
        slope = build.broadcast_along(w, shape, 1 if len(shape) > 1 else 0)
    return wrap(build.select(build.gt(x, 0), x, build.mul(x, slope)), "PreluKernel")


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The first half along `dim` times the sigmoid of the second."""
    x = read(input)
    shape = build.shape_of(x)
    at = axis(dim, len(shape))
    if shape[at] % 2 != 0:
        raise RuntimeError(f"Halving dimension must be even, but dimension {at} is size {shape[at]}")
    half = shape[at] // 2
    gate = build.logistic(build.slice_axis(x, at, half, shape[at]))
    return wrap(build.mul(build.slice_axis(x, at, 0, half), gate), "Glu")


def _axis_of(dim: int | None, rank: int) -> int:
    """The axis that softmax takes where none is given (and PyTorch warns)."""
    return (0 if rank in (0, 1, 3) else 1) if dim is None else dim


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: DType | None = None
) -> Tensor:
    """exp(x) divided by its sum along `dim`."""
    return reduction.softmax(input, _axis_of(dim, input.ndim), dtype)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: DType | None = None
) -> Tensor:
    """softmax of -x."""
    return softmax(pointwise.neg(input), dim, dtype=dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: DType | None = None
) -> Tensor:
    """x - log(sum(exp(x))) along `dim`."""
    return reduction.log_softmax(input, _axis_of(dim, input.ndim), dtype)


def _probability(p: float) -> float:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return p


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, zero each element with probability p and divide the others by 1 - p."""
    if not training or _probability(p) == 0:
        return input
    value = record(Dropout(float(p)), read(input), random.default_generator.draw())
    return write(input, value) if inplace else wrap(value, "Dropout")


def _dropout_whole(input: Tensor, p: float, training: bool, inplace: bool, rank: int) -> Tensor:
    """Dropout of whole channels: the mask has one element a sample and channel."""
    if not training or _probability(p) == 0:
        return input
    x = read(input)
    shape = build.shape_of(x)
    leading = shape[: len(shape) - rank]
    ones = build.constant(1, build.element_of(x), leading)
    mask = record(Dropout(float(p)), ones, random.default_generator.draw())
    value = build.mul(x, build.broadcast_in_dim(mask, shape, range(len(leading))))
    return write(input, value) if inplace else wrap(value, "Mul")


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (…, C, L)."""
    return _dropout_whole(input, p, training, inplace, 1)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (…, C, H, W)."""
    return _dropout_whole(input, p, training, inplace, 2)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (…, C, D, H, W)."""
    return _dropout_whole(input, p, training, inplace, 3)


__all__ = [
    "celu", "dropout", "dropout1d", "dropout2d", "dropout3d", "elu", "gelu", "glu", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "leaky_relu", "log_softmax", "logsigmoid", "mish", "prelu", "relu", "relu6", "relu_",
    "selu", "sigmoid", "silu", "softmax", "softmin", "softplus", "softshrink", "softsign", "tanh", "tanhshrink",
    "threshold",
]  # fmt: skip
