"""Gradients of a convolution's kernel, directly: for each tap of the window, a product of the cotangent with the shifted input.

As one product with im2col, each input element would be packed once a tap, and the padding around small images multiplied.
Here some images, or rows of them, are packed at a time, pixel by pixel with neighbouring features side by side; a tap's sum
runs over those pixels that have an input under the tap, and joins what earlier pixels gave, in the workspace. What is packed
stays in the caches for all taps and features, while the next part is fetched from memory. Vectors run along the input's
features. The window lies innermost in the result, so sums are transposed on the stack before they leave through the
epilogue, in long runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from flambeau.compiler.dialects.graph.contraction import accumulator_of, decode
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index, maximum, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.contraction_emitter import Buffer, LoopEmitter, Value
from flambeau.compiler.lowering.contraction_packing import Packer, Panel
from flambeau.compiler.lowering.contraction_problem import Operand, ceil_div
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import transpose
from flambeau.compiler.schedule.cpu_kernel_gradient import GradientPlan

#: Pixels whose products are written out one after the other; more are a loop.
UNROLLED = 8
#: Bytes that are asked for together.
LINE = 64


def pixel_index(
    grid: Sequence[int], steps: Sequence[int], image_axis: int, feature_axis: int
) -> Callable[[Sequence[Index], Index, Index], tuple[Index, ...]]:
    """``index(batch, row, k)`` of an operand whose rows are features and whose k counts the pixels of a grid, `steps` apart; an
    image is a batch."""

    def index(batch: Sequence[Index], row: Index, k: Index) -> tuple[Index, ...]:
        digits = decode(k, grid)
        found: list[Index] = [0, 0, *[d * s for d, s in zip(digits, steps, strict=True)]]
        found[image_axis], found[feature_axis] = batch[0], row
        return tuple(found)

    return index


def lower_kernel_gradient(
    ctx: LoweringContext,
    operation: Operation,
    plan: GradientPlan,
    operands: tuple[Operand, Operand],
    workspace: Buffer,
) -> None:
    """Emit the gradient and its epilogue. `operands`: the input and the cotangent, as `pixel_index` indexes them."""
    _Gradient(ctx, operation, plan, operands, workspace).emit()


class _Gradient:
    def __init__(
        self,
        ctx: LoweringContext,
        operation: Operation,
        plan: GradientPlan,
        operands: tuple[Operand, Operand],
        workspace: Buffer,
    ) -> None:
        self.ctx, self.plan, self.workspace, self.made = ctx, plan, workspace, operation.results[0]
        self.x, self.g = operands
        self.result = tensor_of(self.made)
        self.accumulator: ElementType = accumulator_of(
            tensor_of(operation.operands[0]).element, self.result.element
        )
        self.b = LoopEmitter(ctx.b, ctx.e.half)

    def emit(self) -> None:
        p, b = self.plan, self.b
        down, across = p.grid
        if p.at_once:
            # A task's results are neighbours in memory.
            tiles = -(-across // p.down)
            self._pack(0, 0)

            def task(at: list[Index]) -> None:
                first = at[1] * p.down
                b.for_(first, minimum(first + p.down, across), 1, lambda c, _: self._finished_tile(at[0], c))

            b.parallel([down, tiles], task)
            return
        zero = b.zero(self.accumulator, p.lanes)

        def clear(at: list[Index]) -> None:
            start = p.sums_at + at[0] * p.tile
            b.for_(0, p.tile, p.lanes, lambda i, _: b.vector_store(zero, self.workspace, (start + i,)))

        parts = -(-p.counts[0] // p.band)

        def block(image: Index, part: Index) -> None:
            row = part * p.band
            self._pack(image, row)
            tiles = -(-down // p.down)
            after = image + (part + 1) // parts * p.together, (part + 1) % parts * p.band

            # A task's tiles share a panel of the input, which is larger than that of the cotangents.
            def task(at: list[Index]) -> None:
                def tile(f: Index, _: list[Value]) -> None:
                    self._add_tile(f, at[0], image, row, after)

                first = at[1] * p.down
                b.for_(first, minimum(first + p.down, down), 1, tile)

            b.parallel([across, tiles], task)

        def finish(at: list[Index]) -> None:
            self._store(at[0], at[1], self.workspace, p.sums_at + (at[0] * across + at[1]) * p.tile)

        b.parallel([down * across], clear)
        b.for_(
            0,
            p.images,
            p.together,
            lambda image, _: b.for_(0, parts, 1, lambda part, _: block(image, part)),
        )
        b.parallel([down, across], finish)

    # -- packing -------------------------------------------------------------------------------------------------------
    def _pack(self, image: Index, row: Index) -> None:
        """A block's images from `image`, and of the cotangents the rows from `row`."""
        p = self.plan
        inner = math.prod(p.sizes[1:])
        first, last = self._input_rows(row)
        before = first - self._top(row) if p.in_bands else 0
        self._pack_operand(
            self.x, 0, p.groups * p.channels, p.block, image, p.input_pixels,
            before * inner, first * inner, last * inner,
        )  # fmt: skip
        pixels = math.prod(p.counts[1:])
        end = minimum(row + p.band, p.counts[0])
        self._pack_operand(
            self.g, p.cotangent_at, p.features, p.panel, image, p.pixels, 0, row * pixels, end * pixels
        )

    def _top(self, row: Index) -> Index:
        """The input's row that a block's first tap begins with, which may be padding."""
        return row * self.plan.strides[0] - self.plan.low[0]

    def _input_rows(self, row: Index) -> tuple[Index, Index]:
        """The first of the input's rows under a block, and the one after the last."""
        p = self.plan
        if not p.in_bands:
            return 0, p.sizes[0]
        top = self._top(row)
        return maximum(top, 0), minimum(top + p.input_rows, p.sizes[0])

    def _pack_operand(
        self,
        operand: Operand,
        start: Index,
        features: int,
        width: int,
        image: Index,
        pixels: int,
        skipped: Index,
        first: Index,
        last: Index,
    ) -> None:
        """Panels of `width` of the `features`, with room for `pixels` of each image: pixels from
        `first` to below `last`, behind `skipped` others."""
        p = self.plan
        packer = Packer(self.b, operand, self.accumulator, p.lanes)

        def panel(at: list[Index]) -> None:
            block, number = at
            left = width if features % width == 0 else features - block * width
            offset = start + ((block * p.together + number) * pixels + skipped) * width
            packer.pack(
                [image + number],
                Panel(self.workspace, offset, width, block * width, left, first, last - first),
            )

        self.b.parallel([ceil_div(features, width), minimum(p.together, p.images - image)], panel)

    # -- tiles ---------------------------------------------------------------------------------------------------------
    def _taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*[range(n) for n in self.plan.window]))

    def _finished_tile(self, f: Index, c: Index) -> None:
        p, b = self.plan, self.b
        sums = b.alloca((p.tile,), self.accumulator)
        for number, tap in enumerate(self._taps()):
            self._ask_ahead(f * p.rows, c * p.block, number)
            for place, total in enumerate(self._tap(f, c, tap, 0, 0)):
                b.vector_store(total, sums, (number * p.rows * p.block + place * p.lanes,))
        self._store(f, c, sums, 0)

    def _add_tile(self, f: Index, c: Index, image: Index, row: Index, after: tuple[Index, Index]) -> None:
        """Add a block's products; `after`: the image and the row that the next block begins with."""
        p, b = self.plan, self.b
        start = p.sums_at + (f * p.grid[1] + c) * p.tile
        for number, tap in enumerate(self._taps()):
            self._fetch((c * p.grid[0] + f) * p.taps + number, *after)
            for place, total in enumerate(self._tap(f, c, tap, image, row)):
                at = (start + number * p.rows * p.block + place * p.lanes,)
                before = b.vector_load(self.workspace, at, p.lanes)
                b.vector_store(b.add(before, total, self.accumulator), self.workspace, at)

    def _fetch(self, part: Index, image: Index, row: Index) -> None:
        """Fetch a tap's share of the operands of the block that begins with `row` of `image`."""
        p = self.plan
        top = maximum(self._top(row), 0) if p.in_bands else 0
        rows = p.band * p.strides[0] if p.in_bands else p.sizes[0]
        inner, wide = math.prod(p.counts[1:]), math.prod(p.sizes[1:])
        self._fetch_pixels(self.x, p.groups * p.channels, image, top * wide, rows * wide, part)
        self._fetch_pixels(self.g, p.features, image, row * inner, p.band * inner, part)

    def _fetch_pixels(
        self, operand: Operand, features: int, image: Index, first: Index, count: int, part: Index
    ) -> None:
        """A share of `count` pixels from `first` of all features of a block's images."""
        p, b, plain = self.plan, self.b, operand.plain
        if plain is None or not plain.unit_depth:
            return
        step, parts = LINE // plain.element.itemsize, math.prod(p.grid) * p.taps
        lines = -(-count // step)
        total = lines * features * p.together

        def line(number: Index, _: list[Value]) -> None:
            feature = number // lines
            at = plain.at([image + feature // features], feature % features, first + number % lines * step)
            b.prefetch(plain.buffer, at, False, 2)

        b.for_(total * part // parts, total * (part + 1) // parts, 1, line)

    def _ask_ahead(self, first: Index, channel: Index, tap: int) -> None:
        """Ask for a tap's share of the memory that the epilogue works on: short pieces of many rows, which the hardware
        does not foresee."""
        p, b = self.plan, self.b
        step = LINE // self.result.element.itemsize
        lines = -(-p.block * p.taps // step)
        share = range(lines * tap // p.taps, lines * (tap + 1) // p.taps)

        def row(r: Index, _: list[Value]) -> None:
            for line in share:
                index = (first + r, *decode(channel * p.taps + line * step, self.result.shape[1:]))
                for buffer, at, written in self.ctx.touched(self.made, index):
                    b.prefetch(buffer, at, written, 2)

        b.for_(0, p.rows, 1, row)

    # -- sums ----------------------------------------------------------------------------------------------------------
    def _tap(self, f: Index, c: Index, tap: Sequence[int], image: Index, row: Index) -> list[Value]:
        """The register tile of one tap: the sum over a block's pixels that have an input there."""
        p, b = self.plan, self.b
        ranges: list[tuple[int, int]] = []
        for s, t in enumerate(tap):
            shift = t * p.dilations[s] - p.low[s]
            begin = max(0, -(shift // p.strides[s]))
            end = min(p.counts[s], (p.sizes[s] - 1 - shift) // p.strides[s] + 1)
            ranges.append((begin, max(begin, end)))
        zeros = [b.zero(self.accumulator, p.lanes)] * (p.rows * p.vectors)
        if math.prod([end - begin for begin, end in ranges]) == 0:
            return zeros
        panel, inside = (f, 0) if p.panel == p.rows else (f // (p.panel // p.rows), f % (p.panel // p.rows))
        column = c if p.groups == 1 else f * p.rows // (p.features // p.groups) * p.grid[1] + c
        shifts = [t * d - low for t, d, low in zip(tap, p.dilations, p.low, strict=True)]
        if p.in_bands:
            shifts[0] = tap[0] * p.dilations[0]
        tops = [row if p.in_bands else 0, *[0] * (len(tap) - 1)]

        def step(number: Index, pixel: Sequence[Index], sums: list[Value]) -> list[Value]:
            left: Index = 0
            right: Index = 0
            for s, o in enumerate(pixel):
                at = o - tops[s]
                left = left * p.counts[s] + at
                right = right * p.sizes[s] + at * p.strides[s] + shifts[s]
            a = p.cotangent_at + ((panel * p.together + number) * p.pixels + left) * p.panel + inside * p.rows
            x = ((column * p.together + number) * p.input_pixels + right) * p.block
            columns = [b.vector_load(self.workspace, (x + v * p.lanes,), p.lanes) for v in range(p.vectors)]
            out: list[Value] = []
            for r in range(p.rows):
                scalar = b.splat(b.load(self.workspace, (a + r,)), p.lanes)
                for v, vector in enumerate(columns):
                    out.append(b.multiply_add(scalar, vector, sums[r * p.vectors + v], self.accumulator))
            return out

        def pixels(
            number: Index, place: list[Index], sums: list[Value], rows: tuple[Index, Index]
        ) -> list[Value]:
            """Sums over the pixels of an image that begin with `place`, of its rows from and to below `rows`."""
            rest = ranges[len(place) :]
            if not rest:
                return step(number, place, sums)
            begin, end = rest[0] if place else rows
            count = math.prod([high - low for low, high in rest[1:]])
            if isinstance(begin, int) and isinstance(end, int) and (end - begin) * count <= UNROLLED:
                for o in range(begin, end):
                    sums = pixels(number, [*place, o], sums, rows)
                return sums
            return b.for_(begin, end, 1, lambda o, carried: pixels(number, [*place, o], carried, rows), sums)

        def image_rows(number: Index, sums: list[Value]) -> list[Value]:
            """An image's rows, chain by chain."""
            begin, end = ranges[0]
            low: Index = begin
            high: Index = end
            if p.in_bands:
                low, high = maximum(begin, row), minimum(end, row + p.band)
            most = p.band if p.in_bands else end - begin
            if p.chained_images or most <= p.chain:
                return pixels(number, [], sums, (low, high))

            def chain(o: Index, totals: list[Value]) -> list[Value]:
                return self._added(totals, pixels(number, [], zeros, (o, minimum(o + p.chain, high))))

            return b.for_(low, high, p.chain, chain, sums)

        def images(number: Index, totals: list[Value]) -> list[Value]:
            stop = minimum(number + p.chain, count)
            return self._added(totals, b.for_(number, stop, 1, image_rows, zeros))

        if p.together == 1:
            return image_rows(0, zeros)
        count = minimum(p.together, p.images - image)
        if not p.chained_images or p.together <= p.chain:
            return b.for_(0, count, 1, image_rows, zeros)
        return b.for_(0, count, p.chain, images, zeros)

    def _added(self, totals: list[Value], sums: list[Value]) -> list[Value]:
        return [self.b.add(x, y, self.accumulator) for x, y in zip(totals, sums, strict=True)]

    # -- the result ----------------------------------------------------------------------------------------------------
    def _store(self, f: Index, c: Index, sums: Buffer, start: Index) -> None:
        """A tile's sums, which lie in a buffer from `start`, through the epilogue."""
        p = self.plan
        # Each vector of the transposed window is stored whole, over the start of the next.
        line = self.b.alloca((p.block * p.taps + p.lanes,), self.accumulator)
        first = f * p.rows
        rows = p.rows if p.features % p.rows == 0 else minimum(p.features - first, p.rows)
        self.b.for_(0, rows, 1, lambda r, _: self._row(sums, start, line, first, r, c * p.block))

    def _row(self, sums: Buffer, at: Index, line: Buffer, first: Index, r: Index, channel: Index) -> None:
        """All taps of one feature of the cotangent and a block of the input's, which are neighbours in the result."""
        p, ctx = self.plan, self.ctx
        zero = self.b.zero(self.accumulator, p.lanes)
        for v in range(p.vectors if p.taps > 1 else 0):
            read = [
                self.b.vector_load(sums, (at + (t * p.rows + r) * p.block + v * p.lanes,), p.lanes)
                for t in range(p.taps)
            ]
            read += [zero] * (-p.taps % p.lanes)
            starts = range(0, p.taps, p.lanes)
            squares = [transpose(self.b, read[start : start + p.lanes]) for start in starts]
            for number in range(p.lanes):
                for start, square in zip(starts, squares, strict=True):
                    place = (v * p.lanes + number) * p.taps + start
                    self.b.vector_store(square[number], line, (place,))
        extent: Index = p.block * p.taps
        even = p.channels % p.block == 0
        if not even:
            extent = minimum(p.channels - channel, p.block) * p.taps
        whole = extent // p.lanes * p.lanes

        def chunk(start: Index, count: Index | None) -> None:
            with ctx.b.lanes_of(p.lanes, count) as lane:
                position = channel * p.taps + start + lane
                index = (first + r, *decode(position, self.result.shape[1:]))
                found = (line, start + lane) if p.taps > 1 else (sums, at + r * p.block + start + lane)
                total = Scalar(ctx.b.load(found[0], (found[1],)), self.accumulator)
                ctx.finish(self.made, index, ctx.e.convert(total, self.result.element))

        self.b.for_(0, whole, p.lanes, lambda start, _: chunk(start, None))
        if extent - whole != 0:
            self.b.for_(whole, extent, p.lanes, lambda start, _: chunk(start, extent - start))
