"""`vector`: explicit vectors of one dimension."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import LoopOp, signless
from flambeau.compiler.dialects.loops.memref import check_access
from flambeau.compiler.ir.types import ElementType, IndexType, Type, VectorType, i1, index

REDUCTIONS = ("add", "mul", "minsi", "minui", "maxsi", "maxui", "minimumf", "maximumf", "and", "or", "xor")


def _vector(op: LoopOp, type: Type) -> VectorType:
    if not isinstance(type, VectorType):
        raise op.reject("takes a vector", actual=type)
    return type


class Load(LoopOp):
    """`lanes` consecutive elements from the indices."""

    name = "vector.load"
    lanes: int

    def infer(self, *operands: Type) -> Type:
        element = signless(check_access(self, operands[0], operands[1:]).element)
        return VectorType.get((self.lanes,), element)


class Store(LoopOp):
    """Writes a vector to consecutive elements from the indices.

    `nontemporal`: past the caches, since nobody reads it soon; `alignment` is the address's then.
    """

    name = "vector.store"
    nontemporal: bool = False
    alignment: int = 0

    def infer(self, *operands: Type) -> tuple[Type, ...]:
        buffer = check_access(self, operands[1], operands[2:])
        if _vector(self, operands[0]).element is not signless(buffer.element):
            raise self.reject(
                "stores elements of its buffer", expected=signless(buffer.element), actual=operands[0]
            )
        return ()


class MaskedLoad(LoopOp):
    """Consecutive elements from the indices (all but the last two operands) where the mask is set, else `pass_through`.

    Operands: buffer, indices, mask, pass_through.
    """

    name = "vector.maskedload"

    def infer(self, *operands: Type) -> Type:
        check_access(self, operands[0], operands[1:-2])
        if _vector(self, operands[-2]).element is not i1:
            raise self.reject("takes a mask of i1", actual=operands[-2])
        return operands[-1]


class MaskedStore(LoopOp):
    """Writes the lanes whose mask is set. Operands: buffer, indices, mask, value."""

    name = "vector.maskedstore"

    def infer(self, *operands: Type) -> tuple[Type, ...]:
        check_access(self, operands[0], operands[1:-2])
        return ()


class Gather(LoopOp):
    """Elements of a one-dimensional buffer at a vector of positions.

    Operands: buffer, positions, mask, pass_through.
    """

    name = "vector.gather"

    def infer(self, *operands: Type) -> Type:
        return _vector(self, operands[3])


class Scatter(LoopOp):
    """Writes to a one-dimensional buffer at a vector of positions. Operands: buffer, positions, mask, value."""

    name = "vector.scatter"


class Broadcast(LoopOp):
    """A vector with the operand in each of its `lanes`."""

    name = "vector.broadcast"
    pure = True
    lanes: int

    def infer(self, *operands: Type) -> Type:
        (scalar,) = operands
        if not isinstance(scalar, ElementType | IndexType):
            raise self.reject("takes a scalar", actual=scalar)
        return VectorType.get((self.lanes,), scalar)  # type: ignore[arg-type]


class BitCast(LoopOp):
    """The same bits as a vector of other elements, fewer and wider or more and narrower."""

    name = "vector.bitcast"
    explicit_results = True
    pure = True


class Step(LoopOp):
    """The indices 0, 1, ... lanes - 1."""

    name = "vector.step"
    pure = True
    lanes: int

    def infer(self, *operands: Type) -> Type:
        return VectorType.get((self.lanes,), index)  # type: ignore[arg-type]


class Fma(LoopOp):
    """a * b + c in each lane, rounded once."""

    name = "vector.fma"
    pure = True

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 3 or len(set(operands)) != 1:
            raise self.reject("takes three vectors of the same type", actual=operands)
        return _vector(self, operands[0])


class Reduction(LoopOp):
    """One scalar from all lanes by `kind`. Sums and products of floats are reassociated if `fastmath` says so."""

    name = "vector.reduction"
    pure = True
    kind: str
    fastmath: tuple[str, ...] = ()

    def infer(self, *operands: Type) -> Type:
        if self.kind not in REDUCTIONS:
            raise self.reject("has no such kind", expected=REDUCTIONS, actual=self.kind)
        return _vector(self, operands[0]).element


class Extract(LoopOp):
    """One lane. With a second operand (an index) that lane, else lane `position`."""

    name = "vector.extract"
    pure = True
    position: int = 0

    def infer(self, *operands: Type) -> Type:
        return _vector(self, operands[0]).element


class Insert(LoopOp):
    """The vector (operand 1) with one lane replaced by operand 0; the lane as for vector.extract."""

    name = "vector.insert"
    pure = True
    position: int = 0

    def infer(self, *operands: Type) -> Type:
        return _vector(self, operands[1])


class Shuffle(LoopOp):
    """Lanes picked by number from two vectors of the same type, the second's counted after the first's."""

    name = "vector.shuffle"
    pure = True
    mask: tuple[int, ...]

    def infer(self, *operands: Type) -> Type:
        if len(operands) != 2 or operands[0] is not operands[1]:
            raise self.reject("takes two vectors of the same type", actual=operands)
        return VectorType.get((len(self.mask),), _vector(self, operands[0]).element)


class CreateMask(LoopOp):
    """A mask whose first lanes are set, as many as the operand (an index) says."""

    name = "vector.create_mask"
    pure = True
    lanes: int

    def infer(self, *operands: Type) -> Type:
        if operands != (index,):
            raise self.reject("takes an index", actual=operands)
        return VectorType.get((self.lanes,), i1)
