"""Reading and writing at positions that are known only at run time.

An index out of range is clamped into it, as StableHLO's `gather` does; negative indices do not count from the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index
from flambeau.compiler.ir.types import TensorType, bf16, f16, f32, f64, i32, tensor

Array = np.ndarray[Any, Any]
Gradients = tuple[Value | None, ...]


class Indexed(GraphOp):
    """What gather and scatter share: index tensors of one shape S, one for each of `axes` of x.

    The indexed part of x has x's other axes in their order, with the axes of S put in before number `position` of
    them: ``x[i]`` is axes (0,), position 0; ``x[:, i]`` axes (1,), position 1; ``x[i, :, j]`` axes (0, 2), position 0.
    """

    axes: tuple[int, ...]
    position: int = 0

    def part(self, x: TensorType, indices: Sequence[TensorType]) -> tuple[Index, ...]:
        """The shape of the indexed part, or an error."""
        if len(indices) != len(self.axes) or not indices:
            raise self.reject(
                "needs one index tensor for each of axes, and at least one",
                expected=len(self.axes),
                actual=len(indices),
            )
        if len(set(self.axes)) != len(self.axes) or any(not 0 <= a < x.rank for a in self.axes):
            raise self.reject(
                "axes must be different axes of the operand", expected=f"0 to {x.rank - 1}", actual=self.axes
            )
        if not 0 <= self.position <= x.rank - len(self.axes):
            raise self.reject(
                "position out of range", expected=f"0 to {x.rank - len(self.axes)}", actual=self.position
            )
        for i, index in enumerate(indices):
            if not index.element.is_integer:
                raise self.reject(
                    f"index {i} must be an integer tensor", expected="int or uint", actual=index.element
                )
            if index.shape != indices[0].shape:
                raise self.reject(
                    f"index {i} has another shape than the first",
                    expected=indices[0].shape,
                    actual=index.shape,
                )
        rest = [d for a, d in enumerate(x.shape) if a not in self.axes]
        part = (*rest[: self.position], *indices[0].shape, *rest[self.position :])
        if any(x.shape[a] == 0 for a in self.axes) and all(isinstance(d, Dim) or d > 0 for d in part):
            raise self.reject("an indexed axis is empty", expected="at least 1 element", actual=x)
        return part

    def source(
        self, b: Any, index: tuple[Index, ...], shape: tuple[Index, ...], indices: Sequence[Any]
    ) -> tuple[Index, ...]:
        """Where in x, of `shape`, the element `index` of the indexed part lies; `indices` are accessors."""
        inner = indices[0].type.rank
        at = index[self.position : self.position + inner]
        rest = iter((*index[: self.position], *index[self.position + inner :]))
        found: dict[int, Index] = {}
        for axis, accessor in zip(self.axes, indices):
            found[axis] = b.clamped_index(accessor(at), 0, shape[axis] - 1)
        return tuple([found[a] if a in found else next(rest) for a in range(len(shape))])

    def numpy_index(self, x: Array, indices: Sequence[Array]) -> tuple[Array, ...]:
        """Arrays that index the part of x by NumPy's rules, all broadcast to its shape."""
        rest = [d for a, d in enumerate(x.shape) if a not in self.axes]
        inner = indices[0].ndim
        rank = len(rest) + inner
        kept = iter([p if p < self.position else p + inner for p in range(len(rest))])
        found: list[Array] = []
        for axis, size in enumerate(x.shape):
            spread = [1] * rank
            if axis in self.axes:
                index = indices[self.axes.index(axis)]
                spread[self.position : self.position + inner] = index.shape
                found.append(np.clip(index.astype(np.int64), 0, max(size - 1, 0)).reshape(spread))
            else:
                spread[next(kept)] = size
                found.append(np.arange(size).reshape(spread))
        return tuple(np.broadcast_arrays(*found))


