"""Makes Winograd convolutions of 3 x 3 convolutions without strides, where the target's schedule says that it pays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.dialects.graph.winograd import WinogradConvolution, WinogradKernel
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.ir.types import TensorType, f32, f64
from flambeau.compiler.passes.split_weights import weight_bytes
from flambeau.compiler.schedule.cpu_contraction import CpuShape, cpu_shape
from flambeau.compiler.schedule.cpu_small_convolution import small_convolution
from flambeau.compiler.schedule.cpu_winograd import columns_of, pays
from flambeau.compiler.targets.machine import TargetDescription, host_target


def winograd(graph: Graph, target: TargetDescription, weights: Collection[Value] = ()) -> Graph:
    """An equal graph, up to rounding. Transforms of `weights` cost nothing, since they are prepared once."""
    cpu = cpu_shape(target)
    ready = weight_bytes(graph, weights)

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        op = operation.definition
        if not isinstance(op, Convolution):
            return None
        x, w = operands
        made = _converted(op, x, w, cpu, operation.operands[1] in ready)
        return None if made is None else (made,)

    return rebuild(graph, replace)


def _converted(op: Convolution, x: Value, w: Value, cpu: CpuShape, ready: bool) -> Value | None:
    """The convolution as a Winograd convolution, or None."""
    image, kernel = x.type, w.type
    assert isinstance(image, TensorType) and isinstance(kernel, TensorType)
    if not _fits(op, image, kernel):
        return None
    result = op.infer(image, kernel)
    features, height, width = result.shape[1:]
    channels = image.shape[1]
    if not all(isinstance(n, int) and n > 0 for n in (channels, features, height, width)):
        return None
    assert isinstance(channels, int) and isinstance(features, int)
    assert isinstance(height, int) and isinstance(width, int)
    size, itemsize = (height, width), image.element.itemsize
    small = None if ready else small_convolution(op, image, kernel, cpu)
    direct = None if small is None else small.cost
    if not pays(image.shape[0], channels, features, size, itemsize, cpu, ready, direct):
        return None
    transform = WinogradKernel(
        columns_of(features, size, itemsize, cpu),
        op.kernel_output_feature,
        op.kernel_input_feature,
        (op.kernel_spatial[0], op.kernel_spatial[1]),
        (op.window_reversal[0], op.window_reversal[1]),
    )
    (top, bottom), (left, right) = op.padding
    assert (
        isinstance(top, int) and isinstance(bottom, int) and isinstance(left, int) and isinstance(right, int)
    )
    return apply(WinogradConvolution(features, ((top, bottom), (left, right))), x, apply(transform, w))


def _fits(op: Convolution, image: TensorType, kernel: TensorType) -> bool:
    """3 x 3, without strides, dilation and groups, batch and features first; f32 or f64."""
    return (
        op.spatial_rank == 2
        and image.element in (f32, f64)
        and op.element in (None, image.element)
        and op.window_strides == op.lhs_dilation == op.rhs_dilation == (1, 1)
        and op.feature_group_count == op.batch_group_count == 1
        and (op.input_batch, op.input_feature, *op.input_spatial) == (0, 1, 2, 3)
        and (op.output_batch, op.output_feature, *op.output_spatial) == (0, 1, 2, 3)
        and all(kernel.shape[a] == 3 for a in op.kernel_spatial)
        and all(isinstance(side, int) and side >= 0 for sides in op.padding for side in sides)
    )


@dataclass(frozen=True)
class Winograd(Pass):
    """Compute 3 x 3 convolutions from tiles, with fewer products, where that pays on this machine."""

    name: ClassVar[str] = "winograd"

    def run(self, graph: Graph) -> Graph:
        return winograd(graph, host_target())
