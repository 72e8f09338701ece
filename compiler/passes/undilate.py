"""Convolutions of inputs with zeros between their elements, without the zeros.

Input gradients of strided convolutions and transposed convolutions have a dilated input. Two forms have no zeros in them:

- *adding*: each input element times the whole kernel, a product of matrices that reads the kernel as it lies, then the
  windows added up where they overlap (`graph.overlap_add`);
- *exchanged*: correlation commutes up to a reversal, so the kernel becomes the input and the input a dilated kernel. This is
  for kernels much larger than the result, the weight gradients of transposed convolutions.

Adding is also for convolutions without dilation to a few output features, the last ones of networks that make images: a product
with all taps at once has more rows, and reads the input once rather than once a tap.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution, regroup
from flambeau.compiler.dialects.graph.overlap_add import overlap_add
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.compiler.passes.split_weights import weight_bytes
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.compiler.schedule.cpu_small_convolution import small_convolution

#: The kernel and the input are exchanged where adding would make this many products for each element of the result.
MANY = 64
#: Output features below which they are few, and the most rows of a product with all of their taps.
FEW, ROWS = 8, 64
#: Windows of more taps that do not overlap are put side by side by a transpose.
TAPS = 64


def undilate(graph: Graph, cpu: CpuShape | None = None, weights: Collection[Value] = ()) -> Graph:
    """An equal graph (sums are reassociated) in which convolutions have no dilated input, where a form is known; but for those
    of small images, with kernels that are not `weights`, which `cpu` runs without products with zeros anyway."""
    ready = weight_bytes(graph, weights)

    def replace_one(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        op = operation.definition
        if not isinstance(op, Convolution):
            return None
        x, w = operands
        if all(d == 1 for d in op.lhs_dilation):
            few = _has_few_features(op, build.type_of(x), build.type_of(w))
            return (_added(op, x, w, build.shape_of(operation.results[0])[2:]),) if few else None
        grouped = op.feature_group_count * op.batch_group_count > 1
        small = None if cpu is None else small_convolution(op, build.type_of(x), build.type_of(w), cpu)
        if small is not None and operation.operands[1] not in ready:
            return None
        window = [build.shape_of(w)[a] for a in op.kernel_spatial]
        images = [build.shape_of(x)[a] for a in op.input_spatial]
        space = [build.shape_of(operation.results[0])[a] for a in op.output_spatial]
        sizes = (*window, *images, *space)
        known = all(isinstance(n, int) for n in sizes) and 0 not in sizes
        if not known or any(s != 1 for s in op.window_strides):
            return None if grouped else (_spread(op, x, w),)
        made, wanted = product(window) * product(images), product(space)
        many = isinstance(made, int) and isinstance(wanted, int) and made > MANY * wanted
        if many and all(d == 1 for d in op.rhs_dilation) and op.feature_group_count == 1:
            return (_exchanged(op, x, w),)
        if op.batch_group_count > 1:
            return None
        return (_spread(op, x, w),) if many and not grouped else (_added(op, x, w, space),)

    return rebuild(graph, replace_one)


def _has_few_features(op: Convolution, x: TensorType, w: TensorType) -> bool:
    """Is it faster to multiply by all taps first and to add the windows then?"""
    result, order = op.infer(x, w), tuple(range(op.spatial_rank + 2))
    numbers = (*x.shape[1:], *w.shape, *result.shape[1:])
    if not all(isinstance(n, int) for n in numbers) or 0 in (*x.shape, *w.shape, *result.shape):
        return False
    if (op.output_batch, op.output_feature, *op.output_spatial) != order or op.input_spatial != order[2:]:
        return False
    if op.feature_group_count * op.batch_group_count > 1 or any(s != 1 for s in op.window_strides):
        return False
    if any(not isinstance(low, int) for low, _ in op.padding) or not x.element.is_float:
        return False
    features, channels = w.shape[op.kernel_output_feature], w.shape[op.kernel_input_feature]
    taps = product([w.shape[a] for a in op.kernel_spatial])
    assert isinstance(features, int) and isinstance(channels, int) and isinstance(taps, int)
    return taps > 1 and features < FEW and features * taps <= min(ROWS, 2 * channels)


def _spread(op: Convolution, x: Value, w: Value) -> Value:
    """The zeros written out, where no other form is known: the input's rows are then read in vectors."""
    rank = op.spatial_rank + 2
    gaps = [0] * rank
    for s, axis in enumerate(op.input_spatial):
        gaps[axis] = op.lhs_dilation[s] - 1
    spread = build.pad(x, [0] * rank, [0] * rank, gaps)
    return apply(replace(op, lhs_dilation=(1,) * op.spatial_rank), spread, w)


