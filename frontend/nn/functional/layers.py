"""Linear maps, embeddings, convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flambeau import linalg
from flambeau.autograd import no_grad
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.composites_nn import Embedding, Linear
from flambeau.compiler.dialects.graph.convolution import convolution_of, transposed_convolution
from flambeau.compiler.ir import dims
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import record
from flambeau.nn.functional.common import each, shifted
from flambeau.tensor import Tensor, made, read, wrap

_LINEAR = Linear()


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias: input (…, in), weight (out, in), bias (out)."""
    x, w = read(input).type, read(weight).type
    if len(w.shape) == 2 and x.shape[-1:] == w.shape[1:] and x.element is w.element:  # type: ignore[attr-defined]
        flat = len(x.shape) == 2  # type: ignore[attr-defined]
        if bias is None:
            return made(_LINEAR, "Mm" if flat else "UnsafeView", input, weight)
        return made(_LINEAR, "Addmm" if flat else "View", input, weight, bias)
    if weight.ndim == 1:
        product = linalg.matmul(input, weight)
        return product if bias is None else product + bias  # type: ignore[operator, no-any-return]
    if input.shape[-1:] != weight.shape[-1:]:
        rows = dims.product(input.shape[:-1])  # may be symbolic while a function is exported
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({rows}x{input.shape[-1] if input.ndim else 1} and "
            f"{weight.shape[1]}x{weight.shape[0]})"
        )
    if input.dtype is not weight.dtype:
        raise RuntimeError(
            f"mat1 and mat2 must have the same dtype, but got {input.dtype} and {weight.dtype}"
        )
    return made(_LINEAR, "View", input, weight)  # says what is wrong with the weight


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input1 (…, i), input2 (…, j), weight (out, i, j): sum of input1_i weight_oij input2_j, plus bias."""
    result = linalg.einsum("...i,oij,...j->...o", input1, weight, input2)
    return result if bias is None else result + bias  # type: ignore[operator, no-any-return]


def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """The rows of `weight` at the integers of `input`. The row `padding_idx` gets no gradient.

    Rows whose `norm_type`-norm is above `max_norm` are first scaled down to it, in place. `scale_grad_by_freq` divides a
    row's gradient by how often it was taken.
    """
    if sparse:
        raise RuntimeError("embedding: sparse gradients are not supported")
    rows = weight.shape[0]
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise AssertionError("Padding_idx must be within num_embeddings")
        padding_idx %= rows
    if max_norm is not None:
        with no_grad():
            index = input.reshape(-1)  # type: ignore[attr-defined]
            taken = weight.index_select(0, index)  # type: ignore[attr-defined]
            norms = taken.norm(norm_type, 1, keepdim=True)
            # 1e-7 as in ATen's embedding_renorm_
            weight.index_copy_(0, index, taken * (max_norm / (norms + 1e-7)).clamp_max(1))  # type: ignore[attr-defined]
    definition = Embedding(-1 if padding_idx is None else padding_idx)
    found = made(definition, "Embedding", weight, input)
    if not scale_grad_by_freq:
        return found
    times = build.zeros(ir.tensor((rows,), build.element_of(read(weight))))
    flat = build.reshape(read(input), (input.numel(),))
    times = build.scatter_along(times, flat, build.constant(1, build.element_of(times), (input.numel(),)), 0)
    share = 1 / wrap(times)[input].unsqueeze(-1)  # type: ignore[attr-defined, operator, index]
    return found * share + (found * (1 - share)).detach()  # type: ignore[operator, no-any-return]


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64, with a new last axis that is 1 at each index. `num_classes` -1 looks for the largest index."""
    index = read(tensor)
    if num_classes == -1:
        num_classes = int(tensor.max().item()) + 1  # type: ignore[attr-defined]
    return wrap(build.one_hot(index, num_classes, ir.i64))


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    rank: int,
) -> Tensor:
    name = f"conv{rank}d"
    x, w = read(input), read(weight)
    shape, kernel = build.shape_of(x), build.shape_of(w)
    if len(kernel) != rank + 2:
        raise RuntimeError(f"Expected {rank + 2}D weight for {name}, but got weight of size: {list(kernel)}")
    if len(shape) not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {name}, "
            f"but got input of size: {list(shape)}"
        )
    batched = len(shape) == rank + 2
    if not batched:
        x = build.expand_dims(x, 0)
    channels = build.shape_of(x)[1]
    if channels != kernel[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(kernel)}, expected input{list(build.shape_of(x))} to have "
            f"{kernel[1] * groups} channels, but got {channels} channels instead"
        )
    strides, dilations = each(stride, rank), each(dilation, rank)
    if isinstance(padding, str):
        sides = _named_padding(padding, kernel[2:], strides, dilations)
    else:
        sides = tuple([(p, p) for p in each(padding, rank)])
    definition = replace(convolution_of(rank, strides, 0, dilations, groups), padding=sides)
    y = record(definition, x, w)
    if bias is not None:
        y = shifted(y, read(bias), 1)
    return wrap(y if batched else build.squeeze(y, 0), "Convolution")


def _named_padding(
    padding: str, kernel: tuple[Any, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(s != 1 for s in strides):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    totals = [d * (k - 1) for k, d in zip(kernel, dilations)]
    return tuple([(t // 2, t - t // 2) for t in totals])


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolution over (N, C, L) or (C, L); weight (out, C / groups, k); padding a number, "same" or "valid"."""
    return _convolve(input, weight, bias, stride, padding, dilation, groups, 1)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolution over (N, C, H, W) or (C, H, W); weight (out, C / groups, kh, kw)."""
    return _convolve(input, weight, bias, stride, padding, dilation, groups, 2)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """Convolution over (N, C, D, H, W) or (C, D, H, W); weight (out, C / groups, kd, kh, kw)."""
    return _convolve(input, weight, bias, stride, padding, dilation, groups, 3)


def _transposed(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, output_padding: Any, groups: int,
    dilation: Any, rank: int,
) -> Tensor:  # fmt: skip
    x, w = read(input), read(weight)
    shape = build.shape_of(x)
    if len(shape) not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to conv_transpose{rank}d, "
            f"but got input of size: {list(shape)}"
        )
    strides, dilations, extra = each(stride, rank), each(dilation, rank), each(output_padding, rank)
    for e, s, d in zip(extra, strides, dilations):
        if e >= s and e >= d:
            raise RuntimeError(
                f"output padding must be smaller than either stride or dilation, but got {e}, {s}, {d}"
            )
    batched = len(shape) == rank + 2
    if not batched:
        x = build.expand_dims(x, 0)
    y: Value = transposed_convolution(x, w, strides, each(padding, rank), extra, dilations, groups)
    if bias is not None:
        y = shifted(y, read(bias), 1)
    return wrap(y if batched else build.squeeze(y, 0), "Convolution")


def conv_transpose1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """The gradient of `conv1d` for its input; weight (C, out / groups, k)."""
    return _transposed(input, weight, bias, stride, padding, output_padding, groups, dilation, 1)


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """The gradient of `conv2d` for its input; weight (C, out / groups, kh, kw)."""
    return _transposed(input, weight, bias, stride, padding, output_padding, groups, dilation, 2)


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """The gradient of `conv3d` for its input; weight (C, out / groups, kd, kh, kw)."""
    return _transposed(input, weight, bias, stride, padding, output_padding, groups, dilation, 3)


__all__ = [
    "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding",
    "linear", "one_hot",
]  # fmt: skip
