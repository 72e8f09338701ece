"""Grouped convolutions, directly: few products an input element, too few for packing to pay.

A task takes some rows of one group's result. It copies the part of the input that these rows read to the stack, padded
and, for strides, sorted by remainder, so that neighbouring results read neighbouring elements: every tap of the window
is then one vector load at a fixed distance, whatever the padding, strides and dilations. Results are numbered like the
copy's elements, rows one after the other with the copy's pitch, so that vectors also fill where rows are short.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.dialects.graph.im2col import place_in_input
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.compiler.lowering.context import LoweringContext, decode, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.elements import Scalar

#: Windows with more taps than this are left to the contraction template: their code would be long.
TAPS = 64
#: A group with more products an input element than this is better packed.
FEATURES = 16
#: Bytes of stack that a task's copies of input and of kernel may have each; and what the input's copy has where rows
#: allow it (half of a usual L1 cache).
MOST, AIM = 64 << 10, 16 << 10


@dataclass(frozen=True)
class DirectPlan:
    """Extents of a task: `rows` of the result's first spatial dimension, `features` of `channels` inputs each.

    A channel's copy is `phases` (remainders of the strides) x `planes` (positions), flat: `pitches` are the distances
    of neighbours along each spatial dimension, `size` the elements of one channel. `taps` are the distances from a
    result's number to the elements under its window, in the kernel's order. `vectors` x `block` (features at once) is
    the register tile; `flat` results are computed, those between rows for nothing.
    """

    out: tuple[int, ...]
    rows: int
    channels: int
    features: int
    phases: tuple[int, ...]
    planes: tuple[int, ...]
    pitches: tuple[int, ...]
    size: int
    taps: tuple[int, ...]
    lanes: int
    vectors: int
    block: int
    flat: int


def direct_plan(op: Convolution, x: TensorType, w: TensorType, lanes: int) -> DirectPlan | None:
    """How to run the convolution directly; None if the contraction template should."""
    groups = op.feature_group_count * op.batch_group_count
    result = op.infer(x, w)
    if (
        groups == 1
        or op.spatial_rank == 0
        or not all(isinstance(d, int) for d in (*x.shape, *w.shape, *result.shape))
    ):
        return None
    if (
        x.rank - 1 != op.input_spatial[-1]
        or result.rank - 1 != op.output_spatial[-1]
        or 0 in (*result.shape, *w.shape)
    ):
        return None
    features = _number(w.shape[op.kernel_output_feature]) // groups
    channels = _number(w.shape[op.kernel_input_feature])
    out = tuple(_number(result.shape[a]) for a in op.output_spatial)
    window = tuple(_number(w.shape[a]) for a in op.kernel_spatial)
    count = 1
    for extent in window:
        count *= extent
    if features > FEATURES or count > TAPS:
        return None
    size = accumulator_of(x.element, result.element).itemsize
    if features * channels * count * size > MOST:
        return None
    best: DirectPlan | None = None
    for rows in range(1, out[0] + 1):
        if out[0] % rows != 0:  # equal tasks read nothing past the last window
            continue
        plan = _of_rows(op, out, window, (channels, features), rows, lanes)
        bytes_needed = plan.size * channels * size
        if bytes_needed > (MOST if best is None else AIM):
            break
        best = plan
    return best


def _number(extent: Index) -> int:
    assert isinstance(extent, int)
    return extent


def _of_rows(
    op: Convolution,
    out: tuple[int, ...],
    window: tuple[int, ...],
    group: tuple[int, int],
    rows: int,
    lanes: int,
) -> DirectPlan:
    channels, features = group
    extents = (rows, *out[1:])
    strides, dilation = op.window_strides, op.rhs_dilation
    planes = tuple(
        n + (k - 1) * d // s for n, k, d, s in zip(extents, window, dilation, strides, strict=True)
    )
    pitches = [1]
    for extent in planes[:0:-1]:
        pitches.insert(0, pitches[0] * extent)
    plane = pitches[0] * planes[0]
    taps = []
    for tap in itertools.product(*[range(k) for k in window]):
        places = [k * d for k, d in zip(tap, dilation, strict=True)]
        phase = 0
        for place, s in zip(places, strides, strict=True):
            phase = phase * s + place % s
        taps.append(
            phase * plane + sum(p // s * pitch for p, s, pitch in zip(places, strides, pitches, strict=True))
        )
    reach = sum((n - 1) * pitch for n, pitch in zip(extents, pitches, strict=True)) + 1
    block = next(n for n in (4, 3, 2, 1) if features % n == 0)
    needed = -(-reach // lanes)
    vectors = -(-needed // -(-needed // (4 if block > 1 else 6)))
    flat = -(-needed // vectors) * vectors * lanes
    phases = 1
    for s in strides:
        phases *= s
    return DirectPlan(
        out, rows, channels, features, tuple(strides), planes, tuple(pitches), phases * plane, tuple(taps),
        lanes, vectors, block, flat,
    )  # fmt: skip


def lower_grouped_convolution(ctx: LoweringContext, operation: Operation, plan: DirectPlan) -> None:
    """Emit a convolution, and its epilogue, by `plan`."""
    op = definition_of(operation)
    result = tensor_of(operation.results[0])
    groups = op.feature_group_count * op.batch_group_count
    extents = (result.shape[op.output_batch], groups, plan.out[0] // plan.rows)
    with ctx.b.parallel(extents[0] * extents[1] * extents[2]) as loop:
        image, group, part = decode(loop.index, extents)
        _Task(ctx, operation, plan, image, group, part * plan.rows).emit()


class _Task:
    """Some rows of one image's, one group's result."""

    def __init__(
        self,
        ctx: LoweringContext,
        operation: Operation,
        plan: DirectPlan,
        image: Index,
        group: Index,
        first: Index,
    ) -> None:
        self.ctx, self.plan, self.made = ctx, plan, operation.results[0]
        self.image, self.group, self.first = image, group, first
        self.x, self.w = operation.operands
        self.op: Convolution = definition_of(operation)
        self.result = tensor_of(self.made)
        self.accumulator: ElementType = accumulator_of(tensor_of(self.x).element, self.result.element)
        self.b = LoopEmitter(ctx.b, ctx.e.half)

    def emit(self) -> None:
        plan, b = self.plan, self.b
        # Vectors start anywhere in the copy, so the last ones read past its end, for results that do not exist.
        copy = b.alloca((plan.size * plan.channels + plan.flat,), self.accumulator)
        kernel = b.alloca((plan.features * plan.channels * len(plan.taps),), self.accumulator)
        sums = b.alloca((plan.block * plan.flat,), self.accumulator)
        self._copy_kernel(kernel)
        b.for_(0, plan.channels, 1, lambda c, _: self._copy_input(copy, c))
        slack = plan.size * plan.channels
        zero = b.zero(self.accumulator, plan.lanes)
        b.for_(0, plan.flat, plan.lanes, lambda i, _: b.vector_store(zero, copy, (slack + i,)))

        def features(step: Index, _: list[Any]) -> None:
            first = step * plan.block
            b.for_(
                0,
                plan.flat,
                plan.vectors * plan.lanes,
                lambda at, _: self._tile(copy, kernel, sums, first, at),
            )
            b.for_(0, plan.block, 1, lambda f, _: self._store_rows(sums, first, f))

        b.for_(0, plan.features // plan.block, 1, features)

    # -- copies --------------------------------------------------------------------------------------------------------
    def _copy_kernel(self, kernel: Value) -> None:
        """The group's kernel: (feature, channel, tap)."""
        op, plan, ctx = self.op, self.plan, self.ctx
        window = tuple(_number(tensor_of(self.w).shape[a]) for a in op.kernel_spatial)
        shape = (plan.features, plan.channels, *window)

        def one(at: tuple[Index, ...]) -> None:
            index: list[Index] = [0] * len(shape)
            index[op.kernel_output_feature] = self.group * plan.features + at[0]
            index[op.kernel_input_feature] = at[1]
            for s, axis in enumerate(op.kernel_spatial):
                index[axis] = window[s] - 1 - at[s + 2] if op.window_reversal[s] else at[s + 2]
            place: Index = 0
            for extent, digit in zip(shape, at, strict=True):
                place = place * extent + digit
            ctx.b.store(
                ctx.e.convert(ctx.read(self.w, tuple(index)), self.accumulator).value, kernel, (place,)
            )

        ctx.nest(shape, one)

    def _copy_input(self, copy: Value, channel: Index) -> None:
        """One channel: for every remainder, the positions that the windows reach."""
        plan, ctx = self.plan, self.ctx
        plane = plan.pitches[0] * plan.planes[0]
        for number, phase in enumerate(itertools.product(*[range(s) for s in plan.phases])):
            base = channel * plan.size + number * plane

            def row(at: tuple[Index, ...], base: Index = base, phase: tuple[int, ...] = phase) -> None:
                start = base
                for digit, pitch in zip(at, plan.pitches, strict=False):
                    start = start + digit * pitch
                width = plan.planes[-1]
                whole = width // plan.lanes * plan.lanes
                if whole:
                    with ctx.b.for_(0, whole, plan.lanes) as loop:
                        self._copy_chunk(copy, channel, phase, at, loop.index, start, None)
                if width > whole:
                    self._copy_chunk(copy, channel, phase, at, whole, start, width - whole)

            ctx.nest(plan.planes[:-1], row)

    def _copy_chunk(
        self,
        copy: Value,
        channel: Index,
        phase: tuple[int, ...],
        at: tuple[Index, ...],
        first: Index,
        start: Index,
        count: int | None,
    ) -> None:
        ctx, plan = self.ctx, self.plan
        with ctx.b.lanes_of(plan.lanes, count) as lane:
            digits = [*at, first + lane]
            digits[0] = digits[0] + self.first
            where = [d * s + p for d, s, p in zip(digits, plan.phases, phase, strict=True)]
            scalar = ctx.e.convert(self._element(channel, where), self.accumulator)
            ctx.b.store(ctx.spread(scalar.value), copy, (start + first + lane,))

    def _element(self, channel: Index, where: Sequence[Index]) -> Scalar:
        """The input's element at a position of the padded, dilated input; zero where there is none."""
        op, e = self.op, self.ctx.e
        type = tensor_of(self.x)
        found: list[Index] = []
        conditions: list[Scalar] = []
        for s, axis in enumerate(op.input_spatial):
            dilation, low = op.lhs_dilation[s], op.padding[s][0]
            assert isinstance(low, int)
            # Shifted by a multiple of the dilation so that the division sees no negative number.
            shift = max(0, -(-low // dilation))
            moved = where[s] - low + shift * dilation
            if dilation > 1:
                conditions.append(e.in_bounds(moved % dilation, 0, 1))
            position = moved // dilation - shift
            conditions.append(e.in_bounds(position, 0, type.shape[axis]))
            found.append(position)
        condition = conditions[0]
        for other in conditions[1:]:
            condition = e.and_(condition, other)
        index = place_in_input(op, type, self.group, self.image, channel, found)
        return e.guarded(condition, lambda: self.ctx.read(self.x, index), e.constant(0, type.element))

    # -- sums ----------------------------------------------------------------------------------------------------------
    def _tile(self, copy: Value, kernel: Value, sums: Value, feature: Index, at: Index) -> None:
        """`block` features of `vectors` vectors of results from number `at`."""
        b, plan = self.b, self.plan
        zero = b.zero(self.accumulator, plan.lanes)

        def channel(c: Index, totals: list[Any]) -> list[Any]:
            for number, tap in enumerate(plan.taps):
                place = c * plan.size + at + tap
                loaded = [
                    b.vector_load(copy, (place + v * plan.lanes,), plan.lanes) for v in range(plan.vectors)
                ]
                for f in range(plan.block):
                    weight = ((feature + f) * plan.channels + c) * len(plan.taps) + number
                    factor = b.splat(b.load(kernel, (weight,)), plan.lanes)
                    for v, x in enumerate(loaded):
                        here = f * plan.vectors + v
                        totals[here] = b.multiply_add(x, factor, totals[here], self.accumulator)
            return totals

        start = [zero] * (plan.block * plan.vectors)
        totals = b.for_(0, plan.channels, 1, channel, start) if plan.channels > 1 else channel(0, start)
        for n, total in enumerate(totals):
            f, v = divmod(n, plan.vectors)
            b.vector_store(total, sums, (at + f * plan.flat + v * plan.lanes,))

    def _store_rows(self, sums: Value, first: Index, f: Index) -> None:
        """One feature's sums, through the epilogue."""
        plan, ctx = self.plan, self.ctx
        width = (plan.rows, *plan.out[1:])[-1]

        def row(at: tuple[Index, ...]) -> None:
            start = f * plan.flat
            for digit, pitch in zip(at, plan.pitches, strict=False):
                start = start + digit * pitch
            whole = width // plan.lanes * plan.lanes
            if whole:
                with ctx.b.for_(0, whole, plan.lanes) as loop:
                    self._store_chunk(sums, first + f, at, loop.index, start, None)
            if width > whole:
                self._store_chunk(sums, first + f, at, whole, start, width - whole)

        ctx.nest((plan.rows, *plan.out[1:])[:-1], row)

    def _store_chunk(
        self,
        sums: Value,
        feature: Index,
        at: tuple[Index, ...],
        first: Index,
        start: Index,
        count: int | None,
    ) -> None:
        ctx, op, plan = self.ctx, self.op, self.plan
        # A row of one element has no lanes: its position may not occur in the result's index.
        single = count == 1 and first == 0
        with nullcontext(0) if single else ctx.b.lanes_of(plan.lanes, count) as lane:
            index: list[Index] = [0] * self.result.rank
            index[op.output_batch] = self.image
            index[op.output_feature] = self.group * plan.features + feature
            digits = [*at, first + lane]
            digits[0] = digits[0] + self.first
            for axis, digit in zip(op.output_spatial, digits, strict=True):
                index[axis] = digit
            place = tuple(0 if extent == 1 else i for extent, i in zip(self.result.shape, index, strict=True))
            total = Scalar(ctx.b.load(sums, (start + first + lane,)), self.accumulator)
            ctx.finish(self.made, place, ctx.e.convert(total, self.result.element))
