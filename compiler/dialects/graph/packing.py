"""Layouts in which contractions read an operand without packing it: made of weights, once (`passes/pack_weights.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import sampling
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.dialects.graph.contraction import decode, encode
from flambeau.compiler.dialects.graph.shape import Transpose
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.types import TensorType, bf16, i8, tensor

Array = np.ndarray[Any, Any]


class _Panels(GraphOp):
    """What packing and its inverse share: which axes of the unpacked tensor are batch, rows and depth."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    depth: tuple[int, ...]
    width: int

    def packed_shape(self, shape: tuple[Index, ...]) -> tuple[Index, ...]:
        """The shape in panels of a tensor of `shape`."""
        if sorted((*self.batch, *self.rows, *self.depth)) != list(range(len(shape))):
            raise self.reject(
                f"batch, rows and depth must name each of {len(shape)} axes once",
                actual=(self.batch, self.rows, self.depth),
            )
        if self.width < 1:
            raise self.reject("a panel's width must be positive", actual=self.width)
        panels = (product([shape[a] for a in self.rows]) + self.width - 1) // self.width
        return (*[shape[a] for a in self.batch], panels, product([shape[a] for a in self.depth]), self.width)

    def _sizes(self, shape: tuple[Index, ...]) -> tuple[list[Index], list[Index]]:
        return [shape[a] for a in self.rows], [shape[a] for a in self.depth]


class PackPanels(_Panels):
    """x in panels of `width` rows: shape (batch…, panels, depth, width); rows past the end are zeros.

    A row is the row-major position in the axes `rows`, a depth that in the axes `depth`; the axes `batch` come first.
    Panel p, depth k has the rows p * width … (p + 1) * width - 1 side by side: as a register tile reads them.
    Any element type.
    """

    name = "graph.pack_panels"
    layout: ClassVar[bool] = True

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        return tensor(self.packed_shape(operands[0].shape), operands[0].element)

    def fold(self, x: Value) -> Value | None:
        owner = x.owner
        if owner is None:
            return None
        if isinstance(owner.definition, Transpose):  # the panels of what it transposes, with its axes
            of = owner.definition.permutation
            batch, rows, depth = (tuple([of[a] for a in p]) for p in (self.batch, self.rows, self.depth))
            return apply(PackPanels(batch, rows, depth, self.width), *owner.operands)
        if not isinstance(owner.definition, UnpackPanels):
            return None
        (packed,) = owner.operands
        same = self.attributes.items() <= owner.definition.attributes.items()
        count = product(self._sizes(_type(x).shape)[0])
        whole = count % self.width == 0  # else what pads the last panel need not be zero
        return packed if same and whole and packed.type is self.infer(_type(x)) else None

    def inverse(self, x: TensorType) -> UnpackPanels:
        return UnpackPanels(self.batch, self.rows, self.depth, self.width, x.shape)

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        rows, depth = self._sizes(x.type.shape)
        *batch, panel, k, lane = index
        row, count = panel * self.width + lane, product(rows)
        source: list[Index] = [0] * x.type.rank
        for axes, digits in (
            (self.batch, batch),
            (self.rows, decode(row, rows)),
            (self.depth, decode(k, depth)),
        ):
            for axis, digit in zip(axes, digits, strict=True):
                source[axis] = digit
        if count % self.width == 0:
            return x(tuple(source))
        zero = b.constant(0, x.type.element)
        return b.guarded(b.in_bounds(row, 0, count), lambda: x(tuple(source)), zero)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        return (apply(self.inverse(_type(x)), ct),)

    def reference(self, x: Array) -> Any:
        *batch, panels, depth, width = _numbers(self.packed_shape(x.shape))
        flat = x.transpose(self.batch + self.rows + self.depth).reshape(*batch, -1, depth)
        out = np.zeros((*batch, panels * width, depth), x.dtype)
        out[..., : flat.shape[-2], :] = flat
        return np.ascontiguousarray(out.reshape(*batch, panels, width, depth).swapaxes(-1, -2))

    def samples(self) -> Iterable[Sample]:
        yield Sample(PackPanels((), (1,), (0,), 4), (sampling.array((5, 8)),), note="whole panels")
        yield Sample(PackPanels((), (0,), (1,), 4), (sampling.array((7, 3)),), note="zeros at the end")
        yield Sample(
            PackPanels((2,), (0, 3), (1,), 4), (sampling.array((3, 5, 2, 3)),), note="batch, two rows"
        )
        yield Sample(PackPanels((), (0,), (2, 1), 16), (sampling.array((32, 3, 2), bf16),))
        yield Sample(PackPanels((), (0,), (1,), 2), (sampling.array((3, 4), i8),))


class UnpackPanels(_Panels):
    """The tensor of `shape` of which x is the panels: the inverse of `graph.pack_panels`.

    A contraction that reads its operand through this operation reads the panels as they lie.
    """

    name = "graph.unpack_panels"
    shape: tuple[Index, ...]

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        expected = self.packed_shape(self.shape)
        if operands[0].shape != expected:
            raise self.reject("the panels' shape does not fit", expected=expected, actual=operands[0].shape)
        return tensor(self.shape, operands[0].element)

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        rows, depth = self._sizes(self.shape)
        row = encode([index[a] for a in self.rows], rows)
        k = encode([index[a] for a in self.depth], depth)
        return x((*[index[a] for a in self.batch], row // self.width, k, row % self.width))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        return (apply(PackPanels(self.batch, self.rows, self.depth, self.width), ct),)

    def reference(self, x: Array) -> Any:
        *batch, panels, depth, width = x.shape
        shape = _numbers(self.shape)
        count = int(np.prod([shape[a] for a in self.rows]))
        flat = x.swapaxes(-1, -2).reshape(*batch, panels * width, depth)[..., :count, :]
        order = self.batch + self.rows + self.depth
        spread = flat.reshape([shape[a] for a in order])
        return np.ascontiguousarray(spread.transpose(np.argsort(order)))

    def samples(self) -> Iterable[Sample]:
        yield Sample(UnpackPanels((), (1,), (0,), 4, (5, 8)), (sampling.array((2, 5, 4)),))
        yield Sample(UnpackPanels((), (0,), (1,), 4, (7, 3)), (sampling.array((2, 3, 4)),))
        yield Sample(UnpackPanels((2,), (0, 3), (1,), 4, (3, 5, 2, 3)), (sampling.array((2, 3, 5, 4)),))


def _numbers(shape: tuple[Index, ...]) -> list[int]:
    assert all(isinstance(d, int) for d in shape)
    return [d for d in shape if isinstance(d, int)]


def _type(x: Value) -> TensorType:
    assert isinstance(x.type, TensorType)
    return x.type
