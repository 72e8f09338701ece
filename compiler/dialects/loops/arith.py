"""`arith`: constants, arithmetic, comparisons and conversions of scalars and vectors."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import (
    Cast,
    FloatBinary,
    FloatUnary,
    IntBinary,
    LoopOp,
    is_float,
    is_int,
)
from flambeau.compiler.ir.types import Type, VectorType, i1

FLOAT_PREDICATES = (
    "oeq",
    "ogt",
    "oge",
    "olt",
    "ole",
    "one",
    "ord",
    "ueq",
    "ugt",
    "uge",
    "ult",
    "ule",
    "une",
    "uno",
)
INT_PREDICATES = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")


def mask_type(type: Type) -> Type:
    """The type of a comparison of values of `type`."""
    return VectorType.get(type.shape, i1) if isinstance(type, VectorType) else i1


class Constant(LoopOp):
    """A number; for a vector type, the same in every lane. `type` is the result's."""

    name = "arith.constant"
    pure = True
    value: float | int
    type: Type

    def infer(self, *operands: Type) -> Type:
        return self.type


class AddF(FloatBinary):
    """Sum of floats."""

    name = "arith.addf"


class SubF(FloatBinary):
    """Difference of floats."""

    name = "arith.subf"


class MulF(FloatBinary):
    """Product of floats."""

    name = "arith.mulf"


class DivF(FloatBinary):
    """Quotient of floats."""

    name = "arith.divf"


class RemF(FloatBinary):
    """Remainder of floats with the dividend's sign (C's fmod)."""

    name = "arith.remf"


class MaximumF(FloatBinary):
    """Larger of two floats; NaN if either is."""

    name = "arith.maximumf"


class MinimumF(FloatBinary):
    """Smaller of two floats; NaN if either is."""

    name = "arith.minimumf"


class MaxNumF(FloatBinary):
    """Larger of two floats; a NaN operand gives the other."""

    name = "arith.maxnumf"


class MinNumF(FloatBinary):
    """Smaller of two floats; a NaN operand gives the other."""

    name = "arith.minnumf"


class NegF(FloatUnary):
    """Negation of a float (the sign bit flips, of NaN too)."""

    name = "arith.negf"


class CmpF(LoopOp):
    """Comparison of floats by an LLVM predicate ("olt", "une", ...)."""

    name = "arith.cmpf"
    pure = True
    predicate: str

    def infer(self, *operands: Type) -> Type:
        if self.predicate not in FLOAT_PREDICATES:
            raise self.reject("has no such predicate", expected=FLOAT_PREDICATES, actual=self.predicate)
        if len(operands) != 2 or operands[0] is not operands[1] or not is_float(operands[0]):
            raise self.reject("takes two floats of the same type", actual=operands)
        return mask_type(operands[0])


class AddI(IntBinary):
    """Sum of integers, wrapping unless `overflow` says that it does not."""

    name = "arith.addi"


class SubI(IntBinary):
    """Difference of integers."""

    name = "arith.subi"


class MulI(IntBinary):
    """Product of integers."""

    name = "arith.muli"


class DivSI(IntBinary):
    """Signed quotient, truncated. Undefined for divisor 0 and for the least number by -1."""

    name = "arith.divsi"


class DivUI(IntBinary):
    """Unsigned quotient. Undefined for divisor 0."""

    name = "arith.divui"


class RemSI(IntBinary):
    """Signed remainder with the dividend's sign. Undefined where the quotient is."""

    name = "arith.remsi"


class RemUI(IntBinary):
    """Unsigned remainder. Undefined for divisor 0."""

    name = "arith.remui"


class FloorDivSI(IntBinary):
    """Signed quotient rounded down. Undefined for divisor 0."""

    name = "arith.floordivsi"


class MaxSI(IntBinary):
    """Signed maximum."""

    name = "arith.maxsi"


class MinSI(IntBinary):
    """Signed minimum."""

    name = "arith.minsi"


class MaxUI(IntBinary):
    """Unsigned maximum."""

    name = "arith.maxui"


class MinUI(IntBinary):
    """Unsigned minimum."""

    name = "arith.minui"


class AndI(IntBinary):
    """Bitwise and."""

    name = "arith.andi"


class OrI(IntBinary):
    """Bitwise or."""

    name = "arith.ori"


class XOrI(IntBinary):
    """Bitwise exclusive or."""

    name = "arith.xori"


class ShLI(IntBinary):
    """Shift left. Undefined where the count is not below the width."""

    name = "arith.shli"


class ShRSI(IntBinary):
    """Shift right that keeps the sign. Undefined where the count is not below the width."""

    name = "arith.shrsi"


class ShRUI(IntBinary):
    """Shift right that brings in zeros. Undefined where the count is not below the width."""

    name = "arith.shrui"


class CmpI(LoopOp):
    """Comparison of integers by an LLVM predicate ("eq", "slt", "ult", ...)."""

    name = "arith.cmpi"
    pure = True
    predicate: str

    def infer(self, *operands: Type) -> Type:
        if self.predicate not in INT_PREDICATES:
            raise self.reject("has no such predicate", expected=INT_PREDICATES, actual=self.predicate)
        if len(operands) != 2 or operands[0] is not operands[1] or not is_int(operands[0]):
            raise self.reject("takes two integers of the same type", actual=operands)
        return mask_type(operands[0])


class Select(LoopOp):
    """The second operand where the first (an i1, or a vector of i1) is set, else the third."""

    name = "arith.select"
    pure = True

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 3 or operands[1] is not operands[2]:
            raise self.reject("takes a condition and two operands of the same type", actual=operands)
        if operands[0] is not i1 and operands[0] is not mask_type(operands[1]):
            raise self.reject("takes an i1 or a vector of i1 as long as its operands", actual=operands[0])
        return operands[1]


class IndexCast(Cast):
    """Between index and integers, sign-extended or truncated."""

    name = "arith.index_cast"


class IndexCastUI(Cast):
    """Between index and integers, zero-extended or truncated."""

    name = "arith.index_castui"


class Bitcast(Cast):
    """The same bits as another type of equal width."""

    name = "arith.bitcast"


class ExtF(Cast):
    """A float as a wider float."""

    name = "arith.extf"


class TruncF(Cast):
    """A float rounded to a narrower float, to nearest even."""

    name = "arith.truncf"


class ExtSI(Cast):
    """An integer as a wider one, sign-extended."""

    name = "arith.extsi"


class ExtUI(Cast):
    """An integer as a wider one, zero-extended."""

    name = "arith.extui"


class TruncI(Cast):
    """The low bits of an integer."""

    name = "arith.trunci"


class FPToSI(Cast):
    """A float as a signed integer, truncated. Undefined out of range."""

    name = "arith.fptosi"


class FPToUI(Cast):
    """A float as an unsigned integer, truncated. Undefined out of range."""

    name = "arith.fptoui"


class SIToFP(Cast):
    """A signed integer as a float, rounded to nearest even."""

    name = "arith.sitofp"


class UIToFP(Cast):
    """An unsigned integer as a float, rounded to nearest even."""

    name = "arith.uitofp"


class FPToSISat(Cast):
    """A float as a signed integer, truncated; out of range the nearest integer that there is, and 0 for NaN."""

    name = "llvm.intr.fptosi.sat"


class FPToUISat(Cast):
    """A float as an unsigned integer, truncated; out of range the nearest integer that there is, and 0 for NaN."""

    name = "llvm.intr.fptoui.sat"
