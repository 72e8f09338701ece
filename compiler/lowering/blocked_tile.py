"""A register tile of a `blocked_convolution`: the sums of some pixels by a block of features, and what is fetched meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.contraction import encode
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, maximum, minimum
from flambeau.compiler.lowering.blocked_problem import BlockedProblem, Part

#: Bytes of a line of the caches.
LINE = 64


@dataclass(frozen=True)
class Ahead:
    """Tile number `tile` of the `tiles` of a task, whose pixels begin at `left`."""

    tile: Index
    tiles: int
    left: Index


class TileEmitter:
    """Register tiles of block number `block` of the features of `image`, whose input is in `source`."""

    def __init__(self, problem: BlockedProblem, source: Value, block: Index, image: Index) -> None:
        self.problem, self.b = problem, problem.b
        self.source, self.block, self.image = source, block, image

    def sums(self, place: Sequence[Index], part: Part, ahead: Ahead) -> list[Value]:
        """The sums of a part of the products, for the tile at `place`, pixel by pixel."""
        p, b, tile = self.problem, self.b, self.problem.tile
        pixels = list(itertools.product(range(tile.images), range(tile.rows), range(tile.columns)))
        origin = [at * s for at, s in zip(place, p.strides, strict=True)]
        looped, written = p.loops
        ranges = [self._range(axis, place, part) for axis in looped]

        def body(channel: Index, unroll: int, at: dict[int, Index], sums: list[Value]) -> list[Value]:
            out = list(sums)
            for u, *tap in itertools.product(range(unroll), *[range(p.window[axis]) for axis in written]):
                digits = at | dict(zip(written, tap, strict=True))
                taps = [digits[axis] for axis in range(len(p.window))]
                depth = encode((channel + u, *taps), (p.channels, *p.window))
                weights = [
                    b.vector_load(p.ctx.memory[p.w], (self.block, depth, v * tile.lanes), tile.lanes)
                    for v in range(tile.vectors)
                ]
                corner = [o + t * d for o, t, d in zip(origin, taps, p.dilation, strict=True)]
                for number, (i, y, x) in enumerate(pixels):
                    where = list(corner)
                    where[-1] = where[-1] + x * p.strides[-1]
                    if y:
                        where[-2] = where[-2] + y * p.strides[-2]
                    pixel = b.splat(self._pixel(i, channel + u, where), tile.lanes)
                    for v, weight in enumerate(weights):
                        n = number * tile.vectors + v
                        out[n] = b.multiply_add(pixel, weight, out[n], p.accumulator)
            return out

        def nested(channel: Index, unroll: int, at: dict[int, Index], sums: list[Value]) -> list[Value]:
            if len(at) == len(looped):
                return body(channel, unroll, at, sums)
            axis, (first, last) = looped[len(at)], ranges[len(at)]
            return b.for_(first, last, 1, lambda t, x: nested(channel, unroll, at | {axis: t}, x), sums)

        unroll, low, high = p.unroll, part.low, part.high

        def several(channel: Index, sums: list[Value]) -> list[Value]:
            self._fetch_kernel(channel, part, ahead)
            self._fetch_pixels(channel, place, ahead)
            return nested(channel, unroll, {}, sums)

        sums = [b.zero(p.accumulator, tile.lanes)] * (tile.pixels * tile.vectors)
        whole = low + (high - low) // unroll * unroll
        sums = b.for_(low, whole, unroll, several, sums)
        if unroll == 1 or high == whole:
            return sums
        if isinstance(high, int) and isinstance(whole, int):
            return nested(whole, high - whole, {}, sums)
        return b.for_(whole, high, 1, lambda c, x: nested(c, 1, {}, x), sums)

    def _range(self, axis: int, place: Sequence[Index], part: Part) -> tuple[Index, Index]:
        """The taps of a dimension that the part has, and under which some pixel of the tile has an input: the first, and the
        one behind the last."""
        p = self.problem
        taps = p.window[axis]
        first, last = (part.first, part.last) if axis == p.outer else (0, taps)
        if axis in p.bounded:
            low, high = p.axes[axis].reached(place[axis], p.tile_extents[axis])
            first, last = maximum(first, low), minimum(last, high)
        numbers = [n if isinstance(n, int) else self.b.symbol(n, 0, taps) for n in (first, last)]
        return numbers[0], numbers[1]

    def _pixel(self, image: int, channel: Index, where: list[Index]) -> Value:
        p = self.problem
        if not p.op.pointwise:
            return self.b.load(self.source, (self.image + image, channel, *where))
        at = ((self.image + image) * p.channels + channel) * p.space[0] + where[0]
        return self.b.load(p.ctx.b.flat(self.source), (at,))

    def _fetch_kernel(self, channel: Index, part: Part, ahead: Ahead) -> None:
        """Ask for a part of the kernel that the next part of the sums needs, which lies behind this one's: each tile for its
        share, so that memory is busy as evenly as the multipliers."""
        p = self.problem
        if not p.fetches:
            return
        row = p.taps // p.window[p.outer] * p.tile.block
        features, taps = p.chunk
        whole = p.taps * p.tile.block
        line = max(1, LINE // p.accumulator.itemsize)
        iterations = -(-features // p.unroll)
        # Some taps of several features lie apart.
        pieces, piece = (features, taps * row) if p.cuts_window else (1, features * whole)
        lines = -(-piece // line)
        each = -(-pieces * lines // (ahead.tiles * iterations))
        behind = (self.block * p.channels + part.low) * whole
        behind = behind + (part.last * row if p.cuts_window else features * whole)
        first = (ahead.tile * iterations + (channel - part.low) // p.unroll) * each
        kernel = p.ctx.b.flat(p.ctx.memory[p.w])
        for n in range(each):
            at = first + n
            place = at * line if pieces == 1 else at // lines * whole + at % lines * line
            self.b.prefetch(kernel, (behind + place,), locality=2)

    def _fetch_pixels(self, channel: Index, place: Sequence[Index], ahead: Ahead) -> None:
        """Ask for the pixels of a large image that the next task reads, a strip further on, of the input features that this
        one reads now: pieces of many rows, which the hardware does not foresee."""
        p, itemsize = self.problem, self.problem.accumulator.itemsize
        tile = p.tile
        far = p.op.pointwise and p.channels * p.space[0] * itemsize > p.l2 // 2
        if not far or tile.strip == p.space[0]:
            return
        line = max(1, LINE // itemsize)
        lines = -(-tile.strip // line)
        each = -(-p.unroll * lines // ahead.tiles)
        buffer = p.ctx.b.flat(self.source)
        start = (self.image * p.channels + channel) * p.space[0] + ahead.left + tile.strip
        for n in range(each):
            number = ahead.tile * each + n
            at = start + number // lines * p.space[0] + number % lines * line
            self.b.prefetch(buffer, (at,), locality=2)
