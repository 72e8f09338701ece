"""Reductions, arg reductions, running sums, softmax and its kin, sorting."""

from __future__ import annotations

import math
from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np

from flambeau import evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.dtypes import dtype as DType
from flambeau.evaluation import record_all
from flambeau.operands import deliver, floating, operands
from flambeau.tensor import Tensor, axes, axis, made, method, read, wrap

max_result = namedtuple("max", ["values", "indices"])
min_result = namedtuple("min", ["values", "indices"])
sort_result = namedtuple("sort", ["values", "indices"])
topk_result = namedtuple("topk", ["values", "indices"])
median_result = namedtuple("median", ["values", "indices"])
for _kind in (max_result, min_result, sort_result, topk_result, median_result):
    _kind.__module__ = "torch.return_types"


def _named_repr(self: Any) -> str:
    lines = ",\n".join(f"{n}={v!r}" for n, v in zip(self._fields, self))
    return f"torch.return_types.{type(self).__name__}(\n{lines})"


for _kind in (max_result, min_result, sort_result, topk_result, median_result):
    _kind.__repr__ = _named_repr  # type: ignore[method-assign, assignment]


def _typed(input: Tensor, dtype: DType | None) -> Value:
    x = read(input)
    return x if dtype is None or build.element_of(x) is dtype.element else build.convert(x, dtype.element)


def _summed(input: Tensor, dtype: DType | None) -> Value:
    """Sums of integers and booleans are int64."""
    x = _typed(input, dtype)
    if dtype is None and not build.element_of(x).is_float and build.element_of(x) is not ir.i64:
        return build.convert(x, ir.i64)
    return x


@cache
def _sum_of_all(rank: int) -> Any:
    return build.op("reduce", dimensions=tuple(range(rank)), kind="sum")


@method("sum")
def sum(
    input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None, out: Any = None
) -> Tensor:
    """Sum over the given dimensions, or over all."""
    if dim is None and not keepdim and dtype is None and out is None:
        kind: Any = read(input).type
        if kind.element.kind == "float" and kind.shape:  # what losses end with
            return made(_sum_of_all(len(kind.shape)), "Sum", input)
    x = _summed(input, dtype)
    name = "Sum" if dim is None and not keepdim else "SumBackward1"
    return deliver(build.reduce_sum(x, axes(dim, build.type_of(x).rank), keepdim), name, out)


@method("mean")
def mean(
    input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: DType | None = None, out: Any = None
) -> Tensor:
    """Mean over the given dimensions, or over all. RuntimeError for integers."""
    x = _typed(input, dtype)
    if not build.element_of(x).is_float:
        raise RuntimeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point or "
            "complex dtype. "
            f"Got: {_LONG_NAMES[build.element_of(x).name]}"
        )
    found = build.reduce_mean(x, axes(dim, build.type_of(x).rank), keepdim)
    return deliver(found, "Mean" if dim is None else "MeanBackward1", out)


_LONG_NAMES = {"i64": "Long", "i32": "Int", "i16": "Short", "i8": "Char", "ui8": "Byte", "i1": "Bool"}


def _count(shape: tuple[Any, ...], dims: tuple[int, ...]) -> Any:
    return math.prod(shape[d] for d in dims)


def _variance(input: Tensor, dim: Any, correction: float, keepdim: bool) -> Value:
    x = read(input)
    if not build.element_of(x).is_float:
        raise RuntimeError("std and var only support floating point and complex dtypes")
    shape = build.shape_of(x)
    dims = axes(dim, len(shape))
    centre = build.broadcast_to(build.reduce_mean(x, dims, True), shape)
    total = build.reduce_sum(build.square(build.sub(x, centre)), dims, keepdim)
    count = _count(shape, dims) - correction
    return build.div(total, evaluation.number(max_(count, 0), build.element_of(x)))


def max_(a: Any, b: Any) -> Any:
    return a if a > b else b


def _correction(dim: Any, unbiased: Any, correction: Any) -> tuple[Any, float]:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    return dim, correction


