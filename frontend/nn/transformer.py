"""Multi-head attention and Transformer encoders: A. Vaswani et al., "Attention is all you need", 2017."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from flambeau.creation import empty, zeros
from flambeau.dtypes import dtype as DType
from flambeau.joining import cat
from flambeau.nn import functional as F
from flambeau.nn import init
from flambeau.nn.activation import Dropout
from flambeau.nn.containers import ModuleList
from flambeau.nn.functional.attention import attention_weights
from flambeau.nn.linear import Linear
from flambeau.nn.module import Module
from flambeau.nn.normalization import LayerNorm
from flambeau.nn.parameter import Parameter
from flambeau.tensor import Tensor


class NonDynamicallyQuantizableLinear(Linear):
    """The output projection; PyTorch prints it under this name."""


class MultiheadAttention(Module):
    """Attention by several heads over (L, N, E), (N, L, E) with `batch_first`, or (L, E).

    Returns the output and, with `need_weights`, the probabilities (averaged over heads, or one a head).
    Boolean masks say what does *not* take part; floating ones are added to the scores.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, add_bias_kv: bool = False,
        add_zero_attn: bool = False, kdim: int | None = None, vdim: int | None = None, batch_first: bool = False,
        device: Any = None, dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                "embed_dim and num_heads must be greater than 0, "
                f"got embed_dim={embed_dim} and num_heads={num_heads} instead"
            )
        if embed_dim % num_heads != 0:
            raise AssertionError("embed_dim must be divisible by num_heads")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        if self._qkv_same_embed_dim:
            self.in_proj_weight = Parameter(empty(3 * embed_dim, embed_dim, **made))
            for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                self.register_parameter(name, None)
        else:
            self.q_proj_weight = Parameter(empty(embed_dim, embed_dim, **made))
            self.k_proj_weight = Parameter(empty(embed_dim, self.kdim, **made))
            self.v_proj_weight = Parameter(empty(embed_dim, self.vdim, **made))
            self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", Parameter(empty(3 * embed_dim, **made)) if bias else None)
        self.out_proj = NonDynamicallyQuantizableLinear(embed_dim, embed_dim, bias=bias, **made)
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, Parameter(empty(1, 1, embed_dim, **made)) if add_bias_kv else None)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            weight = getattr(self, name)
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                init.xavier_normal_(bias)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e = self.embed_dim
        bias: Any = self.in_proj_bias
        if self._qkv_same_embed_dim and query is key and key is value:
            q, k, v = F.linear(query, self.in_proj_weight, bias).chunk(3, -1)  # type: ignore[attr-defined]
            return q, k, v
        if self._qkv_same_embed_dim:
            weights = [self.in_proj_weight[i * e : (i + 1) * e] for i in range(3)]
        else:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        biases = [None if bias is None else bias[i * e : (i + 1) * e] for i in range(3)]
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, E) to (N, heads, L, E / heads)"""
        n, length, _ = x.shape
        return x.reshape(n, length, self.num_heads, self.head_dim).transpose(1, 2)  # type: ignore[attr-defined, no-any-return]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.ndim == 3
        same = query is key and key is value
        q, k, v = (query,) * 3 if same else (query, key, value)
        if not batched:
            q = q.unsqueeze(0)  # type: ignore[attr-defined]
            k, v = (q, q) if same else (k.unsqueeze(0), v.unsqueeze(0))  # type: ignore[attr-defined]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)  # type: ignore[attr-defined]
        elif not self.batch_first:
            q = q.transpose(0, 1)  # type: ignore[attr-defined]
            k, v = (q, q) if same else (k.transpose(0, 1), v.transpose(0, 1))  # type: ignore[attr-defined]
        q, k, v = self._project(q, k, v)
        n, length = q.shape[0], q.shape[1]
        added = 0
        if self.bias_k is not None:
            k = cat([k, self.bias_k.expand(n, 1, self.embed_dim)], 1)
            v = cat([v, self.bias_v.expand(n, 1, self.embed_dim)], 1)
            added += 1
        if self.add_zero_attn:
            none = zeros(n, 1, self.embed_dim, dtype=k.dtype)
            k, v = cat([k, none], 1), cat([v, none], 1)
            added += 1
        mask = self._mask(attn_mask, key_padding_mask, n, q, added)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        weights: Tensor | None = None
        drop = self.dropout if self.training else 0.0
        if need_weights:
            weights = attention_weights(q, k, mask)
            out = F.dropout(weights, drop, drop > 0) @ v  # type: ignore[operator]
            if average_attn_weights:
                weights = weights.mean(1)  # type: ignore[attr-defined]
            if not batched:
                weights = weights.squeeze(0)  # type: ignore[attr-defined]
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, drop)
        out = out.transpose(1, 2).reshape(n, length, self.embed_dim)
        out = self.out_proj(out)
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, n: int, query: Tensor, added: int
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, with places for `added` further keys."""
        total: Tensor | None = None
        for given in (attn_mask, padding):
            if given is None:
                continue
            mask = given
            if not mask.is_floating_point():
                blank = zeros(*mask.shape, dtype=query.dtype)
                mask = blank.masked_fill(mask, -math.inf)  # type: ignore[attr-defined]
            if given is padding:
                mask = mask.reshape(n, 1, 1, mask.shape[-1])  # type: ignore[attr-defined]
            elif mask.ndim == 3:
                mask = mask.reshape(n, self.num_heads, *mask.shape[1:])  # type: ignore[attr-defined]
            total = mask if total is None else total + mask  # type: ignore[operator]
        if total is not None and added:
            total = F.pad(total, (0, added))
        return total


def _activation(name: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if not isinstance(name, str):
        return name
    if name == "relu":
        return F.relu
    if name == "gelu":
        return F.gelu
    raise RuntimeError(f"activation should be relu/gelu, not {name}")


class TransformerEncoderLayer(Module):
    """Self-attention and a two-layer network, each with dropout, a residual and layer normalisation."""

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu, layer_norm_eps: float = 1e-5,
        batch_first: bool = False, norm_first: bool = False, bias: bool = True, device: Any = None,
        dtype: DType | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **made)
        self.linear1 = Linear(d_model, dim_feedforward, bias, **made)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **made)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **made)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **made)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = _activation(activation)

    def _attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor:
        found, _ = self.self_attn(
            x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False, is_causal=is_causal
        )
        return self.dropout1(found)  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))  # type: ignore[no-any-return]

    def forward(
        self, src: Tensor, src_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        x: Any = src
        if self.norm_first:
            x = x + self._attend(self.norm1(x), src_mask, src_key_padding_mask, is_causal)
            return x + self._feed(self.norm2(x))  # type: ignore[no-any-return]
        x = self.norm1(x + self._attend(x, src_mask, src_key_padding_mask, is_causal))
        return self.norm2(x + self._feed(x))  # type: ignore[no-any-return]


class TransformerEncoder(Module):
    """`num_layers` copies of a layer, one after another, and a last normalisation."""

    def __init__(
        self, encoder_layer: Module, num_layers: int, norm: Module | None = None, enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self, src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:  # fmt: skip
        output = src
        for layer in self.layers:
            output = layer(
                output, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal)
            )
        return output if self.norm is None else self.norm(output)


__all__ = ["MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer"]
