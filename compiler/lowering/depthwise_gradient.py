"""Gradients of depthwise kernels from where the input lies: the tiles of `depthwise_convolution`, the other way round.

A task has one feature. A tile's cotangents, some rows by one vector of columns, are in registers; each input row under them is
loaded once, one vector for each column of the window, and multiplied by the cotangents of those rows that see it. The sums of
all taps stay in registers over the tiles of an image, and join those of the images before on the stack; in the end the lanes
of each are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.compiler.lowering.context import LoweringContext, decode, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter, Value
from flambeau.compiler.lowering.depthwise_convolution import (
    TAPS,
    DepthwisePlan,
    InputTile,
    Side,
    Source,
    Span,
    tiled,
)
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced
from flambeau.compiler.schedule.cpu_kernel_gradient import is_kernel_gradient, numbers_of

#: Registers that are not for sums: an input vector and what is loaded ahead.
OTHERS = 4


@dataclass(frozen=True)
class DepthwiseGradientPlan:
    """`tiles` of the cotangent's image. `parts`: rows of the window whose sums are in registers together."""

    images: Index
    tiles: DepthwisePlan
    parts: tuple[range, ...]


def depthwise_gradient_plan(
    op: Convolution, x: TensorType, g: TensorType, cpu: CpuShape
) -> DepthwiseGradientPlan | None:
    """How to compute the gradient of a depthwise kernel, of the input `x`, if it lies in memory, and the cotangent `g`; None
    for other convolutions."""
    result, groups = op.infer(x, g), op.batch_group_count
    if groups == 1 or op.spatial_rank > 2 or not is_kernel_gradient(op, x, g) or result.shape[1] != 1:
        return None
    if not x.element.is_float or x.element is not accumulator_of(x.element, result.element):
        return None
    if op.rhs_dilation[-1] > 2 or g.shape[-1] == 1:
        return None
    features, _, *window = numbers_of(result.shape)
    # Of the convolution that the gradient is, the window's strides are the dilation and the dilation the strides.
    sides = [
        Side(size, extent, taps, stride, dilation, low)
        for size, extent, taps, stride, dilation, low in zip(
            numbers_of(x.shape[2:]), numbers_of(g.shape[2:]), window, op.rhs_dilation, op.window_strides,
            numbers_of([low for low, _ in op.padding]), strict=True,
        )
    ]  # fmt: skip
    rows, columns = sides if len(sides) == 2 else (Side(1, 1, 1, 1, 1, 0), sides[0])
    most = (cpu.registers - OTHERS) // columns.taps
    if rows.taps * columns.taps > TAPS or most == 0:
        return None
    lanes = max(1, cpu.vector_bits // x.element.bits)
    tiles = tiled(rows, columns, features, features // groups, lanes, cpu)
    if tiles is None:
        return None
    step = balanced(rows.taps, most)
    parts = tuple([range(n, min(n + step, rows.taps)) for n in range(0, rows.taps, step)])
    return DepthwiseGradientPlan(x.shape[op.input_feature], tiles, parts)


def lower_depthwise_gradient(ctx: LoweringContext, operation: Operation, plan: DepthwiseGradientPlan) -> None:
    """Emit the gradient, and its epilogue, by `plan`."""
    tiles = plan.tiles
    each = tiles.rows.extent * tiles.columns.extent * tiles.rows.taps * tiles.columns.taps
    with ctx.rows((tiles.features,), plan.images * (tiles.features * each)) as (feature,):
        _Feature(ctx, operation, plan, feature).emit()


#: ``body(position, span, sums)`` of the tiles of one dimension.
Body = Callable[[Index, Span, list[Value]], list[Value]]


class _Feature:
    """One feature of the cotangent."""

    def __init__(
        self, ctx: LoweringContext, operation: Operation, plan: DepthwiseGradientPlan, feature: Index
    ) -> None:
        self.ctx, self.plan, self.feature, self.made = ctx, plan, feature, operation.results[0]
        self.x, self.g = operation.operands
        self.op: Convolution = definition_of(operation)
        self.element: ElementType = tensor_of(self.x).element
        self.b = LoopEmitter(ctx.b, ctx.e.half)

    def emit(self) -> None:
        b, tiles = self.b, self.plan.tiles
        taps, lanes = tiles.rows.taps * tiles.columns.taps, tiles.lanes
        totals = b.alloca((taps * lanes,), self.element)
        zero = b.zero(self.element, lanes)
        for tap in range(taps):
            b.vector_store(zero, totals, (tap * lanes,))

        def image(number: Index, _: list[Value]) -> None:
            for part in self.plan.parts:
                first = part.start * tiles.columns.taps
                for place, total in enumerate(self._sums(number, part)):
                    at = ((first + place) * lanes,)
                    before = b.vector_load(totals, at, lanes)
                    b.vector_store(b.add(before, total, self.element), totals, at)

        b.for_(0, self.plan.images, 1, image)
        line = b.alloca((taps,), self.element)
        for tap in range(taps):
            b.store(b.reduce_add(b.vector_load(totals, (tap * lanes,), lanes)), line, (tap,))
        self._store(line, taps)

    def _sums(self, image: Index, part: range) -> list[Value]:
        """For each tap of some rows of the window, a vector of sums over an image."""
        tiles = self.plan.tiles
        source = Source(self.ctx.memory[self.x], self._input(image, self.feature), self.element)
        zeros = [self.b.zero(self.element, tiles.lanes)] * (len(part) * tiles.columns.taps)

        def row(y: Index, down: Span, sums: list[Value]) -> list[Value]:
            def tile(x: Index, across: Span, sums: list[Value]) -> list[Value]:
                here = InputTile(self.b, tiles, source, (y, down), (x, across))
                return self._tile(here, image, part, sums)

            return self._over(tiles.across, tile, sums)

        return self._over(tiles.down, row, zeros)

    def _over(self, spans: Sequence[Span], body: Body, sums: list[Value]) -> list[Value]:
        for span in spans:
            if span.count == 1:
                sums = body(span.first, span, sums)
                continue

            def one(i: Index, carried: list[Value], span: Span = span) -> list[Value]:
                return body(span.first + i * span.step, span, carried)

            sums = self.b.for_(0, span.count, 1, one, sums)
        return sums

    def _tile(self, tile: InputTile, image: Index, part: range, sums: list[Value]) -> list[Value]:
        """`sums`, and the products of a tile."""
        if self.plan.images != 1 and part.start == 0:
            self._fetch(tile, image)
        cotangents = [self._cotangent(tile, image, r) for r in range(tile.down.size)]
        sums, width = list(sums), self.plan.tiles.columns.taps
        for vectors, users in tile.rows(part):
            for column, vector in enumerate(vectors):
                for r, tap in users:
                    at = (tap - part.start) * width + column
                    sums[at] = self.b.multiply_add(vector, cotangents[r], sums[at], self.element)
        return sums

    def _fetch(self, tile: InputTile, image: Index) -> None:
        """Fetch what this tile reads of the next image, or of the next feature's first: each is a piece of memory too short for
        the hardware to foresee."""
        rows, columns, memory = self.plan.tiles.rows, self.plan.tiles.columns, self.ctx.memory
        after = image + 1
        feature, number = self.feature + after // self.plan.images, after % self.plan.images
        place = self._input(number, feature)
        for r in range(tile.down.size * rows.stride):
            for vector in range(columns.stride):
                column = (tile.x + vector * self.plan.tiles.lanes // columns.stride) * columns.stride
                self.b.prefetch(memory[self.x], place(tile.y * rows.stride + r, column), False, 2)
        if self.g in memory:
            for r in range(tile.down.size):
                at = self._cotangent_at(number, feature, tile.y + r, tile.x)
                self.b.prefetch(memory[self.g], at, False, 2)

    def _cotangent_at(self, image: Index, feature: Index, row: Index, column: Index) -> tuple[Index, ...]:
        op = self.op
        index: list[Index] = [0] * (op.spatial_rank + 2)
        index[op.kernel_input_feature], index[op.kernel_output_feature] = image, feature
        for axis, at in zip(op.kernel_spatial, (row, column)[-op.spatial_rank :], strict=True):
            index[axis] = at
        return tuple([0 if n == 1 else i for n, i in zip(tensor_of(self.g).shape, index, strict=True)])

    def _cotangent(self, tile: InputTile, image: Index, r: int) -> Value:
        """A row of a tile's cotangents; zeros beside the image."""
        ctx, lanes = self.ctx, self.plan.tiles.lanes
        count = None if tile.across.size == lanes else tile.across.size
        with ctx.b.lanes_of(lanes, count) as lane:
            index = self._cotangent_at(image, self.feature, tile.y + r, tile.x + lane)
            vector = ctx.spread(ctx.e.convert(ctx.read(self.g, index), self.element).value)
        if count is None:
            return vector
        return self.b.select(self.b.mask(count, lanes), vector, self.b.zero(self.element, lanes))

    def _input(self, image: Index, feature: Index) -> Callable[[Index, Index], tuple[Index, ...]]:
        op, multiplier = self.op, self.plan.tiles.multiplier

        def place(row: Index, column: Index) -> tuple[Index, ...]:
            index: list[Index] = [0] * (op.spatial_rank + 2)
            channel = feature // multiplier if multiplier > 1 else feature
            index[op.input_feature], index[op.input_batch] = image, channel
            for axis, at in zip(op.input_spatial, (row, column)[-op.spatial_rank :], strict=True):
                index[axis] = at
            return tuple(index)

        return place

    def _store(self, line: Value, taps: int) -> None:
        """The sums of all taps, which lie side by side in the result, through the epilogue."""
        ctx, shape, lanes = self.ctx, tensor_of(self.made).shape, self.plan.tiles.lanes

        def finish(at: Index) -> None:
            total = Scalar(ctx.b.load(line, (at,)), self.element)
            index = (self.feature, 0, *decode(at, shape[2:]))
            ctx.finish(self.made, index, ctx.e.convert(total, tensor_of(self.made).element))

        if taps == 1:  # no lanes: its position may not occur in the result's index
            finish(0)
            return
        for start in range(0, taps, lanes):
            with ctx.b.lanes_of(lanes, None if taps - start >= lanes else taps - start) as lane:
                finish(start + lane)