@method("var")
def var(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    """Variance, with Bessel's correction unless told otherwise."""
    dim, correction = _correction(dim, unbiased, correction)
    return wrap(_variance(input, dim, correction, keepdim), "Var")


@method("std")
def std(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    """Standard deviation, with Bessel's correction unless told otherwise."""
    dim, correction = _correction(dim, unbiased, correction)
    return wrap(build.sqrt(_variance(input, dim, correction, keepdim)), "Std")


def var_mean(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Any:
    """(variance, mean)"""
    return var(input, dim, unbiased, keepdim, correction=correction), mean(input, dim, keepdim)


@method("prod")
def prod(
    input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: DType | None = None
) -> Tensor:
    """Product over one dimension, or over all."""
    x = _summed(input, dtype)
    return wrap(build.reduce(x, "prod", axes(dim, build.type_of(x).rank), keepdim), "Prod")


def _extreme(input: Tensor, dim: Any, keepdim: bool, kind: str, result: Any) -> Any:
    x = read(input)
    shape = build.shape_of(x)
    if dim is None:
        if 0 in shape:
            raise RuntimeError(
                f"{kind}(): Expected reduction dim to be specified for input.numel() == 0. "
                "Specify the reduction dim with the 'dim' argument."
            )
        return wrap(build.reduce(x, kind, None), f"{kind.title()}Backward1")
    if isinstance(dim, Tensor):
        return wrap(getattr(build, f"{kind}imum")(*operands(input, dim)), f"{kind.title()}imum")
    if not shape:
        return result(wrap(x, kind.title()), wrap(build.constant(0, ir.i64)))
    d = axis(dim, len(shape))
    index = build.arg_reduce(x, f"arg{kind}", d)
    kept = [*shape[:d], 1, *shape[d + 1 :]]
    values = build.take_along(x, build.reshape(index, kept), d)
    if keepdim:
        index = build.reshape(index, kept)
    else:
        values = build.reshape(values, build.shape_of(index))
    return result(wrap(values, kind.title()), wrap(index))


@method("max")
def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest; with a dimension (values, indices); with a tensor the elementwise maximum."""
    return _extreme(input, dim, keepdim, "max", max_result)


@method("min")
def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest; with a dimension (values, indices); with a tensor the elementwise minimum."""
    return _extreme(input, dim, keepdim, "min", min_result)


@method("amax")
def amax(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    """The largest over dimensions; equal ones share the gradient."""
    x = read(input)
    return wrap(build.reduce_max(x, axes(dim, build.type_of(x).rank), keepdim), "Amax")


@method("amin")
def amin(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    """The smallest over dimensions; equal ones share the gradient."""
    x = read(input)
    return wrap(build.reduce_min(x, axes(dim, build.type_of(x).rank), keepdim), "Amin")


def aminmax(input: Tensor, *, dim: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """(smallest, largest)"""
    over: Any = () if dim is None else dim
    return amin(input, over, keepdim), amax(input, over, keepdim)


def _arg(input: Tensor, dim: int | None, keepdim: bool, kind: str) -> Tensor:
    x = read(input)
    shape = build.shape_of(x)
    if dim is None:
        if 0 in shape:
            raise IndexError(
                f"{kind}(): Expected reduction dim to be specified for input.numel() == 0. Specify the "
                "reduction dim with the 'dim' argument."
            )
        found = build.arg_reduce(build.reshape(x, (math.prod(shape),)), kind, 0)
        return wrap(build.reshape(found, (1,) * len(shape)) if keepdim else found)
    if not shape:
        return wrap(build.constant(0, ir.i64))
    d = axis(dim, len(shape))
    found = build.arg_reduce(x, kind, d)
    return wrap(build.reshape(found, [*shape[:d], 1, *shape[d + 1 :]]) if keepdim else found)


@method("argmax")
def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index of the largest (the first of equals), in the flattened tensor if no dimension is given."""
    return _arg(input, dim, keepdim, "argmax")


@method("argmin")
def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index of the smallest (the first of equals), in the flattened tensor if no dimension is given."""
    return _arg(input, dim, keepdim, "argmin")


def _truth(input: Tensor) -> Value:
    x = read(input)
    return x if build.element_of(x) is ir.i1 else build.ne(x, 0)


@method("any")
def any(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Is any element nonzero?"""
    return wrap(build.reduce(_truth(input), "any", axes(dim, input.ndim), keepdim))


@method("all")
def all(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Are all elements nonzero?"""
    return wrap(build.reduce(_truth(input), "all", axes(dim, input.ndim), keepdim))


@method("count_nonzero")
def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    """How many elements are nonzero."""
    return wrap(build.reduce_sum(build.convert(_truth(input), ir.i64), axes(dim, input.ndim)))


def _running(input: Tensor, dim: int, dtype: DType | None, kind: str) -> Tensor:
    x = _summed(input, dtype)
    if build.type_of(x).rank == 0:
        return wrap(x, f"Cum{kind}")
    return wrap(build.cumulative(x, axis(dim, build.type_of(x).rank), kind), f"Cum{kind}")


@method("cumsum")
def cumsum(input: Tensor, dim: int, *, dtype: DType | None = None) -> Tensor:
    """Running sum along `dim`."""
    return _running(input, dim, dtype, "sum")


@method("cumprod")
def cumprod(input: Tensor, dim: int, *, dtype: DType | None = None) -> Tensor:
    """Running product along `dim`."""
    return _running(input, dim, dtype, "prod")


@method("norm")
def norm(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: DType | None = None
) -> Tensor:
    """The p-norm over dimensions (all of them flattened if None); "fro" is 2."""
    x = _typed(input, dtype)
    if not build.element_of(x).is_float:
        raise RuntimeError("linalg.vector_norm: Expected a floating point or complex tensor as input.")
    p = 2 if p in ("fro", None) else p
    dims = axes(dim, build.type_of(x).rank)
    if p == math.inf:
        found = build.reduce_max(build.abs(x), dims, keepdim)
    elif p == -math.inf:
        found = build.reduce_min(build.abs(x), dims, keepdim)
    elif p == 0:
        found = build.reduce_sum(build.convert(build.ne(x, 0), build.element_of(x)), dims, keepdim)
    elif p == 1:
        found = build.reduce_sum(build.abs(x), dims, keepdim)
    elif p == 2:
        found = _euclidean(x, dims, keepdim)
    else:
        found = build.pow(build.reduce_sum(build.pow(build.abs(x), float(p)), dims, keepdim), 1.0 / p)
    return wrap(found, "LinalgVectorNorm")


def _euclidean(x: Value, dims: tuple[int, ...], keepdim: bool) -> Value:
    """The gradient at zero is zero, as PyTorch's."""
    total = build.reduce_sum(build.square(x), dims, keepdim)
    zero = build.eq(total, 0)
    safe = build.select(zero, build.ones_like(total), total)
    return build.select(zero, build.zeros_like(total), build.sqrt(safe))


@method("logsumexp")
def logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """log(sum(exp(input))) over dimensions, without overflow."""
    x = floating(read(input))
    shape = build.shape_of(x)
    dims = axes(dim, len(shape))
    found = build.make(build.op("logsumexp", dimensions=dims), x)
    if keepdim and build.type_of(found).rank != len(shape):
        found = build.reshape(found, [1 if i in dims else d for i, d in enumerate(shape)])
    return wrap(found, "Logsumexp")


def _soft(input: Tensor, dim: int, dtype: DType | None, operation: str, name: str) -> Tensor:
    x = _typed(input, dtype)
    if not build.element_of(x).is_float:
        raise RuntimeError(
            f"\"{operation}_lastdim_kernel_impl\" not implemented for '{_LONG_NAMES[build.element_of(x).name]}'"
        )
    if build.type_of(x).rank == 0:
        x1 = build.reshape(x, (1,))
        return wrap(build.reshape(build.make(build.op(operation, dimension=0), x1), ()), name)
    return wrap(build.make(build.op(operation, dimension=axis(dim, build.type_of(x).rank)), x), name)


@method("softmax")
def softmax(input: Tensor, dim: int, dtype: DType | None = None) -> Tensor:
    """exp(input) / sum(exp(input)) along `dim`, without overflow."""
    return _soft(input, dim, dtype, "softmax", "Softmax")


@method("log_softmax")
def log_softmax(input: Tensor, dim: int, dtype: DType | None = None) -> Tensor:
    """The logarithm of softmax."""
    return _soft(input, dim, dtype, "log_softmax", "LogSoftmax")


# -- sorting -------------------------------------------------------------------------------------------------------


def _sorted(x: Value, d: int, descending: bool) -> tuple[Value, Value]:
    values, indices = record_all(build.op("sort", dimension=d, descending=descending), x)
    return values, indices


@method("sort")
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """(values, indices) in order along `dim`; always stable."""
    x = read(input)
    if build.type_of(x).rank == 0:
        return sort_result(wrap(x, "Sort"), wrap(build.constant(0, ir.i64)))
    values, indices = _sorted(x, axis(dim, build.type_of(x).rank), descending)
    return sort_result(wrap(values, "Sort"), wrap(indices))


@method("argsort")
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices that `sort` gives."""
    return sort(input, dim, descending).indices  # type: ignore[no-any-return]


@method("topk")
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """(values, indices) of the `k` largest (or smallest) along `dim`, in order."""
    x = read(input)
    if build.type_of(x).rank == 0:
        if not 0 <= k <= 1:
            raise RuntimeError("selected index k out of range")
        return topk_result(wrap(x, "Topk"), wrap(build.constant(0, ir.i64)))
    shape = build.shape_of(x)
    d = axis(dim, len(shape))
    if not 0 <= k <= shape[d]:
        raise RuntimeError("selected index k out of range")
    values, indices = _sorted(x, d, largest)
    return topk_result(
        wrap(build.slice_axis(values, d, 0, k), "Topk"), wrap(build.slice_axis(indices, d, 0, k))
    )


@method("median")
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median; with a dimension (values, indices)."""
    x = read(input)
    shape = build.shape_of(x)
    if dim is None:
        flat = build.reshape(x, (math.prod(shape),))
        values, _ = _sorted(flat, 0, False)
        return wrap(
            build.reshape(
                build.slice_axis(values, 0, (math.prod(shape) - 1) // 2, (math.prod(shape) - 1) // 2 + 1), ()
            ),
            "Median",
        )
    d = axis(dim, len(shape))
    if not shape:
        return median_result(wrap(x, "Median"), wrap(build.constant(0, ir.i64)))
    values, indices = _sorted(x, d, False)
    at = (shape[d] - 1) // 2
    found = [build.slice_axis(v, d, at, at + 1) for v in (values, indices)]
    if not keepdim:
        found = [build.squeeze(v, d) for v in found]
    return median_result(wrap(found[0], "Median"), wrap(found[1]))


# -- comparing tensors -----------------------------------------------------------------------------------------------


@method("equal")
def equal(input: Tensor, other: Tensor) -> bool:
    """Same shape and same elements?"""
    if tuple(input.shape) != tuple(other.shape):
        return False
    x, y = operands(input, other)
    return bool(np.asarray(evaluation.content(build.reduce(build.eq(x, y), "all", None))))


@method("isclose")
def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + rtol * |other|, elementwise."""
    x, y = operands(input, other)
    if not build.element_of(x).is_float:
        x, y = build.convert(x, ir.f64), build.convert(y, ir.f64)
    near = build.le(build.abs(build.sub(x, y)), build.add(build.mul(build.abs(y), rtol), atol))
    found = build.or_(build.eq(x, y), build.and_(near, build.is_finite(y)))
    if equal_nan:
        found = build.or_(found, build.and_(build.is_nan(x), build.is_nan(y)))
    return wrap(found)


@method("allclose")
def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Are all elements close?"""
    return bool(all(isclose(input, other, rtol, atol, equal_nan)).item())
