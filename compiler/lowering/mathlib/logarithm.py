"""log, log2, log10, log1p and the pieces of log that others use.

Method: x = 2**k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), log x = k ln 2 + f + tail(f). In f32 the tail is
-f**2 / 2 + f**3 P(f). In f64 it is s (f**2 / 2 + R) - f**2 / 2 with s = f / (2 + f) and R(s**2) from the series of
2 atanh(s) = log(1 + f): the formula of FreeBSD's e_log.c (Sun Microsystems 1993).
"""

from __future__ import annotations

import math

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.exponential import magic, magic_bits
from flambeau.compiler.lowering.mathlib.num import (
    F32,
    F64,
    Format,
    Int,
    Pair,
    Real,
    exponent_bits,
    fast_two_sum,
    horner,
    power_of_two,
    two_sum,
)
from flambeau.compiler.lowering.mathlib.protocol import Builder, V

_LN2 = {F32: table.LN2_F32, F64: table.LN2_F64}
_LOG2_E = {F32: table.LOG2_E_F32, F64: table.LOG2_E_F64}
_LOG10_E = {F32: table.LOG10_E_F32, F64: table.LOG10_E_F64}
_LOG10_2 = {F32: table.LOG10_2_F32, F64: table.LOG10_2_F64}
_SQRT_HALF_BITS = {F32: 0x3F3504F3, F64: 0x3FE6A09E667F3BCD}


def split_exponent(x: Real[V]) -> tuple[Int[V], Real[V]]:
    """(k, m) with x = 2**k m, m in [sqrt(1/2), sqrt(2)), for normal positive x."""
    bits = x.bits()
    k = (bits - _SQRT_HALF_BITS[x.fmt]) >> x.fmt.mantissa
    return k, (bits - exponent_bits(k)).bitcast()


def small_int_to_real(k: Int[V], shift: float | Real[V] = 0.0) -> Real[V]:
    """k - shift as a real, for small k; an add and a subtract, where i64 -> f64 is slow on many targets."""
    offset = shift + magic(k.fmt)
    return (k + magic_bits(k.fmt)).bitcast() - offset


def reduce_log(x: Real[V]) -> Pair[V]:
    """(k, f) with x = 2**k (1 + f), for positive finite x, subnormal ones included."""
    digits = x.fmt.mantissa + 2
    tiny = x < x.fmt.smallest_normal
    k, m = split_exponent(tiny.select(x * 2.0**digits, x))
    return small_int_to_real(k, tiny.select_const(float(digits), 0.0, x.fmt)), m - 1.0


def log1p_tail(f: Real[V]) -> Real[V]:
    """log(1 + f) - f for 1 + f in [sqrt(1/2), sqrt(2))."""
    if f.fmt is F32:
        return (f * f) * f.fma(horner(f, table.LOG_F32), -0.5)
    s = f / (f + 2.0)
    z = s * s
    half_square = (f * 0.5) * f
    return s.fma(z.fma(horner(z, table.LOG_F64), half_square), -half_square)


def log_special(x: Real[V], y: Real[V]) -> Real[V]:
    """y, except where x is 0 (-inf), negative (NaN), infinite or NaN (x)."""
    y = (x < math.inf).select(y, x)
    return (x <= 0.0).select(x.equals(0.0).select_const(-math.inf, math.nan, x.fmt), y)


def log(b: Builder[V], x: V, fmt: Format) -> V:
    """Natural logarithm."""
    value = Real(b, x, fmt)
    k, f = reduce_log(value)
    hi, lo = _LN2[fmt]
    return log_special(value, k.fma(hi, f + k.fma(lo, log1p_tail(f)))).v


def log2(b: Builder[V], x: V, fmt: Format) -> V:
    """Logarithm to base 2: k + (f + tail) log2(e), log2(e) in two parts."""
    value = Real(b, x, fmt)
    k, f = reduce_log(value)
    hi, lo = _LOG2_E[fmt]
    return log_special(value, k + f.fma(hi, f.fma(lo, log1p_tail(f) * hi))).v


def log10(b: Builder[V], x: V, fmt: Format) -> V:
    """Logarithm to base 10: k log10(2) + (f + tail) log10(e), both constants in two parts."""
    value = Real(b, x, fmt)
    k, f = reduce_log(value)
    hi, lo = _LOG10_E[fmt]
    two_hi, two_lo = _LOG10_2[fmt]
    y = f.fma(hi, k.fma(two_lo, f.fma(lo, log1p_tail(f) * hi)))
    return log_special(value, k.fma(two_hi, y)).v


def log_of_sum(u: Real[V], c: Real[V], extra: float = 0.0) -> Real[V]:
    """log(u + c) + extra ln 2 for normal u > 0 and |c| <= ulp(u); u may be infinite or 0 (then the result is
    meaningless but harmless)."""
    k, m = split_exponent(u)
    # 2**-k is wrong for the last binade, but there c does not count.
    scaled = (u < 2.0 ** (u.fmt.mantissa + 4)).select(c * power_of_two(0 - k), 0.0)
    f, rest = fast_two_sum(m - 1.0, scaled)
    kf = small_int_to_real(k, -extra)
    hi, lo = _LN2[u.fmt]
    return kf.fma(hi, f + (rest + kf.fma(lo, log1p_tail(f))))


def log1p(b: Builder[V], x: V, fmt: Format) -> V:
    """log(1 + x): 1 + x = u + c exactly, then the logarithm of u with f corrected by c."""
    value = Real(b, x, fmt)
    u, c = two_sum(value.const(1.0), value)
    y = log_special(u, log_of_sum(u, c))
    return y.with_sign_of(value).v


def log_pair(x: Real[V]) -> Pair[V]:
    """log x as an unevaluated sum good to about 2**-57 in f64, for positive finite x."""
    k, f = reduce_log(x)
    hi, lo = _LN2[x.fmt]
    s, e = two_sum(k * hi, f)
    return fast_two_sum(s, e + k.fma(lo, log1p_tail(f)))
