"""Activation functions of neural networks: elementwise composites with PyTorch's parameters and gradients at kinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Sample
from flambeau.compiler.dialects.graph.composite import Array, Composite, narrow, wide, wide_array
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.dialects.graph.pointwise_math import ErfGelu
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.types import TensorType, bf16, f16

SQRT_TWO_OVER_PI = math.sqrt(2 / math.pi)
# D. Hendrycks and K. Gimpel, "Gaussian error linear units (GELUs)", 2016, section 2.
GELU_CUBIC = 0.044715


class Activation(Composite):
    """Base: one float operand, a result of the same type; computed in f32 for 16-bit types.

    Subclasses give `formula`, its derivative `slope`, and `exact`, the formula in NumPy.
    """

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 1, 1)
        return operands[0]

    def formula(self, x: Value) -> Value:
        raise NotImplementedError

    def slope(self, x: Value) -> Value:
        raise NotImplementedError

    def exact(self, x: Array) -> Any:
        raise NotImplementedError

    def decompose(self, *operands: Value) -> Value:
        (x,) = operands
        return narrow(self.formula(wide(x)), build.element_of(x))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        return (narrow(build.mul(wide(ct), self.slope(wide(x))), build.element_of(x)),)

    def reference(self, *operands: Array) -> Any:
        (x,) = operands
        with np.errstate(all="ignore"):
            return self.exact(wide_array(x)).astype(x.dtype)


def _samples(definition: Activation, torch: Callable[..., Any]) -> Iterator[Sample]:
    """Around zero, far from it, and 16-bit."""
    spread = np.array([[-7.5, -4.0, -2.9, -1.3, -0.45], [0.2, 0.55, 1.7, 2.8, 6.25]])
    yield Sample(definition, (spread,), torch)
    yield Sample(definition, (np.array([-120.0, -25.0, 25.0, 120.0], np.float32),), torch, note="large")
    yield Sample(definition, (spread.astype(f16.numpy),), torch)
    yield Sample(definition, (spread.astype(bf16.numpy),), torch)
    yield Sample(definition, (np.zeros((0, 3)),), torch)


class Relu(Activation):
    """max(x, 0); NaN stays. The derivative at 0 is 0."""

    name = "graph.relu"

    def decompose(self, *operands: Value) -> Value:
        return build.maximum(operands[0], 0)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        return (build.select(build.le(result, 0), build.zeros_like(ct), ct),)

    def exact(self, x: Array) -> Any:
        return np.maximum(x, 0)

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Relu(), F.relu)


class LeakyRelu(Activation):
    """x where x > 0, else `negative_slope` x."""

    name = "graph.leaky_relu"
    negative_slope: float = 0.01

    def formula(self, x: Value) -> Value:
        return build.select(build.gt(x, 0), x, build.mul(x, self.negative_slope))

    def slope(self, x: Value) -> Value:
        return build.select(build.gt(x, 0), build.ones_like(x), build.full_like(x, self.negative_slope))

    def exact(self, x: Array) -> Any:
        return np.where(x > 0, x, x * x.dtype.type(self.negative_slope))

    def samples(self) -> Iterable[Sample]:
        yield from _samples(LeakyRelu(0.125), lambda x: F.leaky_relu(x, 0.125))


class Elu(Activation):
    """`scale` times (x where x > 0, else `alpha` (exp(`input_scale` x) - 1)).

    ELU (D. Clevert et al., 2015) has scales 1; SELU (G. Klambauer et al., 2017) is alpha 1.6732632423543772 and scale
    1.0507009873554805; CELU (J. Barron, 2017) has input_scale 1 / alpha.
    """

    name = "graph.elu"
    alpha: float = 1.0
    scale: float = 1.0
    input_scale: float = 1.0

    def formula(self, x: Value) -> Value:
        below = build.expm1(build.mul(build.minimum(x, 0), self.input_scale))
        return build.select(
            build.gt(x, 0), build.mul(x, self.scale), build.mul(below, self.alpha * self.scale)
        )

    def slope(self, x: Value) -> Value:
        below = build.exp(build.mul(build.minimum(x, 0), self.input_scale))
        factor = self.alpha * self.scale * self.input_scale
        return build.select(build.gt(x, 0), build.full_like(x, self.scale), build.mul(below, factor))

    def exact(self, x: Array) -> Any:
        kind = x.dtype.type
        below = kind(self.alpha * self.scale) * np.expm1(np.minimum(x, 0) * kind(self.input_scale))
        return np.where(x > 0, x * kind(self.scale), below)

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Elu(1.5), lambda x: F.elu(x, 1.5))
        yield from _samples(Elu(2.0, 1.0, 0.5), lambda x: F.celu(x, 2.0))


class Gelu(Activation):
    """x times the standard normal distribution function at x.

    `approximate` "none" uses erf; "tanh" is ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.
    D. Hendrycks and K. Gimpel, "Gaussian error linear units (GELUs)", 2016.
    """

    name = "graph.gelu"
    approximate: str = "none"

    def infer(self, *operands: TensorType) -> TensorType:
        if self.approximate not in ("none", "tanh"):
            raise self.reject("unknown approximation", expected="none or tanh", actual=self.approximate)
        return super().infer(*operands)

    def formula(self, x: Value) -> Value:
        if self.approximate == "none":
            return build.unary("erf_gelu", x)
        return build.mul(build.mul(x, 0.5), build.add(build.tanh(self._inner(x)), 1))

    def _inner(self, x: Value) -> Value:
        cubic = build.mul(build.mul(build.square(x), x), GELU_CUBIC)
        return build.mul(build.add(x, cubic), SQRT_TWO_OVER_PI)

    def slope(self, x: Value) -> Value:
        if self.approximate == "none":
            return ErfGelu.slope(x)
        t = build.tanh(self._inner(x))
        inner = build.mul(build.add(build.mul(build.square(x), 3 * GELU_CUBIC), 1), SQRT_TWO_OVER_PI)
        steep = build.mul(build.mul(build.sub(1, build.square(t)), inner), build.mul(x, 0.5))
        return build.add(build.mul(build.add(t, 1), 0.5), steep)

    def exact(self, x: Array) -> Any:
        if self.approximate == "tanh":
            return 0.5 * x * (1 + np.tanh(SQRT_TWO_OVER_PI * (x + GELU_CUBIC * x**3)))
        erf = np.vectorize(math.erf, otypes=[np.float64])
        return (0.5 * x * (1 + erf(x.astype(np.float64) * math.sqrt(0.5)))).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Gelu(), F.gelu)
        yield from _samples(Gelu("tanh"), lambda x: F.gelu(x, approximate="tanh"))


class Silu(Activation):
    """x / (1 + exp(-x)), also called swish; S. Elfwing et al., 2017."""

    name = "graph.silu"

    def formula(self, x: Value) -> Value:
        return build.mul(x, build.logistic(x))

    def slope(self, x: Value) -> Value:
        s = build.logistic(x)
        return build.mul(s, build.add(build.mul(x, build.sub(1, s)), 1))

    def exact(self, x: Array) -> Any:
        return x / (1 + np.exp(-x))

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Silu(), F.silu)


class Softplus(Activation):
    """log(1 + exp(`beta` x)) / `beta`; x itself where beta x > `threshold`."""

    name = "graph.softplus"
    beta: float = 1.0
    threshold: float = 20.0

    def formula(self, x: Value) -> Value:
        scaled = build.mul(x, self.beta)
        above = build.gt(scaled, self.threshold)
        curve = build.log1p(build.exp(build.minimum(scaled, self.threshold)))
        return build.select(above, x, build.mul(curve, 1 / self.beta))

    def slope(self, x: Value) -> Value:
        scaled = build.mul(x, self.beta)
        return build.select(build.gt(scaled, self.threshold), build.ones_like(x), build.logistic(scaled))

    def exact(self, x: Array) -> Any:
        scaled = x * x.dtype.type(self.beta)
        curve = np.log1p(np.exp(np.minimum(scaled, self.threshold))) / x.dtype.type(self.beta)
        return np.where(scaled > self.threshold, x, curve)

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Softplus(), F.softplus)
        yield from _samples(Softplus(2.0, 5.0), lambda x: F.softplus(x, 2.0, 5.0))


class LogSigmoid(Activation):
    """log(1 / (1 + exp(-x))), computed as ``min(x, 0) - log(1 + exp(-|x|))``."""

    name = "graph.log_sigmoid"

    def formula(self, x: Value) -> Value:
        return build.sub(build.minimum(x, 0), build.log1p(build.exp(build.neg(build.abs(x)))))

    def slope(self, x: Value) -> Value:
        return build.logistic(build.neg(x))

    def exact(self, x: Array) -> Any:
        return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))

    def samples(self) -> Iterable[Sample]:
        yield from _samples(LogSigmoid(), F.logsigmoid)


class Mish(Activation):
    """x tanh(log(1 + exp(x))); D. Misra, 2019."""

    name = "graph.mish"

    def formula(self, x: Value) -> Value:
        return build.mul(x, build.tanh(apply(Softplus(), x)))

    def slope(self, x: Value) -> Value:
        t = build.tanh(apply(Softplus(), x))
        return build.add(t, build.mul(build.mul(x, build.logistic(x)), build.sub(1, build.square(t))))

    def exact(self, x: Array) -> Any:
        return x * np.tanh(np.logaddexp(x, 0))

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Mish(), F.mish)


class Hardtanh(Activation):
    """x limited to [low, high]; ReLU6 is (0, 6). The derivative at the limits is 0."""

    name = "graph.hardtanh"
    low: float = -1.0
    high: float = 1.0

    def formula(self, x: Value) -> Value:
        return build.clamp(self.low, x, self.high)

    def slope(self, x: Value) -> Value:
        inside = build.and_(build.gt(x, self.low), build.lt(x, self.high))
        return build.select(inside, build.ones_like(x), build.zeros_like(x))

    def exact(self, x: Array) -> Any:
        return np.clip(x, self.low, self.high)

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Hardtanh(-0.5, 2.0), lambda x: F.hardtanh(x, -0.5, 2.0))


class Hardsigmoid(Activation):
    """(x + 3) / 6 limited to [0, 1]; A. Howard et al., "Searching for MobileNetV3", 2019."""

    name = "graph.hardsigmoid"

    def formula(self, x: Value) -> Value:
        return build.mul(build.clamp(0.0, build.add(x, 3), 6.0), 1 / 6)

    def slope(self, x: Value) -> Value:
        inside = build.and_(build.gt(x, -3), build.lt(x, 3))
        return build.select(inside, build.full_like(x, 1 / 6), build.zeros_like(x))

    def exact(self, x: Array) -> Any:
        return np.clip(x + 3, 0, 6) / 6

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Hardsigmoid(), F.hardsigmoid)


class Hardswish(Activation):
    """x (x + 3) / 6 between -3 and 3, x above, 0 below; A. Howard et al., "Searching for MobileNetV3", 2019."""

    name = "graph.hardswish"

    def formula(self, x: Value) -> Value:
        return build.mul(build.mul(x, build.clamp(0.0, build.add(x, 3), 6.0)), 1 / 6)

    def slope(self, x: Value) -> Value:
        between = build.add(build.mul(x, 1 / 3), 0.5)
        upper = build.select(build.ge(x, 3), build.ones_like(x), between)
        return build.select(build.le(x, -3), build.zeros_like(x), upper)

    def exact(self, x: Array) -> Any:
        return x * np.clip(x + 3, 0, 6) / 6

    def samples(self) -> Iterable[Sample]:
        yield from _samples(Hardswish(), F.hardswish)
