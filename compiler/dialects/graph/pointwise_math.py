"""Pointwise functions of floats: exponentials, logarithms, trigonometry, the error and gamma functions.

Operands are f64, f32, f16 or bf16 of any shape; the result has the operand's type. References compute in f64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import Elementwise, NotDifferentiable, Sample
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.ir.core import Value

Array = np.ndarray[Any, Any]
Gradients = tuple[Value | None, ...]


def vector(function: Callable[[float], float], x: Array) -> Array:
    """A function of one number, over an array."""
    return np.array([function(v) for v in x.reshape(-1).tolist()], np.float64).reshape(x.shape)


def erfinv(x: Array) -> Array:
    """Inverse error function: Winitzki's approximation (2008), then Newton's method with second-order correction."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logarithm = np.log1p(-x * x)
        first = 2 / (math.pi * 0.147) + logarithm / 2
        y = np.copysign(np.sqrt(np.sqrt(first * first - logarithm / 0.147) - first), x)
        for _ in range(4):
            # Towards +-1 erf(y) - x cancels; the complement keeps its digits.
            error = np.where(x > 0, (1 - x) - vector(math.erfc, y), vector(math.erfc, -y) - (1 + x))
            error = np.where(np.abs(x) < 0.5, vector(math.erf, y) - x, error)
            step = error * math.sqrt(math.pi) / 2 * np.exp(y * y)
            y = np.where(np.isfinite(step), y - step / (1 + y * step), y)
        return np.where(np.abs(x) == 1, np.copysign(np.inf, x), np.where(np.abs(x) > 1, np.nan, y))


def lgamma(x: float) -> float:
    """math.lgamma with its poles at infinity."""
    if math.isinf(x) or (x <= 0 and x.is_integer()):
        return math.inf
    return math.lgamma(x)


def digamma(x: float) -> float:
    """Derivative of log gamma: recurrence to x >= 8, then the asymptotic series (Abramowitz & Stegun 6.3.18)."""
    if x == 0 or math.isnan(x):
        return math.nan if x else -math.copysign(math.inf, x)
    if x < 0:
        if math.isinf(x) or x.is_integer():
            return math.nan
        return digamma(1 - x) - math.pi / math.tan(math.pi * x)
    total = 0.0
    while x < 8:
        total -= 1 / x
        x += 1
    if math.isinf(x):
        return x
    w = 1 / (x * x)
    series = w * (1 / 12 - w * (1 / 120 - w * (1 / 252 - w * (1 / 240 - w * (1 / 132 - w * 691 / 32760)))))
    return total + math.log(x) - 0.5 / x - series


class FloatFunction(Elementwise):
    """A function of one float operand."""

    kinds: ClassVar[tuple[str, ...]] = ("float",)
    math_name: ClassVar[str] = ""

    def element(self, b: Any, x: Any) -> Any:
        return b.math(self.math_name, x)

    def exact(self, x: Array) -> Array:
        """The result in f64."""
        raise NotImplementedError

    def reference(self, x: Array) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(self.exact(x.astype(np.float64))).astype(x.dtype)


class Exponential(FloatFunction):
    """Natural exponential of each element. StableHLO `exponential`."""

    name = "graph.exponential"
    math_name = "exp"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, result),)

    def exact(self, x: Array) -> Array:
        return np.exp(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Exponential(), lambda x: x.exp(), -2, 2)


class Exponential2(FloatFunction):
    """2 to the power of each element."""

    name = "graph.exponential2"
    math_name = "exp2"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.mul(result, math.log(2))),)

    def exact(self, x: Array) -> Array:
        return np.exp2(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Exponential2(), lambda x: x.exp2(), -2, 2)


class ExponentialMinusOne(FloatFunction):
    """exp(x) - 1 of each element, accurate near 0. StableHLO `exponential_minus_one`."""

    name = "graph.exponential_minus_one"
    math_name = "expm1"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.add(result, 1)),)

    def exact(self, x: Array) -> Array:
        return np.expm1(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(ExponentialMinusOne(), lambda x: x.expm1(), -2, 2)


class Log(FloatFunction):
    """Natural logarithm of each element. StableHLO `log`."""

    name = "graph.log"
    math_name = "log"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, x),)

    def exact(self, x: Array) -> Array:
        return np.log(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Log(), lambda x: x.log(), 0.5, 3)


class Log2(FloatFunction):
    """Logarithm to base 2 of each element."""

    name = "graph.log2"
    math_name = "log2"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, build.mul(x, math.log(2))),)

    def exact(self, x: Array) -> Array:
        return np.log2(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Log2(), lambda x: x.log2(), 0.5, 3)


class Log10(FloatFunction):
    """Logarithm to base 10 of each element."""

    name = "graph.log10"
    math_name = "log10"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, build.mul(x, math.log(10))),)

    def exact(self, x: Array) -> Array:
        return np.log10(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Log10(), lambda x: x.log10(), 0.5, 3)


class LogPlusOne(FloatFunction):
    """log(1 + x) of each element, accurate near 0. StableHLO `log_plus_one`."""

    name = "graph.log_plus_one"
    math_name = "log1p"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, build.add(x, 1)),)

    def exact(self, x: Array) -> Array:
        return np.log1p(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(LogPlusOne(), lambda x: x.log1p(), -0.5, 2)


class Sqrt(FloatFunction):
    """Square root of each element. StableHLO `sqrt`."""

    name = "graph.sqrt"
    math_name = "sqrt"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, build.mul(result, 2)),)

    def exact(self, x: Array) -> Array:
        return np.sqrt(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Sqrt(), lambda x: x.sqrt(), 0.5, 3)


class Rsqrt(FloatFunction):
    """1 / sqrt(x) of each element. StableHLO `rsqrt`."""

    name = "graph.rsqrt"
    math_name = "rsqrt"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(build.mul(ct, -0.5), build.mul(result, build.mul(result, result))),)

    def exact(self, x: Array) -> Array:
        return 1 / np.sqrt(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Rsqrt(), lambda x: x.rsqrt(), 0.5, 3)


class Cbrt(FloatFunction):
    """Cube root of each element. StableHLO `cbrt`."""

    name = "graph.cbrt"
    math_name = "cbrt"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, build.mul(build.mul(result, result), 3)),)

    def exact(self, x: Array) -> Array:
        return np.cbrt(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Cbrt(), None, 0.5, 3)


class Sine(FloatFunction):
    """Sine of each element, in radians. StableHLO `sine`."""

    name = "graph.sine"
    math_name = "sin"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.cos(x)),)

    def exact(self, x: Array) -> Array:
        return np.sin(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Sine(), lambda x: x.sin(), -2, 2)


class Cosine(FloatFunction):
    """Cosine of each element, in radians. StableHLO `cosine`."""

    name = "graph.cosine"
    math_name = "cos"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.neg(build.mul(ct, build.sin(x))),)

    def exact(self, x: Array) -> Array:
        return np.cos(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Cosine(), lambda x: x.cos(), -2, 2)


class Tan(FloatFunction):
    """Tangent of each element, in radians. StableHLO `tan`."""

    name = "graph.tan"
    math_name = "tan"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.add(build.square(result), 1)),)

    def exact(self, x: Array) -> Array:
        return np.tan(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Tan(), lambda x: x.tan(), -1, 1)


class Asin(FloatFunction):
    """Arc sine of each element, in radians."""

    name = "graph.asin"
    math_name = "asin"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.rsqrt(build.sub(1, build.square(x)))),)

    def exact(self, x: Array) -> Array:
        return np.arcsin(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Asin(), lambda x: x.asin(), -0.8, 0.8)


class Acos(FloatFunction):
    """Arc cosine of each element, in radians."""

    name = "graph.acos"
    math_name = "acos"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.neg(build.mul(ct, build.rsqrt(build.sub(1, build.square(x))))),)

    def exact(self, x: Array) -> Array:
        return np.arccos(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Acos(), lambda x: x.acos(), -0.8, 0.8)


class Atan(FloatFunction):
    """Arc tangent of each element, in radians."""

    name = "graph.atan"
    math_name = "atan"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, build.add(build.square(x), 1)),)

    def exact(self, x: Array) -> Array:
        return np.arctan(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Atan(), lambda x: x.atan(), -2, 2)


class Sinh(FloatFunction):
    """Hyperbolic sine of each element."""

    name = "graph.sinh"
    math_name = "sinh"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.unary("cosh", x)),)

    def exact(self, x: Array) -> Array:
        return np.sinh(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Sinh(), lambda x: x.sinh(), -2, 2)


class Cosh(FloatFunction):
    """Hyperbolic cosine of each element."""

    name = "graph.cosh"
    math_name = "cosh"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.unary("sinh", x)),)

    def exact(self, x: Array) -> Array:
        return np.cosh(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Cosh(), lambda x: x.cosh(), -2, 2)


