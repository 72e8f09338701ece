"""`memref`: contiguous row-major buffers."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import LoopOp, signless
from flambeau.compiler.ir.types import IndexType, MemRefType, Type, index


def check_access(op: LoopOp, buffer: Type, indices: tuple[Type, ...]) -> MemRefType:
    """`buffer`'s type, after checking that it is indexed by as many indices as its rank."""
    if not isinstance(buffer, MemRefType):
        raise op.reject("accesses a memref", actual=buffer)
    if len(indices) != buffer.rank or not all(isinstance(t, IndexType) for t in indices):
        raise op.reject("needs one index for each dimension", expected=buffer.rank, actual=indices)
    return buffer


class Alloca(LoopOp):
    """A buffer on the stack of the innermost function or parallel body, aligned to `alignment` bytes; static shape.

    With `space` "workgroup" it is in the shared memory of a GPU's block instead.
    """

    name = "memref.alloca"
    explicit_results = True
    alignment: int = 64
    space: str = ""


class Load(LoopOp):
    """The element at the indices."""

    name = "memref.load"

    def infer(self, *operands: Type) -> Type:
        return signless(check_access(self, operands[0], operands[1:]).element)


class Store(LoopOp):
    """Writes the first operand at the indices of the second."""

    name = "memref.store"

    def infer(self, *operands: Type) -> tuple[Type, ...]:
        buffer = check_access(self, operands[1], operands[2:])
        if operands[0] is not signless(buffer.element):
            raise self.reject(
                "stores elements of its buffer", expected=signless(buffer.element), actual=operands[0]
            )
        return ()


class CollapseShape(LoopOp):
    """The same buffer with one dimension, its elements in row-major order."""

    name = "memref.collapse_shape"
    pure = True

    def infer(self, *operands: Type) -> Type:
        (buffer,) = operands
        if not isinstance(buffer, MemRefType):
            raise self.reject("takes a memref", actual=buffer)
        return buffer.with_shape((buffer.size,))


class View(LoopOp):
    """A typed buffer inside a buffer of bytes, from a byte offset (operand 1). `alignment` is known of the result."""

    name = "memref.view"
    pure = True
    explicit_results = True
    alignment: int = 1


class ReinterpretCast(LoopOp):
    """A contiguous buffer of the same elements inside another, from an element offset (operand 1)."""

    name = "memref.reinterpret_cast"
    pure = True
    explicit_results = True


class Copy(LoopOp):
    """Copies the first buffer into the second, which has the same size and does not overlap it. Operand 2: elements."""

    name = "memref.copy"


class Fill(LoopOp):
    """Sets the bytes of a buffer to zero. Operand 1: elements."""

    name = "memref.zero"


class Prefetch(LoopOp):
    """Hints that the element will be accessed soon. `locality`: 0 (none) to 3 (keep in L1)."""

    name = "memref.prefetch"
    write: bool = False
    locality: int = 3

    def infer(self, *operands: Type) -> tuple[Type, ...]:
        check_access(self, operands[0], operands[1:])
        return ()


class AtomicRMW(LoopOp):
    """Atomically combines the first operand into the element at the indices; gives the old element.

    `kind`: "addf", "addi", "maxs", "mins", "maxu", "minu", "andi", "ori", "assign".
    """

    name = "memref.atomic_rmw"
    kind: str

    def infer(self, *operands: Type) -> Type:
        check_access(self, operands[1], operands[2:])
        return operands[0]


class FromPointer(LoopOp):
    """A pointer as a memref, or a memref as a pointer."""

    name = "builtin.unrealized_conversion_cast"
    pure = True
    explicit_results = True


class AddressOf(LoopOp):
    """The buffer's address as an index."""

    name = "memref.extract_aligned_pointer_as_index"
    pure = True

    def infer(self, *operands: Type) -> Type:
        if not isinstance(operands[0], MemRefType):
            raise self.reject("takes a memref", actual=operands[0])
        return index


class GetGlobal(LoopOp):
    """A constant buffer of the module, by name, aligned to 64 bytes."""

    name = "memref.get_global"
    pure = True
    explicit_results = True
    sym_name: str
