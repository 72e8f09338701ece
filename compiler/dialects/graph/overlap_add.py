"""`graph.overlap_add`: windows put back where they lie, summed where they overlap (col2im)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.dialects.graph.contraction import accumulator_of, decode, numpy_accumulator
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.dialects.graph.windows import dilated, spread_and_pad
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import TensorType


class OverlapAdd(GraphOp):
    """``result[..., o * stride + k * dilation - low] += x[..., k, o]`` for every tap k of the window at every o.

    `x` has any leading dimensions, then the window's, then as many of the windows' positions; the result has the leading
    ones, then `shape`. What falls outside is dropped, as PyTorch's `fold` drops the padding. 16-bit floats are summed in
    f32. It is linear, with the copying of windows (im2col) as its transpose.
    """

    name = "graph.overlap_add"
    schedule_family: ClassVar[str] = "window"
    shape: tuple[Index, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[Index, ...]

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (x,) = operands
        rank = len(self.shape)
        for what, values in (("strides", self.strides), ("dilations", self.dilations), ("low", self.low)):
            if len(values) != rank:
                raise self.reject(
                    f"{what} needs one entry an axis of the shape", expected=rank, actual=values
                )
        if any(n < 1 for n in (*self.strides, *self.dilations)):
            raise self.reject(
                "strides and dilations must be at least 1", actual=(self.strides, self.dilations)
            )
        if x.rank < 2 * rank:
            raise self.reject("the window and its positions need two axes each", expected=2 * rank, actual=x)
        if any(not isinstance(n, int) for n in self.window(x)):
            raise self.reject("the window's sizes must be numbers", actual=x)
        if x.element.is_bool:
            raise self.reject("unsupported element type", expected="float or int or uint", actual=x.element)
        return x.with_shape((*self.leading(x), *self.shape))

    def leading(self, x: TensorType) -> tuple[Index, ...]:
        return x.shape[: x.rank - 2 * len(self.shape)]

    def window(self, x: TensorType) -> tuple[Index, ...]:
        """The window's sizes, which are numbers."""
        return x.shape[x.rank - 2 * len(self.shape) : x.rank - len(self.shape)]

    def _sizes(self, x: TensorType) -> list[int]:
        return [n for n in self.window(x) if isinstance(n, int)]

    def positions(self, x: TensorType) -> tuple[Index, ...]:
        """How many windows there are along each axis."""
        return x.shape[x.rank - len(self.shape) :]

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        (x,) = operands
        rank, element = len(self.shape), x.type.element
        within = accumulator_of(element, element)
        zero = b.constant(0, within)
        lead, place = index[: len(index) - rank], index[len(index) - rank :]
        counts = self.positions(x.type)
        sizes = self._sizes(x.type)

        def step(tap: Index, total: Any) -> Any:
            taps = decode(tap, sizes)
            at: list[Index] = []
            condition = None
            for axis, t in enumerate(taps):
                stride = self.strides[axis]
                # Shifted by a multiple of the stride so that the division sees no negative number.
                reach = (sizes[axis] - 1) * self.dilations[axis]
                low = self.low[axis]
                shift = -(-reach // stride)
                if isinstance(low, int) and low < 0:
                    shift -= low // stride
                moved = place[axis] + low - t * self.dilations[axis] + shift * stride
                window = moved // stride - shift
                for one in (
                    b.in_bounds(moved % stride, 0, 1),
                    b.in_bounds(window, 0, counts[axis]),
                ):
                    condition = one if condition is None else b.and_(condition, one)
                at.append(window)

            def read() -> Any:
                return b.convert(x((*lead, *taps, *at)), within)

            return b.add(total, read() if condition is None else b.guarded(condition, read, zero))

        (total,) = b.loop(int(np.prod(sizes, dtype=np.int64)), (zero,), step)
        return b.convert(total, element)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        return (self.windows_of(ct, build.type_of(x)),)

    def windows_of(self, y: Value, x: TensorType) -> Value:
        """The transpose: the windows of `y`, in the order of an operand of type `x`."""
        rank, lead = len(self.shape), len(self.leading(x))
        counts = self.positions(x)
        sizes = self._sizes(x)
        low: list[Index] = [0] * lead
        high: list[Index] = [0] * lead
        for axis in range(rank):
            reach = (counts[axis] - 1) * self.strides[axis] + dilated(sizes[axis], self.dilations[axis])
            low.append(self.low[axis])
            high.append(reach - self.shape[axis] - self.low[axis])
        padded = build.pad(y, low, high)
        parts = []
        for taps in itertools.product(*(range(n) for n in sizes)):
            part = padded
            for axis, t in enumerate(taps):
                first, stride = t * self.dilations[axis], self.strides[axis]
                limit = first + (counts[axis] - 1) * stride + 1
                part = build.slice_axis(part, lead + axis, first, limit, stride)
            parts.append(build.expand_dims(part, lead))
        return build.reshape(build.concatenate(parts, lead), x.shape)

    def reference(self, *operands: np.ndarray[Any, Any]) -> Any:
        (x,) = operands
        rank = len(self.shape)
        lead = x.ndim - 2 * rank
        sizes, counts = x.shape[lead : lead + rank], x.shape[lead + rank :]
        wide = numpy_accumulator(x.dtype, None)
        reach = [
            max(0, (n - 1) * s + (k - 1) * d + 1)
            for n, s, k, d in zip(counts, self.strides, sizes, self.dilations, strict=True)
        ]
        total = np.zeros((*x.shape[:lead], *reach), wide)
        for taps in itertools.product(*(range(n) for n in sizes)) if all(counts) else ():
            cut = [slice(None)] * lead
            for t, d, n, s in zip(taps, self.dilations, counts, self.strides, strict=True):
                cut.append(slice(t * d, t * d + (n - 1) * s + 1, s))
            total[tuple(cut)] += x[(slice(None),) * lead + taps]
        sides = [
            (-int(low), int(n) + int(low) - extent)  # type: ignore[arg-type]
            for low, n, extent in zip(self.low, self.shape, reach, strict=True)
        ]
        fitted = spread_and_pad(total, (1,) * total.ndim, [(0, 0)] * lead + sides, 0)
        return np.ascontiguousarray(fitted).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2, 3, 3, 2, 2, 4))

        def fold(x: Any) -> Any:
            return F.fold(x.reshape(2, 3 * 6, 8), (3, 6), (3, 2), padding=1, stride=(2, 2))

        yield Sample(OverlapAdd((3, 6), (2, 2), (1, 1), (1, 1)), (x,), fold, note="padding, strides")
        dilated_ones = rng.standard_normal((2, 3, 4)).astype(np.float32)
        yield Sample(
            OverlapAdd((9,), (1,), (2,), (0,)), (dilated_ones,), None, note="a dilated window, a rest"
        )
        yield Sample(
            OverlapAdd((5,), (3,), (1,), (-1,)), (rng.standard_normal((2, 2, 2)),), None, note="gaps, an edge"
        )
        yield Sample(OverlapAdd((4,), (2,), (1,), (1,)), (rng.integers(-9, 9, (3, 3)),), None)


def overlap_add(
    x: Value,
    shape: Sequence[Index],
    strides: Sequence[int],
    dilations: Sequence[int],
    low: Sequence[Index],
) -> Value:
    """The operation applied."""
    return build.make(OverlapAdd(tuple(shape), tuple(strides), tuple(dilations), tuple(low)), x)
