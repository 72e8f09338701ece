"""Operations that move elements without computing: broadcasts, reshapes, transposes, slices, pads, joins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, divide, known_nonnegative, product
from flambeau.compiler.ir.types import TensorType, bf16, f16, f32, f64, from_numpy, i1, i32, tensor

Array = np.ndarray[Any, Any]
Gradients = tuple[Value | None, ...]


class ShapeOp(GraphOp):
    """One operand, any element type."""

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        return tensor(self.result_shape(operands[0]), operands[0].element)

    def result_shape(self, x: TensorType) -> tuple[Index, ...]:
        raise NotImplementedError

    def entries(self, what: str, values: tuple[Any, ...], rank: int) -> None:
        """One entry an axis, or an error."""
        if len(values) != rank:
            raise self.reject(f"{what} needs one entry for each axis", expected=rank, actual=values)


class BroadcastInDim(ShapeOp):
    """Axis i of x becomes axis ``dimensions[i]`` of `shape` (increasing); others, and axes of size 1, are repeated.

    Any element type. StableHLO `broadcast_in_dim`.
    """

    name = "graph.broadcast_in_dim"
    shape: tuple[Index, ...]
    dimensions: tuple[int, ...]

    def result_shape(self, x: TensorType) -> tuple[Index, ...]:
        self.entries("dimensions", self.dimensions, x.rank)
        if any(a >= b for a, b in zip(self.dimensions, self.dimensions[1:])):
            raise self.reject("dimensions must increase", actual=self.dimensions)
        for axis, d in zip(self.dimensions, x.shape):
            if not 0 <= axis < len(self.shape):
                raise self.reject(
                    "dimension out of range", expected=f"0 to {len(self.shape) - 1}", actual=axis
                )
            if d != 1 and d != self.shape[axis]:
                raise self.reject(
                    f"operand size does not fit axis {axis}", expected=f"1 or {self.shape[axis]}", actual=d
                )
        return self.shape

    def fold(self, x: Value) -> Value | None:
        if build.shape_of(x) == self.shape:
            return x
        inner = x.owner
        if inner is not None and isinstance(inner.definition, BroadcastInDim):
            through = [self.dimensions[d] for d in inner.definition.dimensions]
            return build.broadcast_in_dim(inner.operands[0], self.shape, through)
        return None

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        shape = x.type.shape
        return x(tuple([0 if shape[i] == 1 else index[axis] for i, axis in enumerate(self.dimensions)]))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        shape = build.shape_of(x)
        kept = {axis: d for axis, d in zip(self.dimensions, shape) if d == self.shape[axis]}
        summed = build.reduce_sum(ct, [a for a in range(len(self.shape)) if a not in kept])
        return (build.reshape(summed, shape),)

    def reference(self, x: Array) -> Any:
        spread = [1] * len(self.shape)
        for axis, d in zip(self.dimensions, x.shape):
            spread[axis] = d
        return np.broadcast_to(x.reshape(spread), self.shape).copy()  # type: ignore[arg-type]

    def samples(self) -> Iterable[Sample]:
        yield Sample(
            BroadcastInDim((2, 3, 4), (0, 2)), (sampling.array((2, 4)),), lambda x: x[:, None].expand(2, 3, 4)
        )
        yield Sample(BroadcastInDim((2, 3), ()), (np.float32(2),), lambda x: x.expand(2, 3))
        yield Sample(BroadcastInDim((2, 3), (0, 1)), (sampling.array((1, 3)),), lambda x: x.expand(2, 3))
        yield Sample(
            BroadcastInDim((4, 1, 2), (1, 2)), (sampling.array((1, 1), f16),), lambda x: x.expand(4, 1, 2)
        )
        yield Sample(BroadcastInDim((0, 3), (1,)), (sampling.array((3,), bf16),), lambda x: x.expand(0, 3))
        yield Sample(BroadcastInDim((5, 3), (1,)), (sampling.array((3,), i1),), lambda x: x.expand(5, 3))


class Reshape(ShapeOp):
    """The elements of x in row-major order as `shape`, which has as many. Any element type. StableHLO `reshape`."""

    name = "graph.reshape"
    shape: tuple[Index, ...]

    def result_shape(self, x: TensorType) -> tuple[Index, ...]:
        if product(self.shape) != x.size:
            raise self.reject("the number of elements changes", expected=x.size, actual=f"{self.shape}")
        return self.shape

    def fold(self, x: Value) -> Value | None:
        if build.shape_of(x) == self.shape:
            return x
        inner = x.owner
        if inner is not None and isinstance(inner.definition, Reshape):
            return build.reshape(inner.operands[0], self.shape)
        return None

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        if 0 in x.type.shape:  # never run, but asked for: the index arithmetic below divides by sizes
            return x((0,) * x.type.rank)
        source: list[Index] = []
        for from_axes, to_axes in matching_groups(x.type.shape, self.shape):
            linear: Index = 0
            for axis in to_axes:
                linear = linear * self.shape[axis] + index[axis]
            parts: list[Index] = []
            for count, axis in enumerate(reversed(from_axes), 1):
                if count == len(from_axes):
                    parts.append(linear)
                    break
                linear, part = divide(linear, x.type.shape[axis])
                parts.append(part)
            source.extend(reversed(parts))
        return x(tuple(source))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.reshape(ct, build.shape_of(x)),)

    def reference(self, x: Array) -> Any:
        return x.reshape(self.shape)  # type: ignore[arg-type]

    def samples(self) -> Iterable[Sample]:
        for source, target, element in (
            ((2, 6), (3, 4), f64),
            ((4, 3, 2), (4, 6), f32),
            ((1,), (), f32),
            ((), (1, 1), f32),
            ((0, 3), (5, 0), f32),
            ((2, 3, 5), (3, 2, 5), f16),
            ((4, 4), (16,), bf16),
            ((6,), (1, 2, 3, 1), i32),
        ):
            yield Sample(
                Reshape(target), (sampling.array(source, element),), lambda x, t=target: x.reshape(t)
            )


def matching_groups(
    source: tuple[Index, ...], target: tuple[Index, ...]
) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes of two shapes with equal products, so that a reshape is a reshape of each run."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        from_axes: list[int] = []
        to_axes: list[int] = []
        left: Index = 1
        right: Index = 1
        while (not from_axes and not to_axes) or left != right:
            # Take from the side that is behind; with symbols, from whichever has axes left, until products meet.
            behind = (known_nonnegative(right - left) and j > 0) or j >= len(target)
            if i < len(source) and (behind or not from_axes):
                left = left * source[i]
                from_axes.append(i)
                i += 1
            elif j < len(target):
                right = right * target[j]
                to_axes.append(j)
                j += 1
            else:
                return [(list(range(len(source))), list(range(len(target))))]
        groups.append((from_axes, to_axes))
    return groups


class Transpose(ShapeOp):
    """Axis i of the result is axis ``permutation[i]`` of x. Any element type. StableHLO `transpose`."""

    name = "graph.transpose"
    permutation: tuple[int, ...]

    def result_shape(self, x: TensorType) -> tuple[Index, ...]:
        if sorted(self.permutation) != list(range(x.rank)):
            raise self.reject(
                "not a permutation of the axes",
                expected=f"0 to {x.rank - 1} in some order",
                actual=self.permutation,
            )
        return tuple([x.shape[p] for p in self.permutation])

    def fold(self, x: Value) -> Value | None:
        if self.permutation == tuple(range(len(self.permutation))):
            return x
        inner = x.owner
        if inner is not None and isinstance(inner.definition, Transpose):
            first = inner.definition.permutation
            return build.transpose(inner.operands[0], [first[p] for p in self.permutation])
        return None

    def inverse(self) -> tuple[int, ...]:
        """The permutation that undoes this one."""
        order = [0] * len(self.permutation)
        for i, p in enumerate(self.permutation):
            order[p] = i
        return tuple(order)

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        return x(tuple([index[i] for i in self.inverse()]))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.transpose(ct, self.inverse()),)

    def reference(self, x: Array) -> Any:
        return x.transpose(self.permutation).copy()

    def samples(self) -> Iterable[Sample]:
        for shape, order, element in (
            ((2, 3), (1, 0), f64),
            ((2, 3, 4), (2, 0, 1), f32),
            ((), (), f32),
            ((1, 5), (1, 0), f16),
            ((0, 2), (1, 0), f32),
            ((3, 2, 2), (0, 2, 1), bf16),
            ((3, 2), (1, 0), i32),
        ):
            yield Sample(Transpose(order), (sampling.array(shape, element),), lambda x, p=order: x.permute(p))


class Slice(ShapeOp):
    """Elements start, start + stride, … below limit, along each axis. Any element type. StableHLO `slice`."""

    name = "graph.slice"
    start_indices: tuple[Index, ...]
    limit_indices: tuple[Index, ...]
    strides: tuple[int, ...]

    def result_shape(self, x: TensorType) -> tuple[Index, ...]:
        for what in ("start_indices", "limit_indices", "strides"):
            self.entries(what, getattr(self, what), x.rank)
        shape: list[Index] = []
        for axis, (start, limit, stride, d) in enumerate(
            zip(self.start_indices, self.limit_indices, self.strides, x.shape)
        ):
            if stride < 1:
                raise self.reject(f"stride of axis {axis} must be positive", actual=stride)
            numbers = [v for v in (0, start, limit, d) if not isinstance(v, Dim)]
            if numbers != sorted(numbers):
                raise self.reject(
                    f"axis {axis}: bounds out of order",
                    expected=f"0 <= start <= limit <= {d}",
                    actual=f"{start}:{limit}",
                )
            shape.append((limit - start + stride - 1) // stride if stride != 1 else limit - start)
        return tuple(shape)

    def fold(self, x: Value) -> Value | None:
        whole = all(isinstance(s, int) and s == 0 for s in self.start_indices)
        if whole and self.limit_indices == build.shape_of(x) and all(s == 1 for s in self.strides):
            return x
        return None

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        return x(
            tuple([i * stride + start for i, stride, start in zip(index, self.strides, self.start_indices)])
        )

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        high = []
        for d, start, stride, count in zip(
            build.shape_of(x), self.start_indices, self.strides, build.shape_of(ct)
        ):
            used = count if stride == 1 else (count - 1) * stride + 1
            high.append(d - start - used if not (isinstance(count, int) and count == 0) else d - start)
        return (build.pad(ct, self.start_indices, high, [s - 1 for s in self.strides]),)

    def reference(self, x: Array) -> Any:
        bounds = zip(self.start_indices, self.limit_indices, self.strides)
        return x[tuple(slice(*b) for b in bounds)].copy()

    def samples(self) -> Iterable[Sample]:
        yield Sample(Slice((1, 0), (3, 5), (1, 2)), (sampling.array((4, 5)),), lambda x: x[1:3, 0:5:2])
        yield Sample(Slice((2,), (9,), (3,)), (sampling.array((10,), f32),), lambda x: x[2:9:3])
        yield Sample(Slice((1,), (1,), (1,)), (sampling.array((3,), f32),), lambda x: x[1:1])
        yield Sample(Slice((1,), (1,), (2,)), (sampling.array((3,), f64),), lambda x: x[1:1:2])
        yield Sample(Slice((), (), ()), (np.float32(1),), lambda x: x.clone())
        yield Sample(Slice((0, 1), (2, 2), (1, 1)), (sampling.array((2, 2), bf16),), lambda x: x[:, 1:2])
        yield Sample(Slice((0, 1), (2, 2), (1, 1)), (sampling.array((2, 2), f16),), lambda x: x[:, 1:2])
        yield Sample(Slice((3,), (8,), (4,)), (sampling.array((8,), i32),), lambda x: x[3:8:4])


class Pad(ShapeOp):
    """`value` `low` times before, `high` behind and `interior` between the elements of each axis; counts are >= 0.

    Any element type. StableHLO `pad` with a constant value.
    """

    name = "graph.pad"
    reads_once: ClassVar[bool] = True
    low: tuple[Index, ...]
    high: tuple[Index, ...]
    interior: tuple[int, ...]
    value: float = 0.0

    def result_shape(self, x: TensorType) -> tuple[Index, ...]:
        shape: list[Index] = []
        for what in ("low", "high", "interior"):
            self.entries(what, getattr(self, what), x.rank)
            if any(isinstance(p, int) and p < 0 for p in getattr(self, what)):
                raise self.reject(f"{what} must not be negative", actual=getattr(self, what))
        for d, low, high, interior in zip(x.shape, self.low, self.high, self.interior):
            between = 0 if interior == 0 or (isinstance(d, int) and d == 0) else (d - 1) * interior
            shape.append(d + between + low + high)
        return tuple(shape)

    def fold(self, x: Value) -> Value | None:
        if all(isinstance(p, int) and p == 0 for p in (*self.low, *self.high, *self.interior)):
            return x
        return None

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        inside, source = None, []
        for i, low, interior, d in zip(index, self.low, self.interior, x.type.shape):
            position = i - low
            tests = []
            if interior:
                position, between = divide(position, interior + 1)
                tests.append(b.in_bounds(between, 0, 1))
            tests.append(b.in_bounds(position, 0, d))
            for test in tests:
                inside = test if inside is None else b.and_(inside, test)
            source.append(position)
        if inside is None:
            return x(())
        element = x.type.element
        value = b.constant(self.value if element.is_float else int(self.value), element)
        return b.guarded(inside, lambda: x(tuple(source)), value)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        ends = []
        for low, d, interior in zip(self.low, build.shape_of(x), self.interior):
            empty = isinstance(d, int) and d == 0
            ends.append(low if empty else low + (d - 1) * (interior + 1) + 1)
        return (build.slice(ct, self.low, ends, [i + 1 for i in self.interior]),)

    def reference(self, x: Array) -> Any:
        shape: Any = self.result_shape(tensor(x.shape, from_numpy(x.dtype)))
        out = np.full(shape, self.value, x.dtype)
        where = []
        for low, d, interior in zip(self.low, x.shape, self.interior):
            step = interior + 1
            where.append(slice(low, low + (d - 1) * step + 1 if d else low, step))
        out[tuple(where)] = x
        return out

    def samples(self) -> Iterable[Sample]:
        yield Sample(
            Pad((1, 0), (0, 2), (0, 0), 1.5),
            (sampling.array((2, 3)),),
            lambda x: _torch_pad(x, (0, 2, 1, 0), 1.5),
        )
        yield Sample(Pad((1,), (2,), (2,)), (sampling.array((4,)),))
        yield Sample(Pad((0, 1), (1, 0), (1, 3), -1.0), (sampling.array((2, 3), f32),))
        yield Sample(Pad((), (), ()), (np.float32(3),), lambda x: x.clone())
        yield Sample(Pad((2,), (1,), (1,)), (np.zeros((0,), np.float32),))
        yield Sample(Pad((2,), (1,), (0,)), (sampling.array((5,), f16),), lambda x: _torch_pad(x, (2, 1), 0))
        yield Sample(
            Pad((2,), (1,), (0,), 7), (sampling.array((5,), bf16),), lambda x: _torch_pad(x, (2, 1), 7)
        )
        yield Sample(
            Pad((2,), (1,), (0,), 7), (sampling.array((5,), i32),), lambda x: _torch_pad(x, (2, 1), 7)
        )


def _torch_pad(x: Any, widths: tuple[int, ...], value: float) -> Any:
    """torch's constant pad by tensor methods: `widths` start at the last axis."""
    for i in range(0, len(widths), 2):
        axis = x.dim() - 1 - i // 2
        shape = list(x.shape)
        shape[axis] += widths[i] + widths[i + 1]
        out = x.new_full(shape, value)
        out.narrow(axis, widths[i], x.shape[axis]).copy_(x)
        x = out
    return x


