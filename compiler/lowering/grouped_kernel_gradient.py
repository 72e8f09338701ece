"""Gradients of kernels with few channels a group, directly: of depthwise and grouped convolutions, and of a network's first.

Pixels are what there are many of, and packing them one by one costs as much as the few products that they are in. A task has
the channels of one group, and some features of the cotangent. It copies the channels' images, some rows of windows at a time,
to the stack, padded and, for strides, sorted by remainder, and beside them the same rows of the cotangents, with zeros
between rows so that all have one pitch: the element under a tap of the window then lies at a fixed distance from the
cotangent, whatever the padding, strides and dilations. One pass over the copies sums, in vectors along pixels, some taps of
some features, of one channel. A vector's lanes are added when all images are done.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.compiler.lowering.context import LoweringContext, decode, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import Buffer, LoopEmitter, Value
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced
from flambeau.compiler.schedule.cpu_kernel_gradient import (
    gradient_plan,
    is_kernel_gradient,
    numbers_of,
)

#: Windows with more taps than this are left to the contraction template: their code would be long.
TAPS = 64
#: Groups of more features and more channels than this are better packed.
FEATURES, CHANNELS = 16, 8
#: Products of an element that are enough for what copying it costs: of one group, threads get more tasks then.
PRODUCTS = 400
#: Bytes of stack that a task's copies may have, and what they have where rows allow it: both are then in a usual L1 cache.
MOST, AIM = 96 << 10, 44 << 10
#: Bytes of sums on a task's stack.
SUMS = 160 << 10
#: What a load that begins anywhere costs in vector multiply-adds, and how many multiply-adds hide their latency.
UNALIGNED, CHAINS = 2, 10


@dataclass(frozen=True)
class GroupedGradientPlan:
    """`rows` of the cotangent's first spatial dimension at a time, for `groups` of `channels` by `features`.

    A channel's copy is `phases` (remainders of the strides) x `planes` (positions), flat: `pitches` are the distances of
    neighbours along each spatial dimension, `size` its elements. `taps` are the distances from a cotangent to the elements
    under its window. A task has `chunk` features; a pass sums `part` taps of `block` of them over `flat` positions.
    """

    images: Index
    groups: int
    channels: int
    features: int
    out: tuple[int, ...]
    rows: int
    phases: tuple[int, ...]
    planes: tuple[int, ...]
    pitches: tuple[int, ...]
    size: int
    taps: tuple[int, ...]
    lanes: int
    chunk: int
    block: int
    part: int
    flat: int

    @property
    def copies(self) -> tuple[int, int]:
        """Elements on the stack of a channel of the input and of the cotangents.

        The last vectors under a tap read past the end of the input's copy, for cotangents that are zeros.
        """
        return -(-(self.size + self.flat) // self.lanes) * self.lanes, self.block * self.flat

    @property
    def sums(self) -> int:
        """Sums of one feature: vectors of all channels and taps."""
        return self.channels * len(self.taps)


def grouped_gradient_plan(
    op: Convolution, x: TensorType, g: TensorType, cpu: CpuShape
) -> GroupedGradientPlan | None:
    """How to compute the gradient of a kernel with few channels, of the input `x` and the cotangent `g`; None for other
    convolutions."""
    if not is_kernel_gradient(op, x, g):
        return None
    result = op.infer(x, g)
    out, window = tuple(numbers_of(g.shape[2:])), tuple(numbers_of(result.shape[2:]))
    all_features, channels = numbers_of(result.shape[:2])
    groups = op.batch_group_count
    features, taps = all_features // groups, math.prod(window)
    if groups == 1 and op.rhs_dilation[-1] > 2 and window[-1] <= op.rhs_dilation[-1]:
        return None  # every third element of a row is gathered for few taps; the template reads windows
    if taps > TAPS or (channels > CHANNELS and (groups == 1 or features > FEATURES)):
        return None
    if channels > CHANNELS and gradient_plan(op, x, g, cpu) is not None:
        return None  # a group's channels fill vectors
    accumulator = accumulator_of(x.element, result.element)
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    block, part = _tile(features, taps, cpu.registers)
    most = SUMS // (channels * taps * lanes * accumulator.itemsize)
    chunk = _chunk(features, block, most, FEATURES if groups > 1 else min(FEATURES, PRODUCTS // taps))
    if chunk == 0:
        return None
    best: GroupedGradientPlan | None = None
    for rows in range(1, out[0] + 1):
        if out[0] % rows != 0:  # equal parts read nothing past the last window
            continue
        extents_here = (rows, *out[1:])
        planes, pitches, size, offsets = _copied(op, extents_here, window)
        reach = sum((n - 1) * pitch for n, pitch in zip(extents_here, pitches, strict=True)) + 1
        plan = GroupedGradientPlan(
            x.shape[op.input_feature], groups, channels, features, out, rows, op.rhs_dilation, planes, pitches,
            size, offsets, lanes, chunk, block, part, -(-reach // lanes) * lanes,
        )  # fmt: skip
        if sum(plan.copies) * accumulator.itemsize > (MOST if best is None else AIM):
            break
        best = plan
    return best


def _tile(features: int, taps: int, registers: int) -> tuple[int, int]:
    """Features and taps of a pass: the sums, a cotangent of each feature and what is under the tap are in registers."""

    def cost(tile: tuple[int, int]) -> float:
        block, part = tile
        full, rest = divmod(taps, part)
        parts = [part] * full + [rest] * (rest > 0)
        return sum(max(block * n, block + UNALIGNED * n, CHAINS) for n in parts) / (block * taps)

    blocks = [n for n in (6, 5, 4, 3, 2, 1) if features % n == 0 and 2 * n < registers]
    return min(((n, balanced(taps, (registers - 1 - n) // n)) for n in blocks), key=cost)


def _chunk(features: int, block: int, most: int, about: int) -> int:
    """A task's features: about so many, for which the input is copied once, but not more than `most`; 0 if even a
    block is more."""
    parts = [n for n in range(block, min(features, most) + 1, block) if features % n == 0]
    return min(parts, key=lambda n: abs(n - about), default=0)


def _copied(
    op: Convolution, extents: tuple[int, ...], window: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]:
    """Planes, pitches, size and taps of the copy that windows at `extents` positions read.

    Of the convolution that the gradient is, the window's strides are the dilation and the dilation the strides.
    """
    strides, dilation = op.rhs_dilation, op.window_strides
    planes = tuple(
        [n + (k - 1) * d // s for n, k, d, s in zip(extents, window, dilation, strides, strict=True)]
    )
    pitches = [1]
    for extent in planes[:0:-1]:
        pitches.insert(0, pitches[0] * extent)
    plane = pitches[0] * planes[0]
    taps = []
    for tap in itertools.product(*[range(k) for k in window]):
        phase = offset = 0
        for k, d, s, pitch in zip(tap, dilation, strides, pitches, strict=True):
            phase = phase * s + k * d % s
            offset += k * d // s * pitch
        taps.append(phase * plane + offset)
    return planes, tuple(pitches), math.prod(strides) * plane, tuple(taps)


def lower_grouped_gradient(ctx: LoweringContext, operation: Operation, plan: GroupedGradientPlan) -> None:
    """Emit the gradient, and its epilogue, by `plan`."""
    extents = (plan.groups, plan.features // plan.chunk)
    each = math.prod(plan.out) * plan.sums * plan.chunk
    with ctx.rows(extents, plan.images * (math.prod(extents) * each)) as (group, chunk):
        _Task(ctx, operation, plan, group, chunk * plan.chunk).emit()


class _Task:
    """Features from `feature` of one group."""

    def __init__(
        self,
        ctx: LoweringContext,
        operation: Operation,
        plan: GroupedGradientPlan,
        group: Index,
        feature: Index,
    ) -> None:
        self.ctx, self.plan, self.made = ctx, plan, operation.results[0]
        self.source, self.feature = group * plan.channels, group * plan.features + feature
        self.x, self.g = operation.operands
        self.op: Convolution = definition_of(operation)
        self.result = tensor_of(self.made)
        self.accumulator: ElementType = accumulator_of(tensor_of(self.x).element, self.result.element)
        self.b = LoopEmitter(ctx.b, ctx.e.half)

    def emit(self) -> None:
        plan, b = self.plan, self.b
        image, cotangent = plan.copies
        copies, rows = (
            b.alloca((plan.channels * image,), self.accumulator),
            b.alloca((cotangent,), self.accumulator),
        )
        sums = b.alloca((plan.chunk * plan.sums * plan.lanes,), self.accumulator)
        zero = b.zero(self.accumulator, plan.lanes)

        def clear(buffer: Buffer, start: Index, count: int) -> None:
            b.for_(0, count, plan.lanes, lambda i, _: b.vector_store(zero, buffer, (start + i,)))

        def channels(body: Callable[[Index], None]) -> None:
            b.for_(0, plan.channels, 1, lambda channel, _: body(channel))

        clear(sums, 0, plan.chunk * plan.sums * plan.lanes)
        channels(lambda channel: clear(copies, channel * image + plan.size, plan.flat))
        clear(rows, 0, cotangent)  # what lies between rows stays so

        def part(number: Index, image_number: Index) -> None:
            first = number * plan.rows
            channels(lambda channel: self._copy_input(copies, channel, image_number, first))

            def features(step: Index, _: list[Any]) -> None:
                start = step * plan.block
                b.for_(
                    0, plan.block, 1, lambda f, _: self._copy_cotangent(rows, image_number, start, f, first)
                )

                def passes(channel: Index) -> None:
                    for tap in range(0, len(plan.taps), plan.part):
                        taps = range(tap, min(tap + plan.part, len(plan.taps)))
                        self._pass(copies, rows, sums, channel, start, taps)

                channels(passes)

            b.for_(0, plan.chunk // plan.block, 1, features)

        def images(number: Index, _: list[Any]) -> None:
            b.for_(0, plan.out[0] // plan.rows, 1, lambda part_number, _: part(part_number, number))

        b.for_(0, plan.images, 1, images)
        channels(lambda channel: self._store(sums, channel))

    # -- copies --------------------------------------------------------------------------------------------------------
    def _copy_input(self, copies: Buffer, channel: Index, image: Index, first: Index) -> None:
        """For every remainder by the strides, the positions that the windows of rows from `first` reach."""
        plan, ctx = self.plan, self.ctx
        begin = channel * plan.copies[0]
        plane = plan.pitches[0] * plan.planes[0]
        for number, phase in enumerate(itertools.product(*[range(s) for s in plan.phases])):

            def row(
                at: tuple[Index, ...], base: Index = begin + number * plane, phase: tuple[int, ...] = phase
            ) -> None:
                start = base + self._place(at)

                def chunk(position: Index, count: int | None) -> None:
                    with ctx.b.lanes_of(plan.lanes, count) as lane:
                        digits = [*at, position + lane]
                        digits[0] = digits[0] + first
                        x = self._element(
                            image,
                            channel,
                            [d * s + p for d, s, p in zip(digits, plan.phases, phase, strict=True)],
                        )
                        ctx.b.store(ctx.spread(x.value), copies, (start + position + lane,))

                self._chunks(plan.planes[-1], chunk)

            ctx.nest(plan.planes[:-1], row)

    def _copy_cotangent(self, rows: Buffer, image: Index, start: Index, f: Index, first: Index) -> None:
        """Rows from `first` of one feature, as far apart as the input's."""
        plan, ctx, op = self.plan, self.ctx, self.op

        def index_of(digits: Sequence[Index]) -> tuple[Index, ...]:
            index: list[Index] = [0, 0, *digits]
            index[op.kernel_input_feature] = image
            index[op.kernel_output_feature] = self.feature + start + f
            return tuple([0 if n == 1 else i for n, i in zip(tensor_of(self.g).shape, index, strict=True)])

        def row(at: tuple[Index, ...]) -> None:
            place = f * plan.flat + self._place(at)

            def chunk(position: Index, count: int | None) -> None:
                if self.g in ctx.memory:
                    # The same of the next rows: a task comes back to a feature after many others.
                    after = [*at, position]
                    after[0] = after[0] + first + plan.rows
                    self.b.prefetch(ctx.memory[self.g], index_of(after), False, 2)
                with ctx.b.lanes_of(plan.lanes, count) as lane:
                    digits = [*at, position + lane]
                    digits[0] = digits[0] + first
                    g = ctx.e.convert(ctx.read(self.g, index_of(digits)), self.accumulator)
                    ctx.b.store(ctx.spread(g.value), rows, (place + position + lane,))

            self._chunks((plan.rows, *plan.out[1:])[-1], chunk)

        ctx.nest((plan.rows, *plan.out[1:])[:-1], row)

    def _chunks(self, width: int, chunk: Any) -> None:
        """``chunk(position, count)`` over a row, `count` of the last lanes only."""
        whole = width // self.plan.lanes * self.plan.lanes
        if whole:
            self.b.for_(0, whole, self.plan.lanes, lambda position, _: chunk(position, None))
        if width > whole:
            chunk(whole, width - whole)

    def _place(self, at: Sequence[Index]) -> Index:
        place: Index = 0
        for digit, pitch in zip(at, self.plan.pitches, strict=False):
            place = place + digit * pitch
        return place

    def _element(self, image: Index, channel: Index, where: Sequence[Index]) -> Scalar:
        """A channel's element at a position of the padded input; zero where there is none."""
        op, e, type = self.op, self.ctx.e, tensor_of(self.x)
        index: list[Index] = [0, 0]
        index[op.input_feature], index[op.input_batch] = image, self.source + channel
        conditions: list[Scalar] = []
        for s, axis in enumerate(op.input_spatial):
            position = where[s] - op.padding[s][0]
            conditions.append(e.in_bounds(position, 0, type.shape[axis]))
            index.append(position)
        condition = conditions[0]
        for other in conditions[1:]:
            condition = e.and_(condition, other)
        x = e.guarded(condition, lambda: self.ctx.read(self.x, tuple(index)), e.constant(0, type.element))
        return e.convert(x, self.accumulator)

    # -- sums ----------------------------------------------------------------------------------------------------------
    def _pass(
        self, copies: Buffer, rows: Buffer, sums: Buffer, channel: Index, feature: Index, taps: range
    ) -> None:
        """Add the products of these rows: `block` features from `feature`, `taps` of a channel."""
        b, plan = self.b, self.plan
        begin = channel * plan.copies[0]

        def step(at: Index, totals: list[Value]) -> list[Value]:
            cotangents = [b.vector_load(rows, (f * plan.flat + at,), plan.lanes) for f in range(plan.block)]
            out = []
            for t, tap in enumerate(taps):
                x = b.vector_load(copies, (begin + plan.taps[tap] + at,), plan.lanes)
                out += [
                    b.multiply_add(x, g, totals[t * plan.block + f], self.accumulator)
                    for f, g in enumerate(cotangents)
                ]
            return out

        # From zero for these rows: the error grows with the root of their number only.
        zero = b.zero(self.accumulator, plan.lanes)
        totals = b.for_(0, plan.flat, plan.lanes, step, [zero] * (len(taps) * plan.block))
        for place, total in enumerate(totals):
            t, f = divmod(place, plan.block)
            at = (((feature + f) * plan.sums + channel * len(plan.taps) + taps[t]) * plan.lanes,)
            b.vector_store(b.add(b.vector_load(sums, at, plan.lanes), total, self.accumulator), sums, at)

    def _store(self, sums: Buffer, channel: Index) -> None:
        """The lanes' sums of each feature for a channel, through the epilogue: the window lies innermost in the result."""
        plan, ctx, b = self.plan, self.ctx, self.b
        count = len(plan.taps)
        line = b.alloca((count,), self.accumulator)

        def feature(f: Index, _: list[Any]) -> None:
            def tap(t: Index, _: list[Any]) -> None:
                at = ((f * plan.sums + channel * count + t) * plan.lanes,)
                total = b.reduce_add(b.vector_load(sums, at, plan.lanes))
                b.store(total, line, (t,))

            b.for_(0, count, 1, tap)

            def chunk(position: Index, some: int | None) -> None:
                if (
                    count == 1
                ):  # a window of one element has no lanes: its position may not occur in the result's index
                    finish(0)
                    return
                with ctx.b.lanes_of(plan.lanes, some) as lane:
                    finish(position + lane)

            def finish(at: Index) -> None:
                window = decode(at, self.result.shape[2:])
                index = (self.feature + f, channel, *window)
                total = Scalar(ctx.b.load(line, (at,)), self.accumulator)
                ctx.finish(self.made, index, ctx.e.convert(total, self.result.element))

            self._chunks(count, chunk)

        b.for_(0, plan.chunk, 1, feature)
