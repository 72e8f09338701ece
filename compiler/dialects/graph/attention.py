"""`graph.scaled_dot_product_attention` and its gradient."""

from __future__ import annotations

import importlib
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
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.ir.core import Value, apply, apply_all
from flambeau.compiler.ir.types import ElementType, TensorType, f32, i64

#: Sizes of q's, k's and v's last axes up to which blocks of them stay in the caches.
LARGEST_HEAD = 256
#: Fewer queries than this are rows times matrices, which have schedules of their own.
FEW_QUERIES = 8


class AttentionOp(Composite):
    """What attention and its gradient share.

    Operands: q (…, L, E), k (…, S, E), v (…, S, V) with equal leading axes, and at the end optionally a mask that
    broadcasts to (…, L, S): boolean (true takes part) or added to the scores. `is_causal` lets position i see positions
    up to i. `scale` is 1 / sqrt(E) if None. Sums are in f32, or f64.
    """

    is_causal: bool = False
    scale: float | None = None

    def check_heads(self, q: TensorType, k: TensorType, v: TensorType) -> None:
        """The rules of q, k and v."""
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

    def check_mask(self, mask: TensorType, scores: tuple[Any, ...]) -> None:
        """The rules of the mask."""
        if not (mask.element.is_bool or mask.element.is_float):
            raise self.reject("a mask is boolean or floating", actual=mask)
        tail = scores[len(scores) - mask.rank :] if mask.rank <= len(scores) else None
        if tail is None or any(m not in (1, s) for m, s in zip(mask.shape, tail, strict=True)):
            raise self.reject("the mask must broadcast to the scores", expected=scores, actual=mask.shape)

    def factor(self, q: TensorType) -> float:
        """What the scores are multiplied by."""
        if self.scale is not None:
            return self.scale
        last = q.shape[-1]
        assert isinstance(last, int)
        return 1 / math.sqrt(last) if last else 1.0

    def scores(self, q: Value, k: Value, mask: Value | None) -> Value:
        """(…, L, S), in f32 at least; -inf where the mask or causality closes."""
        scores = build.mul(_matmul(q, k, -1, -1), self.factor(build.type_of(q)))
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
        return scores

    def scores_of_arrays(self, q: Array, k: Array, mask: Array | None) -> Array:
        """`scores` by NumPy."""
        scale = self.scale if self.scale is not None else 1 / math.sqrt(max(q.shape[-1], 1))
        scores = q @ np.swapaxes(k, -1, -2) * q.dtype.type(scale)
        if mask is not None:
            scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + wide_array(mask)
        if self.is_causal:
            scores = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, -np.inf)
        return np.asarray(scores, q.dtype)

    def has_kernel(self, *operands: TensorType) -> bool:
        q, k, v = operands[:3]
        heads = (q.shape[-1], v.shape[-1])
        if not all(isinstance(d, int) and 0 < d <= LARGEST_HEAD for d in heads):
            return False
        if 0 in q.shape or 0 in k.shape:
            return False
        return not isinstance(q.shape[-2], int) or q.shape[-2] >= FEW_QUERIES


