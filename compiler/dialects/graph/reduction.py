"""Reductions over axes, positions of extremes, and running reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import ElementType, TensorType, bf16, f16, f32, f64, i1, i32, i64, tensor, u8

Array = np.ndarray[Any, Any]
Gradients = tuple[Value | None, ...]
KINDS = ("sum", "prod", "max", "min", "any", "all")


def accumulator(kind: str, element: ElementType) -> ElementType:
    """The type in which a reduction of `element` adds up: sums and products of halves are kept in f32."""
    return f32 if element in (f16, bf16) and kind in ("sum", "prod") else element


def identity(kind: str, element: ElementType) -> Any:
    """The number from which a reduction starts."""
    if kind in ("sum", "any"):
        return 0
    if kind in ("prod", "all"):
        return 1
    if element.is_float:
        return -math.inf if kind == "max" else math.inf
    limits = np.iinfo(element.numpy)
    return int(limits.min if kind == "max" else limits.max)


def combine(b: Any, kind: str, x: Any, y: Any) -> Any:
    """One step of a reduction on scalars of the accumulator's type."""
    method = {"sum": b.add, "prod": b.mul, "max": b.max, "min": b.min, "any": b.or_, "all": b.and_}[kind]
    return method(x, y)


def check_kind(op: GraphOp, kind: str, kinds: tuple[str, ...], element: ElementType) -> None:
    """`kind` is one of `kinds`, and fits the element type."""
    if kind not in kinds:
        raise op.reject("unknown kind", expected=" or ".join(kinds), actual=kind)
    if element.is_bool != (kind in ("any", "all")):
        raise op.reject(
            f"kind {kind} does not take this element type", expected="i1 for any and all only", actual=element
        )


class Reduce(GraphOp):
    """x without the axes `dimensions`, combined by `kind`: sum, prod, max, min (NaN wins), any, all (of i1).

    Halves add up in f32. An empty reduction gives the kind's identity. At ties of max and min the gradient is shared
    equally, as `torch.amax` does. StableHLO `reduce` with its combiner named.
    """

    name = "graph.reduce"
    schedule_family: ClassVar[str] = "reduce"
    dimensions: tuple[int, ...]
    kind: str

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (x,) = operands
        check_kind(self, self.kind, KINDS, x.element)
        if len(set(self.dimensions)) != len(self.dimensions) or any(
            not 0 <= d < x.rank for d in self.dimensions
        ):
            raise self.reject(
                "dimensions must be different axes", expected=f"0 to {x.rank - 1}", actual=self.dimensions
            )
        return tensor([d for a, d in enumerate(x.shape) if a not in self.dimensions], x.element)

    def fold(self, x: Value) -> Value | None:
        shape = build.shape_of(x)
        if all(shape[d] == 1 for d in self.dimensions):
            return build.reshape(x, [d for a, d in enumerate(shape) if a not in self.dimensions])
        return None

    def accumulator(self, element: ElementType) -> ElementType:
        """The element type of `init` and `combine` for an operand of `element`."""
        return accumulator(self.kind, element)

    def init(self, b: Any, element: ElementType) -> Any:
        """The scalar from which the reduction of operands of `element` starts, of type `accumulator(element)`."""
        return b.constant(identity(self.kind, element), self.accumulator(element))

    def combine(self, b: Any, acc: Any, x: Any) -> Any:
        """The accumulator after one more element, which may still have the operand's type."""
        return combine(b, self.kind, acc, b.convert(x, acc.element))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        if not build.element_of(x).is_float:
            return (None,)
        shape = build.shape_of(x)

        def spread(v: Value) -> Value:
            return build.expand_reduced(v, shape, self.dimensions)

        if self.kind == "sum":
            return (spread(ct),)
        if self.kind == "prod":
            return (build.mul(spread(ct), self._others(x, spread)),)
        hit = build.eq(x, spread(result))
        share = build.div(ct, build.reduce_sum(build.convert(hit, build.element_of(x)), self.dimensions))
        return (build.select(hit, spread(share), 0),)

    def _others(self, x: Value, spread: Callable[[Value], Value]) -> Value:
        """For each element the product of the others, zeros among them or not."""
        zero = build.eq(x, 0)
        zeros = spread(build.reduce_sum(build.convert(zero, build.element_of(x)), self.dimensions))
        nonzero = build.select(zero, 1, x)
        product = spread(build.reduce(nonzero, "prod", self.dimensions))
        quotient = build.select(build.eq(zeros, 0), build.div(product, nonzero), 0)
        return build.select(zero, build.select(build.eq(zeros, 1), product, 0), quotient)

    def reference(self, x: Array) -> Any:
        axes = self.dimensions
        if self.kind in ("any", "all"):
            return np.asarray((np.any if self.kind == "any" else np.all)(x, axis=axes))
        element = build.type_from_numpy(x)
        ufunc: Any = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[self.kind]
        wide = x.astype(self.accumulator(element).numpy)
        start = wide.dtype.type(identity(self.kind, element))
        return np.asarray(ufunc.reduce(wide, axis=axes, initial=start, dtype=wide.dtype)).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        torch: dict[str, Callable[..., Any]] = {
            "sum": lambda x, d: x.sum(d, dtype=x.dtype),
            "prod": lambda x, d: _torch_prod(x, d),
            "max": lambda x, d: x.amax(d),
            "min": lambda x, d: x.amin(d),
        }
        for kind, function in torch.items():
            for shape, axes, element in (
                ((3, 4), (1,), f64),
                ((3, 4), (0,), f32),
                ((2, 3, 4), (0, 2), f32),
                ((5, 131), (1,), f32),
                ((67, 37), (0,), f32),
                ((5,), (0,), f16),
                ((4, 5), (0, 1), bf16),
                ((1, 3), (0,), f32),
                ((4, 3), (1,), i32),
                ((0, 3), (1,), f32),
            ):
                operand = sampling.array(shape, element, -2, 2)
                yield Sample(Reduce(axes, kind), (operand,), lambda x, f=function, d=axes: f(x, d))
            yield Sample(Reduce((), kind), (np.float32(2),), lambda x: x.clone())
        yield Sample(Reduce((0,), "sum"), (np.zeros((0, 2), np.float32),), lambda x: x.sum(0))
        yield Sample(Reduce((0,), "prod"), (np.zeros((0, 2), np.float32),), lambda x: x.prod(0))
        yield Sample(Reduce((0,), "max"), (np.array([1, np.nan, 2], np.float32),), lambda x: x.amax(0), ())
        yield Sample(Reduce((0,), "sum"), (np.full(4096, 0.1, np.float16),), lambda x: x.sum(0), (), 1e-3)
        yield Sample(Reduce((0,), "max"), (sampling.array((5,), u8, 0, 200),), lambda x: x.amax(0))
        for kind, name in (("any", "any"), ("all", "all")):
            for shape, axes in (((3, 4), (1,)), ((2, 3), (0,)), ((0, 2), (0,))):
                operand = sampling.array(shape, i1)
                yield Sample(Reduce(axes, kind), (operand,), lambda x, n=name, d=axes: getattr(x, n)(d[0]))


