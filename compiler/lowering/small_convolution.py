"""Convolutions of small images, product by product (`schedule/cpu_small_convolution.py` lists them).

A task computes a vector of output features of all images. It goes over the input features in blocks: the weights of a
block are brought, in registers, into the order (input feature, tap, output feature), which lies in L1 then; each register
tile of images and pixels reads them, and adds its sums to those in the task's buffer. The next block of weights is fetched
from memory meanwhile. Pixels are broadcast from a copy of the images. In the end sums are transposed on the stack, so that
the epilogue sees a feature's pixels, and the next feature's, side by side.
"""

from __future__ import annotations

import itertools
from typing import Any

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.context import LoweringContext, decode, tensor_of
from flambeau.compiler.lowering.contraction_emitter import Buffer, LoopEmitter, Value
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import transpose
from flambeau.compiler.schedule.cpu_small_convolution import DEPTH, SmallConvolution

#: Bytes that are fetched together.
LINE = 64


def small_workspace(operation: Operation, plan: SmallConvolution) -> int:
    """Bytes of the images' copy."""
    return plan.images * plan.pitch * _accumulator(operation).itemsize


def lower_small_convolution(
    ctx: LoweringContext, operation: Operation, plan: SmallConvolution, workspace: Value
) -> None:
    """Emit a convolution, and its epilogue, by `plan`."""
    _Small(ctx, operation, plan, workspace).emit()


def _accumulator(operation: Operation) -> ElementType:
    return accumulator_of(tensor_of(operation.operands[0]).element, tensor_of(operation.results[0]).element)


