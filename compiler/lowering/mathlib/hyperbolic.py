"""sinh, cosh, tanh, asinh, acosh, atanh.

Near 0 the odd functions are x + x**3 P(x**2). Elsewhere the first three come from e = exp(|x|) / 2 or exp(2 |x|) (see
``exponential``) and the last three from log(u + c) with u + c an error-free sum (see ``logarithm``).
"""

from __future__ import annotations

import math

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.exponential import (
    expm1_reduced,
    power,
    reduce_exp,
    scaled_exp,
)
from flambeau.compiler.lowering.mathlib.intervals import rising, rows_of
from flambeau.compiler.lowering.mathlib.logarithm import log, log_of_sum
from flambeau.compiler.lowering.mathlib.num import F32, F64, Format, Real, fast_two_sum, odd_polynomial
from flambeau.compiler.lowering.mathlib.protocol import Builder, V

_TANH = {F32: table.TANH_F32, F64: table.TANH_F64}
_TANH_INTERVALS = rows_of(table.TANH_TABLE_F32)
_SINH = {F32: table.SINH_F32, F64: table.SINH_F64}
_ASINH = {F32: table.ASINH_F32, F64: table.ASINH_F64}
_ATANH = {F32: table.ATANH_F32, F64: table.ATANH_F64}


def _half_exp(a: Real[V]) -> Real[V]:
    """exp(a) / 2 for a >= 0; finite up to twice the largest finite number."""
    t, r = reduce_exp(a.at_most(91.0 if a.fmt is F32 else 712.0), 2 * a.fmt.bias - 1)
    return scaled_exp(expm1_reduced(r), t)


def sinh(b: Builder[V], x: V, fmt: Format) -> V:
    """Hyperbolic sine: e - 1 / (4 e) with e = exp(|x|) / 2; the odd polynomial below 1."""
    value = Real(b, x, fmt)
    a = abs(value)
    e = _half_exp(a)
    return (a < 1.0).select(odd_polynomial(a, _SINH[fmt]), e - 0.25 / e).with_sign_of(value).v


def cosh(b: Builder[V], x: V, fmt: Format) -> V:
    """Hyperbolic cosine: e + 1 / (4 e) with e = exp(|x|) / 2."""
    e = _half_exp(abs(Real(b, x, fmt)))
    return (e + 0.25 / e).v


def tanh(b: Builder[V], x: V, fmt: Format) -> V:
    """Hyperbolic tangent: 1 - 2 / (exp(2 |x|) + 1); the odd polynomial below 0.6. In f32 with AVX-512, polynomials of degree 7
    whose coefficients come from tables."""
    value = Real(b, x, fmt)
    a = abs(value)
    if fmt is F32 and b.avx512:
        return rising(a, 9.02, table.TANH_WIDTH_F32[0], _TANH_INTERVALS).with_sign_of(value).v
    # Above the clamp the result rounds to 1. No two-step scaling: exp(2 a) is far from overflow.
    t, r = reduce_exp((a + a).at_most(20.0 if fmt is F32 else 40.0), fmt.bias)
    s = power(t)
    e = expm1_reduced(r).fma(s, s)
    return (a < 0.6).select(odd_polynomial(a, _TANH[fmt]), 1.0 - 2.0 / (e + 1.0)).with_sign_of(value).v


def asinh(b: Builder[V], x: V, fmt: Format) -> V:
    """Inverse hyperbolic sine: log(a + sqrt(a**2 + 1)), halved against overflow; the odd polynomial below 0.6."""
    value = Real(b, x, fmt)
    a = abs(value)
    root = (a < 2.0 ** (fmt.mantissa // 2 + 3)).select(a.fma(a, 1.0).sqrt(), a)
    u, c = fast_two_sum(root * 0.5, a * 0.5)
    y = (a < math.inf).select(log_of_sum(u, c, 1.0), a)
    return (a < 0.6).select(odd_polynomial(a, _ASINH[fmt]), y).with_sign_of(value).v


def acosh(b: Builder[V], x: V, fmt: Format) -> V:
    """Inverse hyperbolic cosine: log(x + sqrt(t**2 + 2 t)) with t = x - 1, halved inside against overflow."""
    value = Real(b, x, fmt)
    t = value - 1.0
    root = (value < 2.0 ** (fmt.mantissa + 3)).select(t.fma(t, t + t).sqrt(), value)
    u, c = fast_two_sum(value * 0.5, root * 0.5)
    y = (value < math.inf).select(log_of_sum(u, c, 1.0), value)
    return (value < 1.0).select(value.const(math.nan), y).v


def atanh(b: Builder[V], x: V, fmt: Format) -> V:
    """Inverse hyperbolic tangent: log((1 + a) / (1 - a)) / 2; the odd polynomial below 1/2."""
    value = Real(b, x, fmt)
    a = abs(value)
    y = Real(b, log(b, ((a + 1.0) / (1.0 - a)).v, fmt), fmt) * 0.5
    return (a < 0.5).select(odd_polynomial(a, _ATANH[fmt]), y).with_sign_of(value).v
