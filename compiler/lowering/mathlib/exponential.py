"""exp, exp2, expm1 and the pieces of exp that others use.

Method: x = n ln 2 + r with |r| <= ln(2) / 2 (Cody and Waite 1980, two-part ln 2), exp(r) = 1 + r + r**2 q(r), and 2**n
from its exponent field, in two factors so that subnormal results and the last binade come out right. AVX-512 has an
instruction for that, which takes the floor of n: in f32 n is a multiple of 1/16 there, and a table of 16 powers gives the
rest. n is made by adding 1.5 * 2**mantissa, which leaves it in the low bits: no conversion to integer,
so NaN needs no care.
"""

from __future__ import annotations

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.num import F32, F64, Format, Int, Pair, Real, exponent_bits, horner
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


def reduce_exp(x: Real[V], offset: int) -> tuple[Real[V], Real[V]]:
    """(t, r) with x = n ln 2 + r and n + offset in the low bits of t."""
    shift = magic(x.fmt) + offset
    t = x.fma(LOG2_E, shift)
    return t, after_multiples(x, t - shift)


def after_multiples(x: Real[V], n: Real[V]) -> Real[V]:
    """x - n ln 2."""
    hi, lo = _LN2[x.fmt]
    return n.fma(-lo, n.fma(-hi, x))


def power(t: Real[V]) -> Real[V]:
    """2**n for t with n + bias in its low bits, which the shift into the exponent field keeps alone."""
    return exponent_bits(t.bits()).bitcast()


def two_powers(t: Real[V]) -> Pair[V]:
    """Two powers of two whose product is 2**n, for t with n + 2 bias in its low bits: for |n| up to twice the bias."""
    bits = t.bits()
    half = (
        bits >> 1
    )  # magic's own bits are so far up that the shift into the exponent field drops half of them too
    return exponent_bits(half).bitcast(), exponent_bits(bits - half).bitcast()


def expm1_reduced(r: Real[V]) -> Real[V]:
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    return (r * r).fma(horner(r, _EXP[r.fmt]), r)


def exp2m1_reduced(r: Real[V]) -> Real[V]:
    """2**r - 1 for |r| <= 1/2."""
    hi, lo = _LN2_FULL[r.fmt]
    return r.fma(hi, r * r.fma(horner(r, _EXP2[r.fmt]), lo))


def scaled_exp(w: Real[V], t: Real[V]) -> Real[V]:
    """(1 + w) * 2**n for t with n + 2 bias in its low bits; rounds a second time where the result is subnormal."""
    first, second = two_powers(t)
    return w.fma(first, first) * second


def exp(b: Builder[V], x: V, fmt: Format) -> V:
    """e**x."""
    value = Real(b, x, fmt)
    if b.avx512:
        shift = magic(fmt) / _ROOTS[fmt]
        t = value.fma(LOG2_E, shift)
        n = t - shift
        # Far away, where n decides alone, r may be anything, or NaN: it is bounded then, which leaves NaN to n.
        r = after_multiples(value, n).bounded(0.5)
        if fmt is F64:
            return (expm1_reduced(r) + 1.0).scale(n).v
        return _times_root(t, (r * r).fma(horner(r, table.EXP_NEAR_F32), r)).scale(n).v
    value = value.at_least(-104.0).at_most(89.0) if fmt is F32 else value.at_least(-746.0).at_most(710.0)
    t, r = reduce_exp(value, 2 * fmt.bias)
    return scaled_exp(expm1_reduced(r), t).v


#: Into how many parts AVX-512 divides a binade: f32 has the powers of two between in a register.
_ROOTS = {F32: 16, F64: 1}


def _times_root(t: Real[V], w: Real[V]) -> Real[V]:
    """2**(i / 16) (1 + w) for t with i in its last four bits. The powers have two parts, so that only the last addition
    rounds much."""
    i = t.bits()
    root = i.look_up(table.ROOTS_OF_TWO_F32)
    return root + root.fma(w, i.look_up(table.ROOTS_OF_TWO_REST_F32))


def exp2(b: Builder[V], x: V, fmt: Format) -> V:
    """2**x: x = n + r exactly, 2**r = 1 + r ln 2 + r**2 q(r) with ln 2 in two parts."""
    value = Real(b, x, fmt)
    if b.avx512:
        shift = magic(fmt) / _ROOTS[fmt]
        t = value + shift
        n = t - shift
        r = (value - n).bounded(0.5)
        if fmt is F64:
            return (exp2m1_reduced(r) + 1.0).scale(n).v
        return _times_root(t, r * horner(r, table.EXP2_NEAR_F32)).scale(n).v
    value = value.at_least(-151.0).at_most(129.0) if fmt is F32 else value.at_least(-1076.0).at_most(1025.0)
    shift = magic(fmt) + 2 * fmt.bias
    t = value + shift
    r = value - (t - shift)
    return scaled_exp(exp2m1_reduced(r), t).v


def expm1(b: Builder[V], x: V, fmt: Format) -> V:
    """e**x - 1 = 2 (s p + (s - 1/2)) with p = exp(r) - 1 and s = 2**(n - 1), finite even for n = 128 (1024)."""
    value = Real(b, x, fmt)
    # Below the lower clamp the result rounds to -1.
    clamped = value.at_least(-18.0).at_most(89.0) if fmt is F32 else value.at_least(-40.0).at_most(710.0)
    t, r = reduce_exp(clamped, fmt.bias - 1)
    s = power(t)
    y = s.fma(expm1_reduced(r), s - 0.5)
    tiny = abs(value) < 2.0 ** -(fmt.mantissa + 2)  # keeps -0 and the digits of subnormal numbers
    return tiny.select(value, y + y).v
