"""How a convolution of small images runs on a CPU: which products there are, and in which register tiles they are summed.

Where images have a few pixels, many of a window's products are with padding: of 3 x 3 windows on an image of 2 x 2, 20 of 36.
And each weight is used so few times that packing a kernel, to memory and back, takes longer than multiplying. So the
products are listed, and a kernel is brought into the order of its use some input features at a time, in L1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced

#: Input features whose weights are in L1 at a time, and whose products are summed before the sum joins the others.
DEPTH = 16
#: Taps of the window at most: their weights are in registers at once, beside the sums.
TAPS = 12
#: Pixels of a result's image at most: all of them are written out.
PIXELS = 64
#: Bytes of sums that a task keeps on the stack.
SUMS = 64 << 10
#: What bringing a vector of weights into order costs, in vector multiply-adds, and the part of their peak that is reached.
ORDERING = 7
EFFICIENCY = 0.95


@dataclass(frozen=True)
class SmallConvolution:
    """`products` are (input pixel, output pixel, tap), by input pixel; taps are numbered as they lie in the kernel.

    `outer`: a kernel's output features are its outermost dimension, so that the weights of one lie on end; else its input
    features are. A register tile is `together` images by one of the ranges `tiles` of output pixels, and `lanes` output
    features.
    """

    images: int
    channels: int
    features: int
    pixels: int
    inputs: int
    taps: int
    lanes: int
    outer: bool
    together: int
    tiles: tuple[range, ...]
    products: tuple[tuple[int, int, int], ...]

    @property
    def blocks(self) -> int:
        """Vectors of output features."""
        return -(-self.features // self.lanes)

    @property
    def pitch(self) -> int:
        """Elements from an image's copy to the next, not a multiple of a page, so that images do not share cache sets."""
        size = -(-self.channels * self.inputs // self.lanes) * self.lanes
        return size + (5 * self.lanes if self.images > 1 else 0)

    @property
    def cost(self) -> float:
        """In vector multiply-adds."""
        each = self.images * len(self.products) / EFFICIENCY + self.taps * ORDERING
        return self.blocks * self.channels * each


def small_convolution(
    op: Convolution, x: TensorType, w: TensorType, cpu: CpuShape
) -> SmallConvolution | None:
    """How to run the convolution product by product; None for others."""
    result, rank = op.infer(x, w), op.spatial_rank
    order = tuple(range(rank + 2))
    if (
        rank == 0
        or op.feature_group_count * op.batch_group_count > 1
        or (op.input_batch, op.input_feature, *op.input_spatial) != order
        or (op.output_batch, op.output_feature, *op.output_spatial) != order
        or op.kernel_spatial != order[2:]
    ):
        return None
    numbers = (*result.shape, *x.shape, *w.shape, *[low for low, _ in op.padding])
    if not all(isinstance(n, int) for n in numbers) or 0 in (*result.shape, *x.shape, *w.shape):
        return None
    images, features, *space = _numbers(result.shape)
    channels, *sizes = _numbers(x.shape[1:])
    window = _numbers(w.shape[2:])
    taps, pixels = math.prod(window), math.prod(space)
    accumulator = accumulator_of(x.element, result.element)
    lanes = cpu.vector_bits // accumulator.bits
    if not accumulator.is_float or lanes < 2 or DEPTH % lanes != 0:
        return None
    if not 2 <= taps <= TAPS or pixels > PIXELS or images * pixels * lanes * accumulator.itemsize > SUMS:
        return None
    if channels < DEPTH or features < lanes:
        return None
    # Sums, weights of all taps, and a pixel; with few registers weights come from L1 each time.
    most = max(4, cpu.registers - 1 - (taps if cpu.registers >= 32 else 2))
    together = balanced(images, most // pixels) if pixels <= most else 1
    return SmallConvolution(
        images, channels, features, pixels, math.prod(sizes), taps, lanes, op.kernel_output_feature == 0,
        together, _tiles(space, most), _products(op, space, sizes, window),
    )  # fmt: skip


def _tiles(space: Sequence[int], most: int) -> tuple[range, ...]:
    """All pixels in equal ranges of at most `most`: of whole rows, if they fit."""
    pixels, width = math.prod(space), space[-1]
    unit = width if width <= most else 1
    parts = -(-pixels // unit // (most // unit)) if pixels > most else 1
    count = pixels // unit
    bounds = [count * n // parts * unit for n in range(parts + 1)]
    return tuple(itertools.starmap(range, itertools.pairwise(bounds)))


def _products(
    op: Convolution, space: Sequence[int], sizes: Sequence[int], window: Sequence[int]
) -> tuple[tuple[int, int, int], ...]:
    found = []
    for output, tap in itertools.product(
        itertools.product(*map(range, space)), itertools.product(*map(range, window))
    ):
        pixel = 0
        for s, (o, t) in enumerate(zip(output, tap, strict=True)):
            low = op.padding[s][0]
            assert isinstance(low, int)
            turned = window[s] - 1 - t if op.window_reversal[s] else t
            at = o * op.window_strides[s] + turned * op.rhs_dilation[s] - low
            if at % op.lhs_dilation[s] != 0 or not 0 <= at // op.lhs_dilation[s] < sizes[s]:
                break
            pixel = pixel * sizes[s] + at // op.lhs_dilation[s]
        else:
            found.append((pixel, _flat(output, space), _flat(tap, window)))
    return tuple(sorted(found))


def _flat(at: Sequence[int], extents: Sequence[int]) -> int:
    place = 0
    for digit, extent in zip(at, extents, strict=True):
        place = place * extent + digit
    return place


def _numbers(extents: Sequence[object]) -> list[int]:
    return [n for n in extents if isinstance(n, int)]
