"""Convolution as a contraction: implicit im2col, for the tiled template and element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flambeau.compiler.dialects.graph.contraction import (
    ContractionDescription,
    Run,
    accumulator_of,
    decode,
    sum_of_products,
)
from flambeau.compiler.dialects.graph.windows import window_position
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.types import TensorType

if TYPE_CHECKING:
    from flambeau.compiler.dialects.graph.convolution import Convolution

#: Below this many spatial positions, images of a batch share one matrix so that it is not too narrow.
NARROW = 32
#: Runs of memory shorter than this are read element by element.
SHORT_RUN = 6


def contraction(op: Convolution, lhs_type: TensorType, rhs_type: TensorType) -> ContractionDescription:
    """Implicit im2col. K runs over the kernel's input features and window, in the order of the kernel's memory.

    If features are the result's last dimension, M is batch and space, N the features; else M is the features and
    N space, together with the batch where that keeps stores contiguous or images are tiny. Groups are a batch
    dimension.
    """
    x, w = lhs_type, rhs_type
    out = op.infer(x, w)
    assert isinstance(out, TensorType)
    groups = op.feature_group_count * op.batch_group_count
    features = w.shape[op.kernel_output_feature] // groups
    k_axes = [d for d in range(w.rank) if d != op.kernel_output_feature]
    k_sizes = [w.shape[d] for d in k_axes]
    spatial = sorted(range(op.spatial_rank), key=lambda s: op.output_spatial[s])
    space_sizes = [out.shape[op.output_spatial[s]] for s in spatial]
    space, images = product(space_sizes), out.shape[op.output_batch]
    last = op.output_feature == out.rank - 1
    together = last or op.output_feature < op.output_batch or (isinstance(space, int) and space < NARROW)
    position_sizes = [images, *space_sizes] if together else space_sizes
    batch: list[Index] = [] if together else [images]
    if groups > 1:
        batch.append(groups)

    def kernel_index(at: Sequence[Index], k: Index, feature: Index) -> tuple[Index, ...]:
        index: list[Index] = [0] * w.rank
        index[op.kernel_output_feature] = (at[-1] if groups > 1 else 0) * features + feature
        for axis, digit in zip(k_axes, decode(k, k_sizes), strict=True):
            index[axis] = digit
        for s, axis in enumerate(op.kernel_spatial):
            if op.window_reversal[s]:
                index[axis] = w.shape[axis] - 1 - index[axis]
        return tuple(index)

    def window(
        at: Sequence[Index], k: Index, position: Index
    ) -> tuple[Index, Index, list[Index], list[Index]]:
        digits = list(decode(position, position_sizes))
        image = digits.pop(0) if together else at[0]
        tap: list[Index] = [0] * w.rank
        for axis, digit in zip(k_axes, decode(k, k_sizes), strict=True):
            tap[axis] = digit
        where: list[Index] = [0] * op.spatial_rank
        for s, digit in zip(spatial, digits, strict=True):
            where[s] = digit
        return image, tap[op.kernel_input_feature], where, [tap[axis] for axis in op.kernel_spatial]

    def read(b: Any, operand: Any, at: Sequence[Index], k: Index, position: Index) -> Any:
        image, channel, where, taps = window(at, k, position)
        return _input_element(op, b, operand, at[-1] if groups > 1 else 0, image, channel, where, taps)

    def input_index(at: Sequence[Index], k: Index, position: Index) -> tuple[Index, ...]:
        image, channel, where, taps = window(at, k, position)
        return place_in_input(
            op,
            x,
            at[-1] if groups > 1 else 0,
            image,
            channel,
            [where[s] * op.window_strides[s] + taps[s] * op.rhs_dilation[s] for s in range(op.spatial_rank)],
        )

    def result_index(at: Sequence[Index], position: Index, feature: Index) -> tuple[Index, ...]:
        digits = list(decode(position, position_sizes))
        index: list[Index] = [0] * out.rank
        index[op.output_batch] = digits.pop(0) if together else at[0]
        index[op.output_feature] = (at[-1] if groups > 1 else 0) * features + feature
        for s, digit in zip(spatial, digits, strict=True):
            index[op.output_spatial[s]] = digit
        return tuple(index)

    unguarded = all(d == 1 for d in op.lhs_dilation) and all(p == (0, 0) for p in op.padding)
    # The window's digits that are innermost in k, where their sizes are numbers.
    inner: list[int] = []
    for axis, size in zip(reversed(k_axes), reversed(k_sizes), strict=True):
        if axis == op.kernel_input_feature or not isinstance(size, int):
            break
        inner.insert(0, size)
    input_run = _input_run(op, x, w, space_sizes[-1] if spatial else 1, spatial, k_axes)
    after_features = product(w.shape[op.kernel_output_feature + 1 :])
    kernel_run: Run | None = None
    if isinstance(after_features, int) and after_features >= SHORT_RUN and not any(op.window_reversal):
        kernel_run = ("depth", after_features)
    positions = product(position_sizes)
    accumulator = accumulator_of(x.element, out.element)
    if last:
        return ContractionDescription(
            tuple(batch),
            positions,
            features,
            product(k_sizes),
            lambda b, v, at, m, k: read(b, v, at, k, m),
            lambda b, v, at, k, n: v(kernel_index(at, k, n)),
            result_index,
            accumulator,
            (0, 1),
            (lambda at, m, k: input_index(at, k, m)) if unguarded else None,
            kernel_index,
            tuple(inner),
            input_run,
            kernel_run,
        )
    return ContractionDescription(
        tuple(batch),
        features,
        positions,
        product(k_sizes),
        lambda b, v, at, m, k: v(kernel_index(at, k, m)),
        read,
        lambda at, m, n: result_index(at, n, m),
        accumulator,
        (1, 0),
        lambda at, m, k: kernel_index(at, k, m),
        input_index if unguarded else None,
        tuple(inner),
        kernel_run,
        input_run,
    )


def _input_run(
    op: Convolution, x: TensorType, w: TensorType, width: Index, spatial: Sequence[int], k_axes: Sequence[int]
) -> Run | None:
    """Along which position the input's innermost spatial dimension is read element by element."""
    last = x.rank - 1
    if last not in op.input_spatial:
        return None
    s = op.input_spatial.index(last)
    taps = w.shape[op.kernel_spatial[s]]
    dense = op.lhs_dilation[s] == op.rhs_dilation[s] == 1 and not op.window_reversal[s]
    window = dense and k_axes[-1] == op.kernel_spatial[s] and isinstance(taps, int) and taps >= SHORT_RUN
    if window and op.window_strides[s] > 2:  # beyond vectors of every other element
        return ("depth", taps)  # type: ignore[return-value]
    if spatial[-1] == s and isinstance(width, int) and width >= SHORT_RUN:
        return ("row", width)
    return ("depth", taps) if window else None  # type: ignore[return-value]


