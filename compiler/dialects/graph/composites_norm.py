"""Softmax and its relatives, and normalisation by mean and variance. 16-bit floats are computed in f32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Sample
from flambeau.compiler.dialects.graph.composite import (
    Array,
    Composite,
    ThroughDecomposition,
    narrow,
    wide,
    wide_array,
)
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.types import TensorType, f16


def _spread(x: Value, like: Value, reduced: Sequence[int]) -> Value:
    """`x`, which lacks the axes `reduced` of `like`, repeated along them."""
    return build.expand_reduced(x, build.shape_of(like), reduced)


class AlongDimension(Composite):
    """Base: a float operand, and an axis of it."""

    dimension: int

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 1, 1)
        (x,) = operands
        if not 0 <= self.dimension < x.rank:
            raise self.reject("dimension out of range", expected=f"0 to {x.rank - 1}", actual=self.dimension)
        return x


def _softmax_samples(op: type[AlongDimension], name: str) -> Iterable[Sample]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 2))
    for dimension in (0, 1, 2):
        yield Sample(op(dimension), (x,), lambda x, d=dimension: getattr(F, name)(x, d))
    last = (rng.standard_normal((4, 33)) * 50).astype(np.float32)
    yield Sample(op(1), (last,), lambda x: getattr(F, name)(x, 1), note="large numbers")
    yield Sample(op(1), (last.astype(f16.numpy),), lambda x: getattr(F, name)(x, 1))
    yield Sample(op(0), (np.array([-np.inf, 0.5, 1.0]),), lambda x: getattr(F, name)(x, 0), (), note="masked")


class Softmax(AlongDimension):
    """exp(x) divided by its sum along `dimension`, with the maximum taken off first.

    Its cotangent is ``y (ct - sum(ct y))``.
    """

    name = "graph.softmax"

    def decompose(self, *operands: Value) -> Value:
        (given,) = operands
        x, axes = wide(given), (self.dimension,)
        e = build.exp(build.sub(x, _spread(build.reduce_max(x, axes), x, axes)))
        # One division a row: dividing each element costs as much as the rest of the row.
        share = build.div(1, build.reduce_sum(e, axes))
        return narrow(build.mul(e, _spread(share, x, axes)), build.element_of(given))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        y, g, axes = wide(result), wide(ct), (self.dimension,)
        inner = build.reduce_sum(build.mul(g, y), axes)
        return (narrow(build.mul(y, build.sub(g, _spread(inner, y, axes))), build.element_of(x)),)

    def reference(self, *operands: Array) -> Any:
        x = wide_array(operands[0])
        e = np.exp(x - x.max(self.dimension, keepdims=True, initial=-np.inf))
        return (e / e.sum(self.dimension, keepdims=True)).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        yield from _softmax_samples(Softmax, "softmax")


class LogSoftmax(AlongDimension):
    """``x - log(sum(exp(x)))`` along `dimension`, with the maximum taken off first.

    Its cotangent is ``ct - exp(y) sum(ct)``.
    """

    name = "graph.log_softmax"

    def decompose(self, *operands: Value) -> Value:
        (given,) = operands
        x, axes = wide(given), (self.dimension,)
        moved = build.sub(x, _spread(build.reduce_max(x, axes), x, axes))
        total = build.log(build.reduce_sum(build.exp(moved), axes))
        return narrow(build.sub(moved, _spread(total, x, axes)), build.element_of(given))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        y, g, axes = wide(result), wide(ct), (self.dimension,)
        total = _spread(build.reduce_sum(g, axes), y, axes)
        return (narrow(build.sub(g, build.mul(build.exp(y), total)), build.element_of(x)),)

    def reference(self, *operands: Array) -> Any:
        x = wide_array(operands[0])
        moved = x - x.max(self.dimension, keepdims=True, initial=-np.inf)
        return (moved - np.log(np.exp(moved).sum(self.dimension, keepdims=True))).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        yield from _softmax_samples(LogSoftmax, "log_softmax")


class LogSumExp(Composite):
    """``log(sum(exp(x)))`` over `dimensions`, which go; the maximum is taken off first where it is finite."""

    name = "graph.logsumexp"
    dimensions: tuple[int, ...]

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 1, 1)
        (x,) = operands
        if len(set(self.dimensions)) != len(self.dimensions) or any(
            not 0 <= d < x.rank for d in self.dimensions
        ):
            raise self.reject(
                f"dimensions must be distinct and within the rank {x.rank}", actual=self.dimensions
            )
        return x.with_shape(tuple([n for d, n in enumerate(x.shape) if d not in self.dimensions]))

    def decompose(self, *operands: Value) -> Value:
        (given,) = operands
        x = wide(given)
        top = _finite_or_zero(build.reduce_max(x, self.dimensions))
        total = build.reduce_sum(build.exp(build.sub(x, _spread(top, x, self.dimensions))), self.dimensions)
        return narrow(build.add(build.log(total), top), build.element_of(given))

    def vjp(self, ct: Value, x: Value, *, result: Value) -> tuple[Value]:
        full, y = wide(x), _finite_or_zero(wide(result))
        share = build.exp(build.sub(full, _spread(y, full, self.dimensions)))
        return (narrow(build.mul(_spread(wide(ct), full, self.dimensions), share), build.element_of(x)),)

    def reference(self, *operands: Array) -> Any:
        x = wide_array(operands[0])
        top = x.max(self.dimensions, keepdims=True)
        top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
        with np.errstate(divide="ignore"):
            total = np.log(np.exp(x - top).sum(self.dimensions))
        return (total + top.reshape(total.shape)).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, 5, 2)) * 3
        yield Sample(LogSumExp((1,)), (x,), lambda x: x.logsumexp(1))
        yield Sample(LogSumExp((0, 2)), (x.astype(np.float32) * 100,), lambda x: x.logsumexp((0, 2)))
        yield Sample(LogSumExp((0,)), (np.full(3, -np.inf),), lambda x: x.logsumexp(0), (), note="nothing")


def _finite_or_zero(x: Value) -> Value:
    return build.select(build.lt(build.abs(x), math.inf), x, build.zeros_like(x))


class Normalised(Composite):
    """Base: `x[, weight[, bias]]` with the last `rank` axes normalised; weight and bias have their shape."""

    rank: int = 1
    eps: float = 1e-5

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 1, self.most_operands())
        x = operands[0]
        if not 1 <= self.rank <= x.rank:
            raise self.reject(
                "rank of the normalised shape out of range", expected=f"1 to {x.rank}", actual=self.rank
            )
        for what, other in zip(("weight", "bias"), operands[1:], strict=False):
            if other.shape != x.shape[-self.rank :]:
                raise self.reject(
                    f"the {what} has another shape", expected=x.shape[-self.rank :], actual=other.shape
                )
        return x

    def most_operands(self) -> int:
        return 3

    def axes(self, x: Value) -> tuple[int, ...]:
        rank = build.type_of(x).rank
        return tuple(range(rank - self.rank, rank))


class LayerNorm(Normalised):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last `rank` axes; the variance is the biased one.

    Operands x, weight (optional), bias (optional). The gradient recomputes mean and variance from x, which is already
    in cache there. J. Ba et al., "Layer normalization", 2016.
    """

    name = "graph.layer_norm"

    def _standard(self, x: Value) -> tuple[Value, Value]:
        """(x - mean) / deviation, and 1 / deviation."""
        axes = self.axes(x)
        centred = build.sub(x, _spread(build.reduce_mean(x, axes), x, axes))
        inverse = build.rsqrt(build.add(build.reduce_mean(build.square(centred), axes), self.eps))
        return build.mul(centred, _spread(inverse, x, axes)), inverse

    def decompose(self, *operands: Value) -> Value:
        x = wide(operands[0])
        y, _ = self._standard(x)
        if len(operands) > 1:
            y = build.mul(y, build.broadcast_to(wide(operands[1]), build.shape_of(x)))
        if len(operands) > 2:
            y = build.add(y, build.broadcast_to(wide(operands[2]), build.shape_of(x)))
        return narrow(y, build.element_of(operands[0]))

    def vjp(self, ct: Value, *operands: Value, result: Value) -> tuple[Value, ...]:
        x, g, element = wide(operands[0]), wide(ct), build.element_of(operands[0])
        axes = self.axes(x)
        lead = tuple(range(axes[0]))
        y, inverse = self._standard(x)
        scaled = (
            build.mul(g, build.broadcast_to(wide(operands[1]), build.shape_of(x))) if len(operands) > 1 else g
        )
        mean = _spread(build.reduce_mean(scaled, axes), x, axes)
        along = _spread(build.reduce_mean(build.mul(scaled, y), axes), x, axes)
        dx = build.mul(build.sub(build.sub(scaled, mean), build.mul(y, along)), _spread(inverse, x, axes))
        out = [narrow(dx, element)]
        if len(operands) > 1:
            out.append(narrow(build.reduce_sum(build.mul(g, y), lead), element))
        if len(operands) > 2:
            out.append(narrow(build.reduce_sum(g, lead), element))
        return tuple(out)

    def reference(self, *operands: Array) -> Any:
        x, *affine = (wide_array(v) for v in operands)
        axes = tuple(range(x.ndim - self.rank, x.ndim))
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        y = (x - mean) / np.sqrt(variance + self.eps)
        if affine:
            y = y * affine[0]
        return (y + affine[1] if len(affine) > 1 else y).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x, w, b = rng.standard_normal((4, 3, 5)), rng.standard_normal(5), rng.standard_normal(5)
        yield Sample(LayerNorm(), (x,), lambda x: F.layer_norm(x, (5,)))
        yield Sample(LayerNorm(), (x, w), lambda x, w: F.layer_norm(x, (5,), w))
        yield Sample(LayerNorm(), (x, w, b), lambda x, w, b: F.layer_norm(x, (5,), w, b))
        yield Sample(LayerNorm(2, 1e-3), (x,), lambda x: F.layer_norm(x, (3, 5), eps=1e-3))
        narrow_ones = tuple([v.astype(f16.numpy) for v in (x, w, b)])
        yield Sample(LayerNorm(), narrow_ones, lambda x, w, b: F.layer_norm(x, (5,), w, b))


