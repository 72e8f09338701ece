"""Initialisation of parameters, in place, without history: `torch.nn.init`.

Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming), Saxe et al. 2013 (orthogonal).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from flambeau.autograd import no_grad
from flambeau.creation import eye, from_numpy
from flambeau.tensor import Tensor

_LINEAR = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through an activation. ValueError for an unknown one."""
    if nonlinearity in _LINEAR:
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity == "selu":
        return 3.0 / 4
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    """Uniform in [a, b)."""
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)  # type: ignore[attr-defined, no-any-return]


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    """Normal."""
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)  # type: ignore[attr-defined, no-any-return]


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Any = None,
) -> Tensor:
    """Normal, limited to [a, b] by inverting the distribution function between its values there."""

    from statistics import NormalDist  # few programs need it, and it takes a millisecond to import

    def below(x: float) -> float:
        return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0

    with no_grad():
        low, high = below((a - mean) / std), below((b - mean) / std)
        tensor.uniform_(low, high, generator=generator)  # type: ignore[attr-defined]
        share = np.clip(tensor.detach().numpy().astype(np.float64), 1e-300, 1 - 2**-53)
        content = np.frompyfunc(NormalDist(mean, std).inv_cdf, 1, 1)(share)
        limited = np.ascontiguousarray(np.clip(np.asarray(content, np.float64), a, b), tensor.dtype.numpy)
        return tensor.copy_(from_numpy(limited.reshape(tuple(tensor.shape))))  # type: ignore[attr-defined, no-any-return]


def constant_(tensor: Tensor, val: float) -> Tensor:
    """`val` everywhere."""
    with no_grad():
        return tensor.fill_(val)  # type: ignore[attr-defined, no-any-return]


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere."""
    return constant_(tensor, 0.0)


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix."""
    if tensor.ndim != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    with no_grad():
        return tensor.copy_(eye(*tensor.shape, dtype=tensor.dtype))  # type: ignore[attr-defined, no-any-return]


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """The identity of a convolution: each output channel passes its input channel on."""
    if tensor.ndim not in (3, 4, 5):
        raise ValueError("Only tensors with 3, 4, or 5 dimensions are supported")
    out, inside, *window = tensor.shape
    if out % groups != 0:
        raise ValueError("dim 0 must be divisible by groups")
    content = np.zeros(tuple(tensor.shape), tensor.dtype.numpy)
    each = out // groups
    for g in range(groups):
        for d in range(min(each, inside)):
            content[(g * each + d, d, *[k // 2 for k in window])] = 1
    with no_grad():
        return tensor.copy_(from_numpy(content))  # type: ignore[attr-defined, no-any-return]


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _fan(tensor: Tensor, mode: str) -> int:
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    return _calculate_fan_in_and_fan_out(tensor)[mode == "fan_out"]


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Uniform with standard deviation gain sqrt(2 / (fan_in + fan_out))."""
    a = math.sqrt(3.0) * gain * math.sqrt(2.0 / sum(_calculate_fan_in_and_fan_out(tensor)))
    return uniform_(tensor, -a, a, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_calculate_fan_in_and_fan_out(tensor))), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Uniform with standard deviation gain / sqrt(fan); `a` is the leaky ReLU's slope."""
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    bound = math.sqrt(3.0) * calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan); `a` is the leaky ReLU's slope."""
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    return normal_(tensor, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode)), generator)


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Any = None) -> Tensor:
    """Rows (or columns, whichever are fewer) orthonormal, times `gain`."""
    if tensor.ndim < 2:
        raise ValueError("Only tensors with 2 or more dimensions are supported")
    if tensor.numel() == 0:
        return tensor
    with no_grad():
        rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
        tensor.normal_(0, 1, generator=generator)  # type: ignore[attr-defined]
        flat = tensor.detach().numpy().astype(np.float64).reshape(rows, columns)
        q, r = np.linalg.qr(flat.T if rows < columns else flat)
        q = q * np.sign(np.diag(r))
        q = (q.T if rows < columns else q).reshape(tuple(tensor.shape)) * gain
        return tensor.copy_(from_numpy(np.ascontiguousarray(q, tensor.dtype.numpy)))  # type: ignore[attr-defined, no-any-return]


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Any = None) -> Tensor:
    """Normal, with the fraction `sparsity` of each column zero."""
    if tensor.ndim != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    rows, columns = tensor.shape
    normal_(tensor, 0, std, generator)
    content = np.array(tensor.detach().numpy())
    seed = np.asarray(tensor.detach().numpy(), np.float64).tobytes()
    order = np.random.default_rng(
        np.frombuffer(seed, np.uint32)
    )  # follows the generator through the drawn numbers
    for c in range(columns):
        content[order.permutation(rows)[: math.ceil(sparsity * rows)], c] = 0
    with no_grad():
        return tensor.copy_(from_numpy(content))  # type: ignore[attr-defined, no-any-return]


__all__ = [
    "calculate_gain", "constant_", "dirac_", "eye_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_",
    "orthogonal_", "sparse_", "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip
