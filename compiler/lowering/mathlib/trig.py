"""sin, cos, tan for arguments of any size (see ``reduction``).

On [-pi/4, pi/4]: sin r = r + r**3 S(r**2), cos r = 1 - r**2 / 2 + r**4 C(r**2), tan r = r + r**3 T(r**2), with the
reduced argument's rest added to first order. f32 arguments are reduced in f64 and evaluated in f32.
"""

from __future__ import annotations

import math

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.num import F32, F64, Bool, Format, Int, Real, horner
from flambeau.compiler.lowering.mathlib.protocol import Builder, V
from flambeau.compiler.lowering.mathlib.reduction import reduce_f32, reduce_f64


def _reduce(x: Real[V]) -> tuple[Bool[V], Bool[V], Real[V], Real[V]]:
    """(whether the quadrant is odd, whether it is 2 or 3, r, rest); of |x| in f64 and x in f32."""
    if x.fmt is F32:
        n, wide = reduce_f32(x.widen())
        r = wide.narrow()
        rest = (wide - r.widen()).narrow()
    else:
        a = abs(x)
        n, wide, rest = reduce_f64(a)
        small = a <= math.pi / 4
        r = small.select(a, wide)
        rest = small.select(a.const(0.0), rest)
        n = small.select_int(Int(x.b, x.b.const("i64", 0), F64), n)
    return (n & 1).compare("ne", 0), (n & 2).compare("ne", 0), r, rest


def _sin(r: Real[V], rest: Real[V]) -> Real[V]:
    z = r * r
    cubic = horner(z, table.SIN_F32 if r.fmt is F32 else table.SIN_F64)
    # sin(r + rest) = sin r + rest cos r, cos r = 1 - r**2 / 2 here
    return r + (r * z).fma(cubic, rest.fma(z * -0.5, rest))


def _cos(r: Real[V], rest: Real[V]) -> Real[V]:
    z = r * r
    quartic = horner(z, table.COS_F32 if r.fmt is F32 else table.COS_F64)
    half = z * 0.5
    w = 1.0 - half
    # (1 - w) - half is the rounding error of w; cos(r + rest) = cos r - rest sin r
    return w + (((1.0 - w) - half) + (z * z).fma(quartic, -(r * rest)))


def sin(b: Builder[V], x: V, fmt: Format) -> V:
    """Sine; NaN of an infinity."""
    value = Real(b, x, fmt)
    odd, half_turn, r, rest = _reduce(value)
    y = odd.select(_cos(r, rest), _sin(r, rest))
    y = half_turn.select(-y, y)
    if fmt is F64:
        y = (value.bits().compare("slt", 0)).select(-y, y)
    return _keep_small(value, y).v


def cos(b: Builder[V], x: V, fmt: Format) -> V:
    """Cosine; NaN of an infinity."""
    odd, half_turn, r, rest = _reduce(Real(b, x, fmt))
    y = odd.select(-_sin(r, rest), _cos(r, rest))
    return half_turn.select(-y, y).v


def tan(b: Builder[V], x: V, fmt: Format) -> V:
    """Tangent: t = tan r, or -1 / t in the odd quadrants."""
    value = Real(b, x, fmt)
    odd, _, r, rest = _reduce(value)
    z = r * r
    t = (r * z).fma(horner(z, table.TAN_F32 if fmt is F32 else table.TAN_F64), 0.0)
    approximate = r + t
    # tan(r + rest) = tan r + rest (1 + tan(r)**2)
    low = t + rest.fma(approximate * approximate, rest)
    total = r + low
    inverse = -1.0 / total
    # One Newton step on the reciprocal, with what the sum r + low lost.
    lost = low - (total - r)
    inverse = inverse.fma(inverse.fma(total, 1.0) + inverse * lost, inverse)
    y = odd.select(inverse, total)
    if fmt is F64:
        y = (value.bits().compare("slt", 0)).select(-y, y)
    return _keep_small(value, y).v


def _keep_small(x: Real[V], y: Real[V]) -> Real[V]:
    """x itself where it is so small that sin x = tan x = x: keeps -0 and the digits of subnormal numbers."""
    return (abs(x) < 2.0 ** -(x.fmt.mantissa // 2 + 2)).select(x, y)
