"""Sliding-window reductions (pooling) and their gradients in gather form.

Specification: StableHLO, `reduce_window`; the combiner is a `kind` instead of a region.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.dialects.graph.contraction import accumulator_of, decode, encode, numpy_accumulator
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.dialects.graph.windows import dilated, spread_and_pad, window_count, window_position
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.dims import Index, maximum, minimum
from flambeau.compiler.ir.types import ElementType, TensorType, from_numpy, i64, tensor

Array = np.ndarray[Any, Any]
Padding = tuple[tuple[Index, Index], ...]


#: Windows of up to this many elements are straight code, which vectors can run.
UNROLLED = 16


def lowest(element: ElementType) -> float | int | bool:
    """The identity of max."""
    if element.is_float:
        return float("-inf")
    return False if element.is_bool else int(np.iinfo(element.numpy).min)


def highest(element: ElementType) -> float | int | bool:
    """The identity of min."""
    if element.is_float:
        return float("inf")
    return True if element.is_bool else int(np.iinfo(element.numpy).max)


class Windowed(GraphOp):
    """Base of the operations over windows: one attribute entry an axis of the operand, as in StableHLO."""

    expensive: ClassVar[bool] = True
    rereads: ClassVar[bool] = True
    window_dimensions: tuple[int, ...]
    window_strides: tuple[int, ...]
    padding: Padding
    base_dilations: tuple[int, ...]
    window_dilations: tuple[int, ...]

    def check_window(self, rank: int) -> None:
        for what, values in (
            ("window_dimensions", self.window_dimensions),
            ("window_strides", self.window_strides),
            ("padding", self.padding),
            ("base_dilations", self.base_dilations),
            ("window_dilations", self.window_dilations),
        ):
            if len(values) != rank:
                raise self.reject(f"{what} needs one entry an axis", expected=rank, actual=values)
            if what != "padding" and any(v < 1 for v in values):  # type: ignore[operator]
                raise self.reject(f"{what} must be at least 1", actual=values)

    def window_shape(self, shape: Sequence[Index]) -> tuple[Index, ...]:
        """The number of windows along each axis of a tensor of `shape`."""
        columns = zip(
            shape,
            self.window_dimensions,
            self.window_strides,
            self.padding,
            self.base_dilations,
            self.window_dilations,
            strict=True,
        )
        return tuple([window_count(*column) for column in columns])

    def taps(self) -> int:
        return int(np.prod(self.window_dimensions, dtype=np.int64))

    def position(
        self, b: Any, window: Sequence[Index], tap: Index, shape: Sequence[Index]
    ) -> tuple[tuple[Index, ...], Any]:
        """Where tap number `tap` of the window at `window` lies in the operand, and the condition for it (or None)."""
        index: list[Index] = []
        condition = None
        for axis, offset in enumerate(decode(tap, self.window_dimensions)):
            at, conditions = window_position(
                b,
                window[axis] * self.window_strides[axis] + offset * self.window_dilations[axis],
                *self.padding[axis],
                self.base_dilations[axis],
                shape[axis],
            )
            index.append(at)
            for one in conditions:
                condition = one if condition is None else b.and_(condition, one)
        return tuple(index), condition

    def patches(self, x: Array, fill: Any) -> Iterable[tuple[tuple[int, ...], Array]]:
        """For each tap, its offsets and the elements that it sees, one a window; `fill` in the padding."""
        counts = [int(n) for n in self.window_shape(x.shape)]  # type: ignore[arg-type]
        spread = spread_and_pad(x, self.base_dilations, self.padding, fill)
        for tap in itertools.product(*(range(n) for n in self.window_dimensions)):
            cut = [
                slice(t * d, t * d + (n - 1) * s + 1, s) if n else slice(0, 0)
                for t, d, n, s in zip(tap, self.window_dilations, counts, self.window_strides, strict=True)
            ]
            yield tap, spread[tuple(cut)]


def guarded(b: Any, condition: Any, thunk: Callable[[], Any], otherwise: Any) -> Any:
    """`thunk()` where `condition` holds (None: everywhere)."""
    return thunk() if condition is None else b.guarded(condition, thunk, otherwise)


class ReduceWindow(Windowed):
    """The `kind` ("sum", "max" or "min") of each window's elements; padding does not take part.

    ``result[w] = kind over t of padded(dilated(x))[w * strides + t * window_dilations]``. 16-bit floats are summed in
    f32; NaN wins in max and min. The gradient of a sum is a sum over windows of the dilated cotangent; max and min
    pass it to the first extreme element (as PyTorch does). Specification: StableHLO, `reduce_window`.
    """

    name = "graph.reduce_window"
    schedule_family: ClassVar[str] = "window"
    kind: str = "sum"

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (x,) = operands
        if self.kind not in ("sum", "max", "min"):
            raise self.reject("unknown kind", expected="sum, max or min", actual=self.kind)
        if x.element.is_bool:
            raise self.reject("unsupported element type", expected="float or int or uint", actual=x.element)
        self.check_window(x.rank)
        return x.with_shape(self.window_shape(x.shape))

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        (x,) = operands
        element = x.type.element
        within = accumulator_of(element, element) if self.kind == "sum" else element
        start = {"sum": 0, "max": lowest(element), "min": highest(element)}[self.kind]
        combine = {"sum": b.add, "max": b.max, "min": b.min}[self.kind]
        nothing = b.constant(start, within)
        if self.kind != "sum" and self._inside() and self.taps() <= UNROLLED:
            total = nothing
            for tap in range(self.taps()):
                at = self._nearest(index, tap, x.type.shape)
                total = combine(total, b.convert(x(at), within)) if tap else b.convert(x(at), within)
            return b.convert(total, element)

        def step(tap: Index, total: Any) -> Any:
            at, condition = self.position(b, index, tap, x.type.shape)
            return combine(total, guarded(b, condition, lambda: b.convert(x(at), within), nothing))

        (total,) = b.loop(self.taps(), (nothing,), step)
        return b.convert(total, element)

    def _inside(self) -> bool:
        """Does every window that reaches into the padding also see the element at the edge? Then an extreme may take that
        in place of the padding, and there is nothing to test."""
        for size, pair in zip(self.window_dimensions, self.padding, strict=True):
            for side in pair:
                if not isinstance(side, int) or not 0 <= side < size:
                    return False
        return set(self.base_dilations) <= {1} and set(self.window_dilations) <= {1}

    def _nearest(self, window: Sequence[Index], tap: int, shape: Sequence[Index]) -> tuple[Index, ...]:
        """The position of a tap, moved to the edge where it lies in the padding."""
        found = []
        for axis, offset in enumerate(decode(tap, self.window_dimensions)):
            low, high = self.padding[axis]
            at = window[axis] * self.window_strides[axis] + offset - low
            if low != 0:
                at = maximum(at, 0)
            found.append(minimum(at, shape[axis] - 1) if high != 0 else at)
        return tuple(found)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        kind = build.type_of(x)
        if self.kind != "sum":
            chosen = apply(ReduceWindowIndex(**_window_attributes(self), kind=self.kind), x)
            return (apply(WindowScatter(**_window_attributes(self), shape=kind.shape), ct, chosen),)
        padding: list[tuple[Index, Index]] = []
        for axis, (low, _) in enumerate(self.padding):
            reach = dilated(self.window_dimensions[axis], self.window_dilations[axis]) - 1
            wide = dilated(kind.shape[axis], self.base_dilations[axis])
            spread = dilated(build.shape_of(ct)[axis], self.window_strides[axis])
            padding.append((reach - low, wide + low - spread))
        transposed = replace(
            self,
            window_strides=self.base_dilations,
            padding=tuple(padding),
            base_dilations=self.window_strides,
        )
        return (apply(transposed, ct),)

    def reference(self, *operands: Array) -> Any:
        (x,) = operands
        element = from_numpy(x.dtype)
        wide = numpy_accumulator(x.dtype, None) if self.kind == "sum" else x.dtype
        start = {"sum": 0, "max": lowest(element), "min": highest(element)}[self.kind]
        combine = {"sum": np.add, "max": np.maximum, "min": np.minimum}[self.kind]
        total = np.full([int(n) for n in self.window_shape(x.shape)], start, wide)  # type: ignore[arg-type]
        for _, seen in self.patches(x, start):
            total = combine(total, seen.astype(wide))
        return total.astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x = rng.permutation(2 * 3 * 5 * 4).reshape(2, 3, 5, 4) / 7.0
        yield Sample(pooling("max", (2, 2), (1, 2)), (x,), lambda x: F.max_pool2d(x, 2, (1, 2)))
        yield Sample(
            pooling("max", (3, 2), (2, 1), (1, 1), (1, 2)),
            (x,),
            lambda x: F.max_pool2d(x, (3, 2), (2, 1), 1, (1, 2)),
        )
        yield Sample(pooling("min", (3,), (1,)), (x[0, 0:1],), None)
        yield Sample(
            pooling("sum", (3, 2), (2, 2), (1, 0)),
            (x,),
            lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0), divisor_override=1),
        )
        yield Sample(
            pooling("sum", (3,), (1,), (1,)),
            (x[0].astype(np.float32),),
            lambda x: 3 * F.avg_pool1d(x, 3, 1, 1),
        )
        yield Sample(
            ReduceWindow((2, 3), (1, 2), ((1, 0), (-1, 2)), (2, 1), (1, 2), "sum"),
            (rng.standard_normal((3, 8)),),
            None,
            note="dilated base, negative padding",
        )
        yield Sample(pooling("max", (2,), (2,)), (rng.integers(-9, 9, (1, 2, 6)),), None, note="integers")


class ReduceWindowIndex(Windowed):
    """Where in the operand each window's extreme element lies: an i64 row-major position over the axes from
    `first_axis` on (2 gives PyTorch's `max_pool2d(return_indices=True)`). The first of equals; NaN counts as extreme.

    A window that lies wholly in the padding gives -1.
    """

    name = "graph.reduce_window_index"
    schedule_family: ClassVar[str] = "window"
    kind: str = "max"
    first_axis: int = 0
    vjp = NotDifferentiable("its result is an index", zero=True)

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (x,) = operands
        if self.kind not in ("max", "min"):
            raise self.reject("unknown kind", expected="max or min", actual=self.kind)
        if x.element.is_bool:
            raise self.reject("unsupported element type", expected="float or int or uint", actual=x.element)
        if not 0 <= self.first_axis <= x.rank:
            raise self.reject("first_axis out of range", expected=f"0 to {x.rank}", actual=self.first_axis)
        self.check_window(x.rank)
        return tensor(self.window_shape(x.shape), i64)

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        (x,) = operands
        element, shape = x.type.element, x.type.shape
        direction = "GT" if self.kind == "max" else "LT"
        none = b.constant(-1, i64)
        unset = b.constant(0, element)

        def step(tap: Index, best: Any, where: Any) -> Any:
            at, condition = self.position(b, index, tap, shape)
            value = guarded(b, condition, lambda: x(at), unset)
            better = b.or_(b.compare(direction, value, best), b.compare("EQ", where, none))
            if element.is_float:
                # The first NaN wins and stays.
                better = b.or_(better, b.compare("NE", value, value))
                better = b.and_(better, b.compare("EQ", best, best))
            if condition is not None:
                better = b.and_(better, condition)
            position = b.index_to_scalar(encode(at[self.first_axis :], shape[self.first_axis :]), i64)
            return b.select(better, value, best), b.select(better, position, where)

        _, where = b.loop(self.taps(), (unset, none), step)
        return where

    def reference(self, *operands: Array) -> Any:
        (x,) = operands
        shape = x.shape[self.first_axis :]
        positions = np.broadcast_to(np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape), x.shape)
        counts = [int(n) for n in self.window_shape(x.shape)]  # type: ignore[arg-type]
        best, where = np.zeros(counts, x.dtype), np.full(counts, -1, np.int64)
        better = np.greater if self.kind == "max" else np.less
        for (_, seen), (_, at) in zip(self.patches(x, 0), self.patches(positions, -1), strict=True):
            take = (at >= 0) & ((better(seen, best) | (where < 0) | (seen != seen)) & (best == best))
            best, where = np.where(take, seen, best), np.where(take, at, where)
        return where

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x = rng.integers(0, 9, (2, 3, 5, 4)).astype(np.float32)
        attributes = _window_attributes(pooling("max", (3, 2), (2, 1), (1, 1), (1, 2)))
        yield Sample(
            ReduceWindowIndex(**attributes, kind="max", first_axis=2),
            (x,),
            lambda x: F.max_pool2d(x, (3, 2), (2, 1), 1, (1, 2), return_indices=True)[1],
            note="ties",
        )
        yield Sample(
            ReduceWindowIndex((1, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), "min"), (x[0, 0],), None
        )


class WindowScatter(Windowed):
    """The transpose of picking one element from each window: ``result[i]`` is the sum of ``ct[w]`` over the windows w
    that cover i and whose `index[w]` (a row-major position in `shape`, or -1 for nowhere) is i.

    In gather form: each element of the result loops over the windows that can cover it, so no two threads ever add
    to one place. It is linear in `ct`, with `graph.window_gather` as its transpose. Compare StableHLO's
    `select_and_scatter`.
    """

    name = "graph.window_scatter"
    schedule_family: ClassVar[str] = "window"
    shape: tuple[Index, ...]

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        ct, index = operands
        self.check_window(len(self.shape))
        counts = self.window_shape(self.shape)
        if ct.shape != counts:
            raise self.reject("one element a window", expected=counts, actual=ct.shape)
        if index is not tensor(counts, i64):
            raise self.reject("one index a window", expected=tensor(counts, i64), actual=index)
        if ct.element.is_bool:
            raise self.reject("unsupported element type", expected="float or int or uint", actual=ct.element)
        return ct.with_shape(self.shape)

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        ct, chosen = operands
        element = ct.type.element
        within = accumulator_of(element, element)
        counts = self.window_shape(self.shape)
        mine = b.index_to_scalar(encode(index, self.shape), i64)
        zero = b.constant(0, within)
        # Windows w with w * stride + t * dilation = place for some tap t: at most ceil(reach / stride) along an axis.
        reaches = [
            (w - 1) * d + 1 for w, d in zip(self.window_dimensions, self.window_dilations, strict=True)
        ]
        spans = [-(-reach // stride) for reach, stride in zip(reaches, self.window_strides, strict=True)]

        def step(k: Index, total: Any) -> Any:
            at: list[Index] = []
            condition = None
            for axis, back in enumerate(decode(k, spans)):
                place = index[axis] * self.base_dilations[axis] + self.padding[axis][0]
                window = place // self.window_strides[axis] - back
                at.append(window)
                inside = b.in_bounds(window, 0, counts[axis])
                condition = inside if condition is None else b.and_(condition, inside)

            def add() -> Any:
                hit = b.compare("EQ", chosen(tuple(at)), mine)
                return b.select(hit, b.convert(ct(tuple(at)), within), zero)

            return b.add(total, guarded(b, condition, add, zero))

        (total,) = b.loop(int(np.prod(spans, dtype=np.int64)), (zero,), step)
        return b.convert(total, element)

    def vjp(self, ct: Value, values: Value, index: Value, *, result: Value) -> tuple[Value, None]:
        return apply(WindowGather(**_window_attributes(self)), ct, index), None

    def reference(self, *operands: Array) -> Any:
        ct, index = operands
        out = np.zeros(int(np.prod(self.shape, dtype=np.int64)), numpy_accumulator(ct.dtype, None))  # type: ignore[arg-type]
        somewhere = index >= 0
        np.add.at(out, index[somewhere], ct[somewhere].astype(out.dtype))
        return out.reshape(self.shape).astype(ct.dtype)  # type: ignore[arg-type]

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for op, shape in _index_samples():
            where = ReduceWindowIndex(**_window_attributes(op)).reference(rng.integers(0, 9, shape) * 1.0)
            yield Sample(
                WindowScatter(**_window_attributes(op), shape=shape),
                (rng.standard_normal(where.shape), where),
                None,
            )


class WindowGather(Windowed):
    """The element at `index[w]` (a row-major position in the operand; 0 at -1) for each window w: `x, i64 -> elements`.

    It is linear in `x`, with `graph.window_scatter` as its transpose.
    """

    name = "graph.window_gather"
    expensive: ClassVar[bool] = False

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        x, index = operands
        self.check_window(x.rank)
        counts = self.window_shape(x.shape)
        if index is not tensor(counts, i64):
            raise self.reject("one index a window", expected=tensor(counts, i64), actual=index)
        return x.with_shape(counts)

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        x, chosen = operands
        where = chosen(index)
        position = b.scalar_to_index(where, 0, x.type.size - 1)
        somewhere = b.compare("GE", where, b.constant(0, i64))
        return b.guarded(somewhere, lambda: x(decode(position, x.type.shape)), b.constant(0, x.type.element))

    def vjp(self, ct: Value, x: Value, index: Value, *, result: Value) -> tuple[Value, None]:
        return apply(WindowScatter(**_window_attributes(self), shape=build.shape_of(x)), ct, index), None

    def reference(self, *operands: Array) -> Any:
        x, index = operands
        return np.where(index >= 0, x.reshape(-1)[np.maximum(index, 0)], 0).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for op, shape in _index_samples():
            where = ReduceWindowIndex(**_window_attributes(op)).reference(rng.integers(0, 9, shape) * 1.0)
            yield Sample(
                WindowGather(**_window_attributes(op)),
                (rng.standard_normal(shape), where),
                lambda x, i: x.reshape(-1)[i.clamp(min=0)] * (i >= 0),
            )


def _index_samples() -> list[tuple[ReduceWindow, tuple[int, ...]]]:
    return [
        (pooling("max", (2, 2), (1, 2)), (1, 2, 4, 4)),
        (pooling("max", (3,), (2,), (1,), (2,)), (2, 1, 8)),
        (pooling("max", (2,), (1,), (1,), (2,)), (1, 2, 1)),  # windows that hold nothing but padding
    ]


def _window_attributes(op: Windowed) -> dict[str, Any]:
    names = ("window_dimensions", "window_strides", "padding", "base_dilations", "window_dilations")
    return {name: getattr(op, name) for name in names}


def pooling(
    kind: str,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[Index | tuple[Index, Index]] = (),
    dilation: Sequence[int] = (),
    leading: int = 2,
) -> ReduceWindow:
    """A `reduce_window` over the axes after the `leading` ones (batch and features).

    `padding` is one number or (low, high) an axis.
    """
    rank = len(window)
    ones = (1,) * leading
    sides = [p if isinstance(p, tuple) else (p, p) for p in padding] or [(0, 0)] * rank
    return ReduceWindow(
        window_dimensions=(*ones, *window),
        window_strides=(*ones, *strides),
        padding=(((0, 0),) * leading + tuple(sides)),
        base_dilations=ones + (1,) * rank,
        window_dilations=(*ones, *(dilation or (1,) * rank)),
        kind=kind,
    )
