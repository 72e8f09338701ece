"""Elements chosen by tensors of indices: gather, scatter, and their kin along one dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau import evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.creation import from_array, tensor
from flambeau.indexing import in_range, place_of, put_at, set_item
from flambeau.operands import broadcast_shapes, value_of
from flambeau.tensor import Tensor, axis, method, read, wrap, write


@method("gather")
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """``out[i][j] = input[index[i][j]][j]`` for dimension 0."""
    x, i = read(input), read(index)
    d = axis(dim, input.ndim)
    if 0 in index.shape:  # of any rank
        return wrap(build.zeros(ir.tensor(build.shape_of(i), build.element_of(x))), "Gather")
    if max(input.ndim, 1) != max(index.ndim, 1):
        raise RuntimeError("Index tensor must have the same number of dimensions as input tensor")
    if input.ndim == 0:
        return wrap(build.broadcast_to(x, build.shape_of(i)), "Gather")
    if index.ndim == 0:
        return gather(input, dim, index.reshape(1)).reshape(())  # type: ignore[attr-defined, no-any-return]
    return wrap(_take(x, in_range(i, build.shape_of(x)[d], d), d), "Gather")


def _take(x: Value, index: Value, d: int) -> Value:
    return build.take_along(_cropped(x, index, d), index, d)


def _cropped(x: Value, index: Value, d: int) -> Value:
    shape = build.shape_of(x)
    limits = [n if i == d else m for i, (n, m) in enumerate(zip(shape, build.shape_of(index)))]
    if any(isinstance(m, int) and isinstance(n, int) and m > n for m, n in zip(limits, shape)):
        raise RuntimeError(
            f"Size does not match at dimension {d} expected index {list(build.shape_of(index))} to be "
            f"no larger than self "
            f"{list(shape)} apart from dimension {d}"
        )
    return x if tuple(limits) == tuple(shape) else build.slice(x, [0] * len(shape), limits)


@method("take_along_dim")
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`gather` after broadcasting."""
    if dim is None:
        return gather(input.reshape(-1), 0, indices.reshape(-1))  # type: ignore[attr-defined]
    d = axis(dim, input.ndim)
    shape = list(
        broadcast_shapes(*([1 if i == d else n for i, n in enumerate(t.shape)] for t in (input, indices)))
    )
    mine, theirs = list(shape), list(shape)
    mine[d], theirs[d] = input.shape[d], indices.shape[d]
    return gather(input.expand(*mine), d, indices.expand(*theirs))  # type: ignore[attr-defined]


@method("take")
def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements of the flattened tensor."""
    return input.reshape(-1)[index]  # type: ignore[attr-defined, no-any-return]


def _scattered(input: Tensor, dim: int, index: Tensor, src: Any, kind: str) -> Value:
    if input.ndim == 0:
        flat = src.reshape(1) if isinstance(src, Tensor) else src  # type: ignore[attr-defined]
        return build.reshape(_scattered(input.reshape(1), dim, index.reshape(1), flat, kind), ())  # type: ignore[attr-defined]
    x, i = read(input), read(index)
    d = axis(dim, input.ndim)
    i = in_range(i, build.shape_of(x)[d], d)
    if isinstance(src, Tensor):
        updates = read(src)
        if build.element_of(updates) is not build.element_of(x):
            raise RuntimeError("scatter(): Expected self.dtype to be equal to src.dtype")
        if build.shape_of(updates) != build.shape_of(i):
            updates = build.slice(updates, [0] * input.ndim, build.shape_of(i))
    else:
        updates = value_of(src, build.zeros(ir.tensor(build.shape_of(i), build.element_of(x))))
    return build.scatter_along(x, i, updates, d, kind)


def _kind(reduce: str | None) -> str:
    if reduce not in _REDUCE:
        raise RuntimeError(f"scatter: reduce must be one of {[k for k in _REDUCE if k]}, got {reduce!r}")
    return _REDUCE[reduce]


_REDUCE = {None: "set", "add": "add", "sum": "add", "amax": "max", "amin": "min"}


@method("scatter")
def scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Tensor:
    """``out[index[i][j]][j] = src[i][j]`` for dimension 0."""
    return wrap(_scattered(input, dim, index, value if src is None else src, _kind(reduce)), "Scatter")


@method("scatter_")
def scatter_(
    self: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Tensor:
    """`scatter` in place."""
    return write(self, _scattered(self, dim, index, value if src is None else src, _kind(reduce)))


@method("scatter_add")
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """``out[index[i][j]][j] += src[i][j]`` for dimension 0."""
    return wrap(_scattered(input, dim, index, src, "add"), "ScatterAdd")


@method("scatter_add_")
def scatter_add_(self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """`scatter_add` in place."""
    return write(self, _scattered(self, dim, index, src, "add"))


@method("index_select")
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """Entries of a dimension, in the order of `index`."""
    if input.ndim == 0:
        return index_select(input.reshape(1), dim, index).reshape(())  # type: ignore[attr-defined, no-any-return]
    x = read(input)
    d = axis(dim, input.ndim)
    if index.ndim > 1:
        raise IndexError("index_select(): Index is supposed to be a vector")
    i = build.reshape(in_range(read(index), build.shape_of(x)[d], d), (index.numel(),))
    return wrap(build.gather(x, [i], [d], d), "IndexSelect")


def _along(input: Tensor, dim: int, index: Tensor, source: Any, kind: str) -> Value:
    if input.ndim == 0:
        flat = source.reshape(1) if isinstance(source, Tensor) else source  # type: ignore[attr-defined]
        return build.reshape(_along(input.reshape(1), dim, index, flat, kind), ())  # type: ignore[attr-defined]
    x = read(input)
    d = axis(dim, input.ndim)
    i = build.reshape(in_range(read(index), build.shape_of(x)[d], d), (index.numel(),))
    part = build.gather(x, [i], [d], d)
    return build.scatter(x, value_of(source, part), [i], [d], d, kind)


@method("index_add")
def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """Entries of `source` added at `index` along a dimension."""
    return wrap(_along(input, dim, index, source if alpha == 1 else source * alpha, "add"), "IndexAdd")  # type: ignore[operator]


@method("index_add_")
def index_add_(self: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """`index_add` in place."""
    return write(self, _along(self, dim, index, source if alpha == 1 else source * alpha, "add"))  # type: ignore[operator]


@method("index_copy")
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Entries of `source` put at `index` along a dimension."""
    return wrap(_along(input, dim, index, source, "set"), "IndexCopy")


