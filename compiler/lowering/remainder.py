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
        return _remainder(b, x, y)


def _remainder(b: LoopBuilder, x: Value, y: Value) -> Value:
    size_x, size_y = b.fabs(x), b.fabs(y)
    infinity = b.const("f64", float("inf"))

    def reduced(r: Value) -> Value:
        divisor = size_y
        for scale in (2.0**1000, 2.0**100):
            # A quotient that overflows: divide by a multiple of y first. y is tiny then, so the multiple is finite.
            overflows = b.fcmp("oeq", b.fabs(b.fdiv(r, divisor)), infinity)
            divisor = b.select(overflows, b.fmul(divisor, b.const("f64", scale)), divisor)
        quotient = b.trunc(b.fdiv(r, divisor))
        return b.fma(b.fneg(quotient), divisor, r)

    def unfinished(r: Value) -> Value:
        more = b.fcmp("oge", b.fabs(r), size_y)
        valid = b.iand(b.fcmp("olt", size_x, infinity), b.fcmp("ogt", size_y, b.const("f64", 0.0)))
        going = b.iand(more, valid)
        return b.vector_reduce("or", going) if isinstance(going.type, VectorType) else going

    start = (
        size_x if not isinstance(size_y.type, VectorType) else b.fadd(size_x, b.constant(size_y.type, 0.0))
    )
    (r,) = b.while_([start], unfinished, lambda r: [reduced(r)])
    # A rounded quotient may have been one too large.
    r = b.select(b.fcmp("olt", r, b.const("f64", 0.0)), b.fadd(r, size_y), r)
    nan = b.const("f64", float("nan"))
    valid = b.iand(b.fcmp("olt", size_x, infinity), b.fcmp("ogt", size_y, b.const("f64", 0.0)))
    return b.copysign(b.select(valid, r, nan), x)
