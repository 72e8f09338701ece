"""Making tensors: from data, filled, counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flambeau import devices, dtypes, evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.autograd_ops import Copy
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.dtypes import dtype as DType
from flambeau.evaluation import record
from flambeau.storage import Cell
from flambeau.tensor import Tensor, method, new_tensor, read, wrap

Array = np.ndarray[Any, Any]


def size_of(size: tuple[Any, ...]) -> tuple[int, ...]:
    """A shape given as integers or as one sequence. RuntimeError for a negative size."""
    if len(size) == 1 and not isinstance(size[0], (int, np.integer)) and not hasattr(size[0], "terms"):
        size = tuple(size[0]) if not isinstance(size[0], Tensor) else (int(size[0]),)
    shape = tuple(int(s) if not hasattr(s, "terms") else s for s in size)
    if any(isinstance(s, int) and s < 0 for s in shape):
        raise RuntimeError(f"Trying to create tensor with negative dimension {min(shape)}: {list(shape)}")
    return shape


def finish(value: Value, requires_grad: bool = False, device: Any = None) -> Tensor:
    """A tensor of a new value, on its device, as a leaf where asked."""
    devices.check(device)
    made = wrap(value)
    return made.requires_grad_() if requires_grad else made


def from_array(array: Any, element: ir.ElementType) -> Tensor:
    """A tensor over a C-contiguous array of the element's dtype."""
    return new_tensor(Cell(evaluation.leaf(array, element)))


def _infer(array: Array) -> ir.ElementType:
    if array.dtype == np.float64:
        return dtypes.get_default_dtype().element
    if array.dtype.kind == "i":
        return ir.i64
    return ir.from_numpy(array.dtype)


def _nested(data: Any) -> Any:
    if isinstance(data, Tensor):
        return evaluation.content(read(data))
    if isinstance(data, (list, tuple)):
        return [_nested(x) for x in data]
    return data