class Tanh(FloatFunction):
    """Hyperbolic tangent of each element. StableHLO `tanh`."""

    name = "graph.tanh"
    math_name = "tanh"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.sub(1, build.square(result))),)

    def exact(self, x: Array) -> Array:
        return np.tanh(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Tanh(), lambda x: x.tanh(), -2, 2)


class Asinh(FloatFunction):
    """Inverse hyperbolic sine of each element."""

    name = "graph.asinh"
    math_name = "asinh"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.rsqrt(build.add(build.square(x), 1))),)

    def exact(self, x: Array) -> Array:
        return np.arcsinh(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Asinh(), lambda x: x.asinh(), -2, 2)


class Acosh(FloatFunction):
    """Inverse hyperbolic cosine of each element."""

    name = "graph.acosh"
    math_name = "acosh"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.rsqrt(build.sub(build.square(x), 1))),)

    def exact(self, x: Array) -> Array:
        return np.arccosh(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Acosh(), lambda x: x.acosh(), 1.5, 4)


class Atanh(FloatFunction):
    """Inverse hyperbolic tangent of each element."""

    name = "graph.atanh"
    math_name = "atanh"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.div(ct, build.sub(1, build.square(x))),)

    def exact(self, x: Array) -> Array:
        return np.arctanh(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Atanh(), lambda x: x.atanh(), -0.8, 0.8)


class Erf(FloatFunction):
    """Error function of each element. CHLO `erf`."""

    name = "graph.erf"
    math_name = "erf"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.mul(build.exp(build.neg(build.square(x))), 2 / math.sqrt(math.pi))),)

    def exact(self, x: Array) -> Array:
        return vector(math.erf, x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Erf(), lambda x: x.erf(), -2, 2)


class Erfc(FloatFunction):
    """1 - erf(x) of each element, accurate for large x. CHLO `erfc`."""

    name = "graph.erfc"
    math_name = "erfc"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.mul(build.exp(build.neg(build.square(x))), -2 / math.sqrt(math.pi))),)

    def exact(self, x: Array) -> Array:
        return vector(math.erfc, x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Erfc(), lambda x: x.erfc(), -2, 2)


class ErfGelu(FloatFunction):
    """x times the standard normal distribution function at x, (1 + erf(x / sqrt(2))) / 2, of each element: what
    `graph.gelu` is where it is not approximated, in one function."""

    name = "graph.erf_gelu"
    math_name = "gelu"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, self.slope(x)),)

    @staticmethod
    def slope(x: Value) -> Value:
        """The derivative at x."""
        below = build.mul(build.add(build.erf(build.mul(x, math.sqrt(0.5))), 1), 0.5)
        density = build.mul(build.exp(build.mul(build.square(x), -0.5)), 1 / math.sqrt(2 * math.pi))
        return build.add(below, build.mul(x, density))

    def exact(self, x: Array) -> Array:
        return np.asarray(np.maximum(x, -40) * (1 + vector(math.erf, x * math.sqrt(0.5))) / 2)

    def samples(self) -> Iterable[Sample]:
        # PyTorch gives NaN at both infinities.
        yield from sampling.own_special(sampling.unary(ErfGelu(), F.gelu, -2, 2))


class Erfinv(FloatFunction):
    """Inverse of the error function, for elements in [-1, 1]. CHLO `erf_inv`."""

    name = "graph.erfinv"
    math_name = "erfinv"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.mul(build.exp(build.square(result)), math.sqrt(math.pi) / 2)),)

    def exact(self, x: Array) -> Array:
        return erfinv(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Erfinv(), lambda x: x.erfinv(), -0.8, 0.8)


class Lgamma(FloatFunction):
    """Logarithm of the absolute value of the gamma function of each element. CHLO `lgamma`."""

    name = "graph.lgamma"
    math_name = "lgamma"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.unary("digamma", x)),)

    def exact(self, x: Array) -> Array:
        return vector(lgamma, x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Lgamma(), lambda x: x.lgamma(), 0.5, 4)


class Digamma(FloatFunction):
    """Derivative of the logarithm of the gamma function, of each element. CHLO `digamma`."""

    name = "graph.digamma"
    math_name = "digamma"

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.make(build.op("polygamma", order=1), x)),)

    def exact(self, x: Array) -> Array:
        return vector(digamma, x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Digamma(), lambda x: x.digamma(), 0.5, 4)
        yield Sample(Digamma(), (np.array([-0.5, -2.25, 12.0]),), lambda x: x.digamma())