class Gather(Indexed):
    """``x[i1, :, i2]``: the part of x (any element type) at index tensors of one shape; operands (x, i1, i2, …).

    Attributes as in `Indexed`: `axes` name the axis of each index, `position` where their shape stands in the result.
    Covers embedding, `index_select`, `take_along_dim` (with iotas), NumPy's indexing. StableHLO `gather`, simplified.
    """

    name = "graph.gather"

    def infer(self, *operands: TensorType) -> TensorType:
        if not operands:
            raise self.reject("wrong number of operands", expected=1 + len(self.axes), actual=0)
        return tensor(self.part(operands[0], operands[1:]), operands[0].element)

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any, *indices: Any) -> Any:
        return x(self.source(b, index, x.type.shape, indices))

    def vjp(self, ct: Value, x: Value, *indices: Value, result: Value) -> Gradients:
        grad = build.scatter(build.zeros_like(x), ct, indices, self.axes, self.position)
        return (grad, *(None for _ in indices))

    def reference(self, x: Array, *indices: Array) -> Any:
        return np.asarray(x[self.numpy_index(x, indices)])

    def samples(self) -> Iterable[Sample]:
        i, j = np.array([2, 0, 2, 1]), np.array([1, 1, 0, 3])
        grid = np.array([[0, 1], [2, 2]], np.int32)
        for element in (f64, f32, f16, bf16, i32):
            x = sampling.array((3, 4), element)
            yield Sample(Gather((0,)), (x, i), lambda x, i: x[i])
            yield Sample(Gather((1,), 1), (x, j), lambda x, j: x[:, j])
        x3 = sampling.array((3, 4, 4))
        yield Sample(Gather((0, 2)), (x3, i, j), lambda x, i, j: x[i, :, j])
        yield Sample(Gather((0, 1)), (x3, i, j), lambda x, i, j: x[i, j])
        yield Sample(Gather((1,), 1), (x3, grid), lambda x, g: x[:, g.long()])
        yield Sample(Gather((0,)), (x3, np.int64(1)), lambda x, i: x[i])
        yield Sample(Gather((0,)), (x3, np.zeros((0,), np.int64)), lambda x, i: x[i])
        yield Sample(
            Gather((0,)), (sampling.array((3,)), np.array([-1, 5, 1])), lambda x, i: x[i.clamp(0, 2)]
        )


class Scatter(Indexed):
    """x with `updates` put into its part at index tensors: operands (x, updates, i1, i2, …); any numeric element type.

    `kind` says how an update meets what is there: set (of equal indices the last wins), add, max or min. `updates`
    has the shape that `graph.gather` with the same indices gives. Gradients of max and min are shared equally among
    ties; that of set is right where indices are distinct, as in PyTorch. StableHLO `scatter`, simplified.
    """

    name = "graph.scatter"
    schedule_family: ClassVar[str] = "scatter"
    kind: str = "add"

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) < 2:
            raise self.reject("wrong number of operands", expected=2 + len(self.axes), actual=len(operands))
        x, updates, *indices = operands
        if self.kind not in ("set", "add", "max", "min"):
            raise self.reject("unknown kind", expected="set, add, max or min", actual=self.kind)
        if x.element.is_bool and self.kind != "set":
            raise self.reject(
                f"kind {self.kind} does not take this element type", expected="float or int", actual=x.element
            )
        expected = tensor(self.part(x, indices), x.element)
        if updates is not expected:
            raise self.reject(
                "the updates' type does not fit the operand and indices", expected=expected, actual=updates
            )
        return x

    def combine(self, b: Any, old: Any, update: Any) -> Any:
        """What stands in memory after `update` met `old`. For lowerings."""
        if self.kind == "set":
            return update
        return {"add": b.add, "max": b.max, "min": b.min}[self.kind](old, update)

    def vjp(self, ct: Value, x: Value, updates: Value, *indices: Value, result: Value) -> Gradients:
        def read(v: Value) -> Value:
            return build.gather(v, indices, self.axes, self.position)

        nothing = (None,) * len(indices)
        if self.kind == "add":
            return (ct, read(ct), *nothing)
        if self.kind == "set":
            cleared = build.scatter(ct, build.zeros_like(updates), indices, self.axes, self.position, "set")
            return (cleared, read(ct), *nothing)
        element = build.element_of(x)
        kept = build.convert(build.eq(x, result), element)
        won = build.convert(build.eq(updates, read(result)), element)
        share = build.div(ct, build.scatter(kept, won, indices, self.axes, self.position, "add"))
        return (build.mul(kept, share), build.mul(won, read(share)), *nothing)

    def reference(self, x: Array, updates: Array, *indices: Array) -> Any:
        out, where = x.copy(), self.numpy_index(x, indices)
        if self.kind == "set":
            out[where] = updates
            return out
        ufunc: Any = {"add": np.add, "max": np.maximum, "min": np.minimum}[self.kind]
        ufunc.at(out, where, updates)
        return out

    def samples(self) -> Iterable[Sample]:
        i, j = np.array([2, 0, 2, 1]), np.array([1, 1, 0, 3])
        for kind in ("add", "set", "max", "min"):
            reduce = {"max": "amax", "min": "amin", "add": "sum", "set": ""}[kind]
            for element in (f64, f32, f16, bf16, i32):
                x, unique = sampling.array((3, 4), element), np.array([2, 0])
                updates = sampling.array((2, 4), element, seed=1)
                yield Sample(
                    Scatter((0,), 0, kind),
                    (x, updates, unique),
                    lambda x, u, i, r=reduce: _torch_scatter(x, u, i[:, None].expand(2, 4), r),
                )
            yield Sample(
                Scatter((0, 1), 0, kind), (sampling.array((3, 4)), sampling.array((4,), seed=2), i, j)
            )
            yield Sample(
                Scatter((1,), 1, kind),
                (sampling.array((3, 4)), sampling.array((3, 2), seed=2), np.array([3, 1])),
            )
            empty = sampling.array((3,), f32), np.zeros((0,), np.float32), np.zeros((0,), np.int64)
            yield Sample(Scatter((0,), 0, kind), empty, lambda x, u, i: x.clone())
        x, updates = sampling.array((3, 2)), sampling.array((4, 2), seed=3)
        yield Sample(Scatter((0,), 0, "add"), (x, updates, i), lambda x, u, i: x.index_add(0, i, u))
        yield Sample(
            Scatter((0,), 0, "max"),
            (x, updates, i),
            lambda x, u, i: x.scatter_reduce(0, i[:, None].expand(4, 2), u, "amax"),
        )


