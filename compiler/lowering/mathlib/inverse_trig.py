"""asin, acos, atan, atan2.

atan: on [0, 1] t + t**3 P(t**2); above 1 by atan(t) = pi/2 - atan(1/t). asin: below 1/2 t + t**3 P(t**2); above by
asin(t) = pi/2 - 2 asin(sqrt((1 - t) / 2)). pi/2 is in two parts.
"""

from __future__ import annotations

import math

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.num import F32, F64, Format, Real, horner, odd_polynomial, residual
from flambeau.compiler.lowering.mathlib.protocol import Builder, V

_ATAN = {F32: table.ATAN_F32, F64: table.ATAN_F64}
_ASIN = {F32: table.ASIN_F32, F64: table.ASIN_F64}
_HALF_PI = {F32: table.HALF_PI_F32, F64: table.HALF_PI_F64}


def atan(b: Builder[V], x: V, fmt: Format) -> V:
    """Inverse tangent."""
    value = Real(b, x, fmt)
    a = abs(value)
    p = odd_polynomial(a.at_most(1.0) / a.at_least(1.0), _ATAN[fmt])
    hi, lo = _HALF_PI[fmt]
    return (a > 1.0).select(hi - (p - lo), p).with_sign_of(value).v


def atan2(b: Builder[V], y: V, x: V, fmt: Format) -> V:
    """Angle of the point (x, y), as C99 has it at zeros and infinities."""
    ordinate, abscissa = Real(b, y, fmt), Real(b, x, fmt)
    ay, ax = abs(ordinate), abs(abscissa)
    steep = ay > ax
    small, large = steep.select(ax, ay), steep.select(ay, ax)
    t = small / large
    t = (small + large).equals(0.0).select(t.const(0.0), t)
    t = (small.equals(math.inf) & large.equals(math.inf)).select(t.const(1.0), t)
    p = odd_polynomial(t, _ATAN[fmt])
    hi, lo = _HALF_PI[fmt]
    left = abscissa.bits().compare("slt", 0)
    zero = p.const(0.0)
    # base + (+-p): 0 + p, pi/2 - p, pi/2 + p, pi - p, going around.
    base_hi = steep.select(p.const(hi), left.select(p.const(2 * hi), zero))
    base_lo = steep.select(p.const(lo), left.select(p.const(2 * lo), zero))
    backwards = (steep & ~left) | (~steep & left)
    r = base_hi + (backwards.select(-p, p) + base_lo)
    return r.with_sign_of(ordinate).v


def asin(b: Builder[V], x: V, fmt: Format) -> V:
    """Inverse sine; NaN outside [-1, 1]."""
    value = Real(b, x, fmt)
    a = abs(value)
    large = a > 0.5
    z = large.select(a.fma(-0.5, 0.5), a * a)
    s = large.select(z.sqrt(), a)
    tail = (s * z) * horner(z, _ASIN[fmt])
    # The rounding error of the root, (z - s**2) / (2 s); 3 - 4 s is 1 / (2 s) at 1/4 and 1/2, and for smaller s, that
    # is for results near pi/2, the error does not count.
    error = residual(s, s, z) * s.fma(-4.0, 3.0)
    hi, lo = _HALF_PI[fmt]
    rest = tail + error
    y = (hi - (s + s)) - ((rest + rest) - lo)
    return large.select(y, s + tail).with_sign_of(value).v


def acos(b: Builder[V], x: V, fmt: Format) -> V:
    """Inverse cosine; NaN outside [-1, 1]."""
    value = Real(b, x, fmt)
    a = abs(value)
    large = a > 0.5
    p = odd_polynomial(large.select(a.fma(-0.5, 0.5).sqrt(), a), _ASIN[fmt])
    hi, lo = _HALF_PI[fmt]
    negative = value < 0.0
    near = hi - (p.with_sign_of(value) - lo)
    far = p + p
    return large.select(negative.select(2 * hi - (far - 2 * lo), far), near).v
