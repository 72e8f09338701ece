"""Bases of the loop-level operations: shapes of signatures, and the checks that they share.

The operations keep the names, operands and types of upstream MLIR. Where MLIR leaves the result type to the text
(casts, buffers, calls), the class says ``explicit_results`` and whoever makes the operation gives the types.
"""

from __future__ import annotations

from typing import ClassVar

from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import ElementType, IndexType, Type, VectorType, i8, i32, u8, u32

_SIGNLESS: dict[ElementType, ElementType] = {u8: i8, u32: i32}


def signless(element: ElementType) -> ElementType:
    """The type that an element has in registers: unsigned integers lose their sign, as MLIR's arith wants it."""
    return _SIGNLESS.get(element, element)


def scalar_of(type: Type) -> Type:
    """The element type of a vector; other types are themselves."""
    return type.element if isinstance(type, VectorType) else type


def is_float(type: Type) -> bool:
    """Is it a float or a vector of floats?"""
    scalar = scalar_of(type)
    return isinstance(scalar, ElementType) and scalar.is_float


def is_int(type: Type) -> bool:
    """Is it a signless integer, an i1, an index, or a vector of them?"""
    scalar = scalar_of(type)
    return isinstance(scalar, IndexType) or (isinstance(scalar, ElementType) and not scalar.is_float)


class LoopOp(OpDef):
    """Base of the loop level's operations."""

    #: The result types are given when the operation is made, not inferred.
    explicit_results: ClassVar[bool] = False
    #: The last operation of its block.
    is_terminator: ClassVar[bool] = False
    #: Without effects and without regions: may be moved, merged and dropped.
    pure: ClassVar[bool] = False

    def infer(self, *operands: Type) -> Type | tuple[Type, ...]:
        if self.explicit_results:
            raise self.reject("its result types cannot be inferred, give them when the operation is made")
        return ()


class Binary(LoopOp):
    """Two operands of one type, a result of the same."""

    pure = True

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 2 or operands[0] is not operands[1]:
            raise self.reject("takes two operands of the same type", actual=operands)
        self.check(operands[0])
        return operands[0]

    def check(self, type: Type) -> None:
        """Raises where the operand's type is of the wrong kind."""


class FloatBinary(Binary):
    """Binary on floats or vectors of floats. `fastmath` is a subset of LLVM's fast-math flags."""

    fastmath: tuple[str, ...] = ()

    def check(self, type: Type) -> None:
        if not is_float(type):
            raise self.reject("operates on floats", actual=type)


class IntBinary(Binary):
    """Binary on integers, indices or vectors of them. `overflow` is a subset of ("nsw", "nuw")."""

    overflow: tuple[str, ...] = ()

    def check(self, type: Type) -> None:
        if not is_int(type):
            raise self.reject("operates on integers", actual=type)


class FloatUnary(LoopOp):
    """One float operand (or a vector), a result of the same type."""

    pure = True
    fastmath: tuple[str, ...] = ()

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 1 or not is_float(operands[0]):
            raise self.reject("takes one float", actual=operands)
        return operands[0]


class IntUnary(LoopOp):
    """One integer operand (or a vector), a result of the same type."""

    pure = True

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 1 or not is_int(operands[0]):
            raise self.reject("takes one integer", actual=operands)
        return operands[0]


class Cast(LoopOp):
    """One operand; the result type is given."""

    pure = True
    explicit_results = True
