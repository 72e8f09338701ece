"""How a convolution's kernel gradient runs on a CPU: which register tile, and how many pixels at a time.

Of the convolution that the gradient is, the window's positions are the forward convolution's outputs, its strides are the
forward dilation, and its dilation the forward strides; fields and names here are those of the forward convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.schedule.cpu_contraction import TASK_WORK, CpuShape, balanced, register_tile

#: Windows with more taps than this have long code.
TAPS = 36
#: Bytes of finished sums, rows of the result, that a task keeps on the stack, and tasks that there should be at least.
STRIP, TASKS = 192 << 10, 16
#: Pixels that a block has at least, and where unfinished sums are more than L2 holds: they are read and written for each block.
LEAST, LEAST_FAR = 256, 1024
#: Pixels whose products are summed one after the other, about, and the same without a window: a chain's rounding error grows with
#: the root of its length, and so does that of the sum of all chains.
CHAIN, CHAIN_ALONE = 256, 64


@dataclass(frozen=True)
class GradientPlan:
    """`rows` features of the cotangent by `vectors * lanes` of the input, for each of `window` taps.

    `features` are all of the cotangent's, `channels` those of the input in each of `groups`.

    `counts` are the cotangent's pixels, `sizes` the input's; pixel o of the cotangent meets the input's pixel
    ``o * strides + t * dilations - low`` under tap t. Where windows have one element and no padding, `sampled`, only the
    input's pixels that have a cotangent count, and an image is one row of them. A block is `together` images, or `band` rows
    of the cotangents of one; products are summed over `chain` images, or rows, at a time. A task adds a block's products to
    `down` tiles; one that finishes has a `strip` of tiles side by side.
    """

    images: Index
    groups: int
    features: int
    channels: int
    window: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    sampled: bool
    lanes: int
    rows: int
    vectors: int
    together: int
    band: int
    chain: int
    down: int
    strip: int

    @property
    def block(self) -> int:
        """The input's features of a tile."""
        return self.vectors * self.lanes

    @property
    def taps(self) -> int:
        return math.prod(self.window)

    @property
    def in_bands(self) -> bool:
        """Is a block less than an image?"""
        return self.band < self.counts[0]

    @property
    def at_once(self) -> bool:
        """Is everything one block?"""
        return isinstance(self.images, int) and self.images <= self.together and not self.in_bands

    @property
    def chained_images(self) -> bool:
        """Does a chain have whole images?"""
        return not self.in_bands and math.prod(self.counts) <= _chain(self.taps)

    @property
    def panel(self) -> int:
        """Features of the cotangent that are packed side by side: squares of them are transposed in registers."""
        several = self.rows * max(1, self.lanes // self.rows)
        return several if self.features % several == 0 else self.rows

    @property
    def input_rows(self) -> int:
        """Rows of an image that a block's windows reach."""
        if not self.in_bands:
            return self.sizes[0]
        return (self.band - 1) * self.strides[0] + (self.window[0] - 1) * self.dilations[0] + 1

    @property
    def input_pixels(self) -> int:
        """The same in pixels."""
        return self.input_rows * math.prod(self.sizes[1:])

    @property
    def pixels(self) -> int:
        """The cotangents of an image in a block."""
        return self.band * math.prod(self.counts[1:])

    @property
    def tile(self) -> int:
        """Sums of a tile."""
        return self.taps * self.rows * self.block

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles: along the cotangent's features, and the input's of a group."""
        return -(-self.features // self.rows), -(-self.channels // self.block)

    @property
    def cotangent_at(self) -> int:
        """Where the packed cotangents lie in the workspace, behind the input."""
        return self.groups * self.grid[1] * self.together * self.block * self.input_pixels

    @property
    def sums_at(self) -> int:
        """Where unfinished sums lie, behind both and what the last masked store may touch."""
        packed = -(-self.features // self.panel) * self.panel * self.together * self.pixels
        return -(-(self.cotangent_at + packed + self.lanes) // self.lanes) * self.lanes

    @property
    def workspace_elements(self) -> int:
        return self.sums_at + (0 if self.at_once else math.prod(self.grid) * self.tile)


def _chain(taps: int) -> int:
    """A chain's pixels, about."""
    return CHAIN if taps > 1 else CHAIN_ALONE


def numbers_of(extents: Sequence[Index]) -> list[int]:
    return [n for n in extents if isinstance(n, int)]


def is_kernel_gradient(op: Convolution, x: TensorType, g: TensorType) -> bool:
    """Is the convolution the gradient of a kernel, of the input `x` and the cotangent `g`, as `Convolution.vjp` writes it, of
    known sizes, none of them 0?"""
    result, rank = op.infer(x, g), op.spatial_rank
    last = tuple(range(2, rank + 2))
    if (
        rank == 0
        or op.feature_group_count > 1
        or (op.output_feature, op.output_batch, *op.output_spatial) != (0, 1, *last)
        or op.input_spatial != last
        or op.kernel_spatial != last
        or any(op.window_reversal)
        or any(d > 1 for d in op.lhs_dilation)
    ):
        return False
    extents = (*result.shape, *x.shape[2:], *g.shape[2:], *[low for low, _ in op.padding])
    return all(isinstance(n, int) for n in extents) and 0 not in (*x.shape, *g.shape, *result.shape)


def gradient_plan(op: Convolution, x: TensorType, g: TensorType, cpu: CpuShape) -> GradientPlan | None:
    """How to compute the gradient of a kernel, of the input `x` and the cotangent `g`; None for other convolutions."""
    if not is_kernel_gradient(op, x, g):
        return None
    result, images, groups = op.infer(x, g), x.shape[op.input_feature], op.batch_group_count
    features, channels, *window = numbers_of(result.shape)
    counts, sizes = tuple(numbers_of(g.shape[2:])), tuple(numbers_of(x.shape[2:]))
    strides, dilations, low = (
        op.rhs_dilation,
        op.window_strides,
        tuple(numbers_of([p[0] for p in op.padding])),
    )
    accumulator = accumulator_of(x.element, result.element)
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    taps = math.prod(window)
    if taps > TAPS or channels < lanes:
        return None
    sampled = (
        taps == 1
        and not any(low)
        and all((n - 1) * s < size for n, s, size in zip(counts, strides, sizes, strict=True))
    )
    if taps == 1 and (not sampled or math.prod(counts) < lanes or (images == 1 and set(strides) == {1})):
        return None  # the template's: of one image, what it packs lies in rows
    if sampled:
        counts = sizes = (math.prod(counts),)
        window, strides, dilations, low = [1], (1,), (1,), (0,)
    rows, vectors = register_tile(cpu, lanes)
    if channels < vectors * lanes or (groups > 1 and channels % (vectors * lanes) != 0):
        vectors = 1
    if vectors == 1:
        rows *= 2
    divisors = [n for n in range(6, rows + 1) if features // groups % n == 0]
    if groups > 1 and (not divisors or channels % (vectors * lanes) != 0):
        return None  # a tile is of one group
    rows = divisors[-1] if divisors else min(8, features)
    # What is packed fills a half of L2.
    here, under = math.prod(counts), -(-math.prod(sizes) // math.prod(counts))
    fitting = cpu.l2 // 2 // ((features + groups * channels * under) * accumulator.itemsize)
    far = features * channels * taps * accumulator.itemsize > cpu.l2
    pixels = max(LEAST_FAR if far else LEAST, fitting)
    inner = math.prod(counts[1:])
    together = max(1, pixels // here)
    if isinstance(images, int):
        together = min(together, images)
    band = counts[0] if here <= pixels else balanced(counts[0], max(1, pixels // inner))
    most = _chain(taps)
    if here <= most:
        chain = balanced(together, max(1, most // here))
    else:
        chain = balanced(band, max(1, most // inner))
    tile = taps * rows * vectors * lanes
    across = -(-channels // (vectors * lanes))
    strips = min(STRIP // (tile * accumulator.itemsize), -(-features // rows) * across // TASKS)
    return GradientPlan(
        images, groups, features, channels, tuple(window), counts, sizes, strides, dilations, low, sampled,
        lanes, rows, vectors, together, band, chain, -(-TASK_WORK // (min(pixels, here * together) * tile)),
        balanced(across, max(1, strips)),
    )  # fmt: skip
