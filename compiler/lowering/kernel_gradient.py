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
        strips = [down, -(-across // p.strip)]
        if p.at_once:
            self._pack(0, 0)
            b.parallel(strips, lambda at: self._finish(at[0], at[1], self._summed_tile))
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

        def kept(f: Index, c: Index) -> tuple[Buffer, Index]:
            return self.workspace, p.sums_at + (f * across + c) * p.tile

        b.parallel([down * across], clear)
        b.for_(
            0,
            p.images,
            p.together,
            lambda image, _: b.for_(0, parts, 1, lambda part, _: block(image, part)),
        )
        b.parallel(strips, lambda at: self._finish(at[0], at[1], kept))

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

    def _summed_tile(self, f: Index, c: Index) -> tuple[Buffer, Index]:
        """A tile's sums over everything, on the stack."""
        p, b = self.plan, self.b
        sums = b.alloca((p.tile,), self.accumulator)
        for number, tap in enumerate(self._taps()):

            def meanwhile(image: Index, tap: int = number) -> None:
                self._ask_ahead(f, c, tap, image)

            for place, total in enumerate(self._tap(f, c, tap, 0, 0, meanwhile)):
                b.vector_store(total, sums, (number * p.rows * p.block + place * p.lanes,))
        return sums, 0

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

    def _ask_ahead(self, f: Index, c: Index, tap: int, image: Index) -> None:
        """Ask for an image's share of the memory that the epilogue of the next strip works on: a few lines, so that products are
        made meanwhile."""
        p, b, ctx = self.plan, self.b, self.ctx
        strips = -(-p.grid[1] // p.strip)
        after = f * strips + c // p.strip + 1
        first, column = after // strips * p.rows, after % strips * (p.strip * p.block * p.taps)
        step = LINE // self.result.element.itemsize
        lines = -(-p.strip * p.block * p.taps // step)
        share = -(-lines * p.rows // (p.strip * p.taps * p.together))
        part = (c % p.strip * p.taps + tap) * p.together + image

        def line(number: Index) -> None:
            index = (first + number // lines, *decode(column + number % lines * step, self.result.shape[1:]))
            touched = ctx.touched(self.made, index)
            read = any(not written for _, _, written in touched)
            for buffer, at, written in touched:
                # Other results take the place of what they are computed from.
                if not written or not read or buffer is ctx.memory.get(self.made):
                    b.prefetch(buffer, at, written, 2)

        if share <= UNROLLED:
            for number in range(share):
                line(part * share + number)
            return
        b.for_(part * share, (part + 1) * share, 1, lambda number, _: line(number))

    # -- sums ----------------------------------------------------------------------------------------------------------
    def _tap(
        self,
        f: Index,
        c: Index,
        tap: Sequence[int],
        image: Index,
        row: Index,
        meanwhile: Callable[[Index], None] | None = None,
    ) -> list[Value]:
        """The register tile of one tap: the sum over a block's pixels that have an input there. ``meanwhile(number)`` is done
        with each of the block's images."""
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
            if meanwhile is not None:
                meanwhile(number)
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
    def _finish(self, f: Index, strip: Index, tile: Callable[[Index, Index], tuple[Buffer, Index]]) -> None:
        """A strip of tiles, rows of the result, through the epilogue. ``tile(f, c)``: a buffer that has the sums of a tile, and
        where they begin there."""
        p, b = self.plan, self.b
        # Each vector of a transposed window is stored whole, over the start of the next.
        width = p.strip * p.block * p.taps + p.lanes
        lines = b.alloca((p.rows * width,), self.accumulator)
        begin = strip * p.strip

        def collect(c: Index, _: list[Value]) -> None:
            sums, start = tile(f, c)
            place = (c - begin) * (p.block * p.taps)
            b.for_(
                0, p.rows, 1, lambda r, _: self._collect(sums, start + r * p.block, lines, r * width + place)
            )

        b.for_(begin, minimum(begin + p.strip, p.grid[1]), 1, collect)
        first = f * p.rows
        rows = p.rows if p.features % p.rows == 0 else minimum(p.features - first, p.rows)
        b.for_(0, rows, 1, lambda r, _: self._store(lines, r * width, first + r, begin * p.block))

    def _collect(self, sums: Buffer, start: Index, lines: Buffer, place: Index) -> None:
        """A tile's sums of one feature of the cotangent, with the window's innermost."""
        p, b = self.plan, self.b
        zero = b.zero(self.accumulator, p.lanes)
        for v in range(p.vectors):
            read = [
                b.vector_load(sums, (start + t * p.rows * p.block + v * p.lanes,), p.lanes)
                for t in range(p.taps)
            ]
            if p.taps == 1:
                b.vector_store(read[0], lines, (place + v * p.lanes,))
                continue
            read += [zero] * (-p.taps % p.lanes)
            starts = range(0, p.taps, p.lanes)
            squares = [transpose(b, read[at : at + p.lanes]) for at in starts]
            for number in range(p.lanes):
                for at, square in zip(starts, squares, strict=True):
                    b.vector_store(square[number], lines, (place + (v * p.lanes + number) * p.taps + at,))

    def _store(self, lines: Buffer, at: Index, feature: Index, channel: Index) -> None:
        """One feature of the cotangent and a strip of the input's, which are neighbours in the result."""
        p, ctx = self.plan, self.ctx
        extent: Index = p.strip * p.block
        if p.channels % (p.strip * p.block) != 0:
            extent = minimum(p.channels - channel, extent)
        extent = extent * p.taps
        whole = extent // p.lanes * p.lanes

        def chunk(start: Index, count: Index | None) -> None:
            with ctx.b.lanes_of(p.lanes, count) as lane:
                index = (feature, *decode(channel * p.taps + start + lane, self.result.shape[1:]))
                total = Scalar(ctx.b.load(lines, (at + start + lane,)), self.accumulator)
                ctx.finish(self.made, index, ctx.e.convert(total, self.result.element))

        self.b.for_(0, whole, p.lanes, lambda start, _: chunk(start, None))
        if extent - whole != 0:
            self.b.for_(whole, extent, p.lanes, lambda start, _: chunk(start, extent - start))