def _torch_prod(x: Any, axes: tuple[int, ...]) -> Any:
    for axis in reversed(axes):
        x = x.prod(axis, dtype=x.dtype)
    return x


class ArgReduce(GraphOp):
    """i64 position, along `dimension`, of the largest (kind argmax) or smallest (argmin) element; the first of ties.

    NaN counts as the largest and as the smallest. x is numeric; the result lacks `dimension`.
    """

    name = "graph.arg_reduce"
    schedule_family: ClassVar[str] = "arg_reduce"
    dimension: int
    kind: str = "argmax"
    vjp = NotDifferentiable("its result is an index", zero=True)

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (x,) = operands
        if self.kind not in ("argmax", "argmin"):
            raise self.reject("unknown kind", expected="argmax or argmin", actual=self.kind)
        if x.element.is_bool:
            raise self.reject("unsupported element type", expected="float or int or uint", actual=x.element)
        if not 0 <= self.dimension < x.rank:
            raise self.reject("dimension out of range", expected=f"0 to {x.rank - 1}", actual=self.dimension)
        if x.shape[self.dimension] == 0:
            raise self.reject("the reduced dimension is empty", expected="at least 1 element", actual=x)
        return tensor(x.shape[: self.dimension] + x.shape[self.dimension + 1 :], i64)

    def better(self, b: Any, x: Any, best: Any) -> Any:
        """i1: does `x`, which comes later, replace `best`? For lowerings."""
        beats = b.compare("GT" if self.kind == "argmax" else "LT", x, best)
        if not x.element.is_float:
            return beats
        # NaN replaces any number, and nothing replaces NaN.
        return b.or_(beats, b.and_(b.compare("NE", x, x), b.compare("EQ", best, best)))

    def reference(self, x: Array) -> Any:
        wide = x if x.dtype.kind in "iu" else x.astype(np.float64)
        return np.asarray((np.argmax if self.kind == "argmax" else np.argmin)(wide, self.dimension)).astype(
            np.int64
        )

    def samples(self) -> Iterable[Sample]:
        for kind in ("argmax", "argmin"):
            for shape, axis, element in (
                ((3, 4), 1, f64),
                ((3, 4), 0, f32),
                ((3, 131), 1, f32),
                ((1,), 0, f32),
                ((0, 3), 1, f32),
                ((6,), 0, f16),
                ((2, 6), 1, bf16),
                ((5, 2), 0, i32),
            ):
                operand = sampling.array(shape, element, -9, 9)
                yield Sample(ArgReduce(axis, kind), (operand,), lambda x, k=kind, a=axis: getattr(x, k)(a))
            ties = np.array([[2, 1, 2, 1], [0, np.nan, 3, np.nan]], np.float32)
            yield Sample(ArgReduce(1, kind), (ties,), lambda x, k=kind: getattr(x, k)(1))


