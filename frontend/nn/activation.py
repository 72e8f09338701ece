"""Activation and dropout layers."""

from __future__ import annotations

from typing import Any

from flambeau.creation import full
from flambeau.nn import functional as F
from flambeau.nn.module import Module
from flambeau.nn.parameter import Parameter
from flambeau.tensor import Tensor


class _InPlace(Module):
    """Base of activations whose only option is `inplace`."""

    function: Any

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(input, inplace=self.inplace)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class ReLU(_InPlace):
    """max(x, 0)"""

    function = staticmethod(F.relu)


class SELU(_InPlace):
    """Scaled ELU."""

    function = staticmethod(F.selu)


class SiLU(_InPlace):
    """x sigmoid(x)"""

    function = staticmethod(F.silu)


class Mish(_InPlace):
    """x tanh(softplus(x))"""

    function = staticmethod(F.mish)


class Hardsigmoid(_InPlace):
    """(x + 3) / 6 limited to [0, 1]."""

    function = staticmethod(F.hardsigmoid)


class Hardswish(_InPlace):
    """x hardsigmoid(x)"""

    function = staticmethod(F.hardswish)


class _Plain(Module):
    """Base of activations without options."""

    function: Any

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(input)  # type: ignore[no-any-return]


class Sigmoid(_Plain):
    """1 / (1 + exp(-x))"""

    function = staticmethod(F.sigmoid)


class Tanh(_Plain):
    """Hyperbolic tangent."""

    function = staticmethod(F.tanh)


class LogSigmoid(_Plain):
    """log(sigmoid(x))"""

    function = staticmethod(F.logsigmoid)


class Softsign(_Plain):
    """x / (1 + |x|)"""

    function = staticmethod(F.softsign)


class Tanhshrink(_Plain):
    """x - tanh(x)"""

    function = staticmethod(F.tanhshrink)


class GELU(Module):
    """x times the normal distribution function at x."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class LeakyReLU(Module):
    """x where x > 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 1e-2, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope, self.inplace = negative_slope, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}" + (", inplace=True" if self.inplace else "")


class _Alpha(Module):
    function: Any

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha, self.inplace = alpha, inplace

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(input, self.alpha, self.inplace)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + (", inplace=True" if self.inplace else "")


class ELU(_Alpha):
    """x where x > 0, else alpha (exp(x) - 1)."""

    function = staticmethod(F.elu)


class CELU(_Alpha):
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))"""

    function = staticmethod(F.celu)


class Hardtanh(Module):
    """x limited to [min_val, max_val]."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if max_val <= min_val:
            raise AssertionError("max_val must be larger than min_val")
        self.min_val, self.max_val, self.inplace = min_val, max_val, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}" + (", inplace=True" if self.inplace else "")


class ReLU6(Hardtanh):
    """x limited to [0, 6]."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(0.0, 6.0, inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class Softplus(Module):
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, input: Tensor) -> Tensor:
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class Threshold(Module):
    """x where x > threshold, else value."""

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        super().__init__()
        self.threshold, self.value, self.inplace = threshold, value, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.threshold(input, self.threshold, self.value, self.inplace)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, value={self.value}" + (", inplace=True" if self.inplace else "")


class _Shrink(Module):
    function: Any

    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(input, self.lambd)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return str(self.lambd)


class Hardshrink(_Shrink):
    """0 within lambd of zero, else x."""

    function = staticmethod(F.hardshrink)


class Softshrink(_Shrink):
    """x moved by lambd towards zero."""

    function = staticmethod(F.softshrink)


class PReLU(Module):
    """x where x > 0, else a trained weight times x: one weight, or one a channel."""

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = Parameter(full((num_parameters,), float(init), device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class GLU(Module):
    """The first half along `dim` times the sigmoid of the second."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.glu(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class _Along(Module):
    function: Any

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(input, self.dim)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_Along):
    """exp(x) divided by its sum along `dim`."""

    function = staticmethod(F.softmax)


class Softmin(_Along):
    """Softmax of -x."""

    function = staticmethod(F.softmin)


class LogSoftmax(_Along):
    """The logarithm of softmax."""

    function = staticmethod(F.log_softmax)


class _Dropout(Module):
    function: Any

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p, self.inplace = p, inplace

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(input, self.p, self.training, self.inplace)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_Dropout):
    """In training, zeroes each element with probability p and divides the others by 1 - p."""

    function = staticmethod(F.dropout)


class Dropout1d(_Dropout):
    """Dropout of whole channels of (…, C, L)."""

    function = staticmethod(F.dropout1d)


class Dropout2d(_Dropout):
    """Dropout of whole channels of (…, C, H, W)."""

    function = staticmethod(F.dropout2d)


class Dropout3d(_Dropout):
    """Dropout of whole channels of (…, C, D, H, W)."""

    function = staticmethod(F.dropout3d)


__all__ = [
    "CELU", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid",
    "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "ReLU", "ReLU6", "SELU",
    "SiLU", "Sigmoid", "Softmax", "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold",
]  # fmt: skip