class RmsNorm(Normalised):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last `rank` axes; B. Zhang and R. Sennrich, 2019."""

    name = "graph.rms_norm"
    vjp = ThroughDecomposition()

    def most_operands(self) -> int:
        return 2

    def decompose(self, *operands: Value) -> Value:
        x = wide(operands[0])
        axes = self.axes(x)
        inverse = build.rsqrt(build.add(build.reduce_mean(build.square(x), axes), self.eps))
        y = build.mul(x, _spread(inverse, x, axes))
        if len(operands) > 1:
            y = build.mul(y, build.broadcast_to(wide(operands[1]), build.shape_of(x)))
        return narrow(y, build.element_of(operands[0]))

    def reference(self, *operands: Array) -> Any:
        x, *weight = (wide_array(v) for v in operands)
        axes = tuple(range(x.ndim - self.rank, x.ndim))
        y = x / np.sqrt((x * x).mean(axes, keepdims=True) + self.eps)
        return (y * weight[0] if weight else y).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((4, 3, 5)), rng.standard_normal(5)
        yield Sample(RmsNorm(), (x,), lambda x: F.rms_norm(x, (5,), eps=1e-5))
        yield Sample(RmsNorm(), (x, w), lambda x, w: F.rms_norm(x, (5,), w, 1e-5))
        yield Sample(RmsNorm(2), (x,), lambda x: F.rms_norm(x, (3, 5), eps=1e-5))


class GroupNorm(Composite):
    """Normalises groups of features (axis 1) together with all that follows; `x[, weight, bias]`, one a feature.

    With as many groups as features it is instance normalisation. Y. Wu and K. He, "Group normalization", 2018.
    """

    name = "graph.group_norm"
    groups: int
    eps: float = 1e-5
    vjp = ThroughDecomposition()

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 1, 3)
        x = operands[0]
        if x.rank < 2 or self.groups < 1 or x.shape[1] % self.groups != 0:
            raise self.reject(
                "groups must divide the features (axis 1)", expected=f"{self.groups} groups", actual=x
            )
        for what, other in zip(("weight", "bias"), operands[1:], strict=False):
            if other.shape != (x.shape[1],):
                raise self.reject(f"the {what} has another shape", expected=(x.shape[1],), actual=other.shape)
        return x

    def decompose(self, *operands: Value) -> Value:
        x = operands[0]
        shape = build.shape_of(x)
        rest: Index = shape[1] // self.groups * product(shape[2:])
        y = apply(LayerNorm(1, self.eps), build.reshape(wide(x), (shape[0], self.groups, rest)))
        y = build.reshape(y, shape)
        if len(operands) > 1:
            y = build.mul(y, build.broadcast_along(wide(operands[1]), shape, 1))
        if len(operands) > 2:
            y = build.add(y, build.broadcast_along(wide(operands[2]), shape, 1))
        return narrow(y, build.element_of(x))

    def reference(self, *operands: Array) -> Any:
        x, *affine = (wide_array(v) for v in operands)
        y = LayerNorm(1, self.eps).reference(x.reshape(x.shape[0], self.groups, -1)).reshape(x.shape)
        affine = [v.reshape(-1, *(1,) * (x.ndim - 2)) for v in affine]
        if affine:
            y = y * affine[0]
        return (y + affine[1] if len(affine) > 1 else y).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x, w, b = rng.standard_normal((2, 6, 3, 2)), rng.standard_normal(6), rng.standard_normal(6)
        yield Sample(GroupNorm(3), (x,), lambda x: F.group_norm(x, 3))
        yield Sample(GroupNorm(2), (x, w, b), lambda x, w, b: F.group_norm(x, 2, w, b))
        yield Sample(GroupNorm(6), (x,), lambda x: F.instance_norm(x), note="instance normalisation")


class BatchNormTraining(Composite):
    """`x, scale, offset -> y, mean, variance`: each feature normalised by its own statistics over all other axes.

    The variance is the biased one. Cotangents of all three results are accepted. Specification: StableHLO,
    `batch_norm_training`; S. Ioffe and C. Szegedy, "Batch normalization", 2015.
    """

    name = "graph.batch_norm_training"
    eps: float = 1e-5
    feature_dimension: int = 1

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        self.check_operands(operands, 3, 3)
        per_feature = _check_features(self, operands)
        return operands[0], per_feature, per_feature

    def _axes(self, x: Value) -> tuple[int, ...]:
        return tuple([d for d in range(build.type_of(x).rank) if d != self.feature_dimension])

    def decompose(self, *operands: Value) -> tuple[Value, ...]:
        x, scale, offset = (wide(v) for v in operands)
        axes, element = self._axes(x), build.element_of(operands[0])
        mean = build.reduce_mean(x, axes)
        centred = build.sub(x, _spread(mean, x, axes))
        variance = build.reduce_mean(build.square(centred), axes)
        factor = build.mul(build.rsqrt(build.add(variance, self.eps)), scale)
        y = build.add(build.mul(centred, _spread(factor, x, axes)), _spread(offset, x, axes))
        return narrow(y, element), narrow(mean, element), narrow(variance, element)

    def vjp(
        self,
        ct: tuple[Value | None, ...],
        given: Value,
        scale: Value,
        offset: Value,
        *,
        result: tuple[Value, ...],
    ) -> tuple[Value | None, ...]:
        x, element = wide(given), build.element_of(given)
        axes = self._axes(x)
        count = build.dimension_value(product([build.shape_of(x)[a] for a in axes]), build.element_of(x))
        # From x, not from the results, which may have been rounded to 16 bits; equal parts are merged later anyway.
        centred = build.sub(x, _spread(build.reduce_mean(x, axes), x, axes))
        variance = build.reduce_mean(build.square(centred), axes)
        dx: Value | None = None
        d_scale: Value | None = None
        d_offset: Value | None = None
        if ct[0] is not None:
            g = wide(ct[0])
            inverse = build.rsqrt(build.add(variance, self.eps))
            y = build.mul(centred, _spread(inverse, x, axes))
            d_scale, d_offset = build.reduce_sum(build.mul(g, y), axes), build.reduce_sum(g, axes)
            per = _spread(build.div(d_offset, count), x, axes)
            along = build.mul(y, _spread(build.div(d_scale, count), x, axes))
            factor = _spread(build.mul(inverse, wide(scale)), x, axes)
            dx = build.mul(build.sub(build.sub(g, per), along), factor)
        if ct[1] is not None:
            term = _spread(build.div(wide(ct[1]), count), x, axes)
            dx = term if dx is None else build.add(dx, term)
        if ct[2] is not None:
            slope = build.div(build.mul(wide(ct[2]), 2), count)
            term = build.mul(centred, _spread(slope, x, axes))
            dx = term if dx is None else build.add(dx, term)
        return tuple([None if v is None else narrow(v, element) for v in (dx, d_scale, d_offset)])

    def reference(self, *operands: Array) -> Any:
        x, scale, offset = (wide_array(v) for v in operands)
        axes = tuple([d for d in range(x.ndim) if d != self.feature_dimension])
        mean, variance = x.mean(axes), x.var(axes)
        full = BatchNormInference(self.eps, self.feature_dimension).reference(
            x, scale, offset, mean, variance
        )
        return tuple([v.astype(operands[0].dtype) for v in (full, mean, variance)])

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x, w, b = rng.standard_normal((3, 4, 2, 3)), rng.standard_normal(4), rng.standard_normal(4)

        def torch(x: Any, w: Any, b: Any) -> Any:
            axes = (0, *range(2, x.dim()))
            return F.batch_norm(x, None, None, w, b, True), x.mean(axes), x.var(axes, unbiased=False)

        yield Sample(BatchNormTraining(), (x, w, b), torch)
        yield Sample(
            BatchNormTraining(),
            (x[:, :, 0, 0].astype(np.float32), w.astype(np.float32), b.astype(np.float32)),
            torch,
        )
        yield Sample(BatchNormTraining(1e-3, 3), (x, w[:3], b[:3]), None, note="features last")


class BatchNormInference(Composite):
    """`x, scale, offset, mean, variance -> y`: each feature normalised by given statistics.

    Specification: StableHLO, `batch_norm_inference`.
    """

    name = "graph.batch_norm_inference"
    eps: float = 1e-5
    feature_dimension: int = 1
    vjp = ThroughDecomposition()

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 5, 5)
        _check_features(self, operands)
        return operands[0]

    def decompose(self, *operands: Value) -> Value:
        x, scale, offset, mean, variance = (wide(v) for v in operands)
        shape, axis = build.shape_of(x), self.feature_dimension
        factor = build.mul(build.rsqrt(build.add(variance, self.eps)), scale)
        # One multiply-add an element; both numbers of a feature are made once.
        shift = build.sub(offset, build.mul(mean, factor))
        y = build.mul(x, build.broadcast_along(factor, shape, axis))
        return narrow(build.add(y, build.broadcast_along(shift, shape, axis)), build.element_of(operands[0]))

    def reference(self, *operands: Array) -> Any:
        x, *others = (wide_array(v) for v in operands)
        place = [1] * x.ndim
        place[self.feature_dimension] = -1
        scale, offset, mean, variance = (v.reshape(place) for v in others)
        return ((x - mean) / np.sqrt(variance + self.eps) * scale + offset).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        per_feature = [rng.standard_normal(4) for _ in range(3)] + [rng.uniform(0.5, 2, 4)]
        yield Sample(
            BatchNormInference(),
            (rng.standard_normal((3, 4, 2)), *per_feature),
            lambda x, w, b, mean, variance: F.batch_norm(x, mean, variance, w, b),
        )


def _check_features(op: BatchNormTraining | BatchNormInference, operands: Sequence[TensorType]) -> TensorType:
    x = operands[0]
    if not 0 <= op.feature_dimension < x.rank:
        raise op.reject(
            "feature_dimension out of range", expected=f"0 to {x.rank - 1}", actual=op.feature_dimension
        )
    expected = x.with_shape((x.shape[op.feature_dimension],))
    for i, other in enumerate(operands[1:], 2):
        if other is not expected:
            raise op.reject(f"operand {i} must have one element a feature", expected=expected, actual=other)
    return expected
