"""Layers and losses of neural networks: linear, embedding, dropout, cross entropy."""

from __future__ import annotations

from collections.abc import Iterable
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
from flambeau.compiler.dialects.graph.composites_norm import Softmax
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.dialects.graph.random_bits import RngBitGenerator, random_bits
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.types import TensorType, f64, i64, tensor


class Linear(Composite):
    """``x weight^T + bias``: x (…, in), weight (out, in), bias (out) optional; the result is (…, out)."""

    name = "graph.linear"
    vjp = ThroughDecomposition()

    def infer(self, *operands: TensorType) -> TensorType:
        if not 2 <= len(operands) <= 3:
            raise self.reject("wrong number of operands", expected="2 to 3", actual=len(operands))
        x, weight = operands[:2]
        for i, other in enumerate(operands[1:], 2):
            if other.element is not x.element:
                raise self.reject(
                    f"operand {i} has another element type", expected=x.element, actual=other.element
                )
        if x.element.is_bool:
            raise self.reject("unsupported element type", expected="float or int or uint", actual=x.element)
        if weight.rank != 2:
            raise self.reject("the weight must have rank 2", actual=weight)
        if x.rank == 0 or x.shape[-1] != weight.shape[1]:
            raise self.reject(
                f"the last size of {x} must be the last of the weight", expected=weight.shape[1], actual=x
            )
        if len(operands) == 3 and operands[2].shape != weight.shape[:1]:
            raise self.reject(
                "the bias has another shape", expected=weight.shape[:1], actual=operands[2].shape
            )
        return x.with_shape((*x.shape[:-1], weight.shape[0]))

    def decompose(self, *operands: Value) -> Value:
        x, weight = operands[:2]
        y = build.dot_general(x, weight, ((build.type_of(x).rank - 1,), (1,)))
        if len(operands) == 2:
            return y
        return build.add(y, build.broadcast_to(operands[2], build.shape_of(y)))

    def reference(self, *operands: Array) -> Any:
        x, weight, *bias = (wide_array(v) if v.dtype.kind not in "iu" else v for v in operands)
        y = x @ weight.T
        return (y + bias[0] if bias else y).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        w, b = rng.standard_normal((4, 5)), rng.standard_normal(4)
        yield Sample(Linear(), (rng.standard_normal((3, 5)), w), F.linear)
        yield Sample(Linear(), (rng.standard_normal((2, 3, 5)), w, b), F.linear)
        yield Sample(Linear(), (rng.standard_normal(5), w, b), F.linear, note="a vector")


class Embedding(Composite):
    """The rows of `weight` (rows, …) at integer `indices` of any shape; the result is (indices' shape, …).

    The row `padding_index` (-1: none) gets no gradient. Indices are clamped to the rows that exist.
    """

    name = "graph.embedding"
    padding_index: int = -1

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        weight, indices = operands
        if weight.rank < 1:
            raise self.reject("the weight must have rows", actual=weight)
        if not indices.element.is_integer:
            raise self.reject("indices must be integers", expected="int", actual=indices.element)
        return weight.with_shape((*indices.shape, *weight.shape[1:]))

    def decompose(self, *operands: Value) -> Value:
        weight, indices = operands
        return build.gather(weight, (indices,), (0,))

    def vjp(self, ct: Value, weight: Value, indices: Value, *, result: Value) -> tuple[Value, None]:
        if self.padding_index >= 0:
            padding = build.eq(indices, self.padding_index)
            shape = build.shape_of(ct)
            padding = build.broadcast_in_dim(padding, shape, range(build.type_of(indices).rank))
            ct = build.select(padding, build.zeros_like(ct), ct)
        return build.scatter(build.zeros_like(weight), ct, (indices,), (0,)), None

    def reference(self, *operands: Array) -> Any:
        weight, indices = operands
        return weight[np.clip(indices, 0, max(0, len(weight) - 1))]

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((6, 3))
        yield Sample(Embedding(), (weight, np.array([[0, 5, 2], [2, 2, 1]])), lambda w, i: F.embedding(i, w))
        yield Sample(Embedding(), (weight, np.array(4)), lambda w, i: F.embedding(i, w), note="one index")
        yield Sample(Embedding(2), (weight, np.array([0, 5])), lambda w, i: F.embedding(i, w, 2))


class Dropout(Composite):
    """Each element of x is zero with probability `p`, else divided by 1 - p; `x, state: i64[2] -> x's type`.

    The mask is a pure function of the generator's state and the position (`graph.rng_bit_generator`), so the gradient
    makes it again instead of keeping it. N. Srivastava et al., "Dropout", 2014.
    """

    name = "graph.dropout"
    p: float = 0.5

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        self.check_operands(operands, 2, 2)
        if not 0 <= self.p <= 1:
            raise self.reject("p must be a probability", expected="0 to 1", actual=self.p)
        if operands[1] is not tensor((2,), i64):
            raise self.reject(
                "the second operand is the generator's state", expected=tensor((2,), i64), actual=operands[1]
            )
        return operands[0]

    @property
    def _threshold(self) -> int:
        """Bits below it are dropped."""
        return min(round(self.p * 2**32), 2**32 - 1)

    def decompose(self, *operands: Value) -> Value:
        x, state = operands
        if self.p == 1:
            return build.zeros_like(x)
        keep = build.ge(random_bits(state, build.shape_of(x)), self._threshold)
        scaled = narrow(build.mul(wide(x), 1 / (1 - self.p)), build.element_of(x))
        return build.select(keep, scaled, build.zeros_like(x))

    def vjp(self, ct: Value, x: Value, state: Value, *, result: Value) -> tuple[Value, None]:
        return apply(self, ct, state), None

    def reference(self, *operands: Array) -> Any:
        x, state = operands
        if self.p == 1:
            return np.zeros_like(x)
        keep = RngBitGenerator(x.shape).reference(state) >= np.uint32(self._threshold)
        scaled = wide_array(x) * wide_array(x).dtype.type(1 / (1 - self.p))
        return np.where(keep, scaled, 0).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        state = np.array([11, 3])
        yield Sample(Dropout(0.25), (rng.standard_normal((5, 7)), state), None)
        yield Sample(Dropout(0.5), (rng.standard_normal((9,)).astype(np.float32), state), None)
        yield Sample(Dropout(0.0), (rng.standard_normal((3,)), state), lambda x, s: x)
        yield Sample(Dropout(1.0), (rng.standard_normal((3,)), state), lambda x, s: x * 0)


class CrossEntropy(Composite):
    """Minus the log-probability, under softmax of the logits, of the target classes.

    Operands: logits (batch, classes, …) or (classes,); targets, integers (batch, …) or a scalar; class weights
    (classes,) optional. `reduction` is "mean" (weighted, over the targets that count), "sum" or "none"; targets equal
    to `ignore_index` do not count; `label_smoothing` s mixes in the uniform distribution: ``(1 - s) nll + s uniform``
    (C. Szegedy et al., "Rethinking the Inception architecture", 2016). As `torch.nn.functional.cross_entropy`.
    The gradient of the logits is ``softmax - one_hot``, scaled; class weights and targets get none.
    """

    name = "graph.cross_entropy"
    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 2, 3)
        logits, target = operands[:2]
        if self.reduction not in ("none", "mean", "sum"):
            raise self.reject("unknown reduction", expected="none, mean or sum", actual=self.reduction)
        if logits.rank == 0:
            raise self.reject("logits need a dimension of classes", actual=logits)
        if not target.element.is_integer:
            raise self.reject("targets are class indices", expected="int", actual=target.element)
        axis = min(1, logits.rank - 1)
        shape = logits.shape[:axis] + logits.shape[axis + 1 :]
        if target.shape != shape:
            raise self.reject(
                "targets must have the logits' shape without the classes", expected=shape, actual=target.shape
            )
        if len(operands) == 3 and operands[2].shape != (logits.shape[axis],):
            raise self.reject("one weight a class", expected=(logits.shape[axis],), actual=operands[2].shape)
        return logits.with_shape(shape if self.reduction == "none" else ())

    def _parts(self, operands: tuple[Value, ...]) -> tuple[Value, int, Value, Value, Value, Value | None]:
        """Logits, axis of the classes, targets that index, which count, each target's weight, weights along the axis."""
        logits, target = wide(operands[0]), operands[1]
        axis = min(1, build.type_of(logits).rank - 1)
        counts = build.ne(target, self.ignore_index)
        safe = build.select(counts, target, build.zeros_like(target))
        one = build.convert(counts, build.element_of(logits))
        if len(operands) == 2:
            return logits, axis, safe, counts, one, None
        weights = wide(operands[2])
        weight = build.select(counts, build.gather(weights, (safe,), (0,)), build.zeros_like(one))
        return (
            logits,
            axis,
            safe,
            counts,
            weight,
            build.broadcast_along(weights, build.shape_of(logits), axis),
        )

    def decompose(self, *operands: Value) -> Value:
        logits, axis, safe, counts, weight, weights = self._parts(operands)
        axes, shape, element = (axis,), build.shape_of(logits), build.element_of(operands[0])
        top = build.reduce_max(logits, axes)
        moved = build.sub(logits, build.expand_reduced(top, shape, axes))
        log_sum = build.log(build.reduce_sum(build.exp(moved), axes))
        chosen = build.squeeze(build.take_along(logits, build.expand_dims(safe, axis), axis), axis)
        loss = build.mul(build.sub(log_sum, build.sub(chosen, top)), weight)
        loss = build.select(counts, loss, build.zeros_like(loss))
        if self.label_smoothing:
            each = build.sub(build.expand_reduced(log_sum, shape, axes), moved)
            if weights is not None:
                each = build.mul(each, weights)
            uniform = build.div(
                build.reduce_sum(each, axes), build.dimension_value(shape[axis], build.element_of(logits))
            )
            uniform = build.select(counts, uniform, build.zeros_like(uniform))
            loss = build.add(
                build.mul(loss, 1 - self.label_smoothing), build.mul(uniform, self.label_smoothing)
            )
        if self.reduction == "none":
            return narrow(loss, element)
        # In f64: the number that training is judged by errs no more than the rows' own, however many they are.
        total = build.reduce_sum(build.convert(loss, f64))
        if self.reduction == "mean":
            total = build.div(total, build.convert(build.reduce_sum(weight), f64))
        return build.convert(total, element)

    def vjp(self, ct: Value, *operands: Value, result: Value) -> tuple[Value | None, ...]:
        logits, axis, safe, counts, weight, weights = self._parts(operands)
        axes, shape, element = (axis,), build.shape_of(logits), build.element_of(logits)
        g = wide(ct)
        if self.reduction == "mean":
            g = build.div(g, build.reduce_sum(weight))
        if self.reduction != "none":
            g = build.broadcast_to(g, build.shape_of(weight))

        def along(x: Value) -> Value:
            return build.expand_reduced(x, shape, axes)

        p = apply(Softmax(axis), logits)
        hot = build.eq(build.iota(shape, build.element_of(safe), axis), along(safe))
        per = build.mul(g, weight)
        if self.label_smoothing:
            per = build.mul(per, 1 - self.label_smoothing)
        slope = build.mul(build.sub(p, build.convert(hot, element)), along(per))
        if self.label_smoothing:
            classes = build.dimension_value(shape[axis], element)
            shared = build.div(build.mul(g, self.label_smoothing), classes)
            shared = along(build.select(counts, shared, build.zeros_like(shared)))
            if weights is None:
                uniform = build.sub(build.mul(p, classes), 1)
            else:
                uniform = build.sub(build.mul(p, along(build.reduce_sum(weights, axes))), weights)
            slope = build.add(slope, build.mul(uniform, shared))
        slope = build.select(along(counts), slope, build.zeros_like(slope))
        return (narrow(slope, build.element_of(operands[0])), *(None for _ in operands[1:]))

    def reference(self, *operands: Array) -> Any:
        logits, target = wide_array(operands[0]), operands[1]
        axis = min(1, logits.ndim - 1)
        weights = wide_array(operands[2]) if len(operands) == 3 else np.ones(logits.shape[axis], logits.dtype)
        moved = logits - logits.max(axis, keepdims=True)
        nll = np.log(np.exp(moved).sum(axis, keepdims=True)) - moved
        counts = target != self.ignore_index
        safe = np.where(counts, target, 0)
        chosen = np.take_along_axis(nll, np.expand_dims(safe, axis), axis).squeeze(axis)
        weight = np.where(counts, weights[safe], 0).astype(logits.dtype)
        uniform = np.moveaxis(nll, axis, -1) @ weights / logits.shape[axis]
        smooth = self.label_smoothing
        loss = np.where(counts, chosen * weight * (1 - smooth) + uniform * smooth, 0)
        if self.reduction == "mean":
            loss = loss.sum() / weight.sum()
        return np.asarray(loss.sum() if self.reduction == "sum" else loss).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        logits, weights = rng.standard_normal((4, 5)) * 2, rng.uniform(0.5, 2, 5)
        target = np.array([1, 0, 4, 4])
        ignored = np.array([1, -100, 4, -100])
        image, labels = rng.standard_normal((2, 3, 2, 2)), rng.integers(0, 3, (2, 2, 2))
        for reduction in ("mean", "sum", "none"):
            yield Sample(
                CrossEntropy(reduction),
                (logits, target),
                lambda x, t, r=reduction: F.cross_entropy(x, t, reduction=r),
                (0,),
            )
            yield Sample(
                CrossEntropy(reduction, -100, 0.125),
                (logits, ignored, weights),
                lambda x, t, w, r=reduction: F.cross_entropy(x, t, w, reduction=r, label_smoothing=0.125),
                (0,),
            )
        yield Sample(
            CrossEntropy("mean", -100, 0.25),
            (image, labels),
            lambda x, t: F.cross_entropy(x, t, label_smoothing=0.25),
            (0,),
        )
        yield Sample(
            CrossEntropy("mean", 2), (logits[0], np.array(3)), lambda x, t: F.cross_entropy(x, t), (0,)
        )
        yield Sample(
            CrossEntropy(), ((logits * 100).astype(np.float32), target), F.cross_entropy, (0,), note="large"
        )