class Logistic(FloatFunction):
    """1 / (1 + exp(-x)) of each element, PyTorch's sigmoid. StableHLO `logistic`."""

    name = "graph.logistic"

    def element(self, b: Any, x: Any) -> Any:
        one = b.constant(1, x.element)
        return b.div(one, b.add(one, b.math("exp", b.neg(x))))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.mul(result, build.sub(1, result))),)

    def exact(self, x: Array) -> Array:
        return 1 / (1 + np.exp(-x))

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Logistic(), lambda x: x.sigmoid())
        yield Sample(Logistic(), (np.array([-1000, 1000, 0], np.float32),), lambda x: x.sigmoid())


class Atan2(Elementwise):
    """The angle, in (-pi, pi], of the point (x, y), elementwise; the operands are y and x. StableHLO `atan2`."""

    name = "graph.atan2"
    kinds: ClassVar[tuple[str, ...]] = ("float",)
    arity: ClassVar[int] = 2

    def element(self, b: Any, y: Any, x: Any) -> Any:
        return b.math("atan2", y, x)

    def vjp(self, ct: Value, y: Value, x: Value, *, result: Value) -> Gradients:
        norm = build.add(build.square(x), build.square(y))
        return build.mul(ct, build.div(x, norm)), build.neg(build.mul(ct, build.div(y, norm)))

    def reference(self, y: Array, x: Array) -> Any:
        return np.arctan2(y.astype(np.float64), x.astype(np.float64)).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Atan2(), lambda y, x: y.atan2(x))


def _off_the_steps(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Leaves the gradient unchecked where bf16 and f16 rounded an operand onto a step."""
    for sample in samples:
        doubled = 2 * sample.operands[0].astype(np.float64)
        yield replace(sample, differentiable=()) if (doubled == np.rint(doubled)).any() else sample


class Rounding(FloatFunction):
    """A step function of floats; its derivative is zero where it exists."""

    vjp = NotDifferentiable("it is constant between its steps", zero=True)


class Floor(Rounding):
    """The greatest integer not above each element. StableHLO `floor`."""

    name = "graph.floor"
    math_name = "floor"

    def exact(self, x: Array) -> Array:
        return np.floor(x)

    def samples(self) -> Iterable[Sample]:
        yield from _off_the_steps(sampling.unary(Floor(), lambda x: x.floor(), -3, 3))
        yield Sample(
            Floor(), (np.array([0.5, 1.5, -0.5, -2.5, np.inf], np.float32),), lambda x: x.floor(), ()
        )


class Ceil(Rounding):
    """The least integer not below each element. StableHLO `ceil`."""

    name = "graph.ceil"
    math_name = "ceil"

    def exact(self, x: Array) -> Array:
        return np.ceil(x)

    def samples(self) -> Iterable[Sample]:
        yield from _off_the_steps(sampling.unary(Ceil(), lambda x: x.ceil(), -3, 3))
        yield Sample(Ceil(), (np.array([0.5, 1.5, -0.5, -2.5, np.inf], np.float32),), lambda x: x.ceil(), ())


class RoundNearestEven(Rounding):
    """Each element rounded to an integer, halves to the even one. StableHLO `round_nearest_even`."""

    name = "graph.round_nearest_even"
    math_name = "round_even"

    def exact(self, x: Array) -> Array:
        return np.rint(x)

    def samples(self) -> Iterable[Sample]:
        yield from _off_the_steps(sampling.unary(RoundNearestEven(), lambda x: x.round(), -3, 3))
        yield Sample(
            RoundNearestEven(),
            (np.array([0.5, 1.5, -0.5, -2.5, np.inf], np.float32),),
            lambda x: x.round(),
            (),
        )


class Truncate(Rounding):
    """Each element without its fraction."""

    name = "graph.truncate"
    math_name = "trunc"

    def exact(self, x: Array) -> Array:
        return np.trunc(x)

    def samples(self) -> Iterable[Sample]:
        yield from _off_the_steps(sampling.unary(Truncate(), lambda x: x.trunc(), -3, 3))
        yield Sample(
            Truncate(), (np.array([0.5, 1.5, -0.5, -2.5, np.inf], np.float32),), lambda x: x.trunc(), ()
        )