def tensor(
    data: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A new tensor with a copy of `data`: numbers, nested sequences, arrays, tensors."""
    devices.check(device)
    if isinstance(data, Tensor):
        array, element = evaluation.content(read(data)), data.dtype.element
    elif isinstance(data, np.ndarray) or (hasattr(data, "dtype") and hasattr(data, "__array__")):
        array = np.asarray(data)
        element = ir.from_numpy(array.dtype)
    else:
        try:
            array = np.array(_nested(data))
        except ValueError as error:
            raise ValueError(f"expected sequences of equal length at every dimension: {error}") from None
        if array.dtype == object or array.dtype.kind in "US":
            kind = next(
                (type(x).__name__ for x in array.reshape(-1) if not isinstance(x, (int, float))), "str"
            )
            if kind in ("list", "tuple"):
                raise ValueError("expected sequences of equal length at every dimension")
            raise TypeError(f"new(): invalid data type '{kind}'")
        element = dtypes.get_default_dtype().element if array.size == 0 else _infer(array)
    if dtype is not None:
        element = dtype.element
    made = from_array(np.array(array, element.numpy, order="C", copy=True), element)
    return made.requires_grad_() if requires_grad else made


def as_tensor(data: Any, dtype: DType | None = None, device: Any = None) -> Tensor:
    """`data` as a tensor, without a copy where it is a tensor or a contiguous array of the dtype already."""
    devices.check(device)
    if isinstance(data, Tensor):
        return data if dtype is None or data.dtype is dtype else data.to(dtype)  # type: ignore[attr-defined, no-any-return]
    if isinstance(data, np.ndarray) and (dtype is None or data.dtype == dtype.numpy):
        return from_numpy(data)
    return tensor(data, dtype=dtype)


def from_numpy(array: Array) -> Tensor:
    """A tensor that shares a C-contiguous array's memory (a copy of any other). TypeError for foreign dtypes."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(array).__name__})")
    if not array.flags.c_contiguous:
        return from_array(np.array(array, order="C"), ir.from_numpy(array.dtype))
    made = from_array(array, ir.from_numpy(array.dtype))
    evaluation.shared.add(made._cell.value)
    return made


def from_dlpack(source: Any) -> Tensor:
    """A tensor on another library's memory, through DLPack."""
    return from_numpy(np.from_dlpack(source))


def full(
    size: Any, fill_value: Any, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Every element `fill_value`; the dtype is the value's unless given."""
    if isinstance(fill_value, Tensor):
        fill_value = fill_value.item()
    element = dtype.element if dtype is not None else dtypes.scalar_element(fill_value)
    shape = size_of((size,))
    return finish(filled(shape, fill_value, element), requires_grad, device)


def filled(shape: tuple[Any, ...], number: Any, element: ir.ElementType) -> Value:
    """A value of `shape` with one number everywhere: a constant for 0 and 1, else a run-time scalar, broadcast."""
    scalar = evaluation.number(number, element)
    return build.broadcast_to(scalar, shape) if shape else scalar


def zeros(
    *size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, out: Any = None
) -> Tensor:
    """Zeros, of the default dtype unless given."""
    return finish(
        filled(size_of(size), 0, (dtype or dtypes.get_default_dtype()).element), requires_grad, device
    )


def ones(
    *size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, out: Any = None
) -> Tensor:
    """Ones, of the default dtype unless given."""
    return finish(
        filled(size_of(size), 1, (dtype or dtypes.get_default_dtype()).element), requires_grad, device
    )


def empty(
    *size: Any, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """Of the given shape; the content happens to be zeros."""
    return zeros(*size, dtype=dtype, device=device, requires_grad=requires_grad)


def zeros_like(
    input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """Zeros of `input`'s shape and dtype."""
    return zeros(input.shape, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad)


def ones_like(
    input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """Ones of `input`'s shape and dtype."""
    return ones(input.shape, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad)


def empty_like(
    input: Tensor, *, dtype: DType | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    """Of `input`'s shape and dtype; the content happens to be zeros."""
    return zeros_like(input, dtype=dtype, device=device, requires_grad=requires_grad)


def full_like(
    input: Tensor,
    fill_value: Any,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
    **_: Any,
) -> Tensor:
    """`fill_value` in `input`'s shape and dtype."""
    return full(
        input.shape, fill_value, dtype=dtype or input.dtype, device=device, requires_grad=requires_grad
    )


def provided_scalar(source: Any, dtype: DType | None = None) -> Tensor:
    """A 0-d tensor of what `source()` returns; a compiled function asks anew at every call, without compiling again."""
    return wrap(evaluation.scalar_provider(source, (dtype or dtypes.get_default_dtype()).element))


@method("new_zeros")
def _new_zeros(self: Tensor, *size: Any, dtype: DType | None = None, **kw: Any) -> Tensor:
    return zeros(*size, dtype=dtype or self.dtype, **kw)


@method("new_ones")
def _new_ones(self: Tensor, *size: Any, dtype: DType | None = None, **kw: Any) -> Tensor:
    return ones(*size, dtype=dtype or self.dtype, **kw)


@method("new_empty")
def _new_empty(self: Tensor, *size: Any, dtype: DType | None = None, **kw: Any) -> Tensor:
    return empty(*size, dtype=dtype or self.dtype, **kw)


@method("new_full")
def _new_full(self: Tensor, size: Any, fill_value: Any, *, dtype: DType | None = None, **kw: Any) -> Tensor:
    return full(size, fill_value, dtype=dtype or self.dtype, **kw)


@method("new_tensor")
def _new_tensor(self: Tensor, data: Any, *, dtype: DType | None = None, **kw: Any) -> Tensor:
    return tensor(data, dtype=dtype or self.dtype, **kw)


def _number(x: Any) -> Any:
    return x.item() if isinstance(x, Tensor) else x


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``start, start + step, …`` below `end`: int64 for integers, else the default dtype."""
    start, end, step = _number(start), _number(end), _number(step)
    if end is None:
        start, end = 0, start
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) * step < 0:
        raise RuntimeError("upper bound and larger bound inconsistent with step sign")
    whole = all(isinstance(x, int) for x in (start, end, step))
    element = dtype.element if dtype is not None else ir.i64 if whole else dtypes.get_default_dtype().element
    count = math.ceil((end - start) / step)
    if whole and element.is_integer:
        value = build.iota((count,), element, 0)
        if step != 1:
            value = build.mul(value, evaluation.number(step, element))
        if start != 0:
            value = build.add(value, evaluation.number(start, element))
        return finish(value, requires_grad, device)
    array = (start + step * np.arange(count)).astype(element.numpy)
    return finish(evaluation.leaf(array, element), requires_grad, device)


def linspace(
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` numbers from `start` to `end`, both included."""
    element = (dtype or dtypes.get_default_dtype()).element
    array = np.linspace(_number(start), _number(end), steps, dtype=np.float64).astype(element.numpy)
    if element is ir.f32 and steps > 1:  # ATen computes from both ends in the dtype itself
        step = np.float32((np.float32(end) - np.float32(start)) / np.float32(steps - 1))
        i = np.arange(steps)
        low = np.float32(start) + step * i.astype(np.float32)
        high = np.float32(end) - step * (steps - 1 - i).astype(np.float32)
        array = np.where(i < steps // 2, low, high).astype(np.float32)
    return finish(evaluation.leaf(array, element), requires_grad, device)


def logspace(
    start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: DType | None = None, **kw: Any
) -> Tensor:
    """`steps` powers of `base`, their exponents evenly from `start` to `end`."""
    element = (dtype or dtypes.get_default_dtype()).element
    return finish(
        evaluation.leaf(np.logspace(start, end, steps, base=base).astype(element.numpy), element), **kw
    )


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Ones on the diagonal, zeros elsewhere."""
    shape = (n, n if m is None else m)
    element = (dtype or dtypes.get_default_dtype()).element
    value = build.convert(build.eq(build.iota(shape, ir.i64, 0), build.iota(shape, ir.i64, 1)), element)
    return finish(value, requires_grad, device)


def _triangle(input: Tensor, diagonal: int, lower: bool, name: str) -> Tensor:
    x = read(input)
    shape = build.shape_of(x)
    if len(shape) < 2:
        raise RuntimeError(f"{name.lower()}: input tensor must have at least 2 dimensions")
    rows = build.iota(shape, ir.i64, len(shape) - 2)
    columns = build.iota(shape, ir.i64, len(shape) - 1)
    limit = build.add(rows, diagonal) if diagonal else rows
    keep = build.le(columns, limit) if lower else build.ge(columns, limit)
    return wrap(build.select(keep, x, build.zeros_like(x)), name)


@method("tril")
def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros above the diagonal."""
    return _triangle(input, diagonal, True, "Tril")


@method("triu")
def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros below the diagonal."""
    return _triangle(input, diagonal, False, "Triu")


@method("clone")
def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """The content in memory of its own; gradients flow back."""
    return wrap(record(Copy(), read(input)), "Clone")


__all__ = [
    "arange", "as_tensor", "clone", "empty", "empty_like", "eye", "from_dlpack", "from_numpy", "full",
    "full_like", "linspace", "logspace", "ones", "ones_like", "tensor", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip
