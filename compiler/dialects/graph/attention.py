"""`graph.scaled_dot_product_attention`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Sample
from flambeau.compiler.dialects.graph.composite import Array, Composite, narrow, wide, wide_array
from flambeau.compiler.dialects.graph.composites_norm import Softmax
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.types import TensorType, f32, i64


class ScaledDotProductAttention(Composite):
    """``softmax(scale q k^T + mask) v`` over the last two axes.

    Operands: q (…, L, E), k (…, S, E), v (…, S, V) with equal leading axes, and optionally a mask that broadcasts to
    (…, L, S): boolean (true takes part) or added to the scores. `is_causal` lets position i see positions up to i.
    `scale` is 1 / sqrt(E) if None. A row that the mask closes entirely is zero. The gradient computes the probabilities
    again rather than keeping L x S numbers. A. Vaswani et al., "Attention is all you need", 2017, section 3.2.1;
    T. Dao et al., "FlashAttention", 2022, appendix B.2 (gradient).
    """

    name = "graph.scaled_dot_product_attention"
    is_causal: bool = False
    scale: float | None = None

    def infer(self, *operands: TensorType) -> TensorType:
        self.check_operands(operands, 3, 4)
        q, k, v = operands[:3]
        if not q.rank == k.rank == v.rank >= 2:
            raise self.reject("q, k and v must have one rank of at least 2", actual=(q, k, v))
        if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
            raise self.reject("q, k and v must have equal leading axes", actual=(q, k, v))
        if q.shape[-1] != k.shape[-1]:
            raise self.reject("q and k must have one last size", expected=q.shape[-1], actual=k.shape[-1])
        if k.shape[-2] != v.shape[-2]:
            raise self.reject("k and v must have one length", expected=k.shape[-2], actual=v.shape[-2])
        if k.element is not q.element or v.element is not q.element:
            raise self.reject("q, k and v must have one element type", expected=q.element, actual=(k, v))
        if self.scale is None and not isinstance(q.shape[-1], int):
            raise self.reject("a symbolic last size needs an explicit scale", actual=q)
        if len(operands) == 4:
            self._check_mask(operands[3], (*q.shape[:-1], k.shape[-2]))
        return q.with_shape((*q.shape[:-1], v.shape[-1]))

    def _check_mask(self, mask: TensorType, scores: tuple[Any, ...]) -> None:
        if not (mask.element.is_bool or mask.element.is_float):
            raise self.reject("a mask is boolean or floating", actual=mask)
        tail = scores[len(scores) - mask.rank :] if mask.rank <= len(scores) else None
        if tail is None or any(m not in (1, s) for m, s in zip(mask.shape, tail, strict=True)):
            raise self.reject("the mask must broadcast to the scores", expected=scores, actual=mask.shape)

    def _scale(self, q: Value) -> float:
        if self.scale is not None:
            return self.scale
        last = build.shape_of(q)[-1]
        assert isinstance(last, int)
        return 1 / math.sqrt(last) if last else 1.0

    def _probabilities(self, q: Value, k: Value, mask: Value | None) -> Value:
        """(…, L, S), in f32 at least."""
        scores = build.mul(_matmul(q, k, -1, -1), self._scale(q))
        shape = build.shape_of(scores)
        closed = build.full_like(scores, -math.inf)
        if mask is not None:
            mask = build.broadcast_to(mask, shape)
            scores = (
                build.select(mask, scores, closed)
                if build.element_of(mask).is_bool
                else build.add(scores, wide(mask))
            )
        rank = len(shape)
        if self.is_causal:
            visible = build.le(build.iota(shape, i64, rank - 1), build.iota(shape, i64, rank - 2))
            scores = build.select(visible, scores, closed)
        p = apply(Softmax(rank - 1), scores)
        if mask is None:
            return p
        top = build.expand_reduced(build.reduce_max(scores, rank - 1), shape, (rank - 1,))
        return build.select(build.eq(top, -math.inf), build.zeros_like(p), p)

    def decompose(self, *operands: Value) -> Value:
        q, k, v = operands[:3]
        p = self._probabilities(q, k, operands[3] if len(operands) == 4 else None)
        return narrow(_matmul(narrow(p, build.element_of(q)), v, -1, -2), build.element_of(q))

    def vjp(self, ct: Value, *operands: Value, result: Value) -> tuple[Value | None, ...]:
        q, k, v = operands[:3]
        mask = operands[3] if len(operands) == 4 else None
        element, rank = build.element_of(q), build.type_of(q).rank
        p = self._probabilities(q, k, mask)
        dv = _matmul(narrow(p, element), ct, -2, -2)
        dp = _matmul(ct, v, -1, -1)
        inner = build.reduce_sum(build.mul(wide(ct), wide(result)), rank - 1)
        ds = build.mul(p, build.sub(dp, build.expand_reduced(inner, build.shape_of(p), (rank - 1,))))
        scaled = narrow(build.mul(ds, self._scale(q)), element)
        dq, dk = _matmul(scaled, k, -1, -2), _matmul(scaled, q, -2, -2)
        out: list[Value | None] = [narrow(x, element) for x in (dq, dk, dv)]
        if mask is not None:
            if build.element_of(mask).is_bool:
                out.append(None)
            else:
                out.append(narrow(build.sum_to(ds, build.shape_of(mask)), element))
        return tuple(out)

    def reference(self, *operands: Array) -> Any:
        q, k, v = (wide_array(x) for x in operands[:3])
        scale = self.scale if self.scale is not None else 1 / math.sqrt(max(q.shape[-1], 1))
        scores = q @ np.swapaxes(k, -1, -2) * q.dtype.type(scale)
        if len(operands) == 4:
            mask = operands[3]
            scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + wide_array(mask)
        if self.is_causal:
            scores = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, -np.inf)
        top = scores.max(-1, keepdims=True)
        e = np.exp(scores - np.where(np.isinf(top), 0, top))
        total = e.sum(-1, keepdims=True)
        return ((e / np.where(total == 0, 1, total)) @ v).astype(operands[0].dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        q, k, v = (rng.standard_normal(shape) for shape in ((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 2)))
        attention = F.scaled_dot_product_attention
        yield Sample(ScaledDotProductAttention(), (q, k, v), attention)
        yield Sample(
            ScaledDotProductAttention(True),
            (q, k[:, :, :4], v[:, :, :4]),
            lambda q, k, v: attention(q, k, v, is_causal=True),
        )
        yield Sample(
            ScaledDotProductAttention(False, 0.3),
            (q[0, 0], k[0, 0], v[0, 0]),
            lambda q, k, v: attention(q, k, v, scale=0.3),
        )
        yield Sample(
            ScaledDotProductAttention(), (q, k, v, rng.standard_normal((4, 6))), attention, note="added mask"
        )
        taken = rng.integers(0, 2, (2, 1, 4, 6)).astype(np.bool_)
        taken[..., 0] = True
        taken[0, 0, 1] = False
        yield Sample(
            ScaledDotProductAttention(), (q, k, v, taken), attention, note="boolean mask with a closed row"
        )


def _matmul(x: Value, y: Value, x_axis: int, y_axis: int) -> Value:
    """The last two axes contracted over `x_axis` and `y_axis`, the leading ones batched; at least f32."""
    rank, element = build.type_of(x).rank, build.element_of(x)
    lead = tuple(range(rank - 2))
    wider = f32 if element.bits < 32 else None
    return apply(DotGeneral(lead, lead, (rank + x_axis,), (rank + y_axis,), wider), x, y)
