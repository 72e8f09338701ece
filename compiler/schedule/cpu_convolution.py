"""How a direct convolution runs on a CPU: the register tile of pixels and of output features.

Vectors run along output features, of which the kernel's memory has blocks of `vectors * lanes` side by side; pixels are
broadcast. After E. Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures",
SC 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from flambeau.compiler.ir.dims import Dim, Index, maximum, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced

#: Registers beside accumulators and one vector of weights for each: a broadcast pixel.
SPARE = 1
#: Taps of the window in one body of the loop over input features, at most; a wider window has loops of its own. And pixels
#: under all of these taps: LLVM keeps (and spills) the addresses of more one by one.
TAPS, READ = 12, 64
#: Of fewer taps, several input features make a body.
UNROLL = 4
#: Products that are summed one after the other, about.
SUMMED = 144
#: The part of a dimension's taps that must be reached for the others to be computed too, for nothing.
SKIPPED = 0.98
#: Bytes of finished sums that a task keeps in L1 until it has a strip of them.
STRIP = 16 << 10
#: Tasks that there should be at least, for threads to finish together.
TASKS = 8
#: Vectors of output features that a register tile has at most.
WIDEST = 4
#: What loading a vector costs against multiplying and adding one; what it costs to have few sums under way, and each of more
#: than `MANY` to begin and end.
LOAD = 0.04
FEW = 0.35
HELD = 0.6
MANY = 16
#: Sums that must be under way for the multipliers to be busy: their number times their latency.
CHAINS = 10
#: What reading the input again for each block of features costs if L2 does not hold an image of it.
FAR = 0.04
#: What transposing and storing a vector of results costs against multiplying and adding one.
FINISH = 10
#: What a kernel that is packed at each call costs if its last block is not full (packing then goes element by element), and
#: what packing a vector of it costs.
PADDED = 1.1
PACK = 6
#: The contraction template, with vectors along pixels: what a product costs, what storing a vector of results does, and
#: packing a vector of a large image.
PRODUCT = 1.045
STORE = 4
PANEL = 8


@dataclass(frozen=True)
class ConvolutionTile:
    """`images` x `rows` x `columns` pixels by `vectors * lanes` features.

    There is more than one row only if a row has all columns, and more than one image only if it has all rows. Tiles at
    an edge start earlier rather than end beyond it. A task computes `down` rows of `strip` columns; the last one has fewer
    if tiles have one row, and starts earlier if they have more.
    """

    lanes: int
    vectors: int
    images: int
    rows: int
    columns: int
    strip: int
    down: int = 1
    #: Is a pixel an operand in memory of its one multiplication, where two loads take no longer than that?
    folded: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of the tile."""
        return self.images * self.rows * self.columns

    def extents(self, rank: int) -> tuple[int, ...]:
        """Pixels along each of `rank` dimensions."""
        return (*[1] * (rank - 2), *(self.rows, self.columns)[2 - min(rank, 2) :])

    @property
    def block(self) -> int:
        """Output features of the tile, and of a block of the kernel."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class WindowAxis:
    """A dimension of an image, of which each of `results` has a window of `taps`: `low` elements of padding lie before the
    `size` of the input."""

    results: int
    taps: int
    stride: int
    dilation: int
    low: int
    size: int

    def reached(self, first: Index, count: int) -> tuple[Index, Index]:
        """Taps under which some of `count` results from `first` on have an input: the first of them, and the one behind the
        last; the second is no larger than the first if there is none."""
        before = maximum(self.low - (first + (count - 1)) * self.stride, 0)
        behind = maximum(self.low + self.size - first * self.stride, 0)
        low, high = ((n + (self.dilation - 1)) // self.dilation for n in (before, behind))
        return minimum(low, self.taps), minimum(high, self.taps)

    @lru_cache(1 << 12)  # noqa: B019  (numbers only)
    def share(self, count: int) -> float:
        """The part of all taps that tiles of `count` results reach."""
        tiles = range(0, self.results, count)
        found = 0
        for at in tiles:
            low, high = self.reached(max(0, min(at, self.results - count)), count)
            assert isinstance(low, int) and isinstance(high, int)
            found += max(0, high - low)
        return found / (len(tiles) * self.taps)

    def skips(self, count: int) -> bool:
        """Do tiles of `count` results leave out the taps that they do not reach?"""
        return self.taps > 1 and self.share(count) < SKIPPED


class _Window(Protocol):
    """What convolutions are called with, whether their kernels lie in blocks or not."""

    @property
    def window_strides(self) -> tuple[int, ...]: ...
    @property
    def rhs_dilation(self) -> tuple[int, ...]: ...
    @property
    def padding(self) -> tuple[tuple[Index, Index], ...]: ...


def window_axes(
    op: _Window, window: Sequence[int], sizes: Sequence[int], results: Sequence[int]
) -> tuple[WindowAxis, ...]:
    """The dimensions of images of `sizes`, of whose `window` results are made."""
    lows = [low for low, _ in op.padding if isinstance(low, int)]
    numbers = zip(results, window, op.window_strides, op.rhs_dilation, lows, sizes, strict=True)
    return tuple(WindowAxis(*each) for each in numbers)


@dataclass(frozen=True)
class ConvolutionSize:
    """`images` x `space` pixels of `features` results, each the sum of `depth` products; `axes` are its dimensions if their
    taps that lie wholly in padding can be left out."""

    images: Index
    space: tuple[int, ...]
    features: int
    depth: int
    axes: tuple[WindowAxis, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of an image, or of its planes."""
        return self.space[-2] if len(self.space) > 1 else 1

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return math.prod(self.space)

    @property
    def image(self) -> int:
        """Elements of an image of the input."""
        taps = math.prod(axis.taps for axis in self.axes)
        return self.depth // taps * (math.prod(axis.size for axis in self.axes) if self.axes else self.pixels)

    def _fetched(self, tile: ConvolutionTile) -> float:
        """What it costs that the input comes from afar, for each product."""
        taps = math.prod(axis.taps for axis in self.axes)
        stride = self.axes[-1].stride if self.axes else 1
        return FAR * stride / (taps * tile.vectors)

    def _reached(self, tile: ConvolutionTile) -> float:
        """The part of the products that the tile does not leave out."""
        pairs = zip(self.axes, tile.extents(len(self.axes)), strict=True)
        return math.prod([axis.share(n) for axis, n in pairs if axis.skips(n)])

    def work(self, tile: ConvolutionTile, ready: bool = False, far: bool = False) -> float:
        """What is computed, for nothing or not, and what it costs, for each result. `ready`: the kernel lies in blocks;
        `far`: L2 does not hold an image."""
        total = -(-self.features // tile.block) * tile.block / self.features
        for extent, size in (
            (self.space[-1], tile.columns),
            (self.rows, 1 if tile.rows == 1 else tile.down),
            (self.images, tile.images),
        ):
            if not isinstance(extent, Dim):
                total *= -(-extent // size) * size / extent
        if self.features % tile.block and not ready:
            total *= PADDED
        products = tile.pixels * tile.vectors
        if products >= CHAINS:
            total *= self._reached(tile)
        loads = LOAD * ((0 if tile.folded else tile.pixels) + tile.vectors) / products
        sums = FEW / products + HELD * max(0, products - MANY) / min(self.depth, SUMMED)
        if far:
            loads += self._fetched(tile)
        return total * max(1, CHAINS / products) * (1 + loads + sums)


def choose_tile(
    size: ConvolutionSize,
    accumulator: ElementType,
    cpu: CpuShape,
    block: int | None = None,
    ready: bool = False,
) -> ConvolutionTile:
    """The tile that computes the least for nothing; for a kernel in blocks of `block` features, if that is given."""
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    if block is not None:
        shapes = [(math.gcd(block, lanes), block // math.gcd(block, lanes))]
    else:
        shapes = [(lanes, vectors) for vectors in range(1, WIDEST + 1)]
        if cpu.halved and lanes > 1:  # blocks that are no multiple of a whole vector
            shapes += [(lanes // 2, vectors) for vectors in range(1, WIDEST + 1, 2)]
    tiles = (
        replace(t, folded=cpu.halved and shape == (lanes, 1))
        for shape in shapes
        for t in _tiles(size, *shape, cpu)
    )
    far = size.image * accumulator.itemsize > cpu.l2
    return min(tiles, key=lambda tile: size.work(tile, ready, far))


def beats_template(
    size: ConvolutionSize, tile: ConvolutionTile, accumulator: ElementType, cpu: CpuShape, ready: bool
) -> bool:
    """Is it faster than the contraction template, for which a window of one element without strides is a matrix product
    with vectors along pixels? That needs no transposing, but computes whole vectors of pixels."""
    lanes, depth, pixels = max(1, cpu.vector_bits // accumulator.bits), size.depth, size.pixels
    whole = -(-pixels // lanes) * lanes / pixels
    blocked = size.work(tile, ready) + FINISH * whole / depth
    if not ready and isinstance(size.images, int):
        blocked += PACK / (pixels * size.images)
    template = -(-pixels // (2 * lanes)) * (2 * lanes) / pixels * (PRODUCT + STORE / depth)
    if depth * pixels * accumulator.itemsize > cpu.l2 // 2:
        template += PANEL / size.features
    return blocked < template


def _tiles(size: ConvolutionSize, lanes: int, vectors: int, cpu: CpuShape) -> Iterator[ConvolutionTile]:
    """Tiles of `vectors` with about as many pixels as fit the registers: in one row, in several, in several images."""
    most = max(1, (cpu.registers - SPARE - vectors) // vectors)
    columns = size.space[-1]
    pixels = max(1, STRIP // (vectors * lanes * 4))
    if isinstance(size.images, int):
        blocks = -(-size.features // (vectors * lanes))
        share = size.images * size.pixels * blocks // TASKS
        pixels = min(pixels, max(lanes, -(-share // lanes) * lanes))
    for across in _sizes(columns, most):
        strip = _strip(columns, across, max(across, pixels), lanes)
        down = balanced(size.rows, max(1, pixels // columns)) if strip == columns else 1
        yield ConvolutionTile(lanes, vectors, 1, 1, across, strip, down)
    if most < 2 * columns:
        return
    for rows in _sizes(size.rows, most // columns):
        down = rows * max(1, min(pixels // (columns * rows), size.rows // rows))
        yield ConvolutionTile(lanes, vectors, 1, rows, columns, columns, down)
        if rows == size.rows and len(size.space) <= 2 and not isinstance(size.images, Dim):
            together = balanced(size.images, most // (columns * rows))
            yield ConvolutionTile(lanes, vectors, together, rows, columns, columns, rows)


def _sizes(extent: int, most: int) -> list[int]:
    """Sizes up to `most` of parts of `extent` that are as equal as the number of parts allows."""
    sizes = range(min(extent, most), 0, -1)
    return [size for size in sizes if -(-extent // -(-extent // size)) == size]


def _strip(columns: int, across: int, most: int, lanes: int) -> int:
    """Columns of a strip, about `most`: whole tiles, of whole vectors if possible, if the rest of a row then has a whole tile
    too."""
    if columns <= most * 5 // 4:
        return columns
    for step in (math.lcm(across, lanes), across):
        for strip in range(most // step * step, 0, -step):
            if columns % strip == 0 or columns % strip >= across:
                return strip
    return columns