def _torch_scatter(x: Any, updates: Any, index: Any, reduce: str) -> Any:
    return x.scatter_reduce(0, index, updates, reduce) if reduce else x.scatter(0, index, updates)


def _check_starts(op: GraphOp, x: TensorType, starts: Sequence[TensorType]) -> None:
    if len(starts) != x.rank:
        raise op.reject("needs one start for each axis", expected=x.rank, actual=len(starts))
    for i, start in enumerate(starts):
        if start.rank or not start.element.is_integer:
            raise op.reject(
                f"start {i} must be an integer scalar", expected="tensor<i64> or the like", actual=start
            )


def _check_box(op: GraphOp, x: TensorType, sizes: Sequence[Index]) -> None:
    if len(sizes) != x.rank:
        raise op.reject("needs one size for each axis", expected=x.rank, actual=tuple(sizes))
    for axis, (size, d) in enumerate(zip(sizes, x.shape)):
        if isinstance(size, int) and isinstance(d, int) and not 0 <= size <= d:
            raise op.reject(f"the box does not fit axis {axis}", expected=f"0 to {d}", actual=size)


def _numpy_box(x: Array, starts: Sequence[Array], sizes: Sequence[int]) -> Any:
    first = [min(max(int(s), 0), d - n) for s, d, n in zip(starts, x.shape, sizes)]
    return tuple(slice(s, s + n) for s, n in zip(first, sizes))


