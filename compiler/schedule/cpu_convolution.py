"""How a direct convolution runs on a CPU: the register tile of pixels and of output features.

Vectors run along output features, of which the kernel's memory has blocks of `vectors * lanes` side by side; pixels are
broadcast. After E. Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures",
SC 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
#: Products that are summed one after the other, about.
SUMMED = 144
#: Vectors of output features that a register tile has at most.
WIDEST = 4
#: What loading a vector costs against multiplying and adding one.
LOAD = 0.35
#: Sums that must be under way for the multipliers to be busy: their number times their latency.
CHAINS = 10
#: What a kernel costs whose last block is not full: packing it goes element by element.
PADDED = 1.1


@dataclass(frozen=True)
class ConvolutionTile:
    """`images` x `rows` x `columns` pixels by `vectors * lanes` features.

    There is more than one row only if a row has all columns, and more than one image only if it has all rows. Tiles at
    an edge start earlier rather than end beyond it.
    """

    lanes: int
    vectors: int
    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        """Pixels of the tile."""
        return self.images * self.rows * self.columns

    @property
    def block(self) -> int:
        """Output features of the tile, and of a block of the kernel."""
        return self.vectors * self.lanes


def choose_tile(
    images: Index, space: Sequence[int], features: int, accumulator: ElementType, cpu: CpuShape
) -> ConvolutionTile:
    """The tile that computes the least for nothing; `images` x `space` pixels of `features` results."""
    lanes = max(1, cpu.vector_bits // accumulator.bits)

    def work(tile: ConvolutionTile) -> float:
        columns, rows = space[-1], space[-2] if len(space) > 1 else 1
        total = float(-(-features // tile.block) * tile.block)
        total *= -(-columns // tile.columns) * tile.columns / columns
        total *= -(-rows // tile.rows) * tile.rows / rows
        if not isinstance(images, Dim):
            total *= -(-images // tile.images) * tile.images / images
        if features % tile.block:
            total *= PADDED
        total *= max(1, CHAINS / (tile.pixels * tile.vectors))
        return total * (1 + LOAD * (tile.pixels + tile.vectors) / (tile.pixels * tile.vectors))

    return min((_of_vectors(images, space, lanes, n, cpu) for n in range(1, WIDEST + 1)), key=work)


def tile_of_block(
    images: Index, space: Sequence[int], block: int, accumulator: ElementType, cpu: CpuShape
) -> ConvolutionTile:
    """The tile for a kernel in blocks of `block` features."""
    lanes = math.gcd(block, max(1, cpu.vector_bits // accumulator.bits))
    return _of_vectors(images, space, lanes, block // lanes, cpu)


def _of_vectors(
    images: Index, space: Sequence[int], lanes: int, vectors: int, cpu: CpuShape
) -> ConvolutionTile:
    """The tile of `vectors` with as many pixels as fit the registers."""
    most = max(1, (cpu.registers - SPARE - vectors) // vectors)
    columns, rows = space[-1], space[-2] if len(space) > 1 else 1
    across = balanced(columns, most)
    down = balanced(rows, most // columns) if most >= 2 * columns else 1
    together = 1
    if down == rows and len(space) <= 2 and not isinstance(images, Dim) and most >= 2 * columns * rows:
        together = balanced(images, most // (columns * rows))
    return ConvolutionTile(lanes, vectors, together, down, across)
