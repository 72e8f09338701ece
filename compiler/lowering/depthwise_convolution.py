"""Depthwise convolutions from where their input lies: one channel under one window, results in registers.

A task computes one feature of one image, in register tiles of some rows by one vector of columns. Each input row that a tile
reads is loaded once for all of the tile's rows, one vector for each column of the window; strides of 2 take two vectors
apart. Nothing is copied and nothing padded: tiles in the middle of the image see all of their input, and those at its
edges, whose places are known when the code is made, leave out rows and mask lanes that are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Dim, Index, maximum, minimum
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced

#: Windows with more taps than this are left to others: their code would be long.
TAPS = 64
#: Rows of a register tile, at most; images of no more than `WHOLE` rows are one tile.
ROWS, WHOLE = 8, 14
#: Multiply-adds that the code of all tiles may have.
CODE = 2000
#: Fewer tasks than this, of an image with more results than `LARGE`, would leave threads without work.
TASKS, LARGE = 16, 1 << 16


@dataclass(frozen=True)
class Span:
    """Tiles of `size` positions from `first` on, `step` apart: `count` of them. `inside`: their windows see only input."""

    first: int
    size: int
    step: int
    count: int
    inside: bool


@dataclass(frozen=True)
class Side:
    """One spatial dimension: `extent` results of a window of `taps` over `size` inputs."""

    size: int
    extent: int
    taps: int
    stride: int
    dilation: int
    low: int

    def spans(self, tile: int, reach: Callable[[int], tuple[int, int]]) -> list[Span]:
        """Tiles of `tile` positions; ``reach(n)`` are the first input and that after the last which n positions from 0 read."""
        found: list[Span] = []
        for first in range(0, self.extent, tile):
            here = min(tile, self.extent - first)
            start, stop = (first * self.stride + r for r in reach(here))
            inside = here == tile and start >= 0 and stop <= self.size
            if inside and found and found[-1].inside:
                last = found.pop()
                found.append(Span(last.first, tile, tile, last.count + 1, True))
            else:
                found.append(Span(first, here, tile, 1, inside))
        return found

    def rows_read(self, count: int) -> tuple[int, int]:
        """Input rows of `count` rows of results from 0, the end exclusive."""
        return -self.low, (count - 1) * self.stride + (self.taps - 1) * self.dilation - self.low + 1


@dataclass(frozen=True)
class DepthwisePlan:
    """`rows` x `columns` of the image, and the tiles along both."""

    rows: Side
    columns: Side
    lanes: int
    down: tuple[Span, ...]
    across: tuple[Span, ...]
    features: int
    multiplier: int


def depthwise_plan(op: Convolution, x: TensorType, w: TensorType, cpu: CpuShape) -> DepthwisePlan | None:
    """How the convolution runs here, if its input lies in memory; None if others should do it."""
    result = op.infer(x, w)
    if op.spatial_rank not in (1, 2) or op.batch_group_count != 1 or any(d != 1 for d in op.lhs_dilation):
        return None
    if w.shape[op.kernel_input_feature] != 1 or op.feature_group_count == 1:
        return None
    if not x.element.is_float or x.element is not accumulator_of(x.element, result.element):
        return None
    if x.rank - 1 != op.input_spatial[-1] or result.rank - 1 != op.output_spatial[-1]:
        return None
    if op.window_strides[-1] > 2 or result.shape[-1] == 1 or 0 in (*x.shape, *result.shape, *w.shape):
        return None
    sides: list[Side] = []
    for s in range(op.spatial_rank):
        size, extent, taps = (
            x.shape[op.input_spatial[s]], result.shape[op.output_spatial[s]], w.shape[op.kernel_spatial[s]],
        )  # fmt: skip
        low = op.padding[s][0]
        if isinstance(size, Dim) or isinstance(extent, Dim) or isinstance(taps, Dim) or isinstance(low, Dim):
            return None
        sides.append(Side(size, extent, taps, op.window_strides[s], op.rhs_dilation[s], low))
    rows, columns = sides if len(sides) == 2 else (Side(1, 1, 1, 1, 1, 0), sides[0])
    features, images = w.shape[op.kernel_output_feature], result.shape[op.output_batch]
    if isinstance(features, Dim) or rows.taps * columns.taps > TAPS:
        return None
    if isinstance(images, int) and images * features < TASKS and rows.extent * columns.extent > LARGE:
        return None
    lanes = max(1, cpu.vector_bits // x.element.bits)
    return tiled(rows, columns, features, features // op.feature_group_count, lanes, cpu)


def tiled(
    rows: Side, columns: Side, features: int, multiplier: int, lanes: int, cpu: CpuShape
) -> DepthwisePlan | None:
    """The image in tiles; None if their code would be long."""
    if lanes < 2:
        return None
    across = columns.spans(lanes, lambda n: _columns_read(columns, n))
    most = ROWS if cpu.registers > 16 else ROWS // 2
    while most > 1:
        tile = rows.extent if rows.extent <= WHOLE * most // ROWS else balanced(rows.extent, most)
        down = rows.spans(tile, rows.rows_read)
        if sum(d.size for d in down) * len(across) * rows.taps * columns.taps <= CODE:
            return DepthwisePlan(rows, columns, lanes, tuple(down), tuple(across), features, multiplier)
        most //= 2
    return None


def _columns_read(side: Side, count: int) -> tuple[int, int]:
    """Input columns that a vector of `count` results from 0 loads, the end exclusive."""
    last = (side.taps - 1) * side.dilation - side.low
    if side.stride == 1:
        return -side.low, count + last
    # Pairs of vectors begin at even distances; a lone element may lie before the first.
    return -side.low - 2, 2 * count + last + 1


def lower_depthwise_convolution(ctx: LoweringContext, operation: Operation, plan: DepthwisePlan) -> None:
    """Emit a depthwise convolution, and its epilogue, by `plan`."""
    op: Convolution = definition_of(operation)
    x, w = operation.operands
    rank = tensor_of(x).rank
    images = tensor_of(operation.results[0]).shape[op.output_batch]
    work = (
        images * plan.features * plan.rows.extent * plan.columns.extent * plan.rows.taps * plan.columns.taps
    )
    with ctx.rows((images, plan.features), work) as (image, feature):
        channel = feature // plan.multiplier if plan.multiplier > 1 else feature

        def place(row: Index, column: Index) -> tuple[Index, ...]:
            index: list[Index] = [0] * rank
            index[op.input_batch], index[op.input_feature] = image, channel
            for axis, at in zip(op.input_spatial, (row, column)[-op.spatial_rank :], strict=True):
                index[axis] = at
            return tuple(index)

        made = operation.results[0]
        FeatureEmitter(ctx, plan, op, (w, made), (image, feature), (ctx.memory[x], place)).emit()


class FeatureEmitter:
    """One feature of one image. `values` are the kernel and the result, `at` the numbers of image and feature, `source` the
    buffer that holds the input, and where in it a row's element is."""

    def __init__(
        self,
        ctx: LoweringContext,
        plan: DepthwisePlan,
        op: Convolution,
        values: tuple[Value, Value],
        at: tuple[Index, Index],
        source: tuple[Value, Callable[[Index, Index], tuple[Index, ...]]],
    ) -> None:
        self.ctx, self.plan, self.op = ctx, plan, op
        self.w, self.made = values
        self.image, self.feature = at
        self.result = tensor_of(self.made)
        self.element: ElementType = tensor_of(self.w).element
        self.source = Source(*source, self.element)
        self.b = LoopEmitter(ctx.b, ctx.e.half)

    def emit(self, tiles: tuple[Index, Index] | None = None) -> None:
        """All rows, or those of the tiles from a first to before a last."""
        plan = self.plan
        weights = [[self._weight(y, x) for x in range(plan.columns.taps)] for y in range(plan.rows.taps)]
        number = 0
        for down in plan.down:
            for y in self._positions(down, number, tiles):
                for across in plan.across:
                    for x in self._positions(across, 0, None):
                        _Tile(self, weights, (y, down), (x, across)).emit()
            number += down.count

    def _positions(self, span: Span, number: int, tiles: tuple[Index, Index] | None) -> Iterator[Index]:
        """Where the span's tiles, of which the first has this number, begin; of some tiles only, if these are given."""
        if tiles is None and span.count == 1:
            yield span.first
            return
        low, high = (
            (0, span.count)
            if tiles is None
            else (maximum(tiles[0] - number, 0), minimum(tiles[1] - number, span.count))
        )
        with self.ctx.b.for_(low, high, unroll=1) as loop:
            yield span.first + loop.index * span.step if span.count > 1 else span.first

    def _weight(self, y: int, x: int) -> Value:
        """An element of the feature's window in all lanes."""
        op = self.op
        taps = (self.plan.rows.taps, self.plan.columns.taps)
        index: list[Index] = [0] * tensor_of(self.w).rank
        index[op.kernel_output_feature] = self.feature
        for s, axis in enumerate(op.kernel_spatial):
            place = len(op.kernel_spatial) - s
            at = (y, x)[-place]
            index[axis] = taps[-place] - 1 - at if op.window_reversal[s] else at
        scalar = self.ctx.e.convert(self.ctx.read(self.w, tuple(index)), self.element)
        return self.ctx.b.broadcast(scalar.value, self.plan.lanes)


