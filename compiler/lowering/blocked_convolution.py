"""Convolutions of one group, directly: vectors along output features, pixels broadcast, no matrix of windows.

Padded inputs are copied first, image by image, zeros and all; others are read where they lie. Then each task computes
some rows of a block of features, in register tiles of pixels x features whose sums stay in registers over all input
features and taps. A finished tile is transposed in registers, so that the epilogue sees vectors along a row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

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
        down = -(-self.space[-2] // tile.rows) if len(self.space) > 1 else 1
        strips = -(-self.space[-1] // tile.strip)
        images = (count + tile.images - 1) // tile.images
        taps = math.prod(self.window)
        work = images * tile.images * math.prod(self.space) * self.op.features * taps * self.channels
        kernel_first = isinstance(count, int) and self.channels * taps * self.op.features > count * (
            self.channels * math.prod(self.extents)
        )
        extents = (self.blocks, images) if kernel_first else (images, self.blocks)
        with self.ctx.rows((*extents, *outer, down, strips), work) as at:
            block, group = at[:2] if kernel_first else at[1::-1]
            # A finished tile has whole vectors, the last of which may reach beyond the strip.
            scratch = self.b.alloca((tile.block * self._pitch,), self.accumulator)
            image, skip_image = _start(group, tile.images, count)
            y, skip_y = _start(at[-2], tile.rows, self.space[-2] if len(self.space) > 1 else 1)
            left = at[-1] * tile.strip
            width = minimum(self.space[-1] - left, tile.strip) if self.space[-1] % tile.strip else tile.strip
            place = (*at[2:-2], y, left) if len(self.space) > 1 else (left,)

            def column(number: Index, _: list[Value]) -> None:
                x, _skip = _start(number, tile.columns, width)
                sums = self._sums(source, block, image, (*place[:-1], left + x))
                self._keep(sums, scratch, x)

            self.b.for_(0, (width + tile.columns - 1) // tile.columns, 1, column)
            self._store(scratch, block, first + image, place, width, (skip_image, skip_y))

    @property
    def _pitch(self) -> int:
        """Elements of a feature in the finished strip."""
        tile = self.tile
        whole = -(-tile.pixels // tile.lanes) * tile.lanes
        return tile.images * tile.rows * tile.strip - tile.pixels + whole

    def _sums(self, source: Value, block: Index, image: Index, place: tuple[Index, ...]) -> list[Value]:
        """The tile's sums, pixel by pixel."""
        b, tile = self.b, self.tile
        pixels = list(itertools.product(range(tile.images), range(tile.rows), range(tile.columns)))
        origin = [p * s for p, s in zip(place, self.strides, strict=True)]
        looped, written = self._loops()
        count = math.prod([self.window[axis] for axis in written])

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

        unroll = min(self.channels, max(1, UNROLL // count))

        def some(low: Index, high: Index) -> list[Value]:
            sums = [b.zero(self.accumulator, tile.lanes)] * (tile.pixels * tile.vectors)
            whole = low + (high - low) // unroll * unroll
            sums = b.for_(low, whole, unroll, lambda c, x: nested(c, unroll, {}, x), sums)
            if unroll == 1 or high == whole:
                return sums
            if isinstance(high, int) and isinstance(whole, int):
                return nested(whole, high - whole, {}, sums)
            return b.for_(whole, high, 1, lambda c, x: nested(c, 1, {}, x), sums)

        return self._by_chunks(some, -(-self._chunk // unroll) * unroll)

    def _pixel(self, source: Value, image: Index, channel: Index, where: list[Index]) -> Value:
        if not self.op.pointwise:
            return self.b.load(source, (image, channel, *where))
        at = (image * self.channels + channel) * self.space[0] + where[0]
        return self.b.load(self.ctx.b.flat(source), (at,))

    @property
    def _chunk(self) -> int:
        """Input features whose products are summed before their sum is added to that of the others: rounding errors grow
        with the number of additions one after the other."""
        return balanced(self.channels, max(1, SUMMED // math.prod(self.window)))

    def _by_chunks(self, some: Callable[[Index, Index], list[Value]], chunk: int) -> list[Value]:
        """The sums of ``some(first, last)`` over chunks of the input features."""
        b, tile = self.b, self.tile
        if chunk >= self.channels:
            return some(0, self.channels)
        count = tile.pixels * tile.vectors
        total = b.alloca((count * tile.lanes,), self.accumulator)

        def add(first: Index, _: list[Value]) -> None:
            last = first + chunk if self.channels % chunk == 0 else minimum(first + chunk, self.channels)
            for n, x in enumerate(some(first, last)):
                before = b.vector_load(total, (n * tile.lanes,), tile.lanes)
                b.vector_store(b.add(before, x, self.accumulator), total, (n * tile.lanes,))

        for n, x in enumerate(some(0, chunk)):
            b.vector_store(x, total, (n * tile.lanes,))
        b.for_(chunk, self.channels, chunk, add)
        return [b.vector_load(total, (n * tile.lanes,), tile.lanes) for n in range(count)]

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

    def _keep(self, sums: list[Value], scratch: Value, column: Index) -> None:
        """A tile's sums on the stack, feature by feature; the elements after them are its right neighbour's, or nobody's."""
        b, tile = self.b, self.tile
        zero = b.zero(self.accumulator, tile.lanes)
        for v in range(tile.vectors):
            vectors = [sums[p * tile.vectors + v] for p in range(tile.pixels)]
            vectors += [zero] * (-tile.pixels % tile.lanes)
            for start in range(0, len(vectors), tile.lanes):
                for f, x in enumerate(transpose(b, vectors[start : start + tile.lanes])):
                    b.vector_store(x, scratch, ((v * tile.lanes + f) * self._pitch + column + start,))

    def _store(
        self,
        scratch: Value,
        block: Index,
        image: Index,
        place: tuple[Index, ...],
        width: Index,
        skip: tuple[Index, Index],
    ) -> None:
        """A finished strip, but for rows and images that another one has, through the epilogue."""
        b, op, tile = self.b, self.op, self.tile
        features = op.features - block * tile.block
        features = tile.block if op.features % tile.block == 0 else minimum(features, tile.block)

        def row(f: Index, i: Index, y: Index) -> None:
            start = f * self._pitch + (i * tile.rows + y) * tile.strip
            feature = block * tile.block + f
            if width == 1:
                self._store_lanes(scratch, start, feature, image + i, place, y, 0)
                return

            def lanes(chunk: Index, count: Index | None) -> None:
                with b.lanes_of(tile.lanes, count) as lane:
                    self._store_lanes(scratch, start, feature, image + i, place, y, chunk + lane)

            whole = width // tile.lanes * tile.lanes
            b.for_(0, whole, tile.lanes, lambda chunk, _: lanes(chunk, None))
            if width != whole:
                lanes(whole, width - whole)

        def feature(f: Index, _: list[Value]) -> None:
            def one_image(i: Index, _: list[Value]) -> None:
                b.for_(skip[1], tile.rows, 1, lambda y, _: row(f, i, y))

            b.for_(skip[0], tile.images, 1, one_image)

        b.for_(0, features, 1, feature)

    def _store_lanes(
        self,
        scratch: Value,
        start: Index,
        feature: Index,
        image: Index,
        place: tuple[Index, ...],
        y: Index,
        x: Index,
    ) -> None:
        ctx, op = self.ctx, self.op
        index: list[Index] = [0] * self.result.rank
        index[op.output_batch], index[op.output_feature] = image, feature
        pixel = [*place[:-1], place[-1] + x]
        if len(place) > 1:
            pixel[-2] = pixel[-2] + y
        if op.pointwise:
            pixel = list(decode(pixel[0], [self.result.shape[a] for a in op.output_spatial]))
        for axis, digit in zip(op.output_spatial, pixel, strict=True):
            index[axis] = digit
        at = tuple(0 if extent == 1 else i for extent, i in zip(self.result.shape, index, strict=True))
        total = Scalar(ctx.b.load(scratch, (start + x,)), self.accumulator)
        ctx.finish(self.made, at, ctx.e.convert(total, self.result.element))


def _number(extent: Index) -> int:
    assert isinstance(extent, int)
    return extent


def _start(number: Index, size: int, extent: Index) -> tuple[Index, Index]:
    """Where tile `number` starts, and how many of its results the tile before has computed."""
    if size == 1 or (isinstance(extent, int) and extent % size == 0):
        return number * size, 0
    start = minimum(number * size, extent - size)
    return start, number * size - start
