"""The exact remainder of floats (C's fmod) from divisions and fused multiply-adds, without libm.

Each step subtracts q * y from the remainder r, where q is r / y rounded to a whole float: the difference is exact
(a multiple of the product's last place, and no longer than a mantissa), and at least one mantissa shorter.
"""

from __future__ import annotations

from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import VectorType


def remainder_f32(b: LoopBuilder, x: Value, y: Value) -> Value:
    """x - trunc(x / y) * y for f32: in f64, where no quotient overflows."""
    return b.fptrunc(remainder_f64(b, b.fpext(x, "f64"), b.fpext(y, "f64")), "f32")


def remainder_f64(b: LoopBuilder, x: Value, y: Value) -> Value:
    """x - trunc(x / y) * y for f64, with the sign of x; NaN for an infinite x, a zero y or a NaN. Needs a real FMA."""
    with b.fast():
        return _remainder(b, x, y, "f64", (2.0**1000, 2.0**100))


def remainder_of_f16(b: LoopBuilder, x: Value, y: Value) -> Value:
    """The same for f16 numbers in f32: no quotient of two of them overflows there."""
    with b.fast():
        return _remainder(b, x, y, "f32", ())


def _remainder(b: LoopBuilder, x: Value, y: Value, type: str, scales: tuple[float, ...]) -> Value:
    size_x, size_y = b.fabs(x), b.fabs(y)
    infinity = b.const(type, float("inf"))

    def reduced(r: Value) -> Value:
        divisor = size_y
        for scale in scales:
            # A quotient that overflows: divide by a multiple of y first. y is tiny then, so the multiple is finite.
            overflows = b.fcmp("oeq", b.fabs(b.fdiv(r, divisor)), infinity)
            divisor = b.select(overflows, b.fmul(divisor, b.const(type, scale)), divisor)
        quotient = b.trunc(b.fdiv(r, divisor))
        return b.fma(b.fneg(quotient), divisor, r)

    valid = b.iand(b.fcmp("olt", size_x, infinity), b.fcmp("ogt", size_y, b.const(type, 0.0)))

    def going(r: Value) -> Value:
        return b.iand(b.fcmp("oge", b.fabs(r), size_y), valid)

    def any_going(r: Value) -> Value:
        lanes = going(r)
        return b.vector_reduce("or", lanes) if isinstance(lanes.type, VectorType) else lanes

    (r,) = b.while_([size_x], any_going, lambda r: [b.select(going(r), reduced(r), r)])
    # A rounded quotient may have been one too large.
    r = b.select(b.fcmp("olt", r, b.const(type, 0.0)), b.fadd(r, size_y), r)
    nan = b.const(type, float("nan"))
    return b.copysign(b.select(valid, r, nan), x)