@method("index_copy_")
def index_copy_(self: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`index_copy` in place."""
    return write(self, _along(self, dim, index, source, "set"))


def _filled(input: Tensor, dim: int, index: Tensor, value: Any) -> Value:
    """By a mask, so that a place that `index` names twice takes the value once, in the gradient too."""
    if input.ndim == 0:
        return build.reshape(_filled(input.reshape(1), dim, index, value), ())  # type: ignore[attr-defined]
    x = read(input)
    d = axis(dim, input.ndim)
    size = build.shape_of(x)[d]
    i = build.reshape(in_range(read(index), size, d), (index.numel(),))
    hit = build.scatter_along(
        build.constant(False, ir.i1, (size,)), i, build.constant(True, ir.i1, (index.numel(),)), 0, "set"
    )
    return build.select(build.broadcast_in_dim(hit, build.shape_of(x), (d,)), value_of(value, x), x)


@method("index_fill")
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`value` at `index` along a dimension."""
    return wrap(_filled(input, dim, index, value), "IndexFill")


@method("index_fill_")
def index_fill_(self: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`index_fill` in place."""
    return write(self, _filled(self, dim, index, value))


@method("index_put_")
def index_put_(self: Tensor, indices: Sequence[Tensor], values: Tensor, accumulate: bool = False) -> Tensor:
    """``self[indices] = values``, or ``+=`` with `accumulate` (equal indices add up)."""
    if not accumulate:
        set_item(self, tuple(indices), values)
        return self
    place, tensors = place_of(self, tuple(indices))
    put_at(place.of(self), tensors, values, "add")
    return self


@method("index_put")
def index_put(input: Tensor, indices: Sequence[Tensor], values: Tensor, accumulate: bool = False) -> Tensor:
    """`index_put_` on a copy."""
    return index_put_(input.clone(), indices, values, accumulate)  # type: ignore[attr-defined]


@method("unique")
def unique(
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The different elements in order, or the different slices along `dim`. Evaluates `input`."""
    d = None if dim is None or input.ndim == 0 else axis(dim, input.ndim)
    found = np.unique(evaluation.content(read(input)), return_inverse=True, return_counts=True, axis=d)
    values = from_array(np.ascontiguousarray(found[0]), input.dtype.element)
    if dim is not None and input.ndim == 0:
        values = values.reshape(())  # type: ignore[attr-defined]
    rest = []
    if return_inverse:
        shape = input.shape if dim is None else (found[1].size,)
        rest.append(from_array(found[1].reshape(shape).astype(np.int64), ir.i64))
    if return_counts:
        rest.append(from_array(found[2].astype(np.int64), ir.i64))
    return (values, *rest) if rest else values


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each integer occurs. Evaluates `input`."""
    w = None if weights is None else evaluation.content(read(weights))
    found = np.bincount(evaluation.content(read(input)), w, minlength)
    return tensor(found)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """A new last dimension: 1 where it counts to the element, else 0."""
    classes = int(tensor.max().item()) + 1 if num_classes == -1 else num_classes  # type: ignore[attr-defined]
    return wrap(build.one_hot(read(tensor), classes, ir.i64))