class Cumulative(GraphOp):
    """Running sum, prod, max or min (`kind`, NaN wins) along `dimension`; from the end with `reverse`. x is numeric.

    Sums and products of f32 are kept in f64, those of halves in f32. At ties of max and min the gradient goes to the
    latest, as in `torch.cummax`.
    """

    name = "graph.cumulative"
    schedule_family: ClassVar[str] = "cumulative"
    dimension: int
    kind: str = "sum"
    reverse: bool = False

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (x,) = operands
        check_kind(self, self.kind, KINDS[:4], x.element)
        if not 0 <= self.dimension < x.rank:
            raise self.reject("dimension out of range", expected=f"0 to {x.rank - 1}", actual=self.dimension)
        return x

    def fold(self, x: Value) -> Value | None:
        return x if build.shape_of(x)[self.dimension] == 1 else None

    def accumulator(self, element: ElementType) -> ElementType:
        """The element type of `init` and `combine` for an operand of `element`."""
        # A long run in f32 would lose digits step by step, which a sum that is made in parts does not.
        wide = element is f32 and self.kind in ("sum", "prod")
        return f64 if wide else accumulator(self.kind, element)

    def init(self, b: Any, element: ElementType) -> Any:
        """The scalar from which a run over operands of `element` starts, of type `accumulator(element)`."""
        return b.constant(identity(self.kind, element), self.accumulator(element))

    def combine(self, b: Any, acc: Any, x: Any) -> Any:
        """The accumulator after one more element, which may still have the operand's type."""
        return combine(b, self.kind, acc, b.convert(x, acc.element))

    def _run(self, x: Value, kind: str, backwards: bool = False) -> Value:
        return build.cumulative(x, self.dimension, kind, self.reverse != backwards)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        if self.kind == "sum":
            return (self._run(ct, "sum", backwards=True),)
        if self.kind == "prod":
            return (self._product_gradient(ct, x, result),)
        # Where each running extreme was met last.
        axis, shape = self.dimension, build.shape_of(x)
        place = build.iota(shape, i64, axis)
        hit = build.eq(x, result)
        if self.reverse:
            last = build.dimension_value(shape[axis] - 1, i64)
            source = self._run(build.select(hit, place, last), "min")
        else:
            source = self._run(build.select(hit, place, 0), "max")
        return (build.scatter_along(build.zeros_like(x), source, ct, axis),)

    def _product_gradient(self, ct: Value, x: Value, result: Value) -> Value:
        """Exact with zeros: before the first zero by division, at it with a one in its place, behind it nothing."""
        zero = build.eq(x, 0)
        zeros = self._run(build.convert(zero, build.element_of(x)), "sum")
        first = build.and_(zero, build.eq(zeros, 1))
        patched = self._run(build.select(first, 1, x), "prod")
        at_first = self._run(build.mul(ct, patched), "sum", backwards=True)
        before = build.div(self._run(build.mul(ct, result), "sum", backwards=True), build.select(zero, 1, x))
        return build.select(build.eq(zeros, 0), before, build.select(first, at_first, 0))

    def reference(self, x: Array) -> Any:
        ufunc: Any = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[self.kind]
        wide = x.astype(self.accumulator(build.type_from_numpy(x)).numpy)
        if self.reverse:
            wide = np.flip(wide, self.dimension)
        run = ufunc.accumulate(wide, axis=self.dimension, dtype=wide.dtype)
        return np.ascontiguousarray(np.flip(run, self.dimension) if self.reverse else run).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        torch: dict[str, Callable[..., Any]] = {
            "sum": lambda x, d: x.cumsum(d, dtype=x.dtype),
            "prod": lambda x, d: x.cumprod(d, dtype=x.dtype),
            "max": lambda x, d: x.cummax(d).values,
            "min": lambda x, d: x.cummin(d).values,
        }
        for kind, function in torch.items():
            for shape, axis, backwards, element in (
                ((3, 4), 1, False, f64),
                ((3, 4), 0, True, f64),
                ((2, 67), 1, False, f32),
                ((5, 2), 0, False, f32),
                ((1,), 0, False, f32),
                ((0, 2), 0, False, f32),
                ((6,), 0, False, f16),
                ((6,), 0, True, bf16),
                ((2, 5), 1, False, i32),
            ):
                operand = sampling.array(shape, element, -3, 3)
                yield Sample(
                    Cumulative(axis, kind, backwards),
                    (operand,),
                    lambda x, f=function, d=axis, r=backwards: f(x.flip(d), d).flip(d) if r else f(x, d),
                )
