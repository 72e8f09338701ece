"""Tensors put together, repeated and turned round: what copies, where `shaping` has views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.dtypes import promote_elements
from flambeau.shaping import expand, movedim, narrow, reshape, sizes
from flambeau.tensor import Tensor, axes, axis, method, read, wrap


def _common(tensors: Sequence[Tensor]) -> list[Any]:
    values = [read(x) for x in tensors]
    element = build.element_of(values[0])
    for v in values[1:]:
        element = promote_elements(element, build.element_of(v))
    return [build.convert(v, element) for v in values]


def cat(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor | None = None) -> Tensor:
    """One behind the other along `dim`; empty 1-d tensors are passed over."""
    if len(tensors) == 0:
        raise RuntimeError("torch.cat(): expected a non-empty list of Tensors")
    values = _common(tensors)
    kept = [v for v in values if build.shape_of(v) != (0,)] or values[:1]
    if any(build.type_of(v).rank == 0 for v in kept):
        raise RuntimeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    d = axis(dim, build.type_of(kept[0]).rank)
    first = build.shape_of(kept[0])
    for i, v in enumerate(kept[1:], 1):
        shape = build.shape_of(v)
        if len(shape) != len(first):
            raise RuntimeError(
                f"Tensors must have same number of dimensions: got {len(first)} and {len(shape)}"
            )
        for j, (a, b) in enumerate(zip(first, shape)):
            if j != d and a != b:
                raise RuntimeError(
                    f"Sizes of tensors must match except in dimension {d}. Expected size {a} but got size {b} "
                    f"for tensor "
                    f"number {i} in the list."
                )
    made = build.concatenate(kept, d) if len(kept) > 1 else build.unary("copy", kept[0])
    return wrap(made, "Cat") if out is None else out.copy_(wrap(made))  # type: ignore[attr-defined, no-any-return]


concat = concatenate = cat


def stack(tensors: Sequence[Tensor], dim: int = 0, *, out: Tensor | None = None) -> Tensor:
    """Along a new dimension."""
    if len(tensors) == 0:
        raise RuntimeError("stack expects a non-empty TensorList")
    values = _common(tensors)
    shape = build.shape_of(values[0])
    for i, v in enumerate(values):
        if build.shape_of(v) != shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(shape)} at entry 0 and "
                f"{list(build.shape_of(v))} at entry {i}"
            )
    d = axis(dim, len(shape) + 1)
    made = build.concatenate([build.expand_dims(v, d) for v in values], d)
    return wrap(made, "Stack") if out is None else out.copy_(wrap(made))  # type: ignore[attr-defined, no-any-return]


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Along the second dimension (the first of vectors)."""
    listed = [reshape(x, 1) if x.ndim == 0 else x for x in tensors]
    return cat(listed, 0 if listed[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Along the first dimension, vectors as rows."""
    return cat([reshape(x, 1, -1) if x.ndim < 2 else x for x in tensors], 0)


@method("repeat")
def repeat(self: Tensor, *repeats: Any) -> Tensor:
    """Copies side by side, a number for each dimension."""
    counts = sizes(repeats)
    shape = (1,) * (len(counts) - self.ndim) + tuple(self.shape)
    if len(counts) < self.ndim:
        raise RuntimeError(
            "Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor"
        )
    x = build.reshape(read(self), shape)
    spread = tuple(v for n, d in zip(counts, shape) for v in (n, d))
    x = build.broadcast_in_dim(x, spread, range(1, 2 * len(shape), 2))
    return wrap(build.reshape(x, tuple(n * d for n, d in zip(counts, shape))), "Repeat")


@method("tile")
def tile(input: Tensor, *dims: Any) -> Tensor:
    """`repeat`, with missing leading numbers taken as 1."""
    counts = sizes(dims)
    return repeat(input, *((1,) * (input.ndim - len(counts)) + counts))


@method("repeat_interleave")
def repeat_interleave(
    input: Tensor, repeats: int | Tensor, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Each element `repeats` times in a row, a number for all or one for each. `output_size` is checked if given."""
    if not isinstance(repeats, int):
        counts = repeats.numpy()
        if output_size is not None and counts.sum() != output_size:
            raise RuntimeError(
                f"repeat_interleave: expected {output_size} elements in all, got {counts.sum()}"
            )
        index = np.repeat(np.arange(len(counts)), counts)
        from_index = input if dim is not None else reshape(input, -1)
        return from_index.index_select(dim or 0, _index_tensor(index, input))  # type: ignore[attr-defined, no-any-return]
    x = input if dim is not None else reshape(input, -1)
    d = axis(dim or 0, x.ndim)
    value = read(x)
    shape = build.shape_of(value)
    spread = (*shape[: d + 1], repeats, *shape[d + 1 :])
    value = build.broadcast_in_dim(value, spread, [i for i in range(len(spread)) if i != d + 1])
    return wrap(build.reshape(value, (*shape[:d], shape[d] * repeats, *shape[d + 1 :])), "RepeatInterleave")


def _index_tensor(array: Any, like: Tensor) -> Tensor:
    return wrap(build.literal(array.astype(np.int64)))


@method("flip")
def flip(input: Tensor, *args: Any, dims: Any = None) -> Tensor:
    """Elements in reverse order along dimensions: ``flip(0, 1)``, ``flip((0, 1))`` or ``flip(dims=(0, 1))``."""
    chosen = args if dims is None else ((dims,) if isinstance(dims, int) else tuple(dims),)
    listed = sizes(chosen)
    return wrap(build.reverse(read(input), axes(listed, input.ndim) if listed else ()), "Flip")


def fliplr(input: Tensor) -> Tensor:
    """Flipped along the second dimension."""
    return flip(input, 1)


def flipud(input: Tensor) -> Tensor:
    """Flipped along the first dimension."""
    return flip(input, 0)


@method("roll")
def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Moved round along dimensions (flattened if none is given)."""
    if dims is None:
        return reshape(roll(reshape(input, -1), shifts, 0), *input.shape)
    x = read(input)
    for s, dim in zip(
        [shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims
    ):
        d = axis(dim, input.ndim)
        size = input.shape[d]
        cut = (-s) % size if size else 0
        if cut:
            x = build.concatenate([build.slice_axis(x, d, cut, size), build.slice_axis(x, d, 0, cut)], d)
    return wrap(x if x is not read(input) else build.unary("copy", x), "Roll")


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinates: each vector along a dimension of its own, expanded over the others."""
    listed = list(tensors[0]) if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else list(tensors)
    if indexing == "xy" and len(listed) > 1:
        listed[0], listed[1] = listed[1], listed[0]
    shape = tuple(x.numel() for x in listed)
    found = []
    for i, x in enumerate(listed):
        flat = reshape(x, *(-1 if j == i else 1 for j in range(len(listed))))
        found.append(expand(flat, *shape))
    if indexing == "xy" and len(found) > 1:
        found[0], found[1] = found[1], found[0]
    return tuple(found)


@method("unfold")
def unfold(self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows of `size` every `step` along a dimension, as a new last dimension (a copy)."""
    d = axis(dimension, self.ndim)
    n = (self.shape[d] - size) // step + 1
    return stack([movedim(narrow(self, d, i * step, size), d, -1) for i in range(n)], d)
