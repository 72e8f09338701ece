"""Convolutions of one group, directly: vectors along output features, pixels broadcast, no matrix of windows.

Padded inputs are copied first, image by image, zeros and all; others are read where they lie. Then each task computes
some rows of a block of features, in register tiles of pixels x features: all of its tiles over some input features, then
over the next. Finished pixels are transposed in registers, so that the epilogue sees vectors along a row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.blocked_convolution import BlockedConvolution
from flambeau.compiler.dialects.graph.contraction import accumulator_of, decode, encode
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import transpose
from flambeau.compiler.schedule.cpu_contraction import balanced, cpu_shape
from flambeau.compiler.schedule.cpu_convolution import SUMMED, TAPS, UNROLL, ConvolutionSize, choose_tile


def blocked_workspace(ctx: LoweringContext, operation: Operation) -> Index:
    """Bytes of the padded copy."""
    return _Blocked(ctx, operation).copy_bytes


def lower_blocked_convolution(ctx: LoweringContext, operation: Operation, workspace: Value | None) -> None:
    """Emit a `blocked_convolution`, and its epilogue."""
    _Blocked(ctx, operation).emit(workspace)


#: Bytes of a result from which on its lines are prefetched: less stays in the caches from one kernel to the next.
FROM_AFAR = 1 << 18


@dataclass(frozen=True)
class _Ahead:
    """Tile number `tile` of the `tiles` of a task, whose pixels begin at `left`."""

    tile: Index
    tiles: int
    left: Index


class _Blocked:
    """One convolution, with its epilogue."""

    def __init__(self, ctx: LoweringContext, operation: Operation) -> None:
        self.ctx, self.made = ctx, operation.results[0]
        self.x, self.w = operation.operands
        self.op: BlockedConvolution = definition_of(operation)
        op, x, w, self.result = self.op, tensor_of(self.x), tensor_of(self.w), tensor_of(self.made)
        self.accumulator: ElementType = accumulator_of(x.element, op.element)
        self.b = LoopEmitter(ctx.b, ctx.e.half)
        self.batch = x.shape[op.input_batch]
        self.channels = _number(x.shape[op.input_feature])
        space = tuple(_number(self.result.shape[a]) for a in op.output_spatial)
        self.window, self.strides, self.dilation = op.window, op.window_strides, op.rhs_dilation
        #: Extents of an image as windows see it: padded, and no longer than they reach.
        self.extents = tuple(
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(space, self.strides, self.window, self.dilation, strict=True)
        )
        self.space = space
        if op.pointwise:  # the pixels of an image are walked as if they were one row
            self.space, self.window, self.strides, self.dilation = (math.prod(space),), (1,), (1,), (1,)
        cpu = cpu_shape(ctx.target)
        size = ConvolutionSize(self.batch, self.space, op.features, _number(w.shape[1]))
        self.tile = choose_tile(size, self.accumulator, cpu, _number(w.shape[2]))
        self.blocks = _number(w.shape[0])
        self.l2 = cpu.l2
        #: Are the result, and what the epilogue reads of its size, in memory or a cache that is almost as far?
        count = self.result.size
        small = isinstance(count, int) and count * self.result.element.itemsize < FROM_AFAR
        self.ends_in_memory = not small and self.tile.images == 1
        #: Is the kernel so large that it comes from memory, or from a cache that is almost as far?
        self.fetches = math.prod([_number(d) for d in w.shape]) * self.accumulator.itemsize > cpu.l2 // 4
        canonical = (op.input_batch, op.input_feature, *op.input_spatial) == tuple(range(x.rank))
        unpadded = all(p == (0, 0) for p in op.padding)
        self.copies = not (unpadded and canonical and self.x in ctx.memory and x.element is self.accumulator)
        #: Images that are copied, and computed, at a time: what half the L2 holds.
        self.images = 1
        if isinstance(self.batch, int):
            size = self.channels * math.prod(self.extents) * self.accumulator.itemsize
            self.images = (
                min(self.batch, max(self.tile.images, cpu.l2 // 2 // size)) if self.copies else self.batch
            )
        elif not self.copies:
            self.images = 0

    @property
    def copy_bytes(self) -> Index:
        """Of the padded copy of as many images as are computed at a time."""
        if not self.copies:
            return 0
        size: int = self.images * self.channels * math.prod(self.extents) * self.accumulator.itemsize
        return size

    def emit(self, workspace: Value | None) -> None:
        if not self.copies:
            self._images(self.ctx.memory[self.x], 0, self.batch)
            return
        assert workspace is not None
        shape = (self.images, self.channels, *self.extents)
        copy = self.ctx.b.from_pointer(workspace, shape, self.accumulator)

        def some(first: Index, _: list[Value]) -> None:
            here = minimum(self.batch - first, self.images)
            if isinstance(self.batch, int) and self.batch % self.images == 0:
                here = self.images
            work = here * self.channels * math.prod(self.extents)
            with self.ctx.rows((here, self.channels), work) as (image, channel):
                self._copy(copy, first, image, channel)
            self.ctx.forget()
            self._images(copy, first, here)

        self.b.for_(0, self.batch, self.images, some)

    # -- the padded copy -----------------------------------------------------------------------------------------------
    def _copy(self, copy: Value, first: Index, image: Index, channel: Index) -> None:
        """One channel of one image, row by row."""
        op, b, x = self.op, self.ctx.b, tensor_of(self.x)
        lows = [_number(low) for low, _ in op.padding]
        sizes = [_number(x.shape[a]) for a in op.input_spatial]
        #: Where, in each dimension of the copy, the input is.
        inside = [
            (min(max(low, 0), extent), min(max(low + size, 0), extent))
            for low, size, extent in zip(lows, sizes, self.extents, strict=True)
        ]
        start, stop = inside[-1]

        def row(at: tuple[Index, ...]) -> None:
            conditions = [
                self.ctx.e.in_bounds(digit, *bounds).value
                for digit, bounds in zip(at, inside[:-1], strict=True)
            ]

            def read() -> None:
                self._zeros(copy, (image, channel, *at), 0, start)
                self._zeros(copy, (image, channel, *at), stop, self.extents[-1])
                for chunk, lanes in self._chunks(start, stop):
                    with lanes as lane:
                        index: list[Index] = [0] * x.rank
                        index[op.input_batch], index[op.input_feature] = first + image, channel
                        for axis, digit, low in zip(op.input_spatial, (*at, chunk + lane), lows, strict=True):
                            index[axis] = digit - low
                        scalar = self.ctx.e.convert(self.ctx.read(self.x, tuple(index)), self.accumulator)
                        b.store(self.ctx.spread(scalar.value), copy, (image, channel, *at, chunk + lane))

            if not conditions:
                read()
                return
            condition = conditions[0]
            for other in conditions[1:]:
                condition = b.iand(condition, other)
            b.if_(condition, read, lambda: self._zeros(copy, (image, channel, *at), 0, self.extents[-1]))

        self.ctx.nest(self.extents[:-1], row)

    def _zeros(self, copy: Value, at: tuple[Index, ...], start: int, stop: int) -> None:
        zero = self.b.zero(self.accumulator, self.tile.lanes)
        for chunk, lanes in self._chunks(start, stop):
            with lanes as lane:
                self.ctx.b.store(zero, copy, (*at, chunk + lane))

    def _chunks(self, start: int, stop: int) -> Sequence[tuple[Index, AbstractContextManager[Index]]]:
        """Vectors of positions from `start` to `stop`."""
        lanes = self.tile.lanes
        return [
            (at, self.b.lanes_of(lanes, None if stop - at >= lanes else stop - at))
            for at in range(start, stop, lanes)
        ]

    # -- tasks ---------------------------------------------------------------------------------------------------------
    def _images(self, source: Value, first: Index, count: Index) -> None:
        """All results of some images, whose inputs are in `source` from its first on."""
        tile = self.tile
        outer = self.space[:-2]
        height = self.space[-2] if len(self.space) > 1 else 1
        strips = -(-self.space[-1] // tile.strip)
        images = (count + tile.images - 1) // tile.images
        taps = math.prod(self.window)
        work = images * tile.images * math.prod(self.space) * self.op.features * taps * self.channels
        kernel_first = isinstance(count, int) and self.channels * taps * self.op.features > count * (
            self.channels * math.prod(self.extents)
        )
        extents = (self.blocks, images) if kernel_first else (images, self.blocks)
        with self.ctx.rows((*extents, *outer, -(-height // tile.down), strips), work) as at:
            block, group = at[:2] if kernel_first else at[1::-1]
            image, skip_image = _start(group, tile.images, count)
            y, skip_y = _start(at[-2], tile.down, height)
            left = at[-1] * tile.strip
            width = minimum(self.space[-1] - left, tile.strip) if self.space[-1] % tile.strip else tile.strip
            place = (*at[2:-2], y, left) if len(self.space) > 1 else (left,)
            totals = self._totals(source, block, image, place, width, first + image)
            self._store(totals, block, first + image, place, width, (skip_image, skip_y))

    @property
    def _pitch(self) -> int:
        """Pixels from one row of a task's sums to the next."""
        return -(-self.tile.strip // self.tile.columns) * self.tile.columns

    def _totals(
        self, source: Value, block: Index, image: Index, place: tuple[Index, ...], width: Index, made: Index
    ) -> Value:
        """A task's sums, pixel by pixel: of some input features at a time for all tiles, so that what they read of the input
        and of the kernel is in the caches when the next tile reads it."""
        b, tile = self.b, self.tile
        # Pixels are read by whole vectors when they are stored, which may reach beyond the last.
        pixels = tile.images * tile.down * self._pitch + tile.lanes
        totals = b.alloca((pixels * tile.block,), self.accumulator)
        across = (width + tile.columns - 1) // tile.columns
        tiles = tile.down // tile.rows * -(-tile.strip // tile.columns)
        chunk = self._chunk

        def some(low: Index, high: Index) -> None:
            def one(row: Index, number: Index) -> None:
                x, _ = _start(number, tile.columns, width)
                at = [*place[:-1], place[-1] + x]
                if len(place) > 1:
                    at[-2] = at[-2] + row * tile.rows
                ahead = _Ahead(row * -(-tile.strip // tile.columns) + number, tiles, place[-1])
                if self.ends_in_memory:
                    self._fetch_results(block, made, place, low // chunk * tiles + ahead.tile, ahead.tiles)
                sums = self._sums(source, block, image, at, low, high, ahead)
                # A last tile that starts earlier has a place of its own all the same, since it is added to.
                self._add(
                    sums,
                    totals,
                    row * (tile.rows * self._pitch) + number * tile.columns,
                    chunk < self.channels,
                )

            b.for_(
                0,
                tile.down // tile.rows,
                1,
                lambda row, _: b.for_(0, across, 1, lambda n, _: one(row, n)) and None,
            )

        if chunk >= self.channels:
            some(0, self.channels)
        else:
            zero = b.zero(self.accumulator, tile.lanes)
            b.for_(0, pixels * tile.block, tile.lanes, lambda at, _: b.vector_store(zero, totals, (at,)))
            even = self.channels % chunk == 0
            b.for_(
                0,
                self.channels,
                chunk,
                lambda low, _: some(low, low + chunk if even else minimum(low + chunk, self.channels)),
            )
        if not (isinstance(width, int) and width % tile.columns == 0):
            self._join(totals, width, across)
        return totals

    def _add(self, sums: list[Value], totals: Value, place: Index, more: bool) -> None:
        """Put a tile's sums to those of other input features."""
        b, tile = self.b, self.tile
        pixels = itertools.product(range(tile.images), range(tile.rows), range(tile.columns))
        for number, (i, y, x) in enumerate(pixels):
            pixel = place + ((i * tile.down + y) * self._pitch + x)
            for v in range(tile.vectors):
                at, value = (pixel * tile.block + v * tile.lanes,), sums[number * tile.vectors + v]
                if more:
                    value = b.add(b.vector_load(totals, at, tile.lanes), value, self.accumulator)
                b.vector_store(value, totals, at)

    def _join(self, totals: Value, width: Index, across: Index) -> None:
        """Move the pixels of each row's last tile to where the others end."""
        b, tile = self.b, self.tile
        source, target = (across - 1) * tile.columns, width - tile.columns

        def row(number: Index, _: list[Value]) -> None:
            start = number * self._pitch

            def pixel(x: Index, _: list[Value]) -> None:
                for v in range(tile.vectors):
                    value = b.vector_load(
                        totals, ((start + source + x) * tile.block + v * tile.lanes,), tile.lanes
                    )
                    b.vector_store(value, totals, ((start + target + x) * tile.block + v * tile.lanes,))

            b.for_(0, tile.columns, 1, pixel)

        b.for_(0, tile.images * tile.down, 1, row)

    def _sums(
        self,
        source: Value,
        block: Index,
        image: Index,
        place: Sequence[Index],
        low: Index,
        high: Index,
        ahead: _Ahead,
    ) -> list[Value]:
        """The tile's sums over input features from `low` to below `high`, pixel by pixel."""
        b, tile = self.b, self.tile
        pixels = list(itertools.product(range(tile.images), range(tile.rows), range(tile.columns)))
        origin = [p * s for p, s in zip(place, self.strides, strict=True)]
        looped, written = self._loops()

        def body(channel: Index, unroll: int, at: dict[int, Index], sums: list[Value]) -> list[Value]:
            out = list(sums)
            for u, *tap in itertools.product(range(unroll), *[range(self.window[axis]) for axis in written]):
                digits = at | dict(zip(written, tap, strict=True))
                taps = [digits[axis] for axis in range(len(self.window))]
                depth = encode((channel + u, *taps), (self.channels, *self.window))
                weights = [
                    b.vector_load(self.ctx.memory[self.w], (block, depth, v * tile.lanes), tile.lanes)
                    for v in range(tile.vectors)
                ]
                corner = [o + t * d for o, t, d in zip(origin, taps, self.dilation, strict=True)]
                for number, (i, y, x) in enumerate(pixels):
                    where = list(corner)
                    where[-1] = where[-1] + x * self.strides[-1]
                    if y:
                        where[-2] = where[-2] + y * self.strides[-2]
                    pixel = b.splat(self._pixel(source, image + i, channel + u, where), tile.lanes)
                    for v, weight in enumerate(weights):
                        n = number * tile.vectors + v
                        out[n] = b.multiply_add(pixel, weight, out[n], self.accumulator)
            return out

        def nested(channel: Index, unroll: int, at: dict[int, Index], sums: list[Value]) -> list[Value]:
            if len(at) == len(looped):
                return body(channel, unroll, at, sums)
            axis = looped[len(at)]
            return b.for_(
                0, self.window[axis], 1, lambda t, x: nested(channel, unroll, at | {axis: t}, x), sums
            )

        unroll = self._unroll

        def several(channel: Index, sums: list[Value]) -> list[Value]:
            self._fetch(block, channel, low, ahead)
            self._fetch_pixels(source, image, channel, place, ahead)
            return nested(channel, unroll, {}, sums)

        sums = [b.zero(self.accumulator, tile.lanes)] * (tile.pixels * tile.vectors)
        whole = low + (high - low) // unroll * unroll
        sums = b.for_(low, whole, unroll, several, sums)
        if unroll == 1 or high == whole:
            return sums
        if isinstance(high, int) and isinstance(whole, int):
            return nested(whole, high - whole, {}, sums)
        return b.for_(whole, high, 1, lambda c, x: nested(c, 1, {}, x), sums)

    def _fetch(self, block: Index, channel: Index, low: Index, ahead: _Ahead) -> None:
        """Ask for a part of the kernel that the next input features are multiplied with, which lies behind these: each tile
        for its share, so that memory is busy as evenly as the multipliers."""
        if not self.fetches:
            return
        b, tile, unroll, taps = self.b, self.tile, self._unroll, math.prod(self.window)
        line = max(1, 64 // self.accumulator.itemsize)
        iterations = -(-self._chunk // unroll)
        lines = -(-self._chunk * taps * tile.block // line)
        each = -(-lines // (ahead.tiles * iterations))
        behind = (block * self.channels + low + self._chunk) * (taps * tile.block)
        number = (ahead.tile * iterations + (channel - low) // unroll) * each
        kernel = self.ctx.b.flat(self.ctx.memory[self.w])
        for n in range(each):
            b.prefetch(kernel, (behind + (number + n) * line,), locality=2)

    def _fetch_pixels(
        self, source: Value, image: Index, channel: Index, place: Sequence[Index], ahead: _Ahead
    ) -> None:
        """Ask for the pixels of a large image that the next task reads, a strip further on, of the input features that this
        one reads now: pieces of many rows, which the hardware does not foresee."""
        tile, unroll, itemsize = self.tile, self._unroll, self.accumulator.itemsize
        far = self.op.pointwise and self.channels * self.space[0] * itemsize > self.l2 // 2
        if not far or tile.strip == self.space[0]:
            return
        line = max(1, 64 // itemsize)
        lines = -(-tile.strip // line)
        each = -(-unroll * lines // ahead.tiles)
        buffer = self.ctx.b.flat(source)
        start = (image * self.channels + channel) * self.space[0] + ahead.left + tile.strip
        for n in range(each):
            number = ahead.tile * each + n
            at = start + number // lines * self.space[0] + number % lines * line
            self.b.prefetch(buffer, (at,), locality=2)

    def _fetch_results(
        self, block: Index, image: Index, place: tuple[Index, ...], number: Index, tiles: int
    ) -> None:
        """Ask for what the epilogue of the task reads and writes, such as the other operand of a sum: each tile, each time
        that it is its turn (`number`), for its share."""
        tile, ctx = self.tile, self.ctx
        line = max(1, 64 // self.result.element.itemsize)
        lines = -(-tile.strip * tile.down // line)
        turns = tiles * -(-self.channels // self._chunk)
        each = -(-tile.block * lines // turns)

        def ask(n: Index, _: list[Value]) -> None:
            at = minimum(number * each + n, tile.block * lines - 1)
            feature = minimum(block * tile.block + at // lines, self.op.features - 1)
            pixel = minimum(at % lines * line, tile.strip * tile.down - 1)
            for buffer, index, written in ctx.touched(
                self.made, self._index(image, feature, place, 0, pixel)
            ):
                self.b.prefetch(buffer, index, written, locality=2)

        self.b.for_(0, each, 1, ask)

    @property
    def _unroll(self) -> int:
        """Input features in one body of the loop over them."""
        _, written = self._loops()
        taps: int = math.prod([self.window[axis] for axis in written])
        return min(self.channels, max(1, UNROLL // taps))

    def _pixel(self, source: Value, image: Index, channel: Index, where: list[Index]) -> Value:
        if not self.op.pointwise:
            return self.b.load(source, (image, channel, *where))
        at = (image * self.channels + channel) * self.space[0] + where[0]
        return self.b.load(self.ctx.b.flat(source), (at,))

    @property
    def _chunk(self) -> int:
        """Input features whose products are summed before their sum is added to that of the others: rounding errors grow
        with the number of additions one after the other. A divisor of their number, if there is one near."""
        most = max(1, SUMMED // math.prod(self.window))
        if most >= self.channels:
            return self.channels
        unroll = self._unroll
        for chunk in range(most * 9 // 8 // unroll * unroll, most // 2, -unroll):
            if self.channels % chunk == 0:
                return chunk
        return -(-balanced(self.channels, most) // unroll) * unroll

    def _loops(self) -> tuple[list[int], list[int]]:
        """The window's dimensions that are loops, and those that are written out.

        Neighbouring pixels of a tile are the same elements under neighbouring taps: LLVM would load them once, keep them,
        and have no registers left for the sums. So dimensions along which the tile has several pixels are loops.
        """
        rank, tile = len(self.window), self.tile
        extents = [1] * max(0, rank - 2) + [tile.rows, tile.columns][-rank:]
        looped: list[int] = []
        written: list[int] = []
        count = 1
        for axis in reversed(range(rank)):
            count *= self.window[axis]
            if self.window[axis] > 1 and (extents[axis] > 1 or count > TAPS):
                looped.insert(0, axis)
                count //= self.window[axis]
            else:
                written.insert(0, axis)
        return looped, written

    def _store(
        self,
        totals: Value,
        block: Index,
        image: Index,
        place: tuple[Index, ...],
        width: Index,
        skip: tuple[Index, Index],
    ) -> None:
        """A task's results, but for rows and images that another one has, through the epilogue: whole rows are one."""
        b, tile = self.b, self.tile
        scratch = b.alloca((tile.block * tile.lanes,), self.accumulator)
        together = tile.strip == self.space[-1] == self._pitch

        def one_image(i: Index, _: list[Value]) -> None:
            start = i * (tile.down * self._pitch)
            if together:
                count = (tile.down - skip[1]) * self.space[-1]
                self._store_pixels(
                    totals, scratch, start + skip[1] * self._pitch, count, block, image + i, place, skip[1]
                )
                return

            def row(y: Index, _: list[Value]) -> None:
                self._store_pixels(
                    totals, scratch, start + y * self._pitch, width, block, image + i, place, y
                )

            b.for_(skip[1], tile.down, 1, row)

        b.for_(skip[0], tile.images, 1, one_image)

    def _store_pixels(
        self,
        totals: Value,
        scratch: Value,
        start: Index,
        count: Index,
        block: Index,
        image: Index,
        place: tuple[Index, ...],
        y: Index,
    ) -> None:
        """`count` pixels from row `y` of the task on, all features of them: transposed in registers, a vector of pixels at
        a time."""
        b, op, tile = self.b, self.op, self.tile
        features = (
            tile.block
            if op.features % tile.block == 0
            else minimum(op.features - block * tile.block, tile.block)
        )

        def turn(v: Index, at: Index) -> None:
            vectors = [
                b.vector_load(totals, ((start + at + p) * tile.block + v * tile.lanes,), tile.lanes)
                for p in range(tile.lanes)
            ]
            for f, x in enumerate(transpose(b, vectors)):
                b.vector_store(x, scratch, ((v * tile.lanes + f) * tile.lanes,))

        def chunk(at: Index, some: Index | None) -> None:
            b.for_(0, tile.vectors, 1, lambda v, _: turn(v, at))

            def feature(f: Index, _: list[Value]) -> None:
                where = (image, block * tile.block + f)
                if count == 1:
                    self._store_lanes(scratch, f * tile.lanes, *where, place, y, 0)
                    return
                with b.lanes_of(tile.lanes, some) as lane:
                    self._store_lanes(scratch, f * tile.lanes + lane, *where, place, y, at + lane)

            b.for_(0, features, 1, feature)

        whole = count // tile.lanes * tile.lanes
        b.for_(0, whole, tile.lanes, lambda at, _: chunk(at, None))
        if count != whole:
            rest = count - whole
            b.if_equal(minimum(rest, 1), 1, lambda: chunk(whole, rest))

    def _store_lanes(
        self,
        scratch: Value,
        source: Index,
        image: Index,
        feature: Index,
        place: tuple[Index, ...],
        y: Index,
        x: Index,
    ) -> None:
        ctx = self.ctx
        total = Scalar(ctx.b.load(scratch, (source,)), self.accumulator)
        at = self._index(image, feature, place, y, x)
        ctx.finish(self.made, at, ctx.e.convert(total, self.result.element))

    def _index(
        self, image: Index, feature: Index, place: tuple[Index, ...], y: Index, x: Index
    ) -> tuple[Index, ...]:
        """The result at pixel `x` from row `y` of the task on, counted through the rows if there is more than one."""
        op = self.op
        index: list[Index] = [0] * self.result.rank
        index[op.output_batch], index[op.output_feature] = image, feature
        if op.pointwise:
            pixel = decode(place[0] + x, [self.result.shape[a] for a in op.output_spatial])
        elif len(place) > 1 and self.tile.strip == self.space[-1]:
            row, column = decode((place[-2] + y) * self.space[-1] + x, self.space[-2:])
            pixel = (*place[:-2], row, column)
        else:
            pixel = (*place[:-1], place[-1] + x)
            if len(place) > 1:
                pixel = (*place[:-2], place[-2] + y, pixel[-1])
        for axis, digit in zip(op.output_spatial, pixel, strict=True):
            index[axis] = digit
        return tuple([0 if extent == 1 else i for extent, i in zip(self.result.shape, index, strict=True)])


def _number(extent: Index) -> int:
    assert isinstance(extent, int)
    return extent


def _start(number: Index, size: int, extent: Index) -> tuple[Index, Index]:
    """Where tile `number` starts, and how many of its results the tile before has computed."""
    if size == 1 or (isinstance(extent, int) and extent % size == 0):
        return number * size, 0
    start = minimum(number * size, extent - size)
    return start, number * size - start
