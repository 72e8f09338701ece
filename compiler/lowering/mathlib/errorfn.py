"""erf, erfc, erfinv, and GELU, which is made of erf."""

from __future__ import annotations

import math

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.exponential import expm1_reduced, magic, power, reduce_exp, two_powers
from flambeau.compiler.lowering.mathlib.intervals import rising, rows_of
from flambeau.compiler.lowering.mathlib.logarithm import log
from flambeau.compiler.lowering.mathlib.num import (
    F32,
    Format,
    Real,
    horner,
    residual,
    two_prod,
    two_sum,
)
from flambeau.compiler.lowering.mathlib.protocol import Builder, V

_INTERVALS = rows_of(table.ERF_TABLE_F32)
#: Coefficients for GELU, constant terms first, around multiples of 1/2.
_NORMAL_TAILS = rows_of(table.NORMAL_TAIL_F32)


def erf(b: Builder[V], x: V, fmt: Format) -> V:
    """Error function: x + x P(x**2) for small |x|; above, in f32 a polynomial around 2.3 with an almost exact constant
    term, in f64 1 - erfc(|x|). In f32 with AVX-512, polynomials of degree 5 whose coefficients come from tables."""
    value = Real(b, x, fmt)
    a = abs(value)
    if fmt is F32 and b.avx512:
        return rising(a, 3.93, table.ERF_WIDTH_F32[0], _INTERVALS).with_sign_of(value).v
    z = a * a
    if fmt is F32:
        small = a.fma(horner(z, table.ERF_F32), a)
        centre, constant = table.ERF_CENTRE_F32
        t = a.at_most(3.93) - centre
        large = t.fma(horner(t, table.ERF_LARGE_F32), constant)
        return (a < 1.1).select(small, large).with_sign_of(value).v
    small = a.fma(horner(z, table.ERF_F64), a)
    return (a < 1.0).select(small, 1.0 - _erfc_positive(a)).with_sign_of(value).v


def gelu(b: Builder[V], x: V, fmt: Format) -> V:
    """x times the normal distribution function at x, (1 + erf(x / sqrt(2))) / 2 (D. Hendrycks and K. Gimpel, 2016).

    In f32 with AVX-512 it is max(x, 0) - |x| Q(|x|) with the tail Q = 1 - that function from polynomials of degree 5, whose
    coefficients come from tables. Errors are relative to x, not to the result, as they are if erf is computed for itself.
    """
    value = Real(b, x, fmt)
    if fmt is F32 and b.avx512:
        a = value.bounded(7.5, unsigned=True)
        shift = magic(fmt) / 2  # leaves halves in the low bits
        shifted = a + shift
        t, interval = a - (shifted - shift), shifted.bits()
        *coefficients, tail = [interval.look_up(row) for row in _NORMAL_TAILS]
        for coefficient in reversed(coefficients):
            tail = tail.fma(t, coefficient)
        return (-a).fma(tail, value.at_least(0.0)).v
    half = value.at_least(-16.0) * 0.5  # so that what erf is off -1 far away is not multiplied
    return (half * (Real(b, erf(b, (value * math.sqrt(0.5)).v, fmt), fmt) + 1.0)).v


def _erfc_positive(magnitude: Real[V]) -> Real[V]:
    """erfc(a) = exp(-a**2) P(t) u with u = 1 / (a + k), t = 1 - 2 k u = (a - k) / (a + k), for a >= 0.49 (the
    transformation of Shepherd and Laframboise, Math. Comp. 36, 1981), in f64. a**2 and u carry their
    rounding errors along."""
    a = magnitude.at_most(27.3)
    k = 4.0
    s, s_error = two_sum(a, a.const(k))
    u = 1.0 / s
    u_error = u * (residual(u, s, 1.0) - u * s_error)
    t = u_error.fma(-2.0 * k, u.fma(-2.0 * k, 1.0))
    q = horner(t, table.ERFCX_F64)
    p = u * q
    p_error = u_error.fma(q, -residual(u, q, p))
    square, square_error = two_prod(a, a)
    n, r = reduce_exp(-square, 2 * a.fmt.bias)
    w = expm1_reduced(r - square_error)
    # n <= 0: no overflow. The first factor keeps p (1 + w) normal, so that only the last product rounds to subnormal.
    first, second = two_powers(n)
    return ((p + p.fma(w, p_error)) * first) * second


def _erfc_positive_short(magnitude: Real[V]) -> Real[V]:
    """The same for f32, by way of f64: in f32 the rounding errors of its many factors would add up to 3 ulp."""
    a = magnitude.at_most(10.1).widen()
    k = 2.5
    u = 1.0 / (a + k)
    p = u * horner(u.fma(-2.0 * k, 1.0), table.ERFCX_SHORT)
    n, r = reduce_exp(-(a * a), a.fmt.bias)
    w = (r * r).fma(horner(r, table.EXP_SHORT), r)
    s = power(n)
    return (w.fma(s, s) * p).narrow()


def erfc(b: Builder[V], x: V, fmt: Format) -> V:
    """1 - erf(x), to full relative accuracy for positive x too. Below 1/2, from erf's polynomial."""
    value = Real(b, x, fmt)
    z = value * value
    small = 1.0 - value.fma(horner(z, table.ERF_F32 if fmt is F32 else table.ERF_F64), value)
    y = _erfc_positive_short(abs(value)) if fmt is F32 else _erfc_positive(abs(value))
    return (abs(value) < 0.5).select(small, (value < 0.0).select(2.0 - y, y)).v


def erfinv(b: Builder[V], x: V, fmt: Format) -> V:
    """Inverse of erf on [-1, 1], infinite at the ends, NaN outside: x F(w) with w = -log(1 - x**2) (M. Giles, GPU
    Computing Gems 2, 2011); F by polynomials in w, for large w in sqrt(w)."""
    value = Real(b, x, fmt)
    a = abs(value)
    w = -Real(b, log(b, ((1.0 - a) * (a + 1.0)).v, fmt), fmt)
    root = w.sqrt()
    # F = first + rest, with |rest| smaller, so that the rounding errors of the polynomials count less.
    if fmt is F32:
        first, rest = w.const(table.ERFINV_F32_FIRST), horner(w - 2.5, table.ERFINV_F32)
        far = w > 5.0
        first = far.select(w.const(table.ERFINV_TAIL_F32_FIRST), first)
        rest = far.select(horner(root - 3.0, table.ERFINV_TAIL_F32), rest)
        near = w < 2.0
        first = near.select(w.const(table.ERFINV_SMALL_F32_FIRST), first)
        rest = near.select(horner(w, table.ERFINV_SMALL_F32), rest)
    else:
        first, rest = w.const(table.ERFINV_F64_FIRST), horner(w - 3.75, table.ERFINV_F64)
        far = w > 6.25
        first = far.select(w.const(table.ERFINV_TAIL_F64_FIRST), first)
        rest = far.select(horner(root - 3.25, table.ERFINV_TAIL_F64), rest)
        farther = w > 16.0
        first = farther.select(w.const(table.ERFINV_FAR_F64_FIRST), first)
        rest = farther.select(horner(root - 5.0, table.ERFINV_FAR_F64), rest)
        near = w < 2.0
        first = near.select(w.const(table.ERFINV_SMALL_F64_FIRST), first)
        rest = near.select(horner(w, table.ERFINV_SMALL_F64), rest)
    y = a.fma(first, a * rest)
    return (a.equals(1.0).select(y.const(math.inf), y)).with_sign_of(value).v