class DynamicSlice(GraphOp):
    """The box of `slice_sizes` of x (any element type) at run-time starts, clamped so that it fits.

    Operands: x and one integer scalar for each axis. StableHLO `dynamic_slice`.
    """

    name = "graph.dynamic_slice"
    slice_sizes: tuple[Index, ...]

    def infer(self, *operands: TensorType) -> TensorType:
        if not operands:
            raise self.reject("wrong number of operands", expected=1 + len(self.slice_sizes), actual=0)
        _check_starts(self, operands[0], operands[1:])
        _check_box(self, operands[0], self.slice_sizes)
        return tensor(self.slice_sizes, operands[0].element)

    def fold(self, x: Value, *starts: Value) -> Value | None:
        return x if build.shape_of(x) == self.slice_sizes else None

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any, *starts: Any) -> Any:
        found = []
        for i, start, d, size in zip(index, starts, x.type.shape, self.slice_sizes):
            found.append(i if d == size else i + b.clamped_index(start(()), 0, d - size))
        return x(tuple(found))

    def vjp(self, ct: Value, x: Value, *starts: Value, result: Value) -> Gradients:
        return (build.dynamic_update_slice(build.zeros_like(x), ct, starts), *(None for _ in starts))

    def reference(self, x: Array, *starts: Array) -> Any:
        sizes: Any = self.slice_sizes
        return np.array(x[_numpy_box(x, starts, sizes)])

    def samples(self) -> Iterable[Sample]:
        one, two = np.int64(1), np.int32(2)
        for element in (f64, f32, f16, bf16, i32):
            operands = sampling.array((4, 5), element), one, two
            yield Sample(DynamicSlice((2, 3)), operands, lambda x, i, j: x[i : i + 2, j : j + 3])
        yield Sample(DynamicSlice((2,)), (sampling.array((4,)), np.int64(9)), lambda x, i: x[2:4])
        yield Sample(DynamicSlice((2,)), (sampling.array((4,)), np.int64(-3)), lambda x, i: x[0:2])
        yield Sample(DynamicSlice((0,)), (sampling.array((4,)), one), lambda x, i: x[1:1])
        yield Sample(DynamicSlice(()), (np.float32(2),), lambda x: x.clone())


class DynamicUpdateSlice(GraphOp):
    """x with the box at run-time starts replaced by `update`, of x's element type; starts are clamped so that it fits.

    Operands: x, update and one integer scalar for each axis. StableHLO `dynamic_update_slice`.
    """

    name = "graph.dynamic_update_slice"

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) < 2:
            raise self.reject("wrong number of operands", expected="at least 2", actual=len(operands))
        x, update = operands[:2]
        if update.element is not x.element:
            raise self.reject(
                "the update has another element type", expected=x.element, actual=update.element
            )
        _check_starts(self, x, operands[2:])
        _check_box(self, x, update.shape)
        return x

    def fold(self, x: Value, update: Value, *starts: Value) -> Value | None:
        return update if x.type is update.type else None

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any, update: Any, *starts: Any) -> Any:
        inside, found = None, []
        for i, start, d, size in zip(index, starts, x.type.shape, update.type.shape):
            position = i if d == size else i - b.clamped_index(start(()), 0, d - size)
            test = b.in_bounds(position, 0, size)
            inside = test if inside is None else b.and_(inside, test)
            found.append(position)
        if inside is None:
            return update(())
        return b.guarded(inside, lambda: update(tuple(found)), x(index))

    def vjp(self, ct: Value, x: Value, update: Value, *starts: Value, result: Value) -> Gradients:
        cleared = build.dynamic_update_slice(ct, build.zeros_like(update), starts)
        return (cleared, build.dynamic_slice(ct, starts, build.shape_of(update)), *(None for _ in starts))

    def reference(self, x: Array, update: Array, *starts: Array) -> Any:
        out = x.copy()
        out[_numpy_box(x, starts, update.shape)] = update
        return out

    def samples(self) -> Iterable[Sample]:
        one, two = np.int64(1), np.int32(2)
        for element in (f64, f32, f16, bf16, i32):
            operands = sampling.array((4, 5), element), sampling.array((2, 3), element, seed=1), one, two
            yield Sample(
                DynamicUpdateSlice(), operands, lambda x, u, i, j: _torch_update(x, u, int(i), int(j))
            )
        yield Sample(DynamicUpdateSlice(), (sampling.array((4,)), sampling.array((2,), seed=1), np.int64(9)))
        yield Sample(
            DynamicUpdateSlice(),
            (sampling.array((4,), f32), np.zeros((0,), np.float32), one),
            lambda x, u, i: x.clone(),
        )
        yield Sample(DynamicUpdateSlice(), (np.float32(1), np.float32(2)), lambda x, u: u.clone())


def _torch_update(x: Any, update: Any, i: int, j: int) -> Any:
    out = x.clone()
    out[i : i + update.shape[0], j : j + update.shape[1]] = update
    return out
