"""Attention."""

from __future__ import annotations

import math

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.attention import ScaledDotProductAttention
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import record
from flambeau.nn.functional.activations import dropout
from flambeau.tensor import Tensor, read, wrap


def _leading(values: list[Value]) -> list[Value]:
    """Leading axes broadcast to each other's."""
    rank = max(len(build.shape_of(v)) for v in values)
    shapes = [(1,) * (rank - len(build.shape_of(v))) + build.shape_of(v) for v in values]
    lead = tuple(next((s[i] for s in shapes if s[i] != 1), 1) for i in range(rank - 2))
    return [build.broadcast_to(v, (*lead, *s[-2:])) for v, s in zip(values, shapes)]


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query key^T scale + mask) value over the last two axes.

    A boolean mask says what takes part, a floating one is added. Dropout, if any, falls on the probabilities.
    `enable_gqa` repeats the heads (axis -3) of key and value to the query's count.
    """
    if attn_mask is not None and is_causal:
        raise RuntimeError(
            "_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True"
        )
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)  # type: ignore[attr-defined]
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)  # type: ignore[attr-defined]
    if dropout_p > 0.0:
        weights = attention_weights(query, key, attn_mask, is_causal, scale)
        return dropout(weights, dropout_p, True) @ value  # type: ignore[operator, no-any-return]
    q, k, v = read(query), read(key), read(value)
    if not build.shape_of(q)[:-2] == build.shape_of(k)[:-2] == build.shape_of(v)[:-2]:
        q, k, v = _leading([q, k, v])
    mask = [] if attn_mask is None else [read(attn_mask)]
    return wrap(
        record(ScaledDotProductAttention(is_causal, scale), q, k, v, *mask), "ScaledDotProductAttention"
    )


def attention_weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """The probabilities (…, L, S) themselves."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)  # type: ignore[operator, attr-defined]
    s = read(scores)
    shape = build.shape_of(s)
    if is_causal:
        rows, columns = (build.iota(shape, dimension=len(shape) - i) for i in (2, 1))
        s = build.select(build.le(columns, rows), s, build.full_like(s, -math.inf))
    if attn_mask is not None:
        mask = build.broadcast_to(read(attn_mask), shape)
        s = (
            build.select(mask, s, build.full_like(s, -math.inf))
            if build.element_of(mask).is_bool
            else build.add(s, mask)
        )
    return wrap(s).softmax(-1)  # type: ignore[attr-defined, no-any-return]


__all__ = ["scaled_dot_product_attention"]