class Concatenate(GraphOp):
    """The operands, equal but along `dimension`, one behind the other along it. StableHLO `concatenate`."""

    name = "graph.concatenate"
    reads_once: ClassVar[bool] = True
    dimension: int = 0

    def infer(self, *operands: TensorType) -> TensorType:
        if not operands:
            raise self.reject("needs at least one operand", actual=0)
        first, axis = operands[0], self.dimension
        if not 0 <= axis < first.rank:
            raise self.reject("dimension out of range", expected=f"0 to {first.rank - 1}", actual=axis)
        total: Index = 0
        for i, x in enumerate(operands, 1):
            if x.element is not first.element or x.rank != first.rank:
                raise self.reject(f"operand {i} has another element type or rank", expected=first, actual=x)
            if x.shape[:axis] + x.shape[axis + 1 :] != first.shape[:axis] + first.shape[axis + 1 :]:
                raise self.reject(
                    f"operand {i} differs outside dimension {axis}", expected=first.shape, actual=x.shape
                )
            total = total + x.shape[axis]
        return tensor((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.element)

    def fold(self, *operands: Value) -> Value | None:
        return operands[0] if len(operands) == 1 else None

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        value = b.constant(0, operands[0].type.element)
        offset: Index = 0
        for x in operands:
            size = x.type.shape[self.dimension]
            at = (*index[: self.dimension], index[self.dimension] - offset, *index[self.dimension + 1 :])
            value = b.guarded(b.in_bounds(at[self.dimension], 0, size), lambda x=x, at=at: x(at), value)
            offset = offset + size
        return value

    def vjp(self, ct: Value, *operands: Value, result: Value) -> Gradients:
        pieces = []
        offset: Index = 0
        for x in operands:
            limit = offset + build.shape_of(x)[self.dimension]
            pieces.append(build.slice_axis(ct, self.dimension, offset, limit))
            offset = limit
        return tuple(pieces)

    def reference(self, *operands: Array) -> Any:
        return np.concatenate(operands, self.dimension)

    def samples(self) -> Iterable[Sample]:
        for shapes, axis, element in (
            (((2, 3), (1, 3), (4, 3)), 0, f64),
            (((2, 3), (2, 1)), 1, f32),
            (((0,), (3,)), 0, f32),
            (((2,), (2,)), 0, f16),
            (((2,), (1,), (2,)), 0, bf16),
            (((2, 2), (2, 2)), 1, i32),
        ):
            operands = tuple(sampling.array(s, element, seed=i) for i, s in enumerate(shapes))
            yield Sample(Concatenate(axis), operands, lambda *xs, a=axis: _torch_concatenate(xs, a))


def _torch_concatenate(operands: tuple[Any, ...], axis: int) -> Any:
    shape = list(operands[0].shape)
    shape[axis] = sum(x.shape[axis] for x in operands)
    out, at = operands[0].new_empty(shape), 0
    for x in operands:
        out.narrow(axis, at, x.shape[axis]).copy_(x)
        at += x.shape[axis]
    return out


class Reverse(ShapeOp):
    """Elements in reverse order along each of `dimensions`. Any element type. StableHLO `reverse`."""

    name = "graph.reverse"
    dimensions: tuple[int, ...]

    def result_shape(self, x: TensorType) -> tuple[Index, ...]:
        if len(set(self.dimensions)) != len(self.dimensions) or any(
            not 0 <= d < x.rank for d in self.dimensions
        ):
            raise self.reject(
                "dimensions must be different axes", expected=f"0 to {x.rank - 1}", actual=self.dimensions
            )
        return x.shape

    def fold(self, x: Value) -> Value | None:
        if all(build.shape_of(x)[d] == 1 for d in self.dimensions):
            return x
        inner = x.owner
        same = (
            inner is not None
            and isinstance(inner.definition, Reverse)
            and inner.definition.dimensions == self.dimensions
        )
        return inner.operands[0] if inner is not None and same else None

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any) -> Any:
        shape = x.type.shape
        return x(tuple([shape[a] - 1 - i if a in self.dimensions else i for a, i in enumerate(index)]))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.reverse(ct, self.dimensions),)

    def reference(self, x: Array) -> Any:
        return np.flip(x, self.dimensions).copy()

    def samples(self) -> Iterable[Sample]:
        for shape, axes, element in (
            ((3, 4), (0,), f64),
            ((3, 4), (0, 1), f32),
            ((0, 2), (0,), f32),
            ((1, 5), (1,), f16),
            ((6,), (0,), bf16),
            ((2, 3), (1,), i32),
        ):
            yield Sample(Reverse(axes), (sampling.array(shape, element),), lambda x, a=axes: x.flip(a))
