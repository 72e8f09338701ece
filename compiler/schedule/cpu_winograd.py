"""How a Winograd convolution runs on a CPU: panels of tiles, groups of panels, tasks; and whether it pays.

The products at one position of the tiles are a matrix product: rows are tiles, columns output features, K the input's
features. A panel is the rows of a register tile. The transformed input of a group of panels stays in L2 while all blocks
of output features are multiplied with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from flambeau.compiler.dialects.graph.winograd import POSITIONS, STEP
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced

#: Products are summed over this many channels, and these sums then added: the error grows with the root of the two
#: numbers' sum instead of with that of their product, and is below that of a direct convolution.
BLOCK = 32
#: Threads get contiguous parts of the groups; no more parts than this, each has workspace of its own.
SLOTS = 16
#: Rows of a register tile below which a tile is not worth it.
FEWEST_ROWS = 4
#: Sums that must be under way for the multipliers to be busy.
FEWEST_SUMS = 7
#: What a panel costs beside each of its rows, in rows.
FEW_ROWS = 1


@dataclass(frozen=True)
class WinogradSchedule:
    """`vertical` x `across` tiles make a panel; an image has `down` x `panels_across` panels. `vectors` vectors of `lanes`
    output features make a block. A group is `group` panels. There are `slots` x `parts` tasks: contiguous groups, and
    parts of the blocks."""

    lanes: int
    vectors: int
    vertical: int
    across: int
    down: int
    panels_across: int
    group: int
    slots: int
    parts: int

    @property
    def rows(self) -> int:
        """Rows of the register tile."""
        return self.vertical * self.across

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    @property
    def panels(self) -> int:
        """Panels of one image."""
        return self.down * self.panels_across


def panel(height: int, width: int, lanes: int, cpu: CpuShape) -> tuple[int, int]:
    """Tiles of a panel, down and across, for a result of this size."""
    rows = max(1, (cpu.registers - 2) // 2 - 1)
    tiles_down, tiles_across = -(-height // STEP), -(-width // STEP)
    # A row of tiles is read in two vectors.
    across = balanced(tiles_across, min(rows, lanes - 1))
    most = max(1, min(tiles_down, rows // across))
    # As few tiles as possible that nobody wants, then many rows.
    return min(
        range(1, most + 1), key=lambda n: -(-tiles_down // n) * n * (1 + FEW_ROWS / (n * across))
    ), across


def vectors_of(features: int, rows: int, lanes: int, cpu: CpuShape) -> int:
    """Vectors of output features in a register tile of `rows`: they should fit the registers, if possible twice (for the
    sums of a block of channels and of all), and divide the features. One alone needs as many loads as multiplications,
    which is no loss where a load is as fast as one."""
    count = -(-features // lanes)

    def work(v: int) -> float:
        cost: float = -(-count // v) * v
        if v == 1 and not cpu.halved:
            cost *= 1.15
        if 2 * rows * v + v >= cpu.registers:
            cost *= 1.04
        return cost * max(1, FEWEST_SUMS / (rows * v))

    fitting = [v for v in (4, 3, 2, 1) if v == 1 or rows * v + v + 2 <= cpu.registers]
    return min(reversed(fitting) if cpu.halved else fitting, key=work)


def schedule(
    images: Index,
    channels: int,
    features: int,
    size: tuple[int, int],
    columns: int,
    itemsize: int,
    cpu: CpuShape,
) -> WinogradSchedule:
    """The schedule of a convolution with a result of `size`, whose kernel lies in blocks of `columns`."""
    lanes = gcd(columns, cpu.vector_bits // 8 // itemsize)
    vertical, across = panel(*size, lanes, cpu)
    tiles_down, tiles_across = -(-size[0] // STEP), -(-size[1] // STEP)
    down, panels_across = -(-tiles_down // vertical), -(-tiles_across // across)
    rows = vertical * across
    bytes_of_panel = POSITIONS * (channels + columns) * rows * itemsize
    fitting = max(1, cpu.l2 // 2 // bytes_of_panel)
    if not isinstance(images, int):
        return WinogradSchedule(
            lanes, columns // lanes, vertical, across, down, panels_across, fitting, SLOTS, 1
        )
    panels = images * down * panels_across
    if panels * bytes_of_panel <= cpu.l2 * 9 // 16:
        fitting = panels  # then each thread reads its part of the kernel, which is large beside the input, only once
    group = balanced(panels, fitting)
    groups = -(-panels // group)
    slots = min(groups, SLOTS)
    parts = 1 if slots >= 4 else min(2, -(-features // columns))
    return WinogradSchedule(
        lanes, columns // lanes, vertical, across, down, panels_across, group, slots, parts
    )


def columns_of(features: int, size: tuple[int, int], itemsize: int, cpu: CpuShape) -> int:
    """In blocks of how many output features a kernel should lie."""
    lanes = cpu.vector_bits // 8 // itemsize
    vertical, across = panel(*size, lanes, cpu)
    return lanes * vectors_of(features, vertical * across, lanes, cpu)


def pays(
    images: Index,
    channels: int,
    features: int,
    size: tuple[int, int],
    itemsize: int,
    cpu: CpuShape,
    kernel_is_ready: bool,
    direct: float | None = None,
) -> bool:
    """Is it faster than a direct convolution (at the cost `direct`, if that is known)? In cycles of one vector multiply-add
    each; the constants are measured (Zen 4): what a transform of a panel's channel, of a tile's vector and of a vector
    of features' kernel costs."""
    lanes = cpu.vector_bits // 8 // itemsize
    if lanes < 4 or channels < 16 or features < 16:
        return False
    columns = columns_of(features, size, itemsize, cpu)
    s = schedule(images, channels, features, size, columns, itemsize, cpu)
    if s.rows < FEWEST_ROWS:
        return False
    count = images if isinstance(images, int) else 1
    blocks = -(-features // columns)
    if direct is None:
        direct = 9 * channels * features * count * size[0] * size[1] / lanes / 0.92
    products = POSITIONS * channels * blocks * s.vectors * count * s.panels * s.rows * 1.1
    transforms = count * s.panels * (channels * s.vertical * 60 + blocks * s.vectors * s.rows * 80)
    kernel = 0 if kernel_is_ready else 208 * channels * features / lanes
    return direct > 1.1 * (products + transforms + kernel)
