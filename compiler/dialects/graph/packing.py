"""Layouts in which contractions read an operand without packing it: made of weights, once (`passes/pack_weights.py`)."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import sampling
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.dialects.graph.contraction import decode, encode
from flambeau.compiler.dialects.graph.shape import Transpose
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.types import ElementType, TensorType, bf16, i8, tensor, u8

Array = np.ndarray[Any, Any]


class _Panels(GraphOp):
    """What packing and its inverse share: which axes of the unpacked tensor are batch, rows and depth."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    depth: tuple[int, ...]
    width: int

    @property
    def words(self) -> int:
        """How many neighbours along the depth lie together."""
        return 1

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
        batch, depth = [shape[a] for a in self.batch], product([shape[a] for a in self.depth])
        if self.words == 1:
            return (*batch, panels, depth, self.width)
        return (*batch, panels, (depth + self.words - 1) // self.words, self.width, self.words)

    def check_flip(self, flip: bool, operand: TensorType) -> None:
        """Raises unless the elements' highest bits can be flipped, if they are to be."""
        if flip and operand.element not in (i8, u8):
            raise self.reject("only bytes are flipped", actual=operand.element)

    def _sizes(self, shape: tuple[Index, ...]) -> tuple[list[Index], list[Index]]:
        return [shape[a] for a in self.rows], [shape[a] for a in self.depth]


class PackPanels(_Panels):
    """x in panels of `width` rows: shape (batch…, panels, depth, width); rows past the end are zeros.

    A row is the row-major position in the axes `rows`, a depth that in the axes `depth`; the axes `batch` come first.
    Panel p, depth k has the rows p * width … (p + 1) * width - 1 side by side: as a register tile reads them.
    With `group` > 1, so many neighbours along the depth lie together (what a dot instruction takes for a row), the last
    ones padded by zeros: shape (batch…, panels, ceil(depth / group), width, group). With `flip` every byte's highest bit is
    inverted, which exchanges signed bytes and unsigned ones that are larger by 128. Any element type, without `flip`.
    """

    name = "graph.pack_panels"
    layout: ClassVar[bool] = True
    group: int = 1
    flip: bool = False

    @property
    def words(self) -> int:
        return self.group

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        self.check_flip(self.flip, operands[0])
        return tensor(self.packed_shape(operands[0].shape), operands[0].element)

    def fold(self, x: Value) -> Value | None:
        owner = x.owner
        if owner is None:
            return None
        if isinstance(owner.definition, Transpose):  # the panels of what it transposes, with its axes
            of = owner.definition.permutation
            batch, rows, depth = (tuple([of[a] for a in p]) for p in (self.batch, self.rows, self.depth))
            packing = PackPanels(batch, rows, depth, self.width, self.group, self.flip)
            return apply(packing, *owner.operands)
        if not isinstance(owner.definition, UnpackPanels):
            return None
        (packed,) = owner.operands
        same = self.attributes.items() <= owner.definition.attributes.items()
        count, deep = (product(sizes) for sizes in self._sizes(_type(x).shape))
        # Else what pads the last panel need not be zero.
        whole = count % self.width == 0 and deep % self.group == 0
        return packed if same and whole and packed.type is self.infer(_type(x)) else None

    def inverse(self, x: TensorType) -> UnpackPanels:
        return UnpackPanels(self.batch, self.rows, self.depth, self.width, x.shape, self.group, self.flip)

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        rows, depth = self._sizes(x.type.shape)
        if self.group == 1:
            *batch, panel, k, lane = index
        else:
            *batch, panel, k, lane, piece = index
            k = k * self.group + piece
        row, count, deep = panel * self.width + lane, product(rows), product(depth)
        source: list[Index] = [0] * x.type.rank
        for axes, digits in (
            (self.batch, batch),
            (self.rows, decode(row, rows)),
            (self.depth, decode(k, depth)),
        ):
            for axis, digit in zip(axes, digits, strict=True):
                source[axis] = digit
        conditions = []
        if count % self.width != 0:
            conditions.append(b.in_bounds(row, 0, count))
        if deep % self.group != 0:
            conditions.append(b.in_bounds(k, 0, deep))
        element = x.type.element

        def read() -> Any:
            return _flipped(b, x(tuple(source)), element) if self.flip else x(tuple(source))

        if not conditions:
            return read()
        return b.guarded(functools.reduce(b.and_, conditions), read, b.constant(0, element))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        return (apply(self.inverse(_type(x)), ct),)

    def reference(self, x: Array) -> Any:
        shape = _numbers(self.packed_shape(x.shape))
        *batch, panels, words, width = shape if self.group == 1 else shape[:-1]
        depth = int(np.prod([x.shape[a] for a in self.depth]))
        flat = x.transpose(self.batch + self.rows + self.depth).reshape(*batch, -1, depth)
        flat = flat ^ _highest_bit(flat) if self.flip else flat
        out = np.zeros((*batch, panels * width, words * self.group), x.dtype)
        out[..., : flat.shape[-2], :depth] = flat
        split = out.reshape(*batch, panels, width, words, self.group).swapaxes(-2, -3)
        return np.ascontiguousarray(split).reshape(shape)

    def samples(self) -> Iterable[Sample]:
        yield Sample(PackPanels((), (1,), (0,), 4), (sampling.array((5, 8)),), note="whole panels")
        yield Sample(PackPanels((), (0,), (1,), 4), (sampling.array((7, 3)),), note="zeros at the end")
        yield Sample(
            PackPanels((2,), (0, 3), (1,), 4), (sampling.array((3, 5, 2, 3)),), note="batch, two rows"
        )
        yield Sample(PackPanels((), (0,), (2, 1), 16), (sampling.array((32, 3, 2), bf16),))
        yield Sample(PackPanels((), (0,), (1,), 2), (sampling.array((3, 4), i8),))
        yield Sample(PackPanels((), (1,), (0,), 4, 4), (sampling.array((8, 4), i8),), note="words")
        yield Sample(PackPanels((2,), (0,), (1,), 4, 2), (sampling.array((6, 5, 2)),), note="odd words")
        yield Sample(PackPanels((), (0,), (1,), 4, 4, True), (sampling.array((6, 5), i8),), note="flipped")


class UnpackPanels(_Panels):
    """The tensor of `shape` of which x is the panels: the inverse of `graph.pack_panels`.

    A contraction that reads its operand through this operation reads the panels as they lie.
    """

    name = "graph.unpack_panels"
    shape: tuple[Index, ...]
    group: int = 1
    flip: bool = False

    @property
    def words(self) -> int:
        return self.group

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        self.check_flip(self.flip, operands[0])
        expected = self.packed_shape(self.shape)
        if operands[0].shape != expected:
            raise self.reject("the panels' shape does not fit", expected=expected, actual=operands[0].shape)
        return tensor(self.shape, operands[0].element)

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        rows, depth = self._sizes(self.shape)
        row = encode([index[a] for a in self.rows], rows)
        k = encode([index[a] for a in self.depth], depth)
        batch = [index[a] for a in self.batch]
        at = (*batch, row // self.width, k // self.group, row % self.width)
        found = x(at if self.group == 1 else (*at, k % self.group))
        return _flipped(b, found, x.type.element) if self.flip else found

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        return (apply(PackPanels(self.batch, self.rows, self.depth, self.width, self.group, self.flip), ct),)

    def reference(self, x: Array) -> Any:
        *batch, panels, words, width = x.shape if self.group == 1 else x.shape[:-1]
        shape = _numbers(self.shape)
        count, depth = (int(np.prod([shape[a] for a in axes])) for axes in (self.rows, self.depth))
        split = x.reshape(*batch, panels, words, width, self.group).swapaxes(-2, -3)
        flat = split.reshape(*batch, panels * width, words * self.group)[..., :count, :depth]
        flat = flat ^ _highest_bit(flat) if self.flip else flat
        order = self.batch + self.rows + self.depth
        spread = flat.reshape([shape[a] for a in order])
        return np.ascontiguousarray(spread.transpose(np.argsort(order)))

    def samples(self) -> Iterable[Sample]:
        yield Sample(UnpackPanels((), (1,), (0,), 4, (5, 8)), (sampling.array((2, 5, 4)),))
        yield Sample(UnpackPanels((), (0,), (1,), 4, (7, 3)), (sampling.array((2, 3, 4)),))
        yield Sample(UnpackPanels((2,), (0, 3), (1,), 4, (3, 5, 2, 3)), (sampling.array((2, 3, 5, 4)),))
        yield Sample(
            UnpackPanels((), (0,), (1,), 4, (7, 5), 2), (sampling.array((2, 3, 4, 2)),), note="words"
        )


def _flipped(b: Any, x: Any, element: ElementType) -> Any:
    return b.xor(x, b.constant(-128 if element is i8 else 128, element))


def _highest_bit(x: Array) -> Any:
    return np.array(-128 if x.dtype == np.int8 else 128, x.dtype)


def _numbers(shape: tuple[Index, ...]) -> list[int]:
    assert all(isinstance(d, int) for d in shape)
    return [d for d in shape if isinstance(d, int)]


def _type(x: Value) -> TensorType:
    assert isinstance(x.type, TensorType)
    return x.type
