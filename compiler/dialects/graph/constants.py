"""Values without operands: literals, counting, and the run-time size of a symbolic dimension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.ir.dims import Dim, Index
from flambeau.compiler.ir.types import (
    ElementType,
    TensorType,
    bf16,
    f16,
    f32,
    f64,
    from_numpy,
    i1,
    i32,
    i64,
    tensor,
)

Array = np.ndarray[Any, Any]


class Literal:
    """An immutable array that hashes and compares by its bytes, so NaN equals NaN and -0.0 differs from 0.0.

    `shape` is static. The array is read-only, C-contiguous and copied unless it already is both.
    """

    __slots__ = ("array", "element", "_hash")

    def __init__(self, array: Any, element: ElementType | None = None) -> None:
        given = np.asarray(array, None if element is None else element.numpy)
        if not given.flags.c_contiguous or given.flags.writeable or not given.flags.owndata:
            given = np.array(given, order="C")
        given.flags.writeable = False
        self.array: Array = given
        self.element = element or from_numpy(given.dtype)
        self._hash: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def splat(self) -> Any:
        """The one number that every element is, as a Python number, or None. Bits decide, so NaN counts."""
        if self.array.size == 0:
            return None
        first = self.array.reshape(-1)[:1]
        if self.array.size > 1:
            words = self.array.reshape(-1).view(f"u{self.array.itemsize}")
            if not bool((words == words[0]).all()):
                return None
        return first[0].item() if self.element.numpy.kind in "fiub" else float(first[0])

    def tobytes(self) -> bytes:
        """The content, row-major and in the machine's byte order."""
        return self.array.tobytes()

    @staticmethod
    def from_bytes(data: bytes, element: ElementType, shape: tuple[int, ...]) -> Literal:
        """The literal that `tobytes` gave. ValueError if the size does not fit."""
        return Literal(np.frombuffer(data, element.numpy).reshape(shape), element)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.element, self.array.shape, self.array.tobytes()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Literal) or self.element is not other.element or self.shape != other.shape:
            return False
        return self.array.tobytes() == other.array.tobytes()

    def __repr__(self) -> str:
        return f"Literal({self.array.tolist()!r}, {self.element})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Literal.from_bytes, (self.tobytes(), self.element, self.shape)


class Constant(GraphOp):
    """A tensor whose elements are known: shape and element type of its literal. StableHLO `constant`."""

    name = "graph.constant"
    schedule_family: ClassVar[str] = "constant"
    literal: Literal
    vjp = NotDifferentiable("it has no operands", zero=True)

    def infer(self) -> TensorType:
        return tensor(self.literal.shape, self.literal.element)

    def element_at(self, b: Any, index: tuple[Index, ...]) -> Any:
        number = self.literal.splat
        if number is None:
            raise NotImplementedError("graph.constant: a literal with several values is read from memory")
        return b.constant(number, self.literal.element)

    def reference(self) -> Array:
        return self.literal.array

    def samples(self) -> Iterable[Sample]:
        yield Sample(Constant(Literal(np.float32(2.5))), ())
        yield Sample(Constant(Literal(np.arange(6, dtype=np.int64).reshape(2, 3))), ())
        yield Sample(Constant(Literal([1.5, float("nan"), float("-inf")], bf16)), ())
        yield Sample(Constant(Literal([True, False], i1)), ())
        yield Sample(Constant(Literal(np.zeros((0, 2)), f64)), ())


class Iota(GraphOp):
    """Each element is its own index along `dimension`: any shape, float or integer elements. StableHLO `iota`."""

    name = "graph.iota"
    shape: tuple[Index, ...]
    element: ElementType
    dimension: int = 0
    vjp = NotDifferentiable("it has no operands", zero=True)

    def infer(self) -> TensorType:
        if not 0 <= self.dimension < len(self.shape):
            raise self.reject(
                "dimension out of range", expected=f"0 to {len(self.shape) - 1}", actual=self.dimension
            )
        if self.element.is_bool:
            raise self.reject(
                "unsupported element type", expected="float or int or uint", actual=self.element
            )
        return tensor(self.shape, self.element)

    def element_at(self, b: Any, index: tuple[Index, ...]) -> Any:
        return b.index_to_scalar(index[self.dimension], self.element)

    def reference(self) -> Array:
        shape: Any = self.shape  # numbers, by the time that something is evaluated
        count = np.arange(shape[self.dimension]).astype(self.element.numpy)
        spread = [1] * len(self.shape)
        spread[self.dimension] = -1
        return np.ascontiguousarray(np.broadcast_to(count.reshape(spread), shape))

    def samples(self) -> Iterable[Sample]:
        yield Sample(Iota((5,), i64, 0), ())
        yield Sample(Iota((2, 3), i32, 1), ())
        yield Sample(Iota((3, 2, 1), f32, 0), ())
        yield Sample(Iota((4,), f16, 0), ())
        yield Sample(Iota((0, 3), bf16, 1), ())


class DimensionValue(GraphOp):
    """The number that a dimension expression has at run time, as a scalar tensor of `element`: `() -> tensor<element>`.

    What StableHLO `get_dimension_size` reads from an operand, this reads from the shape's symbols.
    """

    name = "graph.dimension_value"
    value: Index
    element: ElementType
    vjp = NotDifferentiable("it has no operands", zero=True)

    def infer(self) -> TensorType:
        if self.element.is_bool:
            raise self.reject(
                "unsupported element type", expected="float or int or uint", actual=self.element
            )
        return tensor((), self.element)

    def element_at(self, b: Any, index: tuple[Index, ...]) -> Any:
        return b.index_to_scalar(self.value, self.element)

    def reference(self) -> Array:
        if isinstance(self.value, Dim):
            raise ValueError(f"graph.dimension_value: the dimension {self.value} has no number yet")
        return np.asarray(self.value).astype(self.element.numpy)

    def samples(self) -> Iterable[Sample]:
        yield Sample(DimensionValue(7, i64), ())
        yield Sample(DimensionValue(3, f32), ())
