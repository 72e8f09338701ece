"""Views and other changes of shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.shape import BroadcastInDim, Reshape, Slice, Transpose
from flambeau.evaluation import record
from flambeau.operands import broadcast_shapes
from flambeau.storage import view_strides
from flambeau.tensor import Tensor, axes, axis, method, read, view, view_of, wrap


def sizes(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes given as integers or as one sequence."""
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    return tuple(int(d) if isinstance(d, (Tensor, np.integer)) else d for d in given)


def _resolved(shape: tuple[Any, ...], numel: int) -> tuple[Any, ...]:
    """`shape` with its -1 found. RuntimeError if it cannot hold `numel` elements."""
    if not any(isinstance(d, int) and d == -1 for d in shape):
        if all(isinstance(d, int) for d in shape) and isinstance(numel, int) and math.prod(shape) != numel:
            raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {numel}")
        return shape
    if sum(1 for d in shape if d == -1) > 1:
        raise RuntimeError("only one dimension can be inferred")
    rest = math.prod(d for d in shape if d != -1)
    if rest == 0:
        raise RuntimeError(
            f"cannot reshape tensor of 0 elements into shape {list(shape)} because the unspecified "
            f"dimension size -1 can "
            "be any value and is ambiguous"
        )
    if isinstance(numel, int) and isinstance(rest, int) and numel % rest:
        raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {numel}")
    return tuple(numel // rest if d == -1 else d for d in shape)


def _numel(shape: Sequence[Any]) -> Any:
    return math.prod(shape)


@method("view")
def view_(self: Tensor, *shape: Any) -> Tensor:
    """The same memory in another shape. RuntimeError where strides do not allow it."""
    from_shape = read(self).type.shape  # type: ignore[attr-defined]
    wanted = _resolved(sizes(shape), _numel(from_shape))
    if not _viewable(self, from_shape, wanted):
        raise RuntimeError(
            "view size is not compatible with input tensor's size and stride (at least one dimension "
            "spans across two "
            "contiguous subspaces). Use .reshape(...) instead."
        )
    return view(self, Reshape(wanted), name="View")


def _viewable(x: Tensor, shape: Any, wanted: Any) -> bool:
    return not x._chain or view_strides(tuple(shape), list(x.stride()), wanted) is not None


@method("reshape")
def reshape(input: Tensor, *shape: Any) -> Tensor:
    """In another shape: a view where strides allow it, else a copy."""
    from_shape = read(input).type.shape  # type: ignore[attr-defined]
    wanted = _resolved(sizes(shape), _numel(from_shape))
    if _viewable(input, from_shape, wanted):
        return view(input, Reshape(wanted), name="View")
    return wrap(record(Reshape(wanted), read(input)), "UnsafeView")


@method("view_as")
def view_as(self: Tensor, other: Tensor) -> Tensor:
    """`view` in the other's shape."""
    return view_(self, *other.shape)


@method("reshape_as")
def reshape_as(self: Tensor, other: Tensor) -> Tensor:
    """`reshape` to the other's shape."""
    return reshape(self, *other.shape)


@method("contiguous")
def contiguous(self: Tensor, memory_format: Any = None) -> Tensor:
    """Itself if it is row-major in memory, else a copy."""
    return self if not self._chain or self.is_contiguous() else self.clone()  # type: ignore[attr-defined, no-any-return]


@method("permute")
def permute(input: Tensor, *dims: Any) -> Tensor:
    """A view with its dimensions in another order."""
    order = sizes(dims)
    rank = input.ndim
    if len(order) != rank:
        raise RuntimeError(
            "permute(sparse_coo): number of dimensions in the tensor input does not match the length "
            "of the desired "
            f"ordering of dimensions i.e. input.dim() = {rank} is not equal to len(dims) = {len(order)}"
        )
    found = tuple(axis(d, rank) for d in order)
    if len(set(found)) != rank:
        raise RuntimeError("permute(): duplicate dims are not allowed.")
    return view(input, Transpose(found), name="Permute")


@method("transpose", "swapaxes", "swapdims")
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """A view with two dimensions exchanged."""
    rank = input.ndim
    a, b = axis(dim0, rank), axis(dim1, rank)
    if rank == 0:
        return view_of(input)
    order = list(range(rank))
    order[a], order[b] = b, a
    return view(input, Transpose(tuple(order)), name="Transpose")


@method("t")
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix, as a view."""
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return view_of(input) if input.ndim < 2 else view(input, Transpose((1, 0)), name="T")


def _reversed(self: Tensor) -> Tensor:
    return view(self, Transpose(tuple(range(self.ndim))[::-1]), name="Permute")


def _matrix_transposed(self: Tensor) -> Tensor:
    if self.ndim < 2:
        raise RuntimeError(
            f"tensor.mT is only supported on matrices or batches of matrices. Got {self.ndim}-D tensor."
        )
    return transpose(self, -2, -1)


Tensor.T = property(_reversed)  # type: ignore[attr-defined]
Tensor.mT = property(_matrix_transposed)  # type: ignore[attr-defined]


@method("movedim", "moveaxis")
def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """A view with dimensions moved to other places."""
    rank = input.ndim
    sources = [axis(d, rank) for d in ([source] if isinstance(source, int) else source)]
    places = [axis(d, rank) for d in ([destination] if isinstance(destination, int) else destination)]
    order = [d for d in range(rank) if d not in sources]
    for place, d in sorted(zip(places, sources)):
        order.insert(place, d)
    return permute(input, *order)


@method("squeeze")
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """A view without dimensions of size 1 (all such, or the given ones where their size is 1)."""
    shape = input.shape
    dims = range(len(shape)) if dim is None else axes(dim, len(shape))
    kept = tuple(d for i, d in enumerate(shape) if not (i in dims and d == 1))
    return view(input, Reshape(kept), name="Squeeze" if dim is None else "SqueezeBackward1")


@method("unsqueeze")
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A view with a new dimension of size 1 at `dim`."""
    shape = list(input.shape)
    shape.insert(axis(dim, len(shape) + 1), 1)
    return view(input, Reshape(tuple(shape)), name="Unsqueeze")


@method("flatten")
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions `start_dim` to `end_dim` as one."""
    shape = input.shape
    if not shape:
        return reshape(input, 1)
    a, b = axis(start_dim, len(shape)), axis(end_dim, len(shape))
    if a > b:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if a == b:
        return input
    return reshape(input, *shape[:a], _numel(shape[a : b + 1]), *shape[b + 1 :])


@method("ravel")
def ravel(input: Tensor) -> Tensor:
    """As one dimension."""
    return reshape(input, -1)


@method("unflatten")
def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    """Dimension `dim` as several."""
    shape = input.shape
    d = axis(dim, len(shape))
    return reshape(input, *shape[:d], *_resolved(tuple(sizes), shape[d]), *shape[d + 1 :])


@method("expand")
def expand(input: Tensor, *size: Any) -> Tensor:
    """A view in which dimensions of size 1 are repeated; -1 leaves a size as it is."""
    wanted = sizes(size)
    shape = input.shape
    if len(wanted) < len(shape):
        raise RuntimeError(
            f"expand(torch.{input.type().split('.')[1]}{{{list(shape)}}}, size={list(wanted)}): the number of sizes "  # type: ignore[attr-defined]
            f"provided ({len(wanted)}) must be greater or equal to the number of dimensions in the "
            f"tensor ({len(shape)})"
        )
    offset = len(wanted) - len(shape)
    found = []
    for i, d in enumerate(wanted):
        have = shape[i - offset] if i >= offset else 1
        if d == -1 and i < offset:
            raise RuntimeError(
                f"expand: the expanded size of the tensor (-1) isn't allowed in a leading, non-existing "
                f"dimension {i}"
            )
        if d != -1 and have != 1 and have != d:
            raise RuntimeError(
                f"The expanded size of the tensor ({d}) must match the existing size ({have}) at "
                f"non-singleton dimension "
                f"{i}.  Target sizes: {list(wanted)}.  Tensor sizes: {list(shape)}"
            )
        found.append(have if d == -1 else d)
    if tuple(found) == tuple(shape):
        return view_of(input)
    return view(input, BroadcastInDim(tuple(found), tuple(range(offset, len(wanted)))), name="Expand")


@method("expand_as")
def expand_as(self: Tensor, other: Tensor) -> Tensor:
    """Expanded to the other's shape."""
    return expand(self, *other.shape)


@method("broadcast_to")
def broadcast_to(input: Tensor, shape: Any) -> Tensor:
    """`expand`."""
    return expand(input, *shape)


def broadcast_tensors(*tensors: Tensor) -> list[Tensor]:
    """All expanded to their common shape."""
    shape = broadcast_shapes(*(x.shape for x in tensors))
    return [expand(x, *shape) for x in tensors]


@method("narrow")
def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A view of `length` entries of a dimension, from `start` on."""
    d = axis(dim, input.ndim)
    size = input.shape[d]
    start = int(start)
    if start < 0:
        start += size
    if not 0 <= start <= size - length:
        raise RuntimeError(f"start ({start}) + length ({length}) exceeds dimension size ({size}).")
    return sliced(input, d, start, start + length, 1)


def sliced(input: Tensor, d: int, start: int, stop: int, step: int) -> Tensor:
    """A view of ``start, start + step, …`` below `stop` along `d`."""
    shape = read(input).type.shape  # type: ignore[attr-defined]
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[d], stops[d], steps[d] = start, stop, step
    return view(input, Slice(tuple(starts), tuple(stops), tuple(steps)), name="Slice")


@method("select")
def select(input: Tensor, dim: int, index: int) -> Tensor:
    """A view of one entry of a dimension, which goes. IndexError if it is out of range."""
    shape = input.shape
    if not shape:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    d = axis(dim, len(shape))
    i = int(index)
    if not -shape[d] <= i < shape[d]:
        raise IndexError(
            f"select(): index {i} out of range for tensor of size {list(shape)} at dimension {d}"
        )
    i %= shape[d]
    starts, stops = [0] * len(shape), list(shape)
    starts[d], stops[d] = i, i + 1
    kept = (*shape[:d], *shape[d + 1 :])
    return view(input, Slice(tuple(starts), tuple(stops), (1,) * len(shape)), Reshape(kept), name="Select")


@method("split")
def split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views one behind the other along `dim`: of one size, or of the sizes given."""
    size = tensor.shape[axis(dim, tensor.ndim)]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        if step <= 0:
            raise RuntimeError(f"split expects split_size be non-negative, but got split_size={step}")
        sections = [min(step, size - i) for i in range(0, size, step)] or [0]
    else:
        sections = list(split_size_or_sections)
        if sum(sections) != size:
            raise RuntimeError(
                f"split_with_sizes expects split_sizes to sum exactly to {size} (input tensor's size at "
                f"dimension "
                f"{dim}), but got split_sizes={sections}"
            )
    found, start = [], 0
    for length in sections:
        found.append(narrow(tensor, dim, start, length))
        start += length
    return tuple(found)


@method("chunk")
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` views of equal size (the last may be smaller)."""
    if chunks <= 0:
        raise RuntimeError("chunk expects `chunks` to be greater than 0, got: " + str(chunks))
    size = input.shape[axis(dim, input.ndim)]
    return split(input, max(1, -(-size // chunks)), dim)


@method("tensor_split")
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views between the given indices, or as many as asked, as equal as possible."""
    size = input.shape[axis(dim, input.ndim)]
    if isinstance(indices_or_sections, Tensor):
        indices_or_sections = indices_or_sections.tolist()
    if isinstance(indices_or_sections, int):
        n = indices_or_sections
        return split(input, [size // n + (i < size % n) for i in range(n)], dim)
    edges = [0, *(min(max(i + size if i < 0 else i, 0), size) for i in indices_or_sections), size]
    return tuple(narrow(input, dim, a, max(0, b - a)) for a, b in pairwise(edges))


@method("unbind")
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """A view of each entry of a dimension."""
    return tuple(select(input, dim, i) for i in range(input.shape[axis(dim, input.ndim)]))


@method("diagonal")
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of a diagonal, as the last dimension."""
    rank = input.ndim
    a, b = axis(dim1, rank), axis(dim2, rank)
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    rest = [d for d in range(rank) if d not in (a, b)]
    shape = input.shape
    n, m = shape[a], shape[b]
    length = max(0, min(n, m - offset) if offset >= 0 else min(n + offset, m))
    lead = tuple(shape[d] for d in rest)
    first = (offset if offset >= 0 else -offset * m) if length else 0
    stop = first + (length - 1) * (m + 1) + 1 if length else 0
    steps = [Transpose((*rest, a, b)), Reshape((*lead, n * m))]
    steps.append(Slice((*(0,) * len(lead), first), (*lead, stop), (*(1,) * len(lead), m + 1)))  # type: ignore[arg-type]
    return view(input, *steps, name="Diagonal")


@method("diag")
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A matrix with this diagonal, or the diagonal of a matrix."""
    if input.ndim == 2:
        return globals()["diagonal"](input, diagonal).clone()  # type: ignore[no-any-return]
    return diag_embed(input, diagonal)


@method("diag_embed")
def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices, in dimensions `dim1` and `dim2` of the result, with the last dimension of `input` as their diagonal."""
    x = read(input)
    shape = build.shape_of(x)
    n = shape[-1] + abs(offset)
    low, high = (0, abs(offset)) if offset >= 0 else (abs(offset), 0)
    lead = (0,) * (len(shape) - 1)
    spread = build.pad(x, (*lead, low), (*lead, high))
    rows = build.broadcast_in_dim(spread, (*shape[:-1], n, n), range(len(shape)))
    full = (*shape[:-1], n, n)
    i = build.iota(full, dimension=len(full) - 2)
    j = build.iota(full, dimension=len(full) - 1)
    found = build.select(build.eq(build.add(i, offset), j), rows, build.zeros_like(rows))
    first, second = axis(dim1, len(full)), axis(dim2, len(full))
    if first == second:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    others = iter(range(len(full) - 2))
    places = {first: len(full) - 2, second: len(full) - 1}
    order = [places[d] if d in places else next(others) for d in range(len(full))]
    if order != sorted(order):
        found = build.transpose(found, order)
    return wrap(found, "DiagEmbed")
