"""`graph.convolution`: forward, both gradients and transposed convolution are all this one operation.

Specification: StableHLO, `convolution`. The gradients follow JAX's `_conv_general_dilated_transpose_{lhs,rhs}`:
that of the input dilates the cotangent by the strides and turns the kernel around; that of the kernel convolves
with batch and features exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, im2col
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.dialects.graph.contraction import (
    ContractionDescription,
    check_result_element,
    numpy_accumulator,
)
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.dialects.graph.windows import dilated, spread_and_pad, window_count
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, TensorType, tensor


class Convolution(GraphOp):
    """Convolution (cross-correlation) over 1 to 3 spatial dimensions, of an input with a kernel.

    Spatial attributes have one entry a spatial dimension. ``result[b, f, o] = sum over c and k of
    padded(dilated(input))[b, c, o * stride + k * rhs_dilation] * kernel[f, c, k]``; `padding` is (low, high) and may be
    negative; `lhs_dilation` puts zeros between the input's elements (transposed convolution); `window_reversal` turns
    the kernel around. With `feature_group_count` G, group g of the result's features sees group g of the input's; with
    `batch_group_count` G, it sees group g of the batch. The nine dimension numbers say what each dimension of input,
    kernel and result is. `element` is the result's type if it is wider than the operands'.
    Specification: StableHLO, `convolution`.
    """

    name = "graph.convolution"
    schedule_family: ClassVar[str] = "contraction"
    window_strides: tuple[int, ...]
    padding: tuple[tuple[Index, Index], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    window_reversal: tuple[bool, ...]
    input_batch: int
    input_feature: int
    input_spatial: tuple[int, ...]
    kernel_input_feature: int
    kernel_output_feature: int
    kernel_spatial: tuple[int, ...]
    output_batch: int
    output_feature: int
    output_spatial: tuple[int, ...]
    feature_group_count: int = 1
    batch_group_count: int = 1
    element: ElementType | None = None

    @property
    def spatial_rank(self) -> int:
        return len(self.window_strides)

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        x, w = operands
        self._check_attributes(x, w)
        if x.element is not w.element:
            raise self.reject(
                "input and kernel must have one element type", expected=x.element, actual=w.element
            )
        result = self.element or x.element
        check_result_element(self, x.element, result)
        groups, batches = self.feature_group_count, self.batch_group_count
        channels, features = x.shape[self.input_feature], w.shape[self.kernel_output_feature]
        if w.shape[self.kernel_input_feature] * groups != channels:
            raise self.reject(
                f"the kernel {w} must have the input's features divided by {groups} groups",
                expected=channels,
                actual=w.shape[self.kernel_input_feature] * groups,
            )
        if features % (groups * batches) != 0:
            raise self.reject(
                "groups must divide the kernel's output features",
                expected=f"a multiple of {groups * batches}",
                actual=features,
            )
        if x.shape[self.input_batch] % batches != 0:
            raise self.reject(
                "groups must divide the batch",
                expected=f"a multiple of {batches}",
                actual=x.shape[self.input_batch],
            )
        shape: list[Index] = [0] * x.rank
        shape[self.output_batch] = x.shape[self.input_batch] // batches
        shape[self.output_feature] = features
        for s, axis in enumerate(self.output_spatial):
            size, window = x.shape[self.input_spatial[s]], w.shape[self.kernel_spatial[s]]
            count = window_count(
                size,
                window,
                self.window_strides[s],
                self.padding[s],
                self.lhs_dilation[s],
                self.rhs_dilation[s],
            )
            shape[axis] = count
        return tensor(shape, result)

    def _check_attributes(self, x: TensorType, w: TensorType) -> None:
        rank = self.spatial_rank
        if not 0 <= rank <= 3:
            raise self.reject("0 to 3 spatial dimensions", actual=rank)
        if x.rank != rank + 2 or w.rank != rank + 2:
            raise self.reject(
                f"{rank} spatial dimensions need operands of rank {rank + 2}", actual=f"{x} and {w}"
            )
        for what, values in (
            ("padding", self.padding),
            ("lhs_dilation", self.lhs_dilation),
            ("rhs_dilation", self.rhs_dilation),
            ("window_reversal", self.window_reversal),
        ):
            if len(values) != rank:
                raise self.reject(f"{what} needs one entry a spatial dimension", expected=rank, actual=values)
        for what, numbers in (
            ("window_strides", self.window_strides),
            ("lhs_dilation", self.lhs_dilation),
            ("rhs_dilation", self.rhs_dilation),
        ):
            if any(n < 1 for n in numbers):
                raise self.reject(f"{what} must be at least 1", actual=numbers)
        for what, dims in (
            ("input", (self.input_batch, self.input_feature, *self.input_spatial)),
            ("kernel", (self.kernel_input_feature, self.kernel_output_feature, *self.kernel_spatial)),
            ("output", (self.output_batch, self.output_feature, *self.output_spatial)),
        ):
            if sorted(dims) != list(range(rank + 2)):
                raise self.reject(
                    f"the {what}'s dimension numbers must be a permutation of 0 to {rank + 1}", actual=dims
                )
        if self.feature_group_count < 1 or self.batch_group_count < 1:
            raise self.reject(
                "group counts must be at least 1", actual=(self.feature_group_count, self.batch_group_count)
            )
        if self.feature_group_count > 1 and self.batch_group_count > 1:
            raise self.reject(
                "only one of feature_group_count and batch_group_count may be above 1",
                actual=(self.feature_group_count, self.batch_group_count),
            )

    def contraction(self, lhs_type: TensorType, rhs_type: TensorType) -> ContractionDescription:
        """What the contraction template needs: implicit im2col."""
        return im2col.contraction(self, lhs_type, rhs_type)

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        return im2col.element_at(self, b, index, *operands)

    # -- derivatives ---------------------------------------------------------------------------------------------
    def vjp(self, ct: Value, x: Value, w: Value, *, result: Value) -> tuple[Value, Value]:
        """The gradient of the input dilates `ct` by the strides; that of the kernel exchanges batch and features."""
        ct = build.convert(ct, x.type.element)  # type: ignore[attr-defined]
        return self._input_gradient(ct, x.type, w), self._kernel_gradient(ct, x, w.type)  # type: ignore[arg-type]

    def _input_gradient(self, ct: Value, x: TensorType, w: Value) -> Value:
        kernel: TensorType = w.type  # type: ignore[assignment]
        g: TensorType = ct.type  # type: ignore[assignment]
        groups = self.feature_group_count * self.batch_group_count
        if groups > 1:
            # Features of one group become the sums' dimension; the group moves to the gradient's features.
            w = regroup(w, self.kernel_output_feature, self.kernel_input_feature, groups)
        padding: list[tuple[Index, Index]] = []
        for s in range(self.spatial_rank):
            window = dilated(kernel.shape[self.kernel_spatial[s]], self.rhs_dilation[s])
            low = window - 1 - self.padding[s][0]
            wide = dilated(x.shape[self.input_spatial[s]], self.lhs_dilation[s])
            spread = dilated(g.shape[self.output_spatial[s]], self.window_strides[s])
            padding.append((low, wide + window - 1 - spread - low))
        op = replace(
            self,
            window_strides=self.lhs_dilation,
            padding=tuple(padding),
            lhs_dilation=self.window_strides,
            window_reversal=tuple([not r for r in self.window_reversal]),
            input_batch=self.output_batch,
            input_feature=self.output_feature,
            input_spatial=self.output_spatial,
            kernel_input_feature=self.kernel_output_feature,
            kernel_output_feature=self.kernel_input_feature,
            output_batch=self.input_batch,
            output_feature=self.input_feature,
            output_spatial=self.input_spatial,
            feature_group_count=groups,
            batch_group_count=1,
            element=None,
        )
        gradient = apply(op, ct, w)
        if self.batch_group_count > 1:
            gradient = regroup(gradient, self.input_feature, self.input_batch, groups)
        return gradient

    def _kernel_gradient(self, ct: Value, x: Value, kernel: TensorType) -> Value:
        source: TensorType = x.type  # type: ignore[assignment]
        g: TensorType = ct.type  # type: ignore[assignment]
        padding: list[tuple[Index, Index]] = []
        for s in range(self.spatial_rank):
            low = self.padding[s][0]
            wide = dilated(source.shape[self.input_spatial[s]], self.lhs_dilation[s])
            window = dilated(kernel.shape[self.kernel_spatial[s]], self.rhs_dilation[s])
            spread = dilated(g.shape[self.output_spatial[s]], self.window_strides[s])
            padding.append((low, spread - wide + window - 1 - low))
        op = replace(
            self,
            window_strides=self.rhs_dilation,
            padding=tuple(padding),
            rhs_dilation=self.window_strides,
            window_reversal=(False,) * self.spatial_rank,
            input_batch=self.input_feature,
            input_feature=self.input_batch,
            kernel_input_feature=self.output_batch,
            kernel_output_feature=self.output_feature,
            kernel_spatial=self.output_spatial,
            output_batch=self.kernel_input_feature,
            output_feature=self.kernel_output_feature,
            output_spatial=self.kernel_spatial,
            feature_group_count=self.batch_group_count,
            batch_group_count=self.feature_group_count,
            element=None,
        )
        gradient = apply(op, x, ct)
        turned = [axis for s, axis in enumerate(self.kernel_spatial) if self.window_reversal[s]]
        return build.reverse(gradient, turned) if turned else gradient

    # -- NumPy ---------------------------------------------------------------------------------------------------
    def reference(self, *operands: np.ndarray[Any, Any]) -> Any:
        x, w = operands
        wide = numpy_accumulator(x.dtype, self.element)
        rank, groups = self.spatial_rank, self.feature_group_count * self.batch_group_count
        image = x.transpose(self.input_batch, self.input_feature, *self.input_spatial).astype(wide)
        kernel = w.transpose(
            self.kernel_output_feature, self.kernel_input_feature, *self.kernel_spatial
        ).astype(wide)
        turned = tuple([s + 2 for s in range(rank) if self.window_reversal[s]])
        kernel = np.asarray(np.flip(kernel, turned))
        image = spread_and_pad(image, (1, 1, *self.lhs_dilation), ((0, 0), (0, 0), *self.padding), 0)
        features = kernel.shape[0] // groups
        counts = [
            max(
                0,
                (image.shape[s + 2] - (kernel.shape[s + 2] - 1) * self.rhs_dilation[s] - 1)
                // self.window_strides[s]
                + 1,
            )
            for s in range(rank)
        ]
        images = np.split(image, groups, axis=1 if self.feature_group_count > 1 else 0)
        parts = []
        for g in range(groups):
            part = np.zeros((images[g].shape[0], features, *counts), wide)
            for taps in itertools.product(*(range(n) for n in kernel.shape[2:])) if all(counts) else ():
                first = [t * d for t, d in zip(taps, self.rhs_dilation, strict=True)]
                cut = [
                    slice(low, low + (count - 1) * stride + 1, stride)
                    for low, count, stride in zip(first, counts, self.window_strides, strict=True)
                ]
                seen = images[g][(slice(None), slice(None), *cut)]
                tap: tuple[Any, ...] = (slice(g * features, (g + 1) * features), slice(None), *taps)
                part += np.einsum("bc...,fc->bf...", seen, kernel[tap])
            parts.append(part)
        out = np.concatenate(parts, axis=1)
        place = [0] * (rank + 2)
        for source, axis in enumerate((self.output_batch, self.output_feature, *self.output_spatial)):
            place[axis] = source
        return np.ascontiguousarray(out.transpose(place)).astype(
            self.element.numpy if self.element else x.dtype
        )

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray[Any, Any]:
            return rng.standard_normal(shape)

        yield Sample(convolution_of(2), (normal(2, 3, 5, 4), normal(4, 3, 3, 2)), F.conv2d)
        yield Sample(
            convolution_of(2, 2, 1, 1, 2),
            (normal(1, 4, 5, 6), normal(2, 2, 3, 3)),
            lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=2),
            note="strides, padding, groups",
        )
        yield Sample(
            convolution_of(1, 1, 2, 2, 3),
            (normal(2, 3, 7), normal(6, 1, 2)),
            lambda x, w: F.conv1d(x, w, padding=2, dilation=2, groups=3),
            note="depthwise, dilated",
        )
        yield Sample(
            convolution_of(3, 1, 1),
            (normal(1, 2, 3, 2, 3), normal(2, 2, 2, 3, 3)),
            lambda x, w: F.conv3d(x, w, padding=1),
        )
        yield Sample(
            replace(
                convolution_of(2),
                padding=((1, 2), (2, 1)),
                lhs_dilation=(2, 1),
                window_reversal=(True, False),
            ),
            (normal(1, 2, 3, 3), normal(2, 2, 2, 2)),
            None,
            note="transposed convolution along one axis",
        )
        yield Sample(
            replace(
                convolution_of(1),
                input_batch=0,
                input_feature=2,
                input_spatial=(1,),
                kernel_spatial=(0,),
                kernel_input_feature=1,
                kernel_output_feature=2,
                output_feature=2,
                output_spatial=(1,),
            ),
            (normal(2, 6, 3), normal(2, 3, 4)),
            lambda x, w: F.conv1d(x.transpose(1, 2), w.permute(2, 1, 0)).transpose(1, 2),
            note="features last",
        )
        yield Sample(
            replace(convolution_of(1), batch_group_count=2, padding=((-1, 1),)),
            (normal(4, 2, 6), normal(4, 2, 2)),
            None,
            note="batch groups, negative padding",
        )


def convolution_of(
    rank: int,
    stride: int | Sequence[int] = 1,
    padding: Index | Sequence[Index] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    element: ElementType | None = None,
) -> Convolution:
    """The convolution of PyTorch's `conv1d` to `conv3d`: input (batch, feature, space), kernel (out, in, space)."""
    spatial = tuple(range(2, rank + 2))
    return Convolution(
        window_strides=_each(stride, rank),
        padding=tuple([(p, p) for p in _each(padding, rank)]),
        lhs_dilation=(1,) * rank,
        rhs_dilation=_each(dilation, rank),
        window_reversal=(False,) * rank,
        input_batch=0,
        input_feature=1,
        input_spatial=spatial,
        kernel_input_feature=1,
        kernel_output_feature=0,
        kernel_spatial=spatial,
        output_batch=0,
        output_feature=1,
        output_spatial=spatial,
        feature_group_count=groups,
        element=element,
    )