class ScaledDotProductAttention(AttentionOp):
    """``softmax(scale q k^T + mask) v`` over the last two axes, and the logarithm of each row's sum of exponentials.

    Operands: q (…, L, E), k (…, S, E), v (…, S, V), and optionally a mask; see `AttentionOp`. Results: (…, L, V), and
    (…, L) in the type of the sums, from which the gradient computes the probabilities again rather than keeping
    L x S numbers. A row that the mask closes entirely gives zeros. A. Vaswani et al., "Attention is all you need", 2017,
    section 3.2.1; T. Dao, "FlashAttention-2", 2023, section 3.1.
    """

    name = "graph.scaled_dot_product_attention"
    schedule_family = "attention"

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        self.check_operands(operands, 3, 4)
        q, k, v = operands[:3]
        self.check_heads(q, k, v)
        if len(operands) == 4:
            self.check_mask(operands[3], (*q.shape[:-1], k.shape[-2]))
        sums = TensorType.get(q.shape[:-1], _sum_type(q.element))
        return q.with_shape((*q.shape[:-1], v.shape[-1])), sums

    def decompose(self, *operands: Value) -> tuple[Value, Value]:
        q, k, v = operands[:3]
        element = build.element_of(q)
        scores = self.scores(q, k, operands[3] if len(operands) == 4 else None)
        shape, last = build.shape_of(scores), (build.type_of(scores).rank - 1,)
        top = build.reduce_max(scores, last)
        open_ = build.ne(top, -math.inf)
        top = build.select(open_, top, build.zeros_like(top))
        e = build.exp(build.sub(scores, build.expand_reduced(top, shape, last)))
        total = build.reduce_sum(e, last)
        share = build.select(open_, build.div(1, total), build.zeros_like(total))
        p = build.mul(e, build.expand_reduced(share, shape, last))
        out = narrow(_matmul(narrow(p, element), v, -1, -2), element)
        return out, build.select(open_, build.add(top, build.log(total)), build.zeros_like(top))

    def vjp(
        self, ct: Sequence[Value | None], *operands: Value, result: tuple[Value, Value]
    ) -> tuple[Value | None, ...]:
        q, k, v = operands[:3]
        masks = operands[3:]
        out, lse = result
        # Of each row of scores: what all of its cotangents have in common.
        given = build.zeros_like(out) if ct[0] is None else ct[0]
        shared = build.reduce_sum(build.mul(wide(given), wide(out)), (build.type_of(out).rank - 1,))
        if ct[1] is not None:
            shared = build.sub(shared, ct[1])
        gradient = AttentionGradient(self.is_causal, self.scale)
        found: list[Value | None] = [*apply_all(gradient, q, k, v, lse, shared, given, *masks)]
        for mask in masks:
            if build.element_of(mask).is_bool:
                found.append(None)
                continue
            _, ds = gradient.of_scores(q, k, v, lse, shared, given, mask)
            found.append(narrow(build.sum_to(ds, build.shape_of(mask)), build.element_of(mask)))
        return tuple(found)

    def reference(self, *operands: Array) -> Any:
        q, k, v = (wide_array(x) for x in operands[:3])
        scores = self.scores_of_arrays(q, k, operands[3] if len(operands) == 4 else None)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        top = np.where(np.isinf(top), 0, top).astype(q.dtype)
        e = np.exp(scores - top)
        total = e.sum(-1, keepdims=True)
        closed = total == 0
        out = (e / np.where(closed, 1, total)) @ v
        lse = np.where(closed, 0, top + np.log(np.where(closed, 1, total)))[..., 0]
        return out.astype(operands[0].dtype), lse.astype(q.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        q, k, v = (rng.standard_normal(shape) for shape in ((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 2)))
        yield Sample(ScaledDotProductAttention(), (q, k, v), _by_torch())
        yield Sample(
            ScaledDotProductAttention(True), (q, k[:, :, :4], v[:, :, :4]), _by_torch(is_causal=True)
        )
        yield Sample(ScaledDotProductAttention(False, 0.3), (q[0, 0], k[0, 0], v[0, 0]), _by_torch(scale=0.3))
        added = rng.standard_normal((4, 6))
        yield Sample(ScaledDotProductAttention(), (q, k, v, added), _by_torch(), note="added mask")
        taken = rng.integers(0, 2, (2, 1, 4, 6)).astype(np.bool_)
        taken[..., 0] = True
        taken[0, 0, 1] = False
        yield Sample(
            ScaledDotProductAttention(), (q, k, v, taken), _by_torch(), note="boolean mask with a closed row"
        )
        q, k, v = (rng.standard_normal(shape) for shape in ((2, 9, 3), (2, 11, 3), (2, 11, 5)))
        yield Sample(ScaledDotProductAttention(), (q, k, v), _by_torch(), note="a kernel of its own")
        yield Sample(
            ScaledDotProductAttention(True, 0.7),
            (q, k, v),
            _by_torch(is_causal=True, scale=0.7),
            note="causal",
        )
        taken = rng.integers(0, 2, (9, 11)).astype(np.bool_)
        taken[3] = False
        yield Sample(ScaledDotProductAttention(), (q, k, v, taken), _by_torch(), note="closed row, kernel")
        added = rng.standard_normal((2, 1, 11))
        yield Sample(ScaledDotProductAttention(), (q, k, v, added), _by_torch(), note="added mask, kernel")


class AttentionGradient(AttentionOp):
    """Cotangents of q, k and v in attention, with the probabilities computed again from the logarithms of their sums.

    Operands: q, k, v as in attention; `lse` (…, L), attention's second result; `shared` (…, L), the sum over a row of
    (ct out), less the cotangent of `lse`; ct (…, L, V); and optionally the mask. With ``P = exp(scores - lse)`` and
    ``dS = P (ct v^T - shared)``: dq = scale dS k, dk = scale dS^T q, dv = P^T ct. T. Dao et al., "FlashAttention", 2022,
    appendix B.2.
    """

    name = "graph.attention_gradient"
    schedule_family = "attention_gradient"
    vjp = ThroughDecomposition()

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        self.check_operands(operands[:3], 3, 3)
        if not 6 <= len(operands) <= 7:
            raise self.reject("wrong number of operands", expected="6 or 7", actual=len(operands))
        q, k, v, lse, shared, ct = operands[:6]
        self.check_heads(q, k, v)
        sums = TensorType.get(q.shape[:-1], _sum_type(q.element))
        for what, type in (("the logarithms of the sums", lse), ("what rows share", shared)):
            if type is not sums:
                raise self.reject(f"{what} must be one number a row", expected=sums, actual=type)
        expected = q.with_shape((*q.shape[:-1], v.shape[-1]))
        if ct is not expected:
            raise self.reject("the cotangent must have the result's type", expected=expected, actual=ct)
        if len(operands) == 7:
            self.check_mask(operands[6], (*q.shape[:-1], k.shape[-2]))
        return q, k, v

    def has_kernel(self, *operands: TensorType) -> bool:
        # Sums over blocks are kept in the results.
        return operands[0].element.bits >= 32 and super().has_kernel(*operands)

    def of_scores(
        self, q: Value, k: Value, v: Value, lse: Value, shared: Value, ct: Value, mask: Value | None
    ) -> tuple[Value, Value]:
        """(P, dS), both (…, L, S)."""
        scores = self.scores(q, k, mask)
        shape, last = build.shape_of(scores), (build.type_of(scores).rank - 1,)
        p = build.exp(build.sub(scores, build.expand_reduced(lse, shape, last)))
        dp = _matmul(ct, v, -1, -1)
        return p, build.mul(p, build.sub(dp, build.expand_reduced(shared, shape, last)))

    def decompose(self, *operands: Value) -> tuple[Value, ...]:
        q, k, v, lse, shared, ct = operands[:6]
        element = build.element_of(q)
        mask = operands[6] if len(operands) == 7 else None
        p, ds = self.of_scores(q, k, v, lse, shared, ct, mask)
        scaled = narrow(build.mul(ds, self.factor(build.type_of(q))), element)
        dq, dk = _matmul(scaled, k, -1, -2), _matmul(scaled, q, -2, -2)
        dv = _matmul(narrow(p, element), ct, -2, -2)
        return tuple([narrow(x, element) for x in (dq, dk, dv)])

    def reference(self, *operands: Array) -> Any:
        q, k, v, lse, shared, ct = (wide_array(x) for x in operands[:6])
        scores = self.scores_of_arrays(q, k, operands[6] if len(operands) == 7 else None)
        p = np.exp(scores - lse[..., None])
        ds = p * (ct @ np.swapaxes(v, -1, -2) - shared[..., None])
        scale = q.dtype.type(self.scale if self.scale is not None else 1 / math.sqrt(max(q.shape[-1], 1)))
        turned = np.swapaxes(ds, -1, -2)
        found = ds @ k * scale, turned @ q * scale, np.swapaxes(p, -1, -2) @ ct
        return tuple(x.astype(operands[0].dtype) for x in found)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def operands(*shape: int) -> tuple[Array, ...]:
            batch, length, s, e, v = shape
            sizes = ((length, e), (s, e), (s, v), (length,), (length,), (length, v))
            made = [rng.standard_normal((batch, *size)) for size in sizes]
            made[3] += 3  # about the logarithm of a sum
            return tuple(made)

        yield Sample(AttentionGradient(), operands(2, 3, 4, 5, 2))
        yield Sample(AttentionGradient(True, 0.4), operands(2, 9, 11, 3, 5))
        added = rng.standard_normal((9, 1))
        yield Sample(AttentionGradient(), (*operands(1, 9, 10, 2, 3), added))
        taken = rng.integers(0, 2, (2, 9, 10)).astype(np.bool_)
        yield Sample(AttentionGradient(), (*operands(2, 9, 10, 4, 4), taken))


def _sum_type(element: ElementType) -> ElementType:
    return f32 if element.bits < 32 else element


def _matmul(x: Value, y: Value, x_axis: int, y_axis: int) -> Value:
    """The last two axes contracted over `x_axis` and `y_axis`, the leading ones batched; at least f32."""
    rank, element = build.type_of(x).rank, build.element_of(x)
    lead = tuple(range(rank - 2))
    wider = f32 if element.bits < 32 else None
    return apply(DotGeneral(lead, lead, (rank + x_axis,), (rank + y_axis,), wider), x, y)


def _by_torch(is_causal: bool = False, scale: float | None = None) -> Any:
    """Attention by torch, and the logarithms of its sums."""

    def run(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        torch = importlib.import_module("torch")
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale)
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
        lse = scores.logsumexp(-1)
        return out, torch.where(lse == -math.inf, 0.0, lse)

    return run
