"""Gives the kernels of convolutions the order in which their loops read them, as explicit operations of the graph."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.blocked_convolution import blocked
from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.lowering.shallow_convolution import shallow_plan
from flambeau.compiler.passes.split_weights import weight_bytes
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.compiler.schedule.cpu_convolution import (
    CHAINS,
    ConvolutionSize,
    beats_template,
    choose_tile,
    window_axes,
)
from flambeau.compiler.schedule.cpu_small_convolution import small_convolution

#: Overlapping windows with more taps than this are the gradients of kernels, whose "window" is an image.
TAPS = 200


def block_convolutions(graph: Graph, cpu: CpuShape, weights: Collection[Value] = ()) -> Graph:
    """An equal graph in which convolutions that are worth it have blocked kernels; of `weights` these are made once."""
    known = weight_bytes(graph, weights)

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        op = operation.definition
        if not isinstance(op, Convolution):
            return None
        x, w = operands
        ready = operation.operands[1] in known
        small = small_convolution(op, build.type_of(x), build.type_of(w), cpu)
        if small is not None and not ready:
            return None  # too few pixels for a kernel to be put in blocks first
        block = _block(op, x, w, cpu, ready)
        return None if block is None else (blocked(op, x, w, block),)

    return rebuild(graph, replace)


def _block(op: Convolution, x: Value, w: Value, cpu: CpuShape, ready: bool) -> int | None:
    """How many features lie side by side; None if the kernel stays as it is."""
    x_type, w_type = build.type_of(x), build.type_of(w)
    result = op.infer(x_type, w_type)
    if (
        op.spatial_rank == 0
        or op.feature_group_count * op.batch_group_count != 1
        or any(d != 1 for d in op.lhs_dilation)
    ):
        return None
    if result.rank - 1 != op.output_spatial[-1] or op.output_batch > op.output_feature:
        return None  # features last, or first: the gradients of kernels
    if shallow_plan(op, x_type, w_type, cpu) is not None:
        return None
    accumulator = accumulator_of(x_type.element, result.element)
    if not accumulator.is_float:
        return None
    image = [x_type.shape[a] for a in (op.input_feature, *op.input_spatial)]
    space = [d for a in op.output_spatial if isinstance(d := result.shape[a], int)]
    padding = [p for side in op.padding for p in side]
    if len(space) < op.spatial_rank or not all(isinstance(d, int) for d in (*image, *w_type.shape, *padding)):
        return None
    if 0 in (*result.shape, *image, *w_type.shape):
        return None
    window = tuple(int(w_type.shape[axis]) for axis in op.kernel_spatial)  # type: ignore[arg-type]
    taps = math.prod(window)
    if taps > TAPS and any(k > s for k, s in zip(window, op.window_strides, strict=True)):
        return None
    channels = int(w_type.shape[op.kernel_input_feature])  # type: ignore[arg-type]
    dense = all(s == 1 for s in op.window_strides) and all(p == 0 for p in padding)
    features = w_type.shape[op.kernel_output_feature]
    assert isinstance(features, int)
    if features < 8:
        return None
    pointwise = taps == 1 and dense
    pixels = (math.prod(space),) if pointwise else tuple(space)
    axes = () if pointwise else window_axes(op, window, [int(n) for n in image[1:]], space)  # type: ignore[arg-type]
    size = ConvolutionSize(result.shape[op.output_batch], pixels, features, channels * taps, axes)
    tile = choose_tile(size, accumulator, cpu, ready=ready)
    if tile.pixels * tile.vectors < CHAINS:
        return None
    if pointwise and not beats_template(size, tile, accumulator, cpu, ready):
        return None
    return tile.block


@dataclass(frozen=True)
class BlockConvolutions(Pass):
    """Put the kernels of convolutions into blocks of output features."""

    name: ClassVar[str] = "block_convolutions"
    vector_bits: int = 512
    registers: int = 32

    def run(self, graph: Graph) -> Graph:
        return block_convolutions(graph, CpuShape(self.vector_bits, self.registers))