def transposed_convolution(
    x: Value,
    w: Value,
    stride: int | Sequence[int] = 1,
    padding: Index | Sequence[Index] = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Value:
    """PyTorch's `conv_transpose1d` to `3d`: `x` (batch, in, space), `w` (in, out / groups, space).

    It is the gradient of a convolution's input: strides dilate the input and the kernel is turned around.
    """
    kernel: TensorType = w.type  # type: ignore[assignment]
    rank = kernel.rank - 2
    strides, dilations = _each(stride, rank), _each(dilation, rank)
    pads, extra = _each(padding, rank), _each(output_padding, rank)
    sides: list[tuple[Index, Index]] = []
    for s in range(rank):
        reach = dilated(kernel.shape[s + 2], dilations[s]) - 1 - pads[s]
        sides.append((reach, reach + extra[s]))
    op = replace(
        convolution_of(rank, 1, 0, dilation, groups),
        padding=tuple(sides),
        lhs_dilation=strides,
        window_reversal=(True,) * rank,
        kernel_input_feature=0,
        kernel_output_feature=1,
    )
    if groups > 1:
        w = regroup(w, 0, 1, groups)
    return apply(op, x, w)


def regroup(x: Value, source: int, target: int, groups: int) -> Value:
    """Split `groups` off axis `source` (as its major part) and make it the major part of axis `target`."""
    kind: TensorType = x.type  # type: ignore[assignment]
    shape = list(kind.shape)
    split = [*shape[:source], groups, shape[source] // groups, *shape[source + 1 :]]
    axes = [d for d in range(len(split)) if d != source]
    # In the split tensor the axis `target` lies one further if it comes after `source`.
    axes.insert(axes.index(target + (target > source)), source)
    merged = list(shape)
    merged[source], merged[target] = shape[source] // groups, shape[target] * groups
    return build.reshape(build.transpose(build.reshape(x, split), axes), merged)


def _each(value: Any, rank: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * rank
