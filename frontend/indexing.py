"""Reading and writing by index: basic indices are views; tensors gather and scatter; "
"masks are looked up first."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from flambeau import dtypes, evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.shape import Reshape, Slice
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value, infer_types
from flambeau.creation import from_array, tensor
from flambeau.operands import broadcast_shapes, fit, put, value_of
from flambeau.tensor import Tensor, method, new_tensor, read, view, view_of, wrap, write


def _items(index: Any) -> list[Any]:
    if isinstance(index, tuple):
        return list(index)
    if isinstance(index, list):
        return [tensor(index)]
    return [index]


def _as_tensor(item: Any) -> Any:
    if isinstance(item, (list, np.ndarray)):
        found = tensor(item)
        return found.to(dtypes.int64) if found.numel() == 0 else found  # type: ignore[attr-defined]
    if isinstance(item, range):
        return tensor(list(item))
    return item


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype.element is ir.i1


def _expanded(items: list[Any], rank: int) -> list[Any]:
    """With the ellipsis replaced and full slices behind. IndexError if there are too many."""
    used = 0
    for item in items:
        if item is None or item is Ellipsis or isinstance(item, bool):
            continue
        used += item.ndim if _is_mask(item) else 1
    if used > rank:
        raise IndexError(f"too many indices for tensor of dimension {rank}")
    places = [i for i, x in enumerate(items) if x is Ellipsis]
    if len(places) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    at = places[0] if places else len(items)
    return items[:at] + [slice(None)] * (rank - used) + items[at + 1 :]


class _Place(NamedTuple):
    """What integers, slices and None show of a tensor: the view's definitions, its name for autograd, and its type."""

    definitions: tuple[Any, ...]
    name: str
    type: Any

    def of(self, tensor: Tensor, known: bool = False) -> Tensor:
        """The view. It is not looked at yet if its type is `known` to be right and it has no history."""
        if not self.definitions:
            return view_of(tensor)
        cell = tensor._cell
        if known and cell.parent is None and not cell.value.requires_grad and evaluation.state.trace is None:
            return new_tensor(cell, (*(tensor._chain or ()), *self.definitions))
        return view(tensor, *self.definitions, name=self.name)


_PLACES: dict[Any, _Place] = {}
_REMEMBERED = 1 << 12


def _description(index: Any) -> Any:
    """An index of integers, slices, None and ellipses as a hashable value; None for others."""
    kind = index.__class__
    if kind is int:
        return index
    if kind is slice:
        for bound in (index.start, index.stop, index.step):
            if bound is not None and bound.__class__ is not int:
                return None
        return index.start, index.stop, index.step
    if index is None or index is Ellipsis:
        return index.__class__
    if kind is not tuple:
        return None
    parts = tuple([_description(part) for part in index])
    return None if None in parts else (tuple, *parts)


def place_of(self: Tensor, index: Any) -> tuple[_Place, list[tuple[int, Tensor]]]:
    """The view that an index's integers, slices and None make, and the (dimension, index tensor) pairs that remain."""
    type_ = read(self).type
    described = _description(index)
    if described is not None:
        found = _PLACES.get((type_, described))
        if found is not None:
            return found, []
    shape = type_.shape  # type: ignore[attr-defined]
    definitions, name, tensors = _basic(shape, _expanded([_as_tensor(i) for i in _items(index)], len(shape)))
    types = (type_,)
    for definition in definitions:
        types = infer_types(definition, types)
    place = _Place(definitions, name, types[0])
    if described is not None and not tensors:
        if len(_PLACES) >= _REMEMBERED:
            _PLACES.clear()
        _PLACES[type_, described] = place
    return place, tensors