def place_in_input(
    op: Convolution, x: TensorType, group: Index, image: Index, channel: Index, where: Sequence[Index]
) -> tuple[Index, ...]:
    index: list[Index] = [0] * x.rank
    index[op.input_batch], index[op.input_feature] = image, channel
    if op.feature_group_count > 1:
        index[op.input_feature] = group * (x.shape[op.input_feature] // op.feature_group_count) + channel
    if op.batch_group_count > 1:
        index[op.input_batch] = group * (x.shape[op.input_batch] // op.batch_group_count) + image
    for s, axis in enumerate(op.input_spatial):
        index[axis] = where[s]
    return tuple(index)


def _input_element(
    op: Convolution,
    b: Any,
    x: Any,
    group: Index,
    image: Index,
    channel: Index,
    where: Sequence[Index],
    taps: Sequence[Index],
) -> Any:
    """The input's element under `taps` of the window at `where`; zero in padding and between dilated elements."""
    found: list[Index] = []
    conditions: list[Any] = []
    for s, axis in enumerate(op.input_spatial):
        at, inside = window_position(
            b,
            where[s] * op.window_strides[s] + taps[s] * op.rhs_dilation[s],
            op.padding[s][0],
            op.padding[s][1],
            op.lhs_dilation[s],
            x.type.shape[axis],
        )
        found.append(at)
        conditions.extend(inside)
    index = place_in_input(op, x.type, group, image, channel, found)
    if not conditions:
        return x(index)
    condition = conditions[0]
    for other in conditions[1:]:
        condition = b.and_(condition, other)
    return b.guarded(condition, lambda: x(index), b.constant(0, x.type.element))


def element_at(op: Convolution, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
    x, w = operands
    d = op.contraction(x.type, w.type)
    groups = op.feature_group_count * op.batch_group_count
    features = w.type.shape[op.kernel_output_feature] // groups
    k_axes = [axis for axis in range(w.type.rank) if axis != op.kernel_output_feature]
    k_sizes = [w.type.shape[axis] for axis in k_axes]
    feature = index[op.output_feature]
    group = feature // features if groups > 1 else 0

    def left(k: Index) -> Any:
        digits = dict(zip(k_axes, decode(k, k_sizes), strict=True))
        return _input_element(
            op,
            b,
            x,
            group,
            index[op.output_batch],
            digits[op.kernel_input_feature],
            [index[axis] for axis in op.output_spatial],
            [digits[axis] for axis in op.kernel_spatial],
        )

    def right(k: Index) -> Any:
        digits = dict(zip(k_axes, decode(k, k_sizes), strict=True)) | {op.kernel_output_feature: feature}
        for s, axis in enumerate(op.kernel_spatial):
            if op.window_reversal[s]:
                digits[axis] = w.type.shape[axis] - 1 - digits[axis]
        return w(tuple([digits[axis] for axis in range(w.type.rank)]))

    return sum_of_products(b, d, left, right, op.element or x.type.element)
