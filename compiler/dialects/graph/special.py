"""Derivatives of the digamma function."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import Elementwise, Sample
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import ElementType, bf16, f16, f32

Array = np.ndarray[Any, Any]

# B(2k) / (2k)! for k = 1 … 8 (Abramowitz & Stegun, table 23.2).
_BERNOULLI = tuple(
    above / (below * math.factorial(2 * k))
    for k, (above, below) in enumerate(
        ((1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510)), 1
    )
)
#: So far the argument is moved by the recurrence; from 10 on the asymptotic series has f64's digits.
_SHIFT = 16
_LOWEST = -6.0


def _hurwitz(power: int, x: float) -> float:
    """The Hurwitz zeta function by Euler and Maclaurin's formula (A. & S. 23.2.5, generalised)."""
    total = 0.0
    for _ in range(_SHIFT):
        if x == 0:
            return math.inf if power % 2 == 0 else math.copysign(math.inf, x)
        total += x**-power
        x += 1
    total += x ** (1 - power) / (power - 1) + 0.5 * x**-power
    factor = float(power)
    for k, coefficient in enumerate(_BERNOULLI):
        total += coefficient * factor * x ** (-power - 2 * k - 1)
        factor *= (power + 2 * k + 1) * (power + 2 * k + 2)
    return total


class Polygamma(Elementwise):
    """Derivative number `order` (>= 1) of the digamma function, of each float element; NaN at and below -6.

    Of order 1 (trigamma) the reflection formula gives negative numbers of any size. PyTorch's `polygamma`.
    """

    name = "graph.polygamma"
    kinds = ("float",)
    order: int = 1

    def result_element(self, element: ElementType) -> ElementType:
        if self.order < 1:
            raise self.reject("order must be positive", expected="at least 1", actual=self.order)
        return element

    @property
    def scale(self) -> float:
        """What the zeta function of `order` + 1 is multiplied by."""
        return float((-1) ** (self.order + 1) * math.factorial(self.order))

    def element(self, b: Any, x: Any) -> Any:
        given = x.element
        if given in (f16, bf16):
            x = b.convert(x, f32)
        if self.order > 1:
            lowest = b.compare("LE", x, b.constant(_LOWEST, x.element))
            result = b.select(lowest, b.constant(math.nan, x.element), self._series(b, x))
            return b.convert(result, given)
        reflect = b.compare("LT", x, b.constant(0.5, x.element))
        series = self._series(b, b.select(reflect, b.sub(b.constant(1, x.element), x), x))
        # The sine of pi times the distance to the nearest integer: its square is all that counts.
        sine = b.math("sin", b.mul(b.constant(math.pi, x.element), b.sub(x, b.math("round_even", x))))
        mirrored = b.sub(b.div(b.constant(math.pi**2, x.element), b.mul(sine, sine)), series)
        return b.convert(b.select(reflect, mirrored, series), given)

    def _series(self, b: Any, x: Any) -> Any:
        power, element = self.order + 1, x.element
        one = b.constant(1, element)

        def inverse(y: Any, exponent: int) -> tuple[Any, Any]:
            reciprocal = b.div(one, y)
            found = reciprocal
            for _ in range(exponent - 1):
                found = b.mul(found, reciprocal)
            return found, reciprocal

        total = b.constant(0, element)
        for _ in range(_SHIFT):
            total = b.add(total, inverse(x, power)[0])
            x = b.add(x, one)
        low, reciprocal = inverse(x, power - 1)
        total = b.add(total, b.mul(low, b.constant(1 / (power - 1), element)))
        term = b.mul(low, reciprocal)
        total = b.add(total, b.mul(term, b.constant(0.5, element)))
        square, factor = b.mul(reciprocal, reciprocal), float(power)
        term = b.mul(term, reciprocal)
        for k, coefficient in enumerate(_BERNOULLI):
            total = b.add(total, b.mul(term, b.constant(coefficient * factor, element)))
            factor *= (power + 2 * k + 1) * (power + 2 * k + 2)
            term = b.mul(term, square)
        return b.mul(total, b.constant(self.scale, element))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value | None, ...]:
        return (build.mul(ct, build.make(Polygamma(self.order + 1), x)),)

    def _exact(self, x: float) -> float:
        if math.isnan(x) or x == math.inf:
            return 0.0 if x == math.inf else x
        if self.order == 1 and x < 0.5:
            distance = x - round(x) if math.isfinite(x) else math.nan
            if distance == 0:
                return math.inf
            return (math.pi / math.sin(math.pi * distance)) ** 2 - _hurwitz(2, 1 - x)
        return math.nan if x <= _LOWEST else self.scale * _hurwitz(self.order + 1, x)

    def reference(self, x: Array) -> Any:
        flat = [self._exact(v) for v in x.astype(np.float64).reshape(-1).tolist()]
        return np.array(flat, np.float64).reshape(x.shape).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        for order in (1, 2, 3):
            for sample in sampling.own_special(
                sampling.unary(Polygamma(order), lambda x, n=order: x.polygamma(n), 0.7, 4)
            ):
                yield replace(sample, tolerance=2e-9)  # PyTorch's trigamma has no more digits
        negative = np.array([-0.5, -2.25, -9.75, 30.0])
        yield Sample(Polygamma(1), (negative,), lambda x: x.polygamma(1), (), 2e-9)
        yield Sample(Polygamma(2), (np.array([-0.4, -5.5, -7.0]),), None, ())
