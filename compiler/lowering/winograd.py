"""`graph.winograd_convolution`: transforms of panels of tiles, register tiles of their products, and the way back.

A task takes groups of panels. For each group it transforms the input of all channels (which then lies in L2), and for each
block of output features it multiplies at the 16 positions, transforms the products back, and stores rows of the result
through the epilogue. The workspace of a task: the transformed input (panel, position, channel, row), and a block's
products (panel, position, row, column).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.winograd import POSITIONS, STEP, TILE, WinogradConvolution
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Dim, Index, maximum, minimum
from flambeau.compiler.lowering.context import LoweringContext, decode, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.contraction_problem import ceil_div
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import outer_product_tile, transpose
from flambeau.compiler.schedule.cpu_contraction import cpu_shape
from flambeau.compiler.schedule.cpu_winograd import BLOCK, WinogradSchedule, schedule

#: Channels of one iteration of the loop over them.
UNROLL = 4


def winograd_workspace(ctx: LoweringContext, operation: Operation) -> Index:
    """Bytes of scratch memory that the kernel needs."""
    s = _schedule(ctx, operation)
    x = tensor_of(operation.operands[0])
    tasks = s.slots * s.parts
    return tasks * (_input_size(s, x.shape[1]) + _products_size(s)) * x.element.itemsize


def lower_winograd(ctx: LoweringContext, operation: Operation, workspace: Value | None) -> None:
    """Emit the convolution and its epilogue."""
    s = _schedule(ctx, operation)
    assert workspace is not None
    images = tensor_of(operation.results[0]).shape[0]
    groups = ceil_div(images * s.panels, s.group)
    each = ceil_div(groups, s.slots)
    blocks = tensor_of(operation.operands[1]).shape[0]
    some = ceil_div(blocks, s.parts)
    emitter = LoopEmitter(ctx.b, ctx.e.half)

    def task(at: list[Index]) -> None:
        part, slot = at
        with ctx.b.for_(slot * each, minimum((slot + 1) * each, groups)) as loop:
            place = _Place(slot * s.parts + part, loop.index, part * some, minimum((part + 1) * some, blocks))
            _Group(ctx, emitter, operation, s, workspace, place).emit()

    # A thread's tasks are neighbours, so that it reads its part of the kernel for one slot after the other, and no other's.
    emitter.parallel([s.parts, s.slots], task)


def _schedule(ctx: LoweringContext, operation: Operation) -> WinogradSchedule:
    x, u = (tensor_of(v) for v in operation.operands)
    images, features, height, width = tensor_of(operation.results[0]).shape
    channels, columns = x.shape[1], u.shape[3]
    assert isinstance(channels, int) and isinstance(features, int) and isinstance(columns, int)
    assert isinstance(height, int) and isinstance(width, int)
    cpu = cpu_shape(ctx.target)
    return schedule(images, channels, features, (height, width), columns, x.element.itemsize, cpu)


def _input_size(s: WinogradSchedule, channels: Index) -> Index:
    return s.group * POSITIONS * channels * s.rows


def _products_size(s: WinogradSchedule) -> int:
    return s.group * POSITIONS * s.rows * s.columns


@dataclass(frozen=True)
class _Place:
    """Group number `group`, output features of the blocks from `first` to below `last`, workspace number `task`."""

    task: Index
    group: Index
    first: Index
    last: Index


class _Group:
    """The code of one group of panels."""

    def __init__(
        self,
        ctx: LoweringContext,
        emitter: LoopEmitter,
        operation: Operation,
        s: WinogradSchedule,
        workspace: Value,
        place: _Place,
    ) -> None:
        self.ctx, self.b, self.s, self.place = ctx, emitter, s, place
        self.op: WinogradConvolution = definition_of(operation)
        (self.x, u), self.made = operation.operands, operation.results[0]
        self.shape = tensor_of(self.x).shape
        self.result = tensor_of(self.made).shape
        self.element = tensor_of(self.x).element
        channels = self.shape[1]
        assert isinstance(channels, int)
        self.channels = channels
        # A kernel that is computed has memory of its own, like everything that a contraction reads often.
        self.u = ctx.memory[u]
        cpu = cpu_shape(ctx.target)
        #: Are there registers for the sums of a block of channels and for those of all?
        self.sums_stay = 2 * s.rows * s.vectors + s.vectors < cpu.registers
        #: Does the kernel come from memory, or from a cache that is almost as far?
        kernel = tensor_of(u).size
        assert isinstance(kernel, int)
        self.fetches = kernel * self.element.itemsize > cpu.l2 // 2
        size = s.slots * s.parts * (_input_size(s, channels) + _products_size(s))
        self.workspace = ctx.b.from_pointer(workspace, (size,), self.element)
        self.inputs: Index = place.task * _input_size(s, channels)
        self.products: Index = s.slots * s.parts * _input_size(s, channels) + place.task * _products_size(s)

    def emit(self) -> None:
        s, b, place = self.s, self.b, self.place
        first = place.group * s.group
        total = self.result[0] * s.panels
        count = (
            s.group if isinstance(total, int) and total % s.group == 0 else minimum(s.group, total - first)
        )
        # Two vectors of columns for each row of the result, and for each feature of a vector.
        wide = -(-STEP * s.across // s.lanes) * s.lanes
        columns = b.alloca((STEP * wide * s.lanes,), self.element)
        rows = b.alloca((STEP * s.lanes * wide,), self.element)
        b.for_(0, count, 1, lambda q, _: self._transform_panel(q, first + q))

        def block(o: Index, _: list[Value]) -> None:
            b.for_(0, POSITIONS, 1, lambda at, _: b.for_(0, count, 1, lambda q, _: self._multiply(o, at, q)))
            b.for_(0, count, 1, lambda q, _: self._finish_panel(o, q, first + q, columns, rows, wide))

        b.for_(place.first, place.last, 1, block)

    def _position(self, panel: Index) -> tuple[Index, Index, Index]:
        """The image, and the tile's row and column with which a panel begins."""
        s = self.s
        image, down, across = decode(panel, (self.result[0], s.down, s.panels_across))
        return image, down * s.vertical, across * s.across

    # -- the input -----------------------------------------------------------------------------------------------------
    def _transform_panel(self, q: Index, panel: Index) -> None:
        s = self.s
        image, down, across = self._position(panel)

        def channel(c: Index, _: list[Value]) -> None:
            self.b.for_(0, s.vertical, 1, lambda t, _: self._transform(q, image, c, t, down + t, across))

        self.b.for_(0, self.channels, 1, channel)

    def _transform(self, q: Index, image: Index, c: Index, t: Index, down: Index, across: Index) -> None:
        """A row of the panel's tiles, for one channel: tile t + i is lane i."""
        s, b, builder = self.s, self.b, self.ctx.b
        loaded = [self._input_row(image, c, STEP * down + y, STEP * across) for y in range(TILE)]
        subtract, add = builder.fsub, builder.fadd

        def spread(d: list[Value]) -> list[Value]:
            """One dimension of the transform."""
            return [subtract(d[0], d[2]), add(d[1], d[2]), subtract(d[2], d[1]), subtract(d[1], d[3])]

        lanes = s.lanes
        # Of the vectors' 2 * lanes columns, number x of tile i is column 2 * i + x.
        picked = [[min(2 * i + x, 2 * lanes - 1) for i in range(lanes)] for x in range(TILE)]
        low, high = (spread([row[half] for row in loaded]) for half in range(2))
        mask = b.mask(s.across, lanes)
        for y in range(TILE):
            for x, value in enumerate(spread([b.shuffle(low[y], high[y], pick) for pick in picked])):
                at = (q * POSITIONS + (y * TILE + x)) * self.channels + c
                b.vector_store(value, self.workspace, (self.inputs + at * s.rows + t * s.across,), mask)

    def _input_row(self, image: Index, c: Index, y: Index, x: Index) -> list[Value]:
        """Two vectors of a row of the padded input."""
        b, ctx, lanes = self.b, self.ctx, self.s.lanes
        (top, _), (left, _) = self.op.padding
        height, width = self.shape[2:]
        row = y - top
        there: Index = 1
        if self._may_miss_rows():
            there = minimum(maximum(row + 1, 0), 1) * minimum(maximum(height - row, 0), 1)
        vectors = []
        for half in range(2):
            first = x + half * lanes - left
            mask = b.between(-first, minimum(width - first, lanes) * there, lanes)
            with b.some_lanes(lanes, mask) as lane:
                at = b.symbol(first, -left, width - 1) + lane if isinstance(first, Dim) else first + lane
                seen = b.symbol(row, 0, height - 1) if isinstance(row, Dim) else row
                value = ctx.spread(ctx.read(self.x, (image, c, seen, at)).value)
            vectors.append(b.select(mask, value, b.zero(self.element, lanes)))
        return vectors

    def _may_miss_rows(self) -> bool:
        """Do tiles reach rows that the input lacks?"""
        (top, bottom), _ = self.op.padding
        s = self.s
        return top > 0 or bottom > 0 or s.down * s.vertical * STEP != self.result[2]

    # -- products ------------------------------------------------------------------------------------------------------
    def _multiply(self, o: Index, at: Index, q: Index) -> None:
        """A panel's products at one position, with one block of output features."""
        s, b, channels = self.s, self.b, self.channels
        left = self.inputs + (q * POSITIONS + at) * (channels * s.rows)
        out = self.products + (q * POSITIONS + at) * (s.rows * s.columns)

        def a_at(k: Index, r: int) -> Value:
            return b.load(self.workspace, (left + k * s.rows + r,))

        def some(first: Index, depth: int, ask: Callable[[Index], None] | None) -> list[Value]:
            return outer_product_tile(
                b,
                self.element,
                s.lanes,
                s.rows,
                s.vectors,
                depth,
                lambda r, k: a_at(first + k, r),
                lambda v, k: b.vector_load(self.u, (o, at, first + k, v * s.lanes), s.lanes),
                UNROLL,
                ask,
                BLOCK,
            )

        def store(sums: list[Value], more: bool) -> None:
            for number, total in enumerate(sums):
                place = (out + number * s.lanes,)
                if more:
                    total = b.add(total, b.vector_load(self.workspace, place, s.lanes), self.element)
                b.vector_store(total, self.workspace, place)

        if self.sums_stay:
            store(some(0, channels, lambda i: self._fetch(o, at, q, i)), False)
            return

        def block(first: Index, depth: int) -> None:
            sums = some(first, depth, lambda i: self._fetch(o, at, q, first // UNROLL + i))
            b.if_equal(first, 0, lambda: store(sums, False), lambda: store(sums, True))

        whole = channels // BLOCK * BLOCK
        if whole == BLOCK:
            block(0, BLOCK)
        elif whole:
            b.for_(0, whole, BLOCK, lambda first, _: block(first, BLOCK))
        if channels > whole:
            block(whole, channels - whole)

    def _fetch(self, o: Index, at: Index, q: Index, iteration: Index) -> None:
        """Ask for this panel's share of the kernel at the next position, which lies behind this one's."""
        if not self.fetches:
            return
        s, b, channels = self.s, self.b, self.channels
        line = max(1, 64 // self.element.itemsize)
        iterations = -(-channels // UNROLL)
        each = -(-channels * s.columns // line // (iterations * s.group))
        behind = ((o * POSITIONS + at + 1) * channels) * s.columns
        kernel = self.ctx.b.flat(self.u)
        for n in range(each):
            b.prefetch(kernel, (behind + ((q * iterations + iteration) * each + n) * line,), locality=2)

    # -- the result ----------------------------------------------------------------------------------------------------
    def _finish_panel(self, o: Index, q: Index, panel: Index, columns: Value, rows: Value, wide: int) -> None:
        """A panel's part of the result, for one block of output features."""
        s, b = self.s, self.b
        image, down, across = self._position(panel)
        features = self.result[1]

        def tiles(t: Index, v: Index) -> None:
            b.for_(
                0, s.across, 1, lambda i, _: self._transform_back(q, t * s.across + i, i, v, columns, wide)
            )
            for side in range(STEP):
                self._turn(columns, rows, side * (wide * s.lanes), wide)
            first = o * s.columns + v * s.lanes
            some = minimum(features - first, s.lanes)
            if isinstance(features, int) and features % s.columns == 0:
                some = s.lanes
            at = (image, STEP * (down + t), STEP * across)
            b.for_(0, some, 1, lambda f, _: self._store_rows(at, first + f, f, rows, wide))

        b.for_(0, s.vertical, 1, lambda t, _: b.for_(0, s.vectors, 1, lambda v, _: tiles(t, v)) and None)

    def _transform_back(self, q: Index, row: Index, i: Index, v: Index, columns: Value, wide: int) -> None:
        """Tile `i` of a row of tiles, which is `row` of the panel: 2 x 2 results of a vector of features."""
        s, b, builder = self.s, self.b, self.ctx.b

        def product(at: int) -> Value:
            place = ((q * POSITIONS + at) * s.rows + row) * s.columns + v * s.lanes
            return b.vector_load(self.workspace, (self.products + place,), s.lanes)

        def gather(m: list[Value]) -> tuple[Value, Value]:
            """One dimension of the transform."""
            plus, minus = builder.fadd(m[1], m[2]), builder.fsub(m[1], m[2])
            return builder.fadd(m[0], plus), builder.fsub(minus, m[3])

        halves = [gather([product(y * TILE + x) for y in range(TILE)]) for x in range(TILE)]
        for y in range(STEP):
            for x, value in enumerate(gather([h[y] for h in halves])):
                b.vector_store(value, columns, ((y * wide + STEP * i + x) * s.lanes,))

    def _turn(self, columns: Value, rows: Value, start: int, wide: int) -> None:
        """A vector of features for each column becomes a row for each feature."""
        s, b = self.s, self.b
        for chunk in range(0, wide, s.lanes):
            square = [
                b.vector_load(columns, (start + (chunk + i) * s.lanes,), s.lanes) for i in range(s.lanes)
            ]
            for f, row in enumerate(transpose(b, square)):
                b.vector_store(row, rows, (start + f * wide + chunk,))

    def _store_rows(
        self, at: tuple[Index, Index, Index], feature: Index, f: Index, rows: Value, wide: int
    ) -> None:
        """Both rows of one feature, through the epilogue."""
        s = self.s
        image, top, left = at
        height, width = self.result[2:]
        for side in range(STEP):
            for chunk in range(0, wide, s.lanes):
                count: Index = minimum(STEP * s.across - chunk, s.lanes)
                if not (isinstance(width, int) and s.panels_across * s.across * STEP == width):
                    count = minimum(count, width - left - chunk)
                if s.down * s.vertical * STEP != height:
                    count = count * minimum(maximum(height - (top + side), 0), 1)
                self._store(
                    (image, feature, top + side, left + chunk),
                    count,
                    rows,
                    (side * s.lanes + f) * wide + chunk,
                )

    def _store(self, at: tuple[Index, ...], count: Index, rows: Value, place: Index) -> None:
        """`count` neighbours of a row, which begins at `at`."""
        ctx, lanes = self.ctx, self.s.lanes
        if self.result[3] == 1:  # no lanes, whose position would not occur in the result's index
            self.b.if_equal(minimum(count, 1), 1, lambda: self._store_lane(at, rows, place))
            return
        with ctx.b.lanes_of(lanes, None if count == lanes else count) as lane:
            self._store_lane((*at[:-1], at[-1] + lane), rows, place + lane)

    def _store_lane(self, at: tuple[Index, ...], rows: Value, place: Index) -> None:
        ctx = self.ctx
        index = tuple(0 if extent == 1 else i for extent, i in zip(self.result, at, strict=True))
        ctx.finish(self.made, index, Scalar(ctx.b.load(rows, (place,)), self.element))
