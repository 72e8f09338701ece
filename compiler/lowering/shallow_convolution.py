"""Convolutions of few input features (a network's first layer): vectors along rows, so that nothing is transposed.

A task takes some rows of an image's results. It copies the input that they read to the stack, padded and, for strides,
sorted by remainder, so that neighbouring results read neighbouring elements. Register tiles of some output features by some
vectors of a row then sum all products: so few that sums are as exact as those in parts elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Dim, Index, minimum
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import LONGEST
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced

#: The vectors of a row must be full to this part.
FULL = 0.9
#: Taps of a window's row, and of a whole window, that are written out, at most.
WRITTEN, WINDOW = 16, 12
#: Bytes of a task's copy, about what L1 holds, and its rows of results, at most.
COPY, ROWS = 40 << 10, 4
#: Most stack that a task of one row may take.
MOST = 256 << 10


@dataclass(frozen=True)
class ShallowPlan:
    """A task's `rows`; of its copy, `inputs` rows of `phases` (remainders by the stride) of `pitch` elements a channel, of
    which `needed` are read for results that exist. Register tiles are `block` features by up to `vectors` vectors."""

    lanes: int
    rows: int
    inputs: int
    phases: int
    pitch: int
    needed: int
    block: int
    vectors: int
    channels: int
    features: int
    space: tuple[int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    lows: tuple[int, int]


def shallow_plan(op: Convolution, x: TensorType, w: TensorType, cpu: CpuShape) -> ShallowPlan | None:
    """How to run the convolution in this way; None if another is better."""
    result = op.infer(x, w)
    if op.feature_group_count * op.batch_group_count != 1 or any(d != 1 for d in op.lhs_dilation):
        return None
    accumulator = accumulator_of(x.element, result.element)
    if op.spatial_rank not in (1, 2) or not accumulator.is_float or w.element is not accumulator:
        return None
    if x.rank - 1 != op.input_spatial[-1] or result.rank - 1 != op.output_spatial[-1]:
        return None
    if 0 in (*x.shape, *w.shape, *result.shape):
        return None
    features, channels = w.shape[op.kernel_output_feature], w.shape[op.kernel_input_feature]
    space = [result.shape[a] for a in op.output_spatial]
    window = [w.shape[a] for a in op.kernel_spatial]
    lows = [low for low, _ in op.padding]
    sizes = [x.shape[a] for a in op.input_spatial]
    if any(isinstance(d, Dim) for d in (features, channels, *space, *window, *lows, *sizes)):
        return None
    return _of_numbers(
        _number(features), _number(channels), _two(space, 1), _two(window, 1), _two(op.window_strides, 1),
        _two(op.rhs_dilation, 1), _two(lows, 0), accumulator, cpu,
    )  # fmt: skip


def _of_numbers(
    features: int,
    channels: int,
    space: tuple[int, int],
    window: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    lows: tuple[int, int],
    accumulator: ElementType,
    cpu: CpuShape,
) -> ShallowPlan | None:
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    depth = channels * window[0] * window[1]
    whole = -(-space[1] // lanes)
    if window == (1, 1) or depth > LONGEST or window[1] > WRITTEN or features < 8:
        return None  # matrix products; long sums; long code; gradients
    if lanes < 2 or strides[1] > 2 or space[1] < FULL * whole * lanes:
        return None
    phases = min(strides[1], window[1])
    reach = (window[1] - 1) * dilation[1] // strides[1]
    pitch = whole * lanes + reach

    def inputs(rows: int) -> int:
        return (rows - 1) * strides[0] + (window[0] - 1) * dilation[0] + 1

    size = channels * phases * pitch * accumulator.itemsize
    rows = max([r for r in range(1, min(space[0], ROWS) + 1) if inputs(r) * size <= COPY], default=1)
    if inputs(rows) * size > MOST:
        return None
    rows = balanced(space[0], rows)
    block, vectors = (8, 3) if cpu.registers > 16 else (4, 2)
    return ShallowPlan(
        lanes, rows, inputs(rows), strides[1], pitch, space[1] + reach, block, balanced(whole, vectors),
        channels, features, space, window, strides, dilation, lows,
    )  # fmt: skip


def _number(extent: Index) -> int:
    assert isinstance(extent, int)
    return extent


def _two(numbers: Any, missing: int) -> tuple[int, int]:
    """Of one dimension, rows have one element."""
    first, second = (missing, *numbers)[-2:]
    return _number(first), _number(second)


def lower_shallow_convolution(ctx: LoweringContext, operation: Operation, plan: ShallowPlan) -> None:
    """Emit a convolution, and its epilogue, by `plan`."""
    op = definition_of(operation)
    images = tensor_of(operation.results[0]).shape[op.output_batch]
    parts = -(-plan.space[0] // plan.rows)
    work = images * plan.features * plan.space[0] * plan.space[1] * plan.window[0] * plan.window[1]
    with ctx.rows((images, parts), work) as (image, part):
        _Task(ctx, operation, plan, image, part * plan.rows).emit()


class _Task:
    """Some rows of one image's results, from row `first` on."""

    def __init__(
        self, ctx: LoweringContext, operation: Operation, plan: ShallowPlan, image: Index, first: Index
    ) -> None:
        self.ctx, self.plan, self.made = ctx, plan, operation.results[0]
        self.image, self.first = image, first
        self.x, self.w = operation.operands
        self.op: Convolution = definition_of(operation)
        self.result = tensor_of(self.made)
        self.accumulator: ElementType = accumulator_of(tensor_of(self.x).element, self.result.element)
        self.b = LoopEmitter(ctx.b, ctx.e.half)

    def emit(self) -> None:
        plan, b = self.plan, self.b
        copy = b.alloca((plan.channels, plan.inputs, plan.phases, plan.pitch), self.accumulator)
        self.ctx.nest((plan.channels, plan.inputs), lambda at: self._copy_row(copy, *at))
        self.ctx.forget()
        rows: Index = plan.rows
        if plan.space[0] % plan.rows:
            rows = minimum(plan.space[0] - self.first, plan.rows)

        def block(feature: Index, size: int) -> None:
            # A block's weights stay in L1 while it passes over the rows.
            def row(y: Index, _: list[Value]) -> None:
                for count, first, vectors in self._tiles():

                    def tile(t: Index, _: list[Value], first: int = first, vectors: int = vectors) -> None:
                        x = first + t * vectors * plan.lanes
                        self._tile(copy, y, x, vectors, feature, size)

                    b.for_(0, count, 1, tile)

            b.for_(0, rows, 1, row)

        whole = plan.features // plan.block
        b.for_(0, whole, 1, lambda f, _: block(f * plan.block, plan.block))
        if plan.features % plan.block:
            block(whole * plan.block, plan.features % plan.block)

    def _tiles(self) -> list[tuple[int, int, int]]:
        """Along a row: how many tiles, from where on, of how many vectors."""
        plan = self.plan
        whole = -(-plan.space[1] // plan.lanes)
        tiles = -(-whole // plan.vectors)
        smaller = tiles * plan.vectors - whole
        larger = tiles - smaller
        found = [(larger, 0, plan.vectors), (smaller, larger * plan.vectors * plan.lanes, plan.vectors - 1)]
        return [t for t in found if t[0]]

    # -- the copy ------------------------------------------------------------------------------------------------------
    def _copy_row(self, copy: Value, channel: Index, row: Index) -> None:
        """A row of the input, apart by its remainders; zeros beside the image."""
        plan, b, x = self.plan, self.ctx.b, tensor_of(self.x)
        sizes = _two([x.shape[a] for a in self.op.input_spatial], 1)
        at = self.first * plan.strides[0] + row - plan.lows[0]

        def read() -> None:
            for phase in range(plan.phases):
                # Of this remainder, the positions at which the image has an element.
                start = min(plan.needed, max(0, -(-(plan.lows[1] - phase) // plan.phases)))
                stop = min(plan.needed, max(start, -(-(sizes[1] + plan.lows[1] - phase) // plan.phases)))
                place = (channel, row, phase)
                self._zeros(copy, place, 0, start)
                self._zeros(copy, place, stop, plan.needed)

                def lanes(q: Index, place: tuple[Index, Index, int] = place) -> None:
                    self._copy_lanes(copy, at, place, q)

                self._chunks(start, stop, lanes)

        def nothing() -> None:
            for phase in range(plan.phases):
                self._zeros(copy, (channel, row, phase), 0, plan.needed)

        b.if_(self.ctx.e.in_bounds(at, 0, sizes[0]).value, read, nothing)

    def _copy_lanes(self, copy: Value, row: Index, place: tuple[Index, Index, int], q: Index) -> None:
        op, plan, ctx = self.op, self.plan, self.ctx
        index: list[Index] = [0] * tensor_of(self.x).rank
        index[op.input_batch], index[op.input_feature] = self.image, place[0]
        column = q * plan.phases + place[2] - plan.lows[1]
        for axis, digit in zip(op.input_spatial, (row, column)[-op.spatial_rank :], strict=True):
            index[axis] = digit
        scalar = ctx.e.convert(ctx.read(self.x, tuple(index)), self.accumulator)
        ctx.b.store(ctx.spread(scalar.value), copy, (*place, q))

    def _zeros(self, copy: Value, place: tuple[Index, Index, int], start: int, stop: int) -> None:
        zero = self.b.zero(self.accumulator, self.plan.lanes)
        self._chunks(start, stop, lambda q: self.ctx.b.store(zero, copy, (*place, q)))

    def _chunks(self, start: int, stop: int, body: Callable[[Index], None]) -> None:
        """Vectors of positions from `start` to `stop`."""
        lanes = self.plan.lanes
        whole = (stop - start) // lanes * lanes

        def some(at: Index, count: int | None) -> None:
            with self.b.lanes_of(lanes, count) as lane:
                body(at + lane)

        if whole:
            self.b.for_(start, start + whole, lanes, lambda at, _: some(at, None))
        if start + whole < stop:
            some(start + whole, stop - start - whole)

    # -- sums ----------------------------------------------------------------------------------------------------------
    def _tile(self, copy: Value, y: Index, x: Index, vectors: int, feature: Index, block: int) -> None:
        plan, b = self.plan, self.b

        def taps(channel: Index, down: Index, sums: list[Value]) -> list[Value]:
            row = y * plan.strides[0] + down * plan.dilation[0]
            for tap in range(plan.window[1]):
                shift, phase = divmod(tap * plan.dilation[1], plan.phases)
                pixels = [
                    b.vector_load(copy, (channel, row, phase, x + shift + v * plan.lanes), plan.lanes)
                    for v in range(vectors)
                ]
                for f in range(block):
                    weight = b.splat(self._weight(feature + f, channel, (down, tap)), plan.lanes)
                    for v, pixel in enumerate(pixels):
                        n = f * vectors + v
                        sums[n] = b.multiply_add(pixel, weight, sums[n], self.accumulator)
            return sums

        def channel(c: Index, sums: list[Value]) -> list[Value]:
            if plan.window[0] * plan.window[1] > WINDOW:
                return b.for_(0, plan.window[0], 1, lambda down, s: taps(c, down, s), sums)
            for down in range(plan.window[0]):
                sums = taps(c, down, sums)
            return sums

        self._fetch(y, x, vectors, feature, block)
        sums = b.for_(
            0, plan.channels, 1, channel, [b.zero(self.accumulator, plan.lanes)] * (block * vectors)
        )
        self._store(sums, y, x, vectors, feature)

    def _weight(self, feature: Index, channel: Index, tap: tuple[Index, int]) -> Value:
        op, window = self.op, self.plan.window
        index: list[Index] = [0] * tensor_of(self.w).rank
        index[op.kernel_output_feature], index[op.kernel_input_feature] = feature, channel
        for place, axis in enumerate(reversed(op.kernel_spatial), 1):
            turned = op.window_reversal[-place]
            index[axis] = window[-place] - 1 - tap[-place] if turned else tap[-place]
        return self.ctx.read(self.w, tuple(index)).value

    def _fetch(self, y: Index, x: Index, vectors: int, feature: Index, block: int) -> None:
        """Asks for the lines of the results while they are computed."""
        for result in self.ctx.results:
            for f in range(block):
                for v in range(vectors):
                    index = self._index(y, x + v * self.plan.lanes, feature + f)
                    self.b.prefetch(self.ctx.memory[result], index, write=True)

    def _index(self, y: Index, x: Index, feature: Index) -> tuple[Index, ...]:
        """A position of the result."""
        op = self.op
        index: list[Index] = [0] * self.result.rank
        index[op.output_batch], index[op.output_feature] = self.image, feature
        place = (self.first + y, x)[-op.spatial_rank :]
        for axis, digit in zip(op.output_spatial, place, strict=True):
            index[axis] = digit
        return tuple(0 if n == 1 else i for n, i in zip(self.result.shape, index, strict=True))

    def _store(self, sums: list[Value], y: Index, x: Index, vectors: int, feature: Index) -> None:
        """A finished tile, through the epilogue."""
        plan, ctx = self.plan, self.ctx
        block = len(sums) // vectors
        for v in range(vectors):
            start = x + v * plan.lanes
            count = None if plan.space[1] % plan.lanes == 0 else minimum(plan.space[1] - start, plan.lanes)
            with self.b.lanes_of(plan.lanes, count) as lane:
                for f in range(block):
                    at = self._index(y, start + lane, feature + f)
                    total = Scalar(sums[f * vectors + v], self.accumulator)
                    ctx.finish(self.made, at, ctx.e.convert(total, self.result.element))
