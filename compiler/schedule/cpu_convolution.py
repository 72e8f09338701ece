"""How a direct convolution runs on a CPU: the register tile of pixels and of output features.

Vectors run along output features, of which the kernel's memory has blocks of `vectors * lanes` side by side; pixels are
broadcast. After E. Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures",
SC 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flambeau.compiler.ir.dims import Dim, Index
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced

#: Registers beside accumulators and one vector of weights for each: a broadcast pixel.
SPARE = 1
#: Taps of the window in one body of the loop over input features, at most; a wider window has loops of its own.
TAPS = 12
#: Of fewer taps, several input features make a body.
UNROLL = 4
#: A window of one element with fewer input features than this is a matrix product, whose vectors run along space: too
#: little is summed to pay for transposing.
SHALLOW = 192
#: Products that are summed one after the other, about.
SUMMED = 144
#: Bytes of finished sums that a task keeps in L1 until it has a strip of them.
STRIP = 8 << 10
#: Vectors of output features that a register tile has at most.
WIDEST = 4
#: What loading a vector costs against multiplying and adding one.
LOAD = 0.35
#: Sums that must be under way for the multipliers to be busy: their number times their latency.
CHAINS = 10
#: What transposing and storing a feature of a finished tile costs against multiplying and adding a vector.
FINISH = 6
#: What a kernel costs whose last block is not full: packing it goes element by element.
PADDED = 1.1


@dataclass(frozen=True)
class ConvolutionTile:
    """`images` x `rows` x `columns` pixels by `vectors * lanes` features.

    There is more than one row only if a row has all columns, and more than one image only if it has all rows. Tiles at
    an edge start earlier rather than end beyond it. A task computes `strip` columns, whose epilogue then runs along them.
    """

    lanes: int
    vectors: int
    images: int
    rows: int
    columns: int
    strip: int

    @property
    def pixels(self) -> int:
        """Pixels of the tile."""
        return self.images * self.rows * self.columns

    @property
    def block(self) -> int:
        """Output features of the tile, and of a block of the kernel."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class ConvolutionSize:
    """`images` x `space` pixels of `features` results, each the sum of `depth` products."""

    images: Index
    space: tuple[int, ...]
    features: int
    depth: int

    @property
    def rows(self) -> int:
        """Rows of an image, or of its planes."""
        return self.space[-2] if len(self.space) > 1 else 1

    def work(self, tile: ConvolutionTile) -> float:
        """What is computed, for nothing or not, and what it costs."""
        total = float(-(-self.features // tile.block) * tile.block)
        for extent, size in (
            (self.space[-1], tile.columns),
            (self.rows, tile.rows),
            (self.images, tile.images),
        ):
            if not isinstance(extent, Dim):
                total *= -(-extent // size) * size / extent
        if self.features % tile.block:
            total *= PADDED
        products = tile.pixels * tile.vectors
        finish = FINISH * tile.block / (products * self.depth)
        return (
            total * max(1, CHAINS / products) * (1 + LOAD * (tile.pixels + tile.vectors) / products + finish)
        )


def choose_tile(
    size: ConvolutionSize, accumulator: ElementType, cpu: CpuShape, block: int | None = None
) -> ConvolutionTile:
    """The tile that computes the least for nothing; for a kernel in blocks of `block` features, if that is given."""
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    if block is not None:
        lanes = math.gcd(block, lanes)
    widths = range(1, WIDEST + 1) if block is None else (block // lanes,)
    return min((t for vectors in widths for t in _tiles(size, lanes, vectors, cpu)), key=size.work)


def _tiles(size: ConvolutionSize, lanes: int, vectors: int, cpu: CpuShape) -> Iterator[ConvolutionTile]:
    """Tiles of `vectors` with about as many pixels as fit the registers: in one row, in several, in several images."""
    most = max(1, (cpu.registers - SPARE - vectors) // vectors)
    columns = size.space[-1]
    across = balanced(columns, most)
    strip = _strip(columns, across, max(across, STRIP // (vectors * lanes * 4)))
    yield ConvolutionTile(lanes, vectors, 1, 1, across, strip)
    if most < 2 * columns:
        return
    down = balanced(size.rows, most // columns)
    yield ConvolutionTile(lanes, vectors, 1, down, across, strip)
    if down == size.rows and len(size.space) <= 2 and not isinstance(size.images, Dim):
        together = balanced(size.images, most // (columns * down))
        yield ConvolutionTile(lanes, vectors, together, down, across, strip)


def _strip(columns: int, across: int, most: int) -> int:
    """Columns of a strip, about `most`: whole tiles, if the rest of a row then has a whole tile too."""
    if columns <= most * 5 // 4:
        return columns
    for strip in range(most // across * across, 0, -across):
        if columns % strip == 0 or columns % strip >= across:
            return strip
    return columns