class _Small:
    def __init__(
        self, ctx: LoweringContext, operation: Operation, plan: SmallConvolution, workspace: Value
    ) -> None:
        self.ctx, self.plan, self.made = ctx, plan, operation.results[0]
        self.x, self.w = operation.operands
        self.accumulator = _accumulator(operation)
        self.result = tensor_of(self.made).shape
        self.kernel = tensor_of(self.w).shape
        self.b = LoopEmitter(ctx.b, ctx.e.half)
        self.copy = ctx.b.from_pointer(workspace, (plan.images * plan.pitch,), self.accumulator)

    def emit(self) -> None:
        p = self.plan
        with self.ctx.rows((p.images,), p.images * p.channels * p.inputs) as (image,):
            self._copy_image(image)
        self.ctx.forget()
        with self.ctx.rows((p.blocks,), int(p.cost) * p.lanes) as (block,):
            self._task(block)

    def _copy_image(self, image: Index) -> None:
        p, ctx = self.plan, self.ctx

        def chunk(at: Index, lane: Index) -> None:
            index = (image, *decode(at + lane, tensor_of(self.x).shape[1:]))
            x = ctx.e.convert(ctx.read(self.x, index), self.accumulator)
            ctx.b.store(ctx.spread(x.value), self.copy, (image * p.pitch + at + lane,))

        self._chunks(p.channels * p.inputs, chunk)

    def _chunks(self, extent: Index, chunk: Any) -> None:
        """``chunk(position, lane)`` for vectors of positions below `extent`."""
        b, lanes = self.b, self.plan.lanes
        whole = extent // lanes * lanes

        def one(at: Index, count: Index | None) -> None:
            with b.lanes_of(lanes, count) as lane:
                chunk(at, lane)

        b.for_(0, whole, lanes, lambda at, _: one(at, None))
        if extent - whole != 0:
            one(whole, extent - whole)

    def _task(self, block: Index) -> None:
        p, b = self.plan, self.b
        sums = b.alloca((p.images * p.pixels * p.lanes,), self.accumulator)
        weights = b.alloca((DEPTH * p.taps * p.lanes,), self.accumulator)
        zero = b.zero(self.accumulator, p.lanes)
        b.for_(0, p.images * p.pixels, 1, lambda i, _: b.vector_store(zero, sums, (i * p.lanes,)))

        def some(first: Index, count: int) -> None:
            self._order(weights, block, first, count)
            b.for_(
                0,
                p.images // p.together * p.together,
                p.together,
                lambda image, _: self._tiles(weights, sums, block, first, count, image, p.together),
            )
            if rest := p.images % p.together:
                self._tiles(weights, sums, block, first, count, p.images - rest, rest)

        whole = p.channels // DEPTH * DEPTH
        b.for_(0, whole, DEPTH, lambda first, _: some(first, DEPTH))
        if whole != p.channels:
            some(whole, p.channels - whole)
        line = b.alloca((p.lanes * p.pixels,), self.accumulator)
        b.for_(0, p.images, 1, lambda image, _: self._finish(sums, line, block, image))

    # -- weights -------------------------------------------------------------------------------------------------------
    def _order(self, weights: Buffer, block: Index, first: Index, count: int) -> None:
        """The weights of `count` input features from `first`: (input feature, tap, output feature)."""
        p, b = self.plan, self.b
        if p.outer:
            # Those of an output feature lie on end: squares of output features by positions.
            whole = count * p.taps // p.lanes * p.lanes
            b.for_(0, whole, p.lanes, lambda at, _: self._square(weights, block, first, 0, at, p.lanes))
            if rest := count * p.taps - whole:
                self._square(weights, block, first, 0, whole, rest)
            return

        def channel(c: Index, _: list[Value]) -> None:
            for tap in range(0, p.taps, p.lanes):
                self._square(weights, block, first, c, tap, min(p.lanes, p.taps - tap))

        b.for_(0, count, 1, channel)

    def _square(
        self, weights: Buffer, block: Index, first: Index, channel: Index, at: Index, count: int
    ) -> None:
        """`count` vectors of output features, from position `at` of the input feature on."""
        p, b = self.plan, self.b
        rows = [self._weights(block, row, first + channel, at, count) for row in range(p.lanes)]
        for number, x in enumerate(transpose(b, rows)[:count]):
            b.vector_store(x, weights, ((channel * p.taps + at + number) * p.lanes,))

    def _weights(self, block: Index, row: int, channel: Index, at: Index, count: int) -> Value:
        """A vector of `count` weights of an output feature, from position `at` of `channel` on."""
        p, ctx = self.plan, self.ctx
        feature = block * p.lanes + row
        if p.features % p.lanes:  # those that do not exist are read from one that does
            feature = minimum(feature, p.features - 1)
        with self.b.lanes_of(p.lanes, None if count == p.lanes else count) as lane:
            if p.outer:
                index = (feature, *decode(channel * p.taps + at + lane, self.kernel[1:]))
            else:
                index = (channel, feature, *decode(at + lane, self.kernel[2:]))
            return ctx.spread(ctx.e.convert(ctx.read(self.w, index), self.accumulator).value)

    def _fetch(self, block: Index, first: Index, step: Index, part: Index, parts: int) -> None:
        """Ask for some of the weights of the block of input features from `first`: one part of one run of memory."""
        p = self.plan
        if self.w not in self.ctx.memory or (p.outer and p.lanes != DEPTH):
            return
        size = tensor_of(self.w).element.itemsize
        lines = -(-(DEPTH if p.outer else p.lanes) * p.taps * size // LINE)
        each = -(-lines // parts)
        feature, channel = (block * p.lanes + step, first) if p.outer else (block * p.lanes, first + step)
        for number in range(each):
            # Counted from the run's first weight, whatever the window.
            at = [feature, channel] if p.outer else [channel, feature]
            index = [*at, *[0] * (len(self.kernel) - 3), (part * each + number) * (LINE // size)]
            self.b.prefetch(self.ctx.memory[self.w], index)

    # -- sums ----------------------------------------------------------------------------------------------------------
    def _tiles(
        self,
        weights: Buffer,
        sums: Buffer,
        block: Index,
        first: Index,
        count: int,
        image: Index,
        images: int,
    ) -> None:
        p = self.plan
        groups = -(-p.images // p.together)
        for number, tile in enumerate(p.tiles):
            part = image // p.together * len(p.tiles) + number

            def step(c: Index, totals: list[Value], tile: range = tile, part: Index = part) -> list[Value]:
                if count == DEPTH:
                    self._fetch(block, first + DEPTH, c, part, groups * len(p.tiles))
                return self._step(weights, tile, first, c, (image, images), totals)

            self._add(sums, tile, image, images, count, step)

    def _step(
        self,
        weights: Buffer,
        tile: range,
        first: Index,
        channel: Index,
        images: tuple[Index, int],
        totals: list[Value],
    ) -> list[Value]:
        """The products of one input feature. A pixel is broadcast once for all of its products."""
        p, b = self.plan, self.b
        totals = list(totals)
        products = [product for product in p.products if product[1] in tile]
        loaded = {
            tap: b.vector_load(weights, ((channel * p.taps + tap) * p.lanes,), p.lanes)
            for tap in sorted({tap for _, _, tap in products})
        }
        for i in range(images[1]):
            place = (images[0] + i) * p.pitch + (first + channel) * p.inputs
            for pixel, group in itertools.groupby(products, lambda product: product[0]):
                x = b.splat(b.load(self.copy, (place + pixel,)), p.lanes)
                for _, output, tap in group:
                    n = i * len(tile) + output - tile.start
                    totals[n] = b.multiply_add(x, loaded[tap], totals[n], self.accumulator)
        return totals

    def _add(self, sums: Buffer, tile: range, image: Index, images: int, count: int, step: Any) -> None:
        p, b = self.plan, self.b
        zero = b.zero(self.accumulator, p.lanes)
        totals = b.for_(0, count, 1, step, [zero] * (images * len(tile)))
        for n, total in enumerate(totals):
            i, pixel = divmod(n, len(tile))
            at = (((image + i) * p.pixels + tile.start + pixel) * p.lanes,)
            b.vector_store(b.add(b.vector_load(sums, at, p.lanes), total, self.accumulator), sums, at)

    # -- the result ----------------------------------------------------------------------------------------------------
    def _finish(self, sums: Buffer, line: Buffer, block: Index, image: Index) -> None:
        """One image's results, feature by feature, through the epilogue."""
        p, b, ctx = self.plan, self.b, self.ctx
        zero = b.zero(self.accumulator, p.lanes)
        for start in range(0, p.pixels, p.lanes):
            count = min(p.lanes, p.pixels - start)
            read = [
                b.vector_load(sums, ((image * p.pixels + start + q) * p.lanes,), p.lanes)
                for q in range(count)
            ]
            mask = None if count == p.lanes else b.mask(count, p.lanes)
            for f, x in enumerate(transpose(b, read + [zero] * (p.lanes - count))):
                b.vector_store(x, line, (f * p.pixels + start,), mask)
        features: Index = p.lanes
        if p.features % p.lanes:
            features = minimum(p.features - block * p.lanes, p.lanes)

        def chunk(at: Index, lane: Index) -> None:
            place = decode(block * (p.lanes * p.pixels) + at + lane, self.result[1:])
            index = (0 if p.images == 1 else image, *place)
            total = Scalar(ctx.b.load(line, (at + lane,)), self.accumulator)
            ctx.finish(self.made, index, ctx.e.convert(total, tensor_of(self.made).element))

        self._chunks(features * p.pixels, chunk)
