"""ATen operations as JAX programs would have them, by the names that `torch.export` gives; arguments are PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = Any
Ints = Sequence[int]


def _axes(x: Array, dims: int | Ints | None) -> tuple[int, ...] | None:
    return None if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)


def adaptive_avg_pool2d(x: Array, size: Ints) -> Array:
    if tuple(size) != (1, 1):
        raise NotImplementedError("adaptive pooling to more than one element")
    return x.mean((2, 3), keepdims=True)


def add(x: Array, y: Array, *, alpha: float = 1) -> Array:
    return x + (y if alpha == 1 else alpha * y)


def arange(*bounds: int, dtype: str | None = None, **_: Any) -> Array:
    return jnp.arange(*bounds, dtype=dtype)


def argmax(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    return jnp.argmax(x, dim, keepdims=keepdim)


def batch_norm(
    x: Array,
    w: Array,
    b: Array,
    mean: Array,
    var: Array,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Array:
    """In training by the batch's own statistics; the running ones are for `running` to move."""
    if training:
        mean, var = batch_statistics(x)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = w * lax.rsqrt(var + eps)
    return x * scale.reshape(shape) + (b - mean * scale).reshape(shape)


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance of each channel."""
    over = (0, *range(2, x.ndim))
    return x.mean(over), x.var(over)


def running(x: Array, mean: Array, var: Array, momentum: float) -> tuple[Array, Array]:
    """The running mean and variance after a batch."""
    now, spread = batch_statistics(x)
    count = x.size // x.shape[1]
    spread = spread * (count / max(count - 1, 1))
    return (1 - momentum) * mean + momentum * now, (1 - momentum) * var + momentum * spread


def convolution(
    x: Array, w: Array, b: Array | None = None, stride: Ints = (1,), padding: Ints = (0,), dilation: Ints = (1,),
    groups: int = 1,
) -> Array:  # fmt: skip
    axes = x.ndim - 2

    def each(values: int | Ints) -> tuple[int, ...]:
        values = _axes(x, values) or ()
        return values * axes if len(values) == 1 else values

    letters = "DHW"[3 - axes :]
    y = lax.conv_general_dilated(
        x, w, each(stride), [(p, p) for p in each(padding)], rhs_dilation=each(dilation),
        dimension_numbers=(f"NC{letters}", f"OI{letters}", f"NC{letters}"), feature_group_count=groups,
    )  # fmt: skip
    return y if b is None else y + b.reshape(1, -1, *[1] * axes)


def conv_transpose2d(
    x: Array, w: Array, b: Array | None = None, stride: Ints = (1, 1), padding: Ints = (0, 0), *_: Any
) -> Array:
    window = w.shape[2:]
    y = lax.conv_general_dilated(
        x, jnp.flip(w, (2, 3)), (1, 1), [(k - 1 - p, k - 1 - p) for k, p in zip(window, padding, strict=True)],
        lhs_dilation=tuple(stride), dimension_numbers=("NCHW", "IOHW", "NCHW"),
    )  # fmt: skip
    return y if b is None else y + b.reshape(1, -1, 1, 1)


def cross_entropy_loss(x: Array, target: Array) -> Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(x, 1), target[:, None], 1)
    return -chosen.mean()


def embedding(table: Array, index: Array, *_: Any) -> Array:
    return jnp.take(table, index, axis=0)


def flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    end = end % x.ndim
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


def gelu(x: Array, *, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def layer_norm(x: Array, shape: Ints, w: Array, b: Array, eps: float = 1e-5, *_: Any) -> Array:
    over = tuple(range(x.ndim - len(shape), x.ndim))
    centred = x - x.mean(over, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(over, keepdims=True) + eps) * w + b


def lstm(
    x: Array, start: Sequence[Array], weights: Sequence[Array], has_biases: bool, layers: int, *rest: Any
) -> tuple[Array, Array, Array]:
    """One layer, one direction."""
    _, _, bidirectional, batch_first = rest
    if layers != 1 or bidirectional or not has_biases:
        raise NotImplementedError("an LSTM of several layers or directions")
    wx, wh, bx, bh = weights
    steps = jnp.swapaxes(x, 0, 1) if batch_first else x
    inputs = steps @ wx.T + (bx + bh)

    def cell(carried: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = carried
        i, f, g, o = jnp.split(given + h @ wh.T, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    (h, c), states = lax.scan(cell, (start[0][0], start[1][0]), inputs)
    return jnp.swapaxes(states, 0, 1) if batch_first else states, h[None], c[None]


def max_pool2d(x: Array, window: Ints, stride: Ints = (), padding: Ints = (0, 0), *_: Any) -> Array:
    sides = [(0, 0), (0, 0), *[(p, p) for p in padding]]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, *window), (1, 1, *(stride or window)), sides)


def scaled_dot_product_attention(
    q: Array, k: Array, v: Array, mask: Array | None = None, dropout: float = 0.0, is_causal: bool = False
) -> Array:
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if is_causal:
        scores = jnp.where(jnp.tri(q.shape[-2], k.shape[-2], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, -1), v)


def slice_(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def sum_(x: Array, dim: int | Ints | None = None, keepdim: bool = False) -> Array:
    return x.sum(_axes(x, dim), keepdims=keepdim)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "_int_mm": lambda x, y: lax.dot(x, y, preferred_element_type=jnp.int32),
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "add": add,
    "arange": arange,
    "argmax": argmax,
    "batch_norm": batch_norm,
    "cat": lambda xs, dim=0: jnp.concatenate(xs, dim),
    "contiguous": lambda x, **_: x,
    "conv1d": convolution,
    "conv2d": convolution,
    "conv_transpose2d": conv_transpose2d,
    "cross_entropy_loss": cross_entropy_loss,
    "cumsum": jnp.cumsum,
    "embedding": embedding,
    "flatten": flatten,
    "gelu": gelu,
    "getitem": lambda xs, index: xs[index],
    "hardtanh": lambda x, low=-1.0, high=1.0: jnp.clip(x, low, high),
    "layer_norm": layer_norm,
    "lift_fresh_copy": lambda x: x,
    "linear": lambda x, w, b=None: x @ w.T if b is None else x @ w.T + b,
    "log_softmax": lambda x, dim, *_: jax.nn.log_softmax(x, dim),
    "lstm": lstm,
    "matmul": jnp.matmul,
    "max_pool2d": max_pool2d,
    "mul": lambda x, y: x * y,
    "permute": jnp.transpose,
    "pow": lambda x, y: x**y,
    "relu": jax.nn.relu,
    "reshape": jnp.reshape,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "select": lambda x, dim, index: lax.index_in_dim(x, index, dim, keepdims=False),
    "slice": slice_,
    "softmax": lambda x, dim, *_: jax.nn.softmax(x, dim),
    "sort": lambda x, dim=-1: (jnp.sort(x, dim), jnp.argsort(x, dim)),
    "stack": lambda xs, dim=0: jnp.stack(xs, dim),
    "sum": sum_,
    "t": lambda x: x.T,
    "transpose": jnp.swapaxes,
    "unbind": lambda x, dim=0: [jnp.take(x, i, dim) for i in range(x.shape[dim])],
    "view": jnp.reshape,
    "zeros": lambda shape, dtype="float32", **_: jnp.zeros(shape, dtype),
}  # fmt: skip
