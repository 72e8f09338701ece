"""Convolutions of one group, directly: vectors along output features, pixels broadcast, no matrix of windows.

Padded inputs are copied first, image by image, zeros and all; others are read where they lie. Then each task computes
some rows of a block of features, in register tiles of pixels x features: all of its tiles for a part of the products, then
for the next.
"""

from __future__ import annotations

import itertools
import math

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.lowering.blocked_problem import BlockedProblem, Part, start
from flambeau.compiler.lowering.blocked_results import TaskResults
from flambeau.compiler.lowering.blocked_tile import Ahead, TileEmitter
from flambeau.compiler.lowering.context import LoweringContext
from flambeau.compiler.lowering.padded_images import PaddedImages


def blocked_workspace(ctx: LoweringContext, operation: Operation) -> Index:
    """Bytes of the padded copy."""
    return BlockedProblem(ctx, operation).copy_bytes


def lower_blocked_convolution(ctx: LoweringContext, operation: Operation, workspace: Value | None) -> None:
    """Emit a `blocked_convolution`, and its epilogue."""
    p = BlockedProblem(ctx, operation)
    if not p.copies:
        _tasks(p, ctx.memory[p.x], 0, p.batch)
        return
    assert workspace is not None
    copy = ctx.b.from_pointer(workspace, (p.images, p.channels, *p.extents), p.accumulator)
    images = PaddedImages(p, copy)

    def some(first: Index, _: list[Value]) -> None:
        here = minimum(p.batch - first, p.images)
        if isinstance(p.batch, int) and p.batch % p.images == 0:
            here = p.images
        with ctx.rows((here, p.channels), here * p.channels * math.prod(p.extents)) as (image, channel):
            images.fill(first, image, channel)
        ctx.forget()
        _tasks(p, copy, first, here)

    p.b.for_(0, p.batch, p.images, some)


