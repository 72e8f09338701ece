"""`x86vector`: three instructions of AVX-512 that have no equal in `math` and `vector`. On scalars they work as on vectors."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import LoopOp, is_float, scalar_of
from flambeau.compiler.ir.types import Type, VectorType, f32, i32

#: Entries of a table, which is one register of f32 numbers.
TABLE = 16


class Scale(LoopOp):
    """x times two to the power floor(n), rounded once; x and n are f32 or f64 (vscalefps, vscalefpd).

    As MLIR's operation of this name, without its mask.
    """

    name = "x86vector.avx512.scalef"
    pure = True

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 2 or operands[0] is not operands[1] or not is_float(operands[0]):
            raise self.reject("takes two floats of the same type", actual=operands)
        return operands[0]


class Table(LoopOp):
    """The f32 number of `entries` at an i32 position, of which the last four bits count (vpermps)."""

    name = "x86vector.avx512.permvar"
    pure = True
    entries: tuple[float, ...]

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 1 or scalar_of(operands[0]) is not i32:
            raise self.reject("takes positions of type i32", actual=operands)
        if len(self.entries) != TABLE:
            raise self.reject("has one register of entries", expected=TABLE, actual=len(self.entries))
        (positions,) = operands
        return VectorType.get(positions.shape, f32) if isinstance(positions, VectorType) else f32


class Range(LoopOp):
    """x where its magnitude is less than `limit`, else the limit with the sign of x, or without one if it is NaN; `unsigned`:
    the magnitude of that. x is f32 or f64 (vrangeps, vrangepd)."""

    name = "x86vector.avx512.range"
    pure = True
    limit: float
    unsigned: bool = False

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 1 or not is_float(operands[0]):
            raise self.reject("takes one float", actual=operands)
        return operands[0]