def _added(op: Convolution, x: Value, w: Value, space: Sequence[Index]) -> Value:
    """``windows[b, (f, k), i] = sum over c of x[b, c, i] w[f, c, k]``, each added at ``i * dilation + low - k``."""
    rank = op.spatial_rank
    element = op.element or build.element_of(x)
    # The sums go on after the product, so they stay in the accumulator's type.
    wide = accumulator_of(build.element_of(x), element)
    kernel = build.shape_of(w)
    order = [op.kernel_input_feature, op.kernel_output_feature, *op.kernel_spatial]
    turned = [op.kernel_spatial[s] for s in range(rank) if not op.window_reversal[s]]
    w = build.transpose(build.reverse(w, turned) if turned else w, order)
    features = kernel[op.kernel_output_feature]
    window = [kernel[a] for a in op.kernel_spatial]
    images = [build.shape_of(x)[a] for a in op.input_spatial]
    batch = build.shape_of(x)[op.input_batch]
    if kernel[op.kernel_input_feature] == 1:
        windows = _multiplied(op, build.convert(x, wide), build.convert(w, wide))
    else:
        windows = apply(
            _pointwise(op, wide, build.element_of(x)),
            x,
            build.reshape(w, (kernel[op.kernel_input_feature], features * product(window), *[1] * rank)),
        )
    windows = build.reshape(windows, (batch, features, *window, *images))
    # With the kernel turned around, tap k of the window at i lies at i * dilation + k - (reach - low).
    low = [(n - 1) * e - pad for n, e, (pad, _) in zip(window, op.rhs_dilation, op.padding, strict=True)]
    edges = [i * s for i, s in zip(images, op.lhs_dilation, strict=True)]
    apart = list(window) == list(op.lhs_dilation) and all(d == 1 for d in op.rhs_dilation)
    if apart and not any(low) and list(space) == edges and int(product(window)) > TAPS:  # type: ignore[arg-type]
        axes = [0, 1]
        for axis in range(rank):
            axes += [2 + rank + axis, 2 + axis]
        summed = build.reshape(build.transpose(windows, axes), (*build.shape_of(windows)[:2], *space))
    else:
        summed = overlap_add(windows, space, op.lhs_dilation, op.rhs_dilation, low)
    place = [0] * (rank + 2)
    for source, axis in enumerate((op.output_batch, op.output_feature, *op.output_spatial)):
        place[axis] = source
    return build.convert(build.transpose(summed, place), element)


def _pointwise(op: Convolution, wide: ElementType, element: ElementType) -> Convolution:
    """The product of the input with a kernel (input feature, output feature and tap), group by group."""
    rank = op.spatial_rank
    return replace(
        op,
        window_strides=(1,) * rank,
        padding=((0, 0),) * rank,
        lhs_dilation=(1,) * rank,
        rhs_dilation=(1,) * rank,
        window_reversal=(False,) * rank,
        kernel_input_feature=0,
        kernel_output_feature=1,
        kernel_spatial=tuple(range(2, rank + 2)),
        output_batch=0,
        output_feature=1,
        output_spatial=tuple(range(2, rank + 2)),
        element=None if wide is element else wide,
    )


def _multiplied(op: Convolution, x: Value, w: Value) -> Value:
    """The same where a group has one input feature, of a kernel (1, output feature, window): its products need no memory."""
    x = build.transpose(x, [op.input_batch, op.input_feature, *op.input_spatial])
    batch, groups, *images = build.shape_of(x)
    _, features, *window = build.shape_of(w)
    rank = op.spatial_rank
    shape = (batch, groups, features // groups, *window, *images)
    w = build.reshape(w, (groups, features // groups, *window))
    return build.mul(
        build.broadcast_in_dim(x, shape, (0, 1, *range(3 + rank, 3 + 2 * rank))),
        build.broadcast_in_dim(w, shape, range(1, 3 + rank)),
    )


def _exchanged(op: Convolution, x: Value, w: Value) -> Value:
    """``result[o] = sum over i of x[i] w[i * dilation + low - o]``: the kernel convolved with the input, turned around."""
    rank = op.spatial_rank
    turned = [op.kernel_spatial[s] for s in range(rank) if op.window_reversal[s]]
    w = build.reverse(w, turned) if turned else w
    padding: list[tuple[Index, Index]] = []
    for s in range(rank):
        images = build.shape_of(x)[op.input_spatial[s]]
        window = build.shape_of(w)[op.kernel_spatial[s]]
        low, high = op.padding[s]
        reach = (images - 1) * op.lhs_dilation[s] + 1
        # Result o of `count` is the exchanged convolution's count - 1 - o.
        count = reach + low + high - window + 1
        before = count - 1 - low
        padding.append((before, count - 1 + reach - window - before))
    exchanged = replace(
        op,
        padding=tuple(padding),
        lhs_dilation=(1,) * rank,
        rhs_dilation=op.lhs_dilation,
        window_reversal=(False,) * rank,
        input_batch=op.kernel_output_feature,
        input_feature=op.kernel_input_feature,
        input_spatial=op.kernel_spatial,
        kernel_output_feature=op.input_batch,
        kernel_input_feature=op.input_feature,
        kernel_spatial=op.input_spatial,
        output_batch=op.output_feature,
        output_feature=op.output_batch,
    )
    made = apply(exchanged, w, x)
    if op.batch_group_count > 1:
        made = regroup(made, op.output_batch, op.output_feature, op.batch_group_count)
    return build.reverse(made, list(op.output_spatial))


@dataclass(frozen=True)
class Undilate(Pass):
    """Convolve dilated inputs without the zeros between their elements."""

    name: ClassVar[str] = "undilate"

    def run(self, graph: Graph) -> Graph:
        return undilate(graph)