def _basic(shape: tuple[Any, ...], items: list[Any]) -> tuple[tuple[Any, ...], str, list[tuple[int, Tensor]]]:
    """The definitions of a view, its name, and the (dimension, index tensor) pairs that remain."""
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    kept: list[Any] = []
    tensors: list[tuple[int, Tensor]] = []
    d = 0
    for item in items:
        if item is None:
            kept.append(1)
        elif isinstance(item, bool):
            tensors.append((len(kept), from_array(np.zeros(int(item), np.int64), ir.i64)))
            kept.append(1)
        elif isinstance(item, slice):
            if isinstance(shape[d], int):
                if item.step is not None and int(item.step) <= 0:
                    raise ValueError("step must be greater than zero")
                starts[d], stop, steps[d] = slice(*map(_int, (item.start, item.stop, item.step))).indices(
                    shape[d]
                )
                stops[d] = max(stop, starts[d])
                kept.append(-(-(stops[d] - starts[d]) // steps[d]))
            else:
                if item != slice(None):
                    raise IndexError(
                        f"dimension {d} has the symbolic size {shape[d]}: only [:] applies to it"
                    )
                kept.append(shape[d])
            d += 1
        elif isinstance(item, Tensor):
            for part in _nonzero(item, shape[d : d + item.ndim], d) if _is_mask(item) else (item,):
                tensors.append((len(kept), part))
                kept.append(shape[d])
                d += 1
        else:
            try:
                i = item.__index__()
            except (AttributeError, TypeError):
                raise TypeError(
                    "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid "
                    "indices "
                    f"(got {type(item).__name__})"
                ) from None
            if not -shape[d] <= i < shape[d]:
                raise IndexError(f"index {i} is out of bounds for dimension {d} with size {shape[d]}")
            starts[d] = i % shape[d]
            stops[d] = starts[d] + 1
            d += 1
    definitions: list[Any] = []
    if starts != [0] * len(shape) or stops != list(shape) or steps != [1] * len(shape):
        definitions.append(Slice(tuple(starts), tuple(stops), tuple(steps)))
    sliced = tuple(-(-(b - a) // s) if s != 1 else b - a for a, b, s in zip(starts, stops, steps))
    if tuple(kept) != sliced:
        definitions.append(Reshape(tuple(kept)))
    name = "Slice" if len(definitions) == 1 and isinstance(definitions[0], Slice) else "Select"
    if definitions and isinstance(definitions[0], Reshape):
        name = "Unsqueeze"
    return tuple(definitions), name, tensors


def _int(x: Any) -> Any:
    return None if x is None else int(x)


def _nonzero(mask: Tensor, shape: Any, dim: int) -> list[Tensor]:
    for i, (a, b) in enumerate(zip(mask.shape, shape)):
        if a != b:
            raise IndexError(
                f"The shape of the mask {list(mask.shape)} at index {i} does not match the shape of the "
                f"indexed tensor "
                f"{list(shape)} at index {dim + i}"
            )
    content = evaluation.content(read(mask))
    return [from_array(np.ascontiguousarray(a), ir.i64) for a in np.nonzero(content)]


def _indices(tensors: list[tuple[int, Tensor]], shape: Any) -> tuple[list[Value], tuple[int, ...], int]:
    """Index values of one shape, their dimensions, and where their shape stands in the result."""
    dims = tuple(d for d, _ in tensors)
    try:
        common = broadcast_shapes(*(t.shape for _, t in tensors))
    except RuntimeError:
        shapes = ", ".join(str(list(t.shape)) for _, t in tensors)
        raise IndexError(
            f"shape mismatch: indexing tensors could not be broadcast together with shapes {shapes}"
        ) from None
    values = [build.broadcast_to(in_range(read(t), shape[d], d), common) for d, t in tensors]
    together = all(b == a + 1 for a, b in pairwise(dims))
    return values, dims, dims[0] if together else 0


def in_range(index: Value, size: Any, dim: int) -> Value:
    """Counted from the front. IndexError where a known content is out of range."""
    if not build.element_of(index).is_integer:
        raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
    data = index.data
    if data is not None and isinstance(size, int):
        if data.size and (int(data.min()) < -size or int(data.max()) >= size):
            bad = int(data.max()) if int(data.max()) >= size else int(data.min())
            raise IndexError(f"index {bad} is out of bounds for dimension {dim} with size {size}")
        if not data.size or int(data.min()) >= 0:
            return index
    if not isinstance(size, int):
        return index
    if build.element_of(index).kind == "uint":
        return index
    return build.select(build.lt(index, 0), build.add(index, size), index)


def _getitem(self: Tensor, index: Any) -> Tensor:
    place, tensors = place_of(self, index)
    seen = place.of(self)
    if not tensors:
        return seen
    x = read(seen)
    values, dims, position = _indices(tensors, build.shape_of(x))
    return wrap(build.gather(x, values, dims, position), "Index")


def set_item(self: Tensor, index: Any, value: Any) -> None:
    if _description(index) is None:
        entries = [_as_tensor(i) for i in _items(index)]
        if (
            len(entries) == 1
            and _is_mask(entries[0])
            and not (isinstance(value, Tensor) and value.numel() != 1)
        ):
            _masked_set(self, entries[0], value)
            return
    place, tensors = place_of(self, index)
    if tensors:
        put_at(place.of(self), tensors, value, "set")
        return
    write(place.of(self, True), _fitted(value, Value(place.type)))
    self._base = None


def _fitted(value: Any, like: Value) -> Value:
    """What is written to a part of `like`'s type: broadcast to it, without leading dimensions of 1 that it does not have."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return fit(read(tensor(value)), like)
    if not isinstance(value, Tensor):
        return value_of(value, like)
    shape = tuple(value.shape)
    while len(shape) > len(build.shape_of(like)) and shape[0] == 1:
        shape = shape[1:]
    return fit(build.reshape(read(value), shape), like)


def put_at(seen: Tensor, tensors: list[tuple[int, Tensor]], value: Any, kind: str) -> None:
    x = read(seen)
    values, dims, position = _indices(tensors, build.shape_of(x))
    part = build.gather(x, values, dims, position)
    update = read(value) if isinstance(value, Tensor) else evaluation.number(value, build.element_of(x))
    shape = build.shape_of(update)
    while len(shape) > build.type_of(part).rank and shape[0] == 1:
        shape = shape[1:]
    try:
        update = fit(build.reshape(update, shape), Value(part.type))
    except RuntimeError:
        raise RuntimeError(
            f"shape mismatch: value tensor of shape {list(shape)} cannot be broadcast to indexing "
            f"result of shape "
            f"{list(build.shape_of(part))}"
        ) from None
    write(seen, build.scatter(x, update, values, dims, position, kind))


def _masked_set(self: Tensor, mask: Tensor, value: Any) -> None:
    like = read(self)
    shape = build.shape_of(like)
    check_mask(mask, shape)
    m = build.broadcast_in_dim(read(mask), shape, range(mask.ndim))
    update = (
        read(value.reshape(()))
        if isinstance(value, Tensor)
        else evaluation.number(value, build.element_of(like))
    )  # type: ignore[attr-defined]
    write(self, build.select(m, fit(update, like), like))


def check_mask(mask: Tensor, shape: Any) -> None:
    if mask.ndim > len(shape):
        raise IndexError(f"too many indices for tensor of dimension {len(shape)}")
    for i, (a, b) in enumerate(zip(mask.shape, shape)):
        if a != b:
            raise IndexError(
                f"The shape of the mask {list(mask.shape)} at index {i} does not match the shape of the "
                f"indexed tensor "
                f"{list(shape)} at index {i}"
            )


method("__getitem__")(_getitem)
method("__setitem__")(set_item)


@method("nonzero")
def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """Indices of the nonzero elements: a row each, or (`as_tuple`) a tensor a dimension. Evaluates `input`."""
    found = np.nonzero(evaluation.content(read(input)).reshape(input.shape or (1,)))
    if as_tuple:
        return tuple(from_array(np.ascontiguousarray(a), ir.i64) for a in found)
    stacked = np.stack(found, 1) if input.ndim else np.zeros((len(found[0]), 0), np.int64)
    return from_array(np.ascontiguousarray(stacked), ir.i64)


argwhere = method("argwhere")(lambda input: nonzero(input))


@method("masked_select")
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where `mask` is true, as a vector. Evaluates the mask."""
    shape = broadcast_shapes(input.shape, mask.shape) or (1,)
    return input.expand(*shape)[mask.expand(*shape)]  # type: ignore[attr-defined, no-any-return, index]


@method("masked_fill")
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`value` where `mask` is true."""
    x = read(input)
    shape = broadcast_shapes(input.shape, mask.shape)
    x = build.broadcast_to(x, shape)
    if mask.dtype.element is not ir.i1:
        raise RuntimeError(
            f"masked_fill_ only supports boolean masks, but got mask with dtype {mask.dtype.name}"
        )
    return wrap(build.select(build.broadcast_to(read(mask), shape), value_of(value, x), x), "MaskedFill")


@method("masked_fill_")
def masked_fill_(self: Tensor, mask: Tensor, value: Any) -> Tensor:
    """In place: `value` where `mask` is true."""
    return put(self, read(masked_fill(self, mask, value)))
