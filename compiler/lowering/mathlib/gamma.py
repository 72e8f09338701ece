"""lgamma and digamma, in f64; for f32 they widen.

Near negative zeros of the function (not near lgamma's 1 and 2, nor near digamma's positive zero) the result in f64 is
accurate absolutely, not relatively: the terms of the reflection formula cancel.
"""

from __future__ import annotations

import math

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.logarithm import log_pair
from flambeau.compiler.lowering.mathlib.num import F32, Format, Real, fast_two_sum, horner, two_prod
from flambeau.compiler.lowering.mathlib.protocol import Builder, V


def _sinpi(x: Real[V]) -> Real[V]:
    """sin(pi x) for 0 <= x <= 1/2."""
    z = x * x
    hi, lo = table.PI_F64
    return x.fma(hi, x * z.fma(horner(z, table.SINPI_F64), lo))


def lgamma(b: Builder[V], x: V, fmt: Format) -> V:
    """log |gamma(x)|; +inf at 0, at the negative integers and at both infinities.

    [1/2, 5/2]: (x - 1) (x - 2) (1/2 + P / Q). Below: lgamma(1 + x) - log |x|. Up to 9/2: lgamma(x - 1) + log(x - 1).
    Above: Stirling's series. Below -1/2: reflection, lgamma(x) + lgamma(-x) = log(pi / |x sin(pi x)|).
    """
    value = Real(b, x, fmt).widen() if fmt is F32 else Real(b, x, fmt)
    reflected = value < -0.5
    v = reflected.select(-value, value)
    stirling = v >= 4.5
    shifted = v < 0.5
    # The one logarithm of each case: log v, -log |v|, or the log of the factors that bring v down.
    one = v.const(1.0)
    twice = v > 3.5
    y = (v > 2.5).select(v - 1.0, v)
    product = (v > 2.5).select(y, one)
    y = twice.select(y - 1.0, y)
    product = twice.select(product * y, product)
    y = shifted.select(v + 1.0, y)
    argument = stirling.select(v, shifted.select(abs(v), product))
    log_hi, log_lo = log_pair(argument)
    p = ((y - 1.0) * (y - 2.0)) * (
        horner(y, table.LGAMMA_P) / horner(y, table.LGAMMA_Q) + table.LGAMMA_MIDDLE
    )
    near = shifted.select(-log_hi, log_hi) + (p + shifted.select(-log_lo, log_lo))

    m = v - 0.5
    hi, error = two_prod(m, log_hi)
    inverse = 1.0 / v
    correction = inverse * horner(inverse * inverse, table.STIRLING)
    s, e = fast_two_sum(hi, -v)
    constant_hi, constant_lo = table.HALF_LOG_TWO_PI
    small = correction + (constant_lo + m.fma(log_lo, error + e))
    far = s + (small + constant_hi)
    far = (v < 2.0**900).select(far, v * (log_hi - 1.0))
    result = stirling.select(far, near)

    fraction = abs(v - v.round_even())
    # Above 2**53 every number is an integer; below, v sin(pi v) is far from over- and underflow.
    pole = fraction.equals(0.0)
    divisor = pole.select(one, v * _sinpi(fraction))
    reflection_hi, reflection_lo = log_pair(table.PI_F64[0] / divisor)
    mirrored = reflection_hi - (result - reflection_lo)
    mirrored = pole.select(v.const(math.inf), mirrored)
    result = reflected.select(mirrored, result)
    result = v.equals(0.0).select(v.const(math.inf), result)
    result = abs(v).equals(math.inf).select(v.const(math.inf), result)
    result = value.is_nan().select(value, result)
    return result.narrow().v if fmt is F32 else result.v


def digamma(b: Builder[V], x: V, fmt: Format) -> V:
    """Logarithmic derivative of gamma: -inf at +0, +inf at -0, NaN at the negative integers and at -inf.

    [1, 5]: (x - root) (3/4 + P / Q) with the root in three parts. Above: the asymptotic series. [0, 1):
    digamma(1 + x) - 1 / x. Negative: digamma(1 - x) - pi / tan(pi x).
    """
    value = Real(b, x, fmt).widen() if fmt is F32 else Real(b, x, fmt)
    negative = value < 0.0
    below_one = value < 1.0
    a = abs(value)
    y = below_one.select(a + 1.0, a)
    r0, r1, r2 = table.DIGAMMA_ROOT
    t = y.at_most(5.0) - 0.5
    near = (((y - r0) - r1) - r2) * (
        horner(t, table.DIGAMMA_P) / horner(t, table.DIGAMMA_Q) + table.DIGAMMA_MIDDLE
    )
    log_hi, log_lo = log_pair(y.at_most(1.7976931348623157e308))
    inverse = 1.0 / y
    z = inverse * inverse
    far = log_hi + (inverse.fma(-0.5, z * horner(z, table.DIGAMMA_TAIL)) + log_lo)
    result = (y > 5.0).select(far, near)

    fraction = a - a.round_even()
    distance = abs(fraction)
    cotangent = (table.PI_F64[0] * _sinpi(0.5 - distance) / _sinpi(distance)).with_sign_of(fraction)
    cotangent = distance.equals(0.0).select(a.const(math.nan), cotangent)
    correction = negative.select(cotangent, -(1.0 / value))
    result = below_one.select(result + correction, result)
    result = value.equals(math.inf).select(value, result)
    return result.narrow().v if fmt is F32 else result.v
