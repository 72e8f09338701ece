"""Types, interned: two types are equal exactly when they are the same object.

Element types carry their NumPy counterpart. `bool` is MLIR's `i1`; in memory it takes one byte. `u8` is MLIR's
`ui8`. Shapes are tuples of `int` or `Dim` (`compiler.ir.dims`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from flambeau.compiler.ir.dims import Index, product

T = TypeVar("T", bound="ShapedType")


class Type:
    """Base of all types. Instances are made by the classes' `get` methods and compared by identity."""

    __slots__ = ()
    _interned: dict[tuple[Any, ...], Any] = {}


class ElementType(Type):
    """A number's type: `kind` is "float", "int", "uint" or "bool"; `bits` its width in registers."""

    __slots__ = ("name", "kind", "bits", "numpy", "itemsize")

    def __init__(self, name: str, kind: str, bits: int, numpy: Any) -> None:
        self.name, self.kind, self.bits = name, kind, bits
        self.numpy = np.dtype(numpy)
        self.itemsize = int(self.numpy.itemsize)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str | tuple[Any, ...]:
        return element_type, (self.name,)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"


f64 = ElementType("f64", "float", 64, np.float64)
f32 = ElementType("f32", "float", 32, np.float32)
f16 = ElementType("f16", "float", 16, np.float16)
bf16 = ElementType("bf16", "float", 16, ml_dtypes.bfloat16)
i64 = ElementType("i64", "int", 64, np.int64)
i32 = ElementType("i32", "int", 32, np.int32)
i16 = ElementType("i16", "int", 16, np.int16)
i8 = ElementType("i8", "int", 8, np.int8)
u8 = ElementType("ui8", "uint", 8, np.uint8)
# Unsigned words exist for the random generator's bits; the frontend does not offer them as dtypes.
u32 = ElementType("ui32", "uint", 32, np.uint32)
i1 = ElementType("i1", "bool", 1, np.bool_)

ELEMENT_TYPES: tuple[ElementType, ...] = (f64, f32, f16, bf16, i64, i32, i16, i8, u8, u32, i1)
_BY_NAME = {t.name: t for t in ELEMENT_TYPES}
_BY_NUMPY = {t.numpy: t for t in ELEMENT_TYPES}


def element_type(name: str) -> ElementType:
    """The element type that MLIR calls `name`. KeyError if there is none."""
    return _BY_NAME[name]


def from_numpy(dtype: Any) -> ElementType:
    """The element type of a NumPy dtype. TypeError if Flambeau has none."""
    found = _BY_NUMPY.get(np.dtype(dtype))
    if found is None:
        names = ", ".join(str(t.numpy) for t in ELEMENT_TYPES)
        raise TypeError(f"NumPy dtype {np.dtype(dtype)} has no Flambeau type; there are {names}")
    return found


class IndexType(Type):
    """The type of loop indices and sizes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "index"


index = IndexType()


class PointerType(Type):
    """An opaque pointer, MLIR's `!llvm.ptr`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "!llvm.ptr"


pointer = PointerType()


class ShapedType(Type):
    """A type with a shape and an element type."""

    __slots__ = ("shape", "element")
    shape: tuple[Index, ...]
    element: ElementType

    @classmethod
    def get(cls: type[T], shape: tuple[Index, ...], element: ElementType) -> T:
        """The one instance with this shape and element type."""
        key = (cls, shape, element)
        found = Type._interned.get(key)
        if found is None:
            found = cls.__new__(cls)
            found.shape, found.element = tuple(shape), element
            Type._interned[key] = found
        result: T = found
        return result

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Index:
        """The number of elements."""
        return product(self.shape)

    @property
    def is_static(self) -> bool:
        return all(type(d) is int for d in self.shape)

    def with_shape(self: T, shape: tuple[Index, ...]) -> T:
        return type(self).get(shape, self.element)

    def with_element(self: T, element: ElementType) -> T:
        return type(self).get(self.shape, element)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).get, (self.shape, self.element)

    def _body(self) -> str:
        dims = "".join(f"{d if isinstance(d, int) else '?'}x" for d in self.shape)
        return f"{dims}{self.element}"


def dims_attribute(shape: tuple[Index, ...]) -> str:
    """The text after a type with symbolic dimensions: ``, #graph.dims<"N", "_">``; empty when all are numbers."""
    if all(isinstance(d, int) for d in shape):
        return ""
    names = ", ".join('"_"' if isinstance(d, int) else f'"{d}"' for d in shape)
    return f", #graph.dims<{names}>"


class TensorType(ShapedType):
    """An immutable tensor of the graph level."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"tensor<{self._body()}{dims_attribute(self.shape)}>"


class MemRefType(ShapedType):
    """A contiguous row-major buffer in memory. A buffer of `i1` holds one byte an element."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"memref<{self._body()}{dims_attribute(self.shape)}>"


class VectorType(ShapedType):
    """A register vector; its one dimension is a number."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"vector<{self._body()}>"


class FunctionType(Type):
    """Types of a function's inputs and results."""

    __slots__ = ("inputs", "results")
    inputs: tuple[Type, ...]
    results: tuple[Type, ...]

    @classmethod
    def get(cls, inputs: tuple[Type, ...], results: tuple[Type, ...]) -> FunctionType:
        key = (cls, inputs, results)
        found = Type._interned.get(key)
        if found is None:
            found = cls.__new__(cls)
            found.inputs, found.results = inputs, results
            Type._interned[key] = found
        instance: FunctionType = found
        return instance

    def __repr__(self) -> str:
        inputs = ", ".join(map(repr, self.inputs))
        if len(self.results) == 1:
            return f"({inputs}) -> {self.results[0]}"
        return f"({inputs}) -> ({', '.join(map(repr, self.results))})"


def tensor(shape: tuple[Index, ...] | list[Index], element: ElementType) -> TensorType:
    """Short for ``TensorType.get(tuple(shape), element)``."""
    return TensorType.get(tuple(shape), element)


def memref(shape: tuple[Index, ...] | list[Index], element: ElementType) -> MemRefType:
    """Short for ``MemRefType.get(tuple(shape), element)``."""
    return MemRefType.get(tuple(shape), element)


def vector(lanes: int, element: ElementType) -> VectorType:
    """Short for ``VectorType.get((lanes,), element)``."""
    return VectorType.get((lanes,), element)
