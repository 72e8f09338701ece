"""Reduction of angles of any size: x = (n + y) pi/2 with |y| <= 1/2, straight-line.

Payne and Hanek (1983): only some digits of 2/pi matter for x (2/pi) mod 4, since the digits before them contribute
multiples of 4. The products are floating-point ones with their exact errors (``two_prod``), so no wide integers.
"""

from __future__ import annotations

from flambeau.compiler.lowering.mathlib import coefficients as table
from flambeau.compiler.lowering.mathlib.exponential import integer_in_low_bits, magic
from flambeau.compiler.lowering.mathlib.num import F64, Int, Real, fast_two_sum, two_prod, two_sum
from flambeau.compiler.lowering.mathlib.protocol import V


def _mod4(x: Real[V]) -> Real[V]:
    """x minus the nearest multiple of 4, exactly."""
    return (x * 0.25).round_even().fma(-4.0, x)


def _mod1(x: Real[V]) -> tuple[Real[V], Real[V]]:
    n = x.round_even()
    return n, x - n


def _quadrant(n: Real[V]) -> Int[V]:
    """n, in the low bits (NaN gives anything)."""
    return integer_in_low_bits(n + magic(n.fmt))


def reduce_f32(x: Real[V]) -> tuple[Int[V], Real[V]]:
    """(n, r) with x = n pi/2 + r for x an f32 value widened to f64; r good to about 2**-50 relative for every f32.

    2/pi in three f64 parts gives x (2/pi) mod 4 to 2**-80 for |x| < 2**76; above, x is a multiple of 2**53 and 2/pi
    goes without its first 51 places.
    """
    high = abs(x) >= 2.0**76
    c0, c1, c2 = (
        high.select_const(h, low, F64)
        for h, low in zip(table.TWO_OVER_PI_HIGH, table.TWO_OVER_PI_LOW, strict=True)
    )
    p0, e0 = two_prod(x, c0)
    p1, e1 = two_prod(x, c1)
    n0, a0 = _mod1(_mod4(p0))
    n1, a1 = _mod1(_mod4(e0))
    n2, a2 = _mod1(_mod4(p1))
    h, l1 = two_sum(a0, a1)
    h, l2 = two_sum(h, a2)
    n3, h = _mod1(h)
    y = h + ((l1 + l2) + x.fma(c2, e1))
    return _quadrant((n0 + n1) + (n2 + n3)), y * (table.HALF_PI_F64[0])


def reduce_f64(x: Real[V]) -> tuple[Int[V], Real[V], Real[V]]:
    """(n, r, rest) with x = n pi/2 + r + rest for x >= 0; meaningless below 2**-700.

    Five chunks of 48 bits of 2/pi from the first that matters, chosen from the exponent by halving (a barrel shifter
    made of selects), give x (2/pi) mod 4 to 2**-130; no f64 number is nearer than 2**-62 to a multiple of pi/2.
    """
    exponent = (x.bits() >> 52) - (1023 + 54)
    positive = exponent.compare("sgt", 0).select_int(exponent, 0)
    # floor(e / 48) for 0 <= e <= 970
    index = Int(x.b, x.b.imul(positive.v, positive.lift(1366)), F64) >> 16
    zero = x.const(0.0)
    chunks = [x.const(c) for c in table.TWO_OVER_PI_F64]
    for bit, kept in ((16, 20), (8, 12), (4, 8), (2, 6), (1, 5)):
        moved = (index & bit).compare("ne", 0)
        chunks += [zero] * (kept + bit - len(chunks))
        chunks = [moved.select(chunks[i + bit], chunks[i]) for i in range(kept)]
    scaled = x * 2.0**-300
    (p0, e0), (p1, e1), (p2, e2), (p3, e3) = (two_prod(scaled, c) for c in chunks[:4])
    tail = scaled.fma(chunks[4], e3)
    n0, a0 = _mod1(_mod4(p0))
    n1, a1 = _mod1(_mod4(e0))
    n2, a2 = _mod1(_mod4(p1))
    n3, a3 = _mod1(p2)
    h, l0 = two_sum(a0, a1)
    low = tail
    h, l1 = two_sum(h, a2)
    h, l2 = two_sum(h, e1)
    h, l3 = two_sum(h, a3)
    n4, h = _mod1(h)
    s, lost = l0, low
    for term in (l1, l2, l3, e2, p3):
        s, error = two_sum(s, term)
        lost = lost + error
    h, s = two_sum(h, s)
    y, rest = fast_two_sum(h, s + lost)
    half_hi, half_lo = table.HALF_PI_F64
    r, error = two_prod(y, y.const(half_hi))
    n = (n0 + n1) + (n2 + n3) + n4
    return _quadrant(n), r, y.fma(half_lo, rest.fma(half_hi, error))