@dataclass(frozen=True)
class Source:
    """Where a tile's input lies: a buffer, and where in it the element of a row and a column is."""

    buffer: Value
    place: Callable[[Index, Index], tuple[Index, ...]]
    element: ElementType


class InputTile:
    """What some rows of results by one vector of columns, from (y, x) on, read: each input row once."""

    def __init__(
        self,
        b: LoopEmitter,
        plan: DepthwisePlan,
        source: Source,
        down: tuple[Index, Span],
        across: tuple[Index, Span],
    ) -> None:
        self.b, self.plan, self.source = b, plan, source
        (self.y, self.down), (self.x, self.across) = down, across
        #: Of the row that is being read: pairs of vectors, and every second element of such, by their distances.
        self._parts: dict[int, tuple[Value, Value]] = {}
        self._phases: dict[int, Value] = {}

    def rows(self, taps: Sequence[int]) -> Iterator[tuple[Sequence[Value], list[tuple[int, int]]]]:
        """For each input row that is there and that results see under one of these `taps`, the vectors under the columns of
        the window, and who sees them: (row of the tile, tap)."""
        rows = self.plan.rows
        start, stop = rows.rows_read(self.down.size)
        for row in range(start, stop):
            at = self.y * rows.stride + row
            if not self.down.inside and not (isinstance(at, int) and 0 <= at < rows.size):
                continue
            users = [
                (r, tap)
                for r in range(self.down.size)
                for tap in taps
                if r * rows.stride + tap * rows.dilation - rows.low == row
            ]
            if users:
                self._parts, self._phases = {}, {}
                yield self._vectors(at), users

    def _vectors(self, row: Index) -> Sequence[Value]:
        """For each column of the window, what the tile's lanes see of an input row under it."""
        columns = self.plan.columns
        offsets = [tap * columns.dilation - columns.low for tap in range(columns.taps)]
        if columns.stride == 1:
            return [self._load(row, offset) for offset in offsets]
        return [self._every_second(row, offset, offsets) for offset in offsets]

    def _every_second(self, row: Index, offset: int, wanted: Sequence[int]) -> Value:
        """Every second element of a row, from a distance to the tile's first column on."""
        found = self._phases.get(offset)
        if found is not None:
            return found
        lanes = self.plan.lanes
        made: Value
        if offset + 2 in wanted:
            # All but the first are the next tap's.
            following = self._every_second(row, offset + 2, wanted)
            made = self.b.shuffle(self._first(row, offset), following, [0, *range(lanes, 2 * lanes - 1)])
        else:
            even = offset - offset % 2
            if even not in self._parts:
                self._parts[even] = self._load(row, even), self._load(row, even + lanes)
            low, high = self._parts[even]
            made = self.b.shuffle(low, high, range(offset % 2, 2 * lanes, 2))
        self._phases[offset] = made
        return made

    def _first(self, row: Index, offset: int) -> Value:
        """The element at a distance from the tile's first column, in all lanes; zero where there is none."""
        at = self.x * self.plan.columns.stride + offset
        if not self.across.inside and not (isinstance(at, int) and 0 <= at < self.plan.columns.size):
            return self._zero()
        scalar = self.b.load(self.source.buffer, self.source.place(row, at))
        splat: Value = self.b.splat(scalar, self.plan.lanes)
        return splat

    def _load(self, row: Index, offset: int) -> Value:
        """A vector of a row from a distance to the tile's first column on; zeros beside the image."""
        lanes, size = self.plan.lanes, self.plan.columns.size
        at = self.x * self.plan.columns.stride + offset
        mask = None
        if not self.across.inside:
            assert isinstance(at, int)
            low, high = max(0, -at), min(lanes, size - at)
            if low >= high:
                return self._zero()
            mask = None if high - low == lanes else self.b.between(low, high, lanes)
        vector: Value = self.b.vector_load(self.source.buffer, self.source.place(row, at), lanes, mask)
        return vector

    def _zero(self) -> Value:
        zero: Value = self.b.zero(self.source.element, self.plan.lanes)
        return zero


