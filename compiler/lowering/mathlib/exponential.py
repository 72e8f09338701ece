"""exp, exp2, expm1 and the pieces of exp that others use.

Method: x = n ln 2 + r with |r| <= ln(2) / 2 (Cody and Waite 1980, two-part ln 2), exp(r) = 1 + r + r**2 q(r), and 2**n
from its exponent field, in two factors so that subnormal results and the last binade come out right. n is
made by adding 1.5 * 2**mantissa, which leaves it in the low bits: no conversion to integer, so NaN needs no care.
"""

from __future__ import annotations

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.num import F32, F64, Format, Int, Real, horner, power_of_two
from flambeau.compiler.lowering.mathlib.protocol import Builder, V

LOG2_E = 1.4426950408889634
_EXP = {F32: table.EXP_F32, F64: table.EXP_F64}
_EXP2 = {F32: table.EXP2_F32, F64: table.EXP2_F64}
_LN2_FULL = {F32: table.LN2_FULL_F32, F64: table.LN2_FULL_F64}
_LN2 = {F32: table.LN2_F32, F64: table.LN2_F64}


def magic(fmt: Format) -> float:
    """Adding this rounds to an integer, which then stands in the low bits."""
    return float(1.5 * 2.0**fmt.mantissa)


def magic_bits(fmt: Format) -> int:
    return ((fmt.bias + fmt.mantissa) << fmt.mantissa) + (1 << (fmt.mantissa - 1))


def integer_in_low_bits(t: Real[V]) -> Int[V]:
    """The integer n of t = n + magic."""
    return t.bits() - magic_bits(t.fmt)


def reduce_exp(x: Real[V]) -> tuple[Real[V], Real[V]]:
    """(n + magic, r) with x = n ln 2 + r."""
    t = x.fma(LOG2_E, magic(x.fmt))
    n = t - magic(x.fmt)
    hi, lo = _LN2[x.fmt]
    return t, n.fma(-lo, n.fma(-hi, x))


def expm1_reduced(r: Real[V]) -> Real[V]:
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    return (r * r).fma(horner(r, _EXP[r.fmt]), r)


def exp2m1_reduced(r: Real[V]) -> Real[V]:
    """2**r - 1 for |r| <= 1/2."""
    hi, lo = _LN2_FULL[r.fmt]
    return r.fma(hi, r * r.fma(horner(r, _EXP2[r.fmt]), lo))


def scaled_exp(w: Real[V], n: Int[V]) -> Real[V]:
    """(1 + w) * 2**n for n up to twice the exponent range; rounds a second time where the result is subnormal."""
    half = n >> 1
    s = power_of_two(half)
    return w.fma(s, s) * power_of_two(n - half)


def exp(b: Builder[V], x: V, fmt: Format) -> V:
    """e**x."""
    value = Real(b, x, fmt)
    value = value.at_least(-104.0).at_most(89.0) if fmt is F32 else value.at_least(-746.0).at_most(710.0)
    t, r = reduce_exp(value)
    return scaled_exp(expm1_reduced(r), integer_in_low_bits(t)).v


def exp2(b: Builder[V], x: V, fmt: Format) -> V:
    """2**x: x = n + r exactly, 2**r = 1 + r ln 2 + r**2 q(r) with ln 2 in two parts."""
    value = Real(b, x, fmt)
    value = value.at_least(-151.0).at_most(129.0) if fmt is F32 else value.at_least(-1076.0).at_most(1025.0)
    t = value + magic(fmt)
    r = value - (t - magic(fmt))
    return scaled_exp(exp2m1_reduced(r), integer_in_low_bits(t)).v


def expm1(b: Builder[V], x: V, fmt: Format) -> V:
    """e**x - 1 = 2 (s p + (s - 1/2)) with p = exp(r) - 1 and s = 2**(n - 1), finite even for n = 128 (1024)."""
    value = Real(b, x, fmt)
    # Below the lower clamp the result rounds to -1.
    clamped = value.at_least(-18.0).at_most(89.0) if fmt is F32 else value.at_least(-40.0).at_most(710.0)
    t, r = reduce_exp(clamped)
    s = power_of_two(integer_in_low_bits(t) - 1)
    y = s.fma(expm1_reduced(r), s - 0.5)
    tiny = abs(value) < 2.0 ** -(fmt.mantissa + 2)  # keeps -0 and the digits of subnormal numbers
    return tiny.select(value, y + y).v
