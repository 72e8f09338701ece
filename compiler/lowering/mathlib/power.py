"""pow, cbrt, rsqrt."""

from __future__ import annotations

import math

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.exponential import (
    exp2m1_reduced,
    magic,
    scaled_exp,
)
from flambeau.compiler.lowering.mathlib.logarithm import reduce_log
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
    residual,
    two_prod,
)
from flambeau.compiler.lowering.mathlib.protocol import Builder, V

_TWO_LOG2_E = (2 * table.LOG2_E_F64[0], 2 * table.LOG2_E_F64[1])


def _log2_pair(a: Real[V]) -> Pair[V]:
    """log2 a for positive finite a, to about 2**-66 relative: with s = f / (2 + f), log2(1 + f) = 2 log2(e) atanh(s),
    atanh(s) = s (1 + s**2 (1/3 + s**2 P(s**2))), in pairs except for P."""
    k, f = reduce_log(a)
    d, d_error = fast_two_sum(f.const(2.0), f)
    s = f / d
    remainder, error = two_prod(s, d)
    s_error = (((f - remainder) - error) - s * d_error) / d
    z, z_error = two_prod(s, s)
    z_error = (s + s).fma(s_error, z_error)
    third_hi, third_lo = table.THIRD
    p, p_error = fast_two_sum(f.const(third_hi), z * horner(z, table.LOG_PAIR))
    p_error = p_error + third_lo
    t, t_error = two_prod(z, p)
    t_error = z.fma(p_error, z_error.fma(p, t_error))
    o, o_error = fast_two_sum(f.const(1.0), t)
    o_error = o_error + t_error
    h, h_error = two_prod(s, o)
    h_error = s.fma(o_error, s_error.fma(o, h_error))
    c_hi, c_lo = _TWO_LOG2_E
    m, m_error = two_prod(h, f.const(c_hi))
    m_error = h.fma(c_lo, h_error.fma(c_hi, m_error))
    total, total_error = fast_two_sum(k, m)
    return fast_two_sum(total, total_error + m_error)


def _log2_short(a: Real[V]) -> Real[V]:
    """log2 a in f64 to about 2**-44, for positive normal a."""
    k, f = reduce_log(a)
    s = f / (f + 2.0)
    z = s * s
    atanh_twice = s.fma(z * horner(z, table.LOG_SHORT), s + s)
    return atanh_twice.fma(table.LOG2_E_F64[0], k)


def pow(b: Builder[V], x: V, y: V, fmt: Format) -> V:
    """x**y with C99's special cases: 1 for y = 0 or x = 1 even with NaN; NaN for negative finite x and fractional y.

    2**(y log2 |x|): in f64 for f32, in pairs of f64 for f64.
    """
    base, power = Real(b, x, fmt), Real(b, y, fmt)
    a = abs(base)
    ordinary = (a > 0.0) & (a < math.inf)
    if fmt is F32:
        wide_power = power.widen()
        log2_a = _log2_short(ordinary.select(a, 1.0).widen())
        v = wide_power * ordinary.select(log2_a, (a > 1.0).select_const(math.inf, -math.inf, F64))
        v = a.is_nan().select(a.widen(), v)
        clamped = v.at_least(-160.0).at_most(140.0)
        t = clamped + magic(F64)
        r = clamped - (t - magic(F64))
        y2 = r.fma(r.fma(horner(r, table.EXP2_SHORT), table.LN2_FULL_F64[0]), 1.0)
        result = (y2.bits() + exponent_bits(t.bits())).bitcast().narrow()  # n = -160 .. 140: normal in f64
        result = v.is_nan().select(result.const(math.nan), result)
    else:
        log2_hi, log2_lo = _log2_pair(ordinary.select(a, 1.0))
        log2_hi = ordinary.select(log2_hi, (a > 1.0).select_const(math.inf, -math.inf, F64))
        log2_hi = a.is_nan().select(a, log2_hi)
        v = power * log2_hi
        within = power.at_least(-(2.0**74)).at_most(2.0**74)  # beyond, only log2 = 0 leaves the result finite
        h, h_error = two_prod(within, log2_hi)
        h_error = within.fma(log2_lo, h_error)
        in_range = abs(v) < 1100.0
        h, h_error = in_range.select(h, 0.0), in_range.select(h_error, 0.0)
        shift = magic(F64) + 2 * F64.bias
        t = h + shift
        r = (h - (t - shift)) + h_error
        result = scaled_exp(exp2m1_reduced(r), t)
        result = (v >= 1100.0).select(result.const(math.inf), result)
        result = (v <= -1100.0).select(result.const(0.0), result)
        result = v.is_nan().select(v, result)

    result = (a.equals(1.0) & ~power.is_nan()).select(result.const(1.0), result)  # also 1**inf
    half = power * 0.5
    integer = power.trunc().equals(power)
    odd = integer & ~half.trunc().equals(half)
    negative = base.bits().compare("slt", 0)
    result = (negative & odd).select(-result, result)
    invalid = (base < 0.0) & (a < math.inf) & ~integer & ~power.is_nan()
    result = invalid.select(result.const(math.nan), result)
    always_one = base.equals(1.0) | power.equals(0.0)
    return always_one.select(result.const(1.0), result).v


def cbrt(b: Builder[V], x: V, fmt: Format) -> V:
    """Cube root: |x| = 2**(3 q) m with m in [1, 8); Newton's iteration for m**(-1/3) from a quintic, then m times its
    square with one correction from the exact residual."""
    value = Real(b, x, fmt)
    a = abs(value)
    tiny = a < fmt.smallest_normal
    # A multiple of 3, so that the root scales by a power of two.
    lift = 24 if fmt is F32 else 54
    bits = tiny.select(a * 2.0**lift, a).bits()
    zero_exponent = fmt.bias - 3 * 512
    biased = (bits >> fmt.mantissa) - zero_exponent  # exponent + 1536, divisible like the exponent itself
    third = Int(b, b.imul(biased.v, biased.lift(21846)), fmt) >> 16
    shift = (third << 1) + third - 1536
    m = (bits - exponent_bits(shift)).bitcast()
    t = horner(m, table.CBRT)
    for _ in range(2 if fmt is F32 else 3):
        cube = (t * t) * t
        t = t.fma(cube.fma(m * (-1.0 / 3.0), 1.0 / 3.0), t)
    root = m * (t * t)
    square, square_error = two_prod(root, root)
    error = square_error.fma(-root, residual(square, root, m))
    root = ((t * t) * (1.0 / 3.0)).fma(error, root)
    q = third - 512
    scaled = root * power_of_two(q)
    scaled = tiny.select(scaled * 2.0 ** -(lift // 3), scaled)
    ordinary = (a > 0.0) & (a < math.inf)
    return ordinary.select(scaled.with_sign_of(value), value).v


def rsqrt(b: Builder[V], x: V, fmt: Format) -> V:
    """1 / sqrt(x)."""
    return (1.0 / Real(b, x, fmt).sqrt()).v