def _tasks(p: BlockedProblem, source: Value, first: Index, count: Index) -> None:
    """All results of `count` images, whose inputs are in `source` from its first on."""
    tile = p.tile
    height = p.space[-2] if len(p.space) > 1 else 1
    strips = -(-p.space[-1] // tile.strip)
    images = (count + tile.images - 1) // tile.images
    work = images * tile.images * math.prod(p.space) * p.op.features * p.taps * p.channels
    kernel_first = isinstance(count, int) and p.channels * p.taps * p.op.features > count * (
        p.channels * math.prod(p.extents)
    )
    extents = (p.blocks, images) if kernel_first else (images, p.blocks)
    with p.ctx.rows((*extents, *p.space[:-2], -(-height // tile.down), strips), work) as at:
        block, group = at[:2] if kernel_first else at[1::-1]
        image, skip_image = start(group, tile.images, count)
        y, skip_y = start(at[-2], tile.down, height) if tile.rows > 1 else (at[-2] * tile.down, 0)
        tall = tile.down if tile.rows > 1 or height % tile.down == 0 else minimum(height - y, tile.down)
        left = at[-1] * tile.strip
        width = minimum(p.space[-1] - left, tile.strip) if p.space[-1] % tile.strip else tile.strip
        place = (*at[2:-2], y, left) if len(p.space) > 1 else (left,)
        results = TaskResults(p, block, first + image, place)
        totals = _Totals(p, TileEmitter(p, source, block, image), results, place, (tall, width)).compute()
        results.store(totals, (tall, width), (skip_image, skip_y))


class _Totals:
    """A task's sums, pixel by pixel: of a part of the products for all tiles, so that what they read of the input and of the
    kernel is in the caches when the next tile reads it."""

    def __init__(
        self,
        problem: BlockedProblem,
        emitter: TileEmitter,
        results: TaskResults,
        place: tuple[Index, ...],
        extents: tuple[Index, Index],
    ) -> None:
        self.problem, self.emitter, self.results = problem, emitter, results
        self.place, (self.height, width) = place, extents
        self.width = width
        self.b, tile = problem.b, problem.tile
        #: Tiles in the width, which may be less than a strip's.
        self.across = (width + tile.columns - 1) // tile.columns
        # Pixels are read by whole vectors when they are stored, which may reach beyond the last.
        pixels = tile.images * tile.down * problem.pitch + tile.lanes
        self.size = pixels * tile.block
        self.totals = self.b.alloca((self.size,), problem.accumulator)

    def compute(self) -> Value:
        """The buffer with the sums."""
        p, b, tile = self.problem, self.b, self.problem.tile
        whole = p.window[p.outer]
        features, taps = p.chunk
        if p.parts == 1:
            self._part(Part(0, p.channels, 0, whole))
        else:
            zero = b.zero(p.accumulator, tile.lanes)
            b.for_(0, self.size, tile.lanes, lambda at, _: b.vector_store(zero, self.totals, (at,)))

            def some(low: Index, _: list[Value]) -> None:
                high = _end(low, features, p.channels)
                if taps == whole:
                    self._part(Part(low, high, 0, whole))
                    return
                b.for_(0, whole, taps, lambda t, _: self._part(Part(low, high, t, _end(t, taps, whole))))

            b.for_(0, p.channels, features, some)
        if not (isinstance(self.width, int) and self.width % tile.columns == 0):
            self._join()
        return self.totals

    def _part(self, part: Part) -> None:
        """Adds a part of the products of all tiles."""
        p, b, tile = self.problem, self.b, self.problem.tile
        strip = -(-tile.strip // tile.columns)
        tiles = tile.down // tile.rows * strip

        def one(row: Index, number: Index) -> None:
            x, _ = start(number, tile.columns, self.width)
            at = [*self.place[:-1], self.place[-1] + x]
            if len(at) > 1:
                at[-2] = at[-2] + row * tile.rows
            ahead = Ahead(row * strip + number, tiles, self.place[-1])
            if p.ends_in_memory:
                self.results.fetch(p.part_number(part) * tiles + ahead.tile, tiles * p.parts)
            sums = self.emitter.sums(at, part, ahead)
            # A last tile that starts earlier has a place of its own all the same, since it is added to.
            self._add(sums, row * (tile.rows * p.pitch) + number * tile.columns)

        rows = self.height if tile.rows == 1 else tile.down // tile.rows
        b.for_(0, rows, 1, lambda row, _: b.for_(0, self.across, 1, lambda n, _: one(row, n)) and None)

    def _add(self, sums: list[Value], place: Index) -> None:
        """Put a tile's sums to those of the other parts."""
        p, b, tile = self.problem, self.b, self.problem.tile
        pixels = itertools.product(range(tile.images), range(tile.rows), range(tile.columns))
        for number, (i, y, x) in enumerate(pixels):
            pixel = place + ((i * tile.down + y) * p.pitch + x)
            for v in range(tile.vectors):
                at, value = (pixel * tile.block + v * tile.lanes,), sums[number * tile.vectors + v]
                if p.parts > 1:
                    value = b.add(b.vector_load(self.totals, at, tile.lanes), value, p.accumulator)
                b.vector_store(value, self.totals, at)

    def _join(self) -> None:
        """Move the pixels of each row's last tile to where the others end."""
        p, b, tile, totals = self.problem, self.b, self.problem.tile, self.totals
        source, target = (self.across - 1) * tile.columns, self.width - tile.columns

        def row(number: Index, _: list[Value]) -> None:
            first = number * p.pitch

            def pixel(x: Index, _: list[Value]) -> None:
                for v in range(tile.vectors):
                    at, to = (((first + n + x) * tile.block + v * tile.lanes,) for n in (source, target))
                    b.vector_store(b.vector_load(totals, at, tile.lanes), totals, to)

            b.for_(0, tile.columns, 1, pixel)

        b.for_(0, tile.images * tile.down, 1, row)


def _end(first: Index, step: int, extent: int) -> Index:
    """Where a step from `first` on ends."""
    return first + step if extent % step == 0 else minimum(first + step, extent)
