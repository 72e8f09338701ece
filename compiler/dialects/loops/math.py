"""`math`: functions that every target has as an instruction or a short sequence. The others are in lowering/mathlib."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import FloatBinary, FloatUnary, IntUnary, LoopOp, is_float
from flambeau.compiler.ir.types import Type


class AbsF(FloatUnary):
    """Absolute value of a float."""

    name = "math.absf"


class AbsI(IntUnary):
    """Absolute value of a signed integer; the least number is its own."""

    name = "math.absi"


class Ceil(FloatUnary):
    """Rounded up to a whole number."""

    name = "math.ceil"


class Floor(FloatUnary):
    """Rounded down to a whole number."""

    name = "math.floor"


class RoundEven(FloatUnary):
    """Rounded to the nearest whole number, ties to even."""

    name = "math.roundeven"


class Trunc(FloatUnary):
    """Rounded towards zero to a whole number."""

    name = "math.trunc"


class Sqrt(FloatUnary):
    """Square root, correctly rounded."""

    name = "math.sqrt"


class CopySign(FloatBinary):
    """The first operand's magnitude with the second's sign."""

    name = "math.copysign"


class CountLeadingZeros(IntUnary):
    """Number of leading zero bits; the width for 0."""

    name = "math.ctlz"


class CountTrailingZeros(IntUnary):
    """Number of trailing zero bits; the width for 0."""

    name = "math.cttz"


class CountPopulation(IntUnary):
    """Number of set bits."""

    name = "math.ctpop"


class Fma(LoopOp):
    """a * b + c, rounded once."""

    name = "math.fma"
    pure = True
    fastmath: tuple[str, ...] = ()

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 3 or len(set(operands)) != 1 or not is_float(operands[0]):
            raise self.reject("takes three floats of the same type", actual=operands)
        return operands[0]