class _Tile(InputTile):
    """Some rows of results by one vector of columns, from (y, x) on."""

    def __init__(
        self,
        feature: FeatureEmitter,
        weights: list[list[Value]],
        down: tuple[Index, Span],
        across: tuple[Index, Span],
    ) -> None:
        super().__init__(feature.b, feature.plan, feature.source, down, across)
        self.feature, self.weights = feature, weights

    def emit(self) -> None:
        b, element = self.b, self.source.element
        sums = [self._zero()] * self.down.size
        for vectors, users in self.rows(range(self.plan.rows.taps)):
            for column, vector in enumerate(vectors):
                for r, tap in users:
                    sums[r] = b.multiply_add(vector, self.weights[tap][column], sums[r], element)
        self._store(sums)

    def _store(self, sums: Sequence[Value]) -> None:
        """The sums, through the epilogue."""
        feature, plan = self.feature, self.plan
        ctx, op, shape = feature.ctx, feature.op, feature.result.shape
        count = None if self.across.size == plan.lanes else self.across.size
        with self.b.lanes_of(plan.lanes, count) as lane:
            for r, total in enumerate(sums):
                index: list[Index] = [0] * len(shape)
                index[op.output_batch], index[op.output_feature] = feature.image, feature.feature
                place = (self.y + r, self.x + lane)[-op.spatial_rank :]
                for axis, at in zip(op.output_spatial, place, strict=True):
                    index[axis] = at
                scalar = ctx.e.convert(Scalar(total, feature.element), feature.result.element)
                ctx.finish(feature.made, tuple(index), scalar)
