"""`graph.blocked_convolution`: a convolution whose kernel lies in blocks of output features, as its loops read it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.diagnostics import TypeInferenceError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.dialects.graph.packing import PackPanels
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, TensorType, f32, f64, tensor


class BlockedConvolution(GraphOp):
    """Convolution of one group, of an input with a kernel (block, input feature and window, feature in the block).

    The result is that of `graph.convolution` with these attributes and a kernel (`features`, input feature, *`window`),
    of which element (f, ...) is this kernel's (f // n, ..., f % n) for blocks of n; the last block may have more
    features than there are. The kernel has the accumulator's type. The pass `block_convolutions` makes these.
    """

    name = "graph.blocked_convolution"
    schedule_family: ClassVar[str] = "contraction"
    buffered: ClassVar[tuple[int, ...]] = (1,)
    vjp = NotDifferentiable("it is made when everything is differentiated already")
    window: tuple[int, ...]
    window_strides: tuple[int, ...]
    padding: tuple[tuple[Index, Index], ...]
    rhs_dilation: tuple[int, ...]
    input_batch: int
    input_feature: int
    input_spatial: tuple[int, ...]
    output_batch: int
    output_feature: int
    output_spatial: tuple[int, ...]
    features: int
    element: ElementType

    @property
    def pointwise(self) -> bool:
        """Is each result made of one pixel, that at its own place?"""
        return (
            all(n == 1 for n in (*self.window, *self.window_strides))
            and all(side == (0, 0) for side in self.padding)
            and tuple(sorted(self.input_spatial)) == self.input_spatial
            and tuple(sorted(self.output_spatial)) == self.output_spatial
        )

    def products(self, x: TensorType, w: TensorType) -> Index:
        """How many products an element of the result is the sum of."""
        return w.shape[1]

    @property
    def convolution(self) -> Convolution:
        """The same with a kernel that lies (output feature, input feature, window)."""
        rank = len(self.window_strides)
        return Convolution(
            window_strides=self.window_strides,
            padding=self.padding,
            lhs_dilation=(1,) * rank,
            rhs_dilation=self.rhs_dilation,
            window_reversal=(False,) * rank,
            input_batch=self.input_batch,
            input_feature=self.input_feature,
            input_spatial=self.input_spatial,
            kernel_input_feature=1,
            kernel_output_feature=0,
            kernel_spatial=tuple(range(2, rank + 2)),
            output_batch=self.output_batch,
            output_feature=self.output_feature,
            output_spatial=self.output_spatial,
            element=self.element,
        )

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        x, w = operands
        taps = math.prod(self.window)
        if w.rank != 3:
            raise self.reject("the kernel's rank", expected=3, actual=w)
        blocks, depth, block = w.shape
        if not isinstance(block, int) or block == 0 or -(-self.features // block) != blocks:
            raise self.reject(f"the kernel must have blocks of {self.features} features", actual=w)
        if depth % taps != 0:
            raise self.reject("the kernel's depth", expected=f"a multiple of {taps} taps", actual=depth)
        accumulator = accumulator_of(x.element, self.element)
        if w.element is not accumulator:
            raise self.reject("the kernel has the accumulator's type", expected=accumulator, actual=w.element)
        try:
            return self.convolution.infer(x, tensor((self.features, depth // taps, *self.window), x.element))
        except TypeInferenceError as error:
            raise self.reject(f"of the convolution {error}", actual=f"{x} and {w}") from None

    def reference(self, *operands: np.ndarray[Any, Any]) -> Any:
        x, w = operands
        flat = w.transpose(0, 2, 1).reshape(w.shape[0] * w.shape[2], -1, *self.window)
        return self.convolution.reference(x, flat[: self.features].astype(x.dtype))

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((2, 18, 4))
        yield Sample(_of(((1, 2), ((1, 1), (0, 1))), 6, f64), (x, w))
        x, w = x.astype(np.float32), w.astype(np.float32)
        yield Sample(_of(((2, 1), ((0, 0), (0, 0))), 7, f32), (x, w))


def _of(
    window: tuple[tuple[int, ...], tuple[tuple[int, int], ...]], features: int, element: ElementType
) -> BlockedConvolution:
    """Strides and padding of a window over the last two dimensions."""
    return BlockedConvolution((3, 2), *window, (1, 1), 0, 1, (2, 3), 0, 1, (2, 3), features, element)


def blocked(op: Convolution, x: Value, w: Value, block: int) -> Value:
    """The convolution `op` of one group, without dilation of its input, with its kernel in blocks of `block` features."""
    x_type, w_type = build.type_of(x), build.type_of(w)
    result = op.infer(x_type, w_type)
    turned = [axis for s, axis in enumerate(op.kernel_spatial) if op.window_reversal[s]]
    if turned:
        w = build.reverse(w, turned)
    w = build.convert(w, accumulator_of(x_type.element, result.element))
    depth = (op.kernel_input_feature, *op.kernel_spatial)
    w = apply(PackPanels((), (op.kernel_output_feature,), depth, block), w)
    features = w_type.shape[op.kernel_output_feature]
    assert isinstance(features, int)
    definition = BlockedConvolution(
        window=tuple([d for a in op.kernel_spatial if isinstance(d := w_type.shape[a], int)]),
        window_strides=op.window_strides,
        padding=op.padding,
        rhs_dilation=op.rhs_dilation,
        input_batch=op.input_batch,
        input_feature=op.input_feature,
        input_spatial=op.input_spatial,
        output_batch=op.output_batch,
        output_feature=op.output_feature,
        output_spatial=op.output_spatial,
        features=features,
        element=result.element,
    )
    return apply(definition, x, w)
