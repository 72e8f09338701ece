"""What a `blocked_convolution` computes, in numbers: its tiles, the parts of its sums, and what need not be computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flambeau.compiler.dialects.graph.blocked_convolution import BlockedConvolution
from flambeau.compiler.dialects.graph.contraction import accumulator_of, decode
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.schedule.cpu_contraction import balanced, cpu_shape
from flambeau.compiler.schedule.cpu_convolution import (
    READ,
    SUMMED,
    TAPS,
    UNROLL,
    ConvolutionSize,
    choose_tile,
    window_axes,
)

#: Bytes of a result from which on its lines are prefetched: less stays in the caches from one kernel to the next.
FROM_AFAR = 1 << 18


@dataclass(frozen=True)
class Part:
    """Products that are summed before their sum is added to that of the others: of input features from `low` to below `high`,
    under the taps of the window's first dimension from `first` to below `last`."""

    low: Index
    high: Index
    first: Index
    last: Index


class BlockedProblem:
    """One convolution and how it runs."""

    def __init__(self, ctx: LoweringContext, operation: Operation) -> None:
        self.ctx, self.made = ctx, operation.results[0]
        self.x, self.w = operation.operands
        self.op: BlockedConvolution = definition_of(operation)
        op, x, w, self.result = self.op, tensor_of(self.x), tensor_of(self.w), tensor_of(self.made)
        self.accumulator: ElementType = accumulator_of(x.element, op.element)
        self.b = LoopEmitter(ctx.b, ctx.e.half)
        self.batch = x.shape[op.input_batch]
        self.channels = number(x.shape[op.input_feature])
        self.sizes = tuple(number(x.shape[a]) for a in op.input_spatial)
        self.lows = tuple(number(low) for low, _ in op.padding)
        self.window: tuple[int, ...] = op.window
        self.strides, self.dilation = op.window_strides, op.rhs_dilation
        self.space = tuple(number(self.result.shape[a]) for a in op.output_spatial)
        #: Extents of an image as windows see it: padded, and no longer than they reach.
        self.extents = tuple(
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(self.space, self.strides, self.window, self.dilation, strict=True)
        )
        self.axes = window_axes(op, self.window, self.sizes, self.space)
        if op.pointwise:  # the pixels of an image are walked as if they were one row
            self.space, self.axes = (math.prod(self.space),), ()
            self.window, self.strides, self.dilation = (1,), (1,), (1,)
        cpu = cpu_shape(ctx.target)
        size = ConvolutionSize(self.batch, self.space, op.features, number(w.shape[1]), self.axes)
        self.tile = choose_tile(size, self.accumulator, cpu, number(w.shape[2]))
        self.blocks = number(w.shape[0])
        self.l2 = cpu.l2
        #: Are the result, and what the epilogue reads of its size, in memory or a cache that is almost as far?
        count = self.result.size
        small = isinstance(count, int) and count * self.result.element.itemsize < FROM_AFAR
        self.ends_in_memory = not small and self.tile.images == 1
        #: Is the kernel so large that it comes from memory, or from a cache that is almost as far?
        self.fetches = math.prod([number(d) for d in w.shape]) * self.accumulator.itemsize > cpu.l2 // 4
        canonical = (op.input_batch, op.input_feature, *op.input_spatial) == tuple(range(x.rank))
        unpadded = all(p == (0, 0) for p in op.padding)
        self.copies = not (unpadded and canonical and self.x in ctx.memory and x.element is self.accumulator)
        #: Images that are copied, and computed, at a time: what half the L2 holds.
        self.images = 1
        if isinstance(self.batch, int):
            image = self.channels * math.prod(self.extents) * self.accumulator.itemsize
            most = max(self.tile.images, cpu.l2 // 2 // image)
            self.images = min(self.batch, most) if self.copies else self.batch
        elif not self.copies:
            self.images = 0

    @property
    def copy_bytes(self) -> Index:
        """Of the padded copy of as many images as are computed at a time."""
        if not self.copies:
            return 0
        size: int = self.images * self.channels * math.prod(self.extents) * self.accumulator.itemsize
        return size

    # -- the sums' parts -----------------------------------------------------------------------------------------------
    @cached_property
    def taps(self) -> int:
        """Of the whole window."""
        return math.prod(self.window)

    @cached_property
    def outer(self) -> int:
        """The window's first dimension with several taps; its last if there is none."""
        return next((axis for axis, taps in enumerate(self.window) if taps > 1), len(self.window) - 1)

    @cached_property
    def cuts_window(self) -> bool:
        """Is the window so large that a part has only some of its taps?"""
        return min(self.channels, UNROLL) * self.taps > SUMMED * 3 // 2 and self.window[self.outer] > 1

    @cached_property
    def chunk(self) -> tuple[int, int]:
        """Input features, and taps of the window's first dimension, of a part: rounding errors grow with the number of
        additions one after the other. Divisors of their numbers, if there are such near."""
        whole = self.window[self.outer]
        if self.cuts_window:
            features = min(self.channels, UNROLL)
            return features, _near(whole, SUMMED // (features * self.taps // whole), 1)
        # Small sums under a window have four parts: with two, their errors were above those of other libraries.
        most = SUMMED if self.taps == 1 else min(SUMMED, max(SUMMED // 2, self.channels * self.taps // 4))
        return _near(self.channels, most // self.taps, self.unroll), whole

    @cached_property
    def parts(self) -> int:
        """How many there are."""
        features, taps = self.chunk
        return -(-self.channels // features) * -(-self.window[self.outer] // taps)

    def part_number(self, part: Part) -> Index:
        """Which of them `part` is."""
        features, taps = self.chunk
        return part.low // features * -(-self.window[self.outer] // taps) + part.first // taps

    # -- the loops over a window ---------------------------------------------------------------------------------------
    @cached_property
    def tile_extents(self) -> tuple[int, ...]:
        """Pixels of a tile along each dimension."""
        return self.tile.extents(len(self.window))

    @cached_property
    def bounded(self) -> tuple[int, ...]:
        """Dimensions whose taps that lie wholly in padding are left out."""
        pairs = enumerate(zip(self.axes, self.tile_extents, strict=False))
        return tuple([axis for axis, (at, n) in pairs if at.skips(n)])

    @cached_property
    def loops(self) -> tuple[list[int], list[int]]:
        """The window's dimensions that are loops, and those that are written out.

        Neighbouring pixels of a tile are the same elements under neighbouring taps: LLVM would load them once, keep them,
        and have no registers left for the sums. So dimensions along which the tile has several pixels are loops.
        """
        looped: list[int] = []
        written: list[int] = []
        count = 1
        for axis in reversed(range(len(self.window))):
            count *= self.window[axis]
            cut = axis in self.bounded or (self.cuts_window and axis == self.outer)
            long = count > TAPS or count * self.tile.pixels > READ
            if self.window[axis] > 1 and (self.tile_extents[axis] > 1 or long or cut):
                looped.insert(0, axis)
                count //= self.window[axis]
            else:
                written.insert(0, axis)
        return looped, written

    @cached_property
    def unroll(self) -> int:
        """Input features in one body of the loop over them."""
        _, written = self.loops
        taps: int = math.prod([self.window[axis] for axis in written])
        return min(self.channels, max(1, UNROLL // taps))

    # -- places --------------------------------------------------------------------------------------------------------
    @property
    def pitch(self) -> int:
        """Pixels from one row of a task's sums to the next."""
        return -(-self.tile.strip // self.tile.columns) * self.tile.columns

    def index(
        self, image: Index, feature: Index, place: Sequence[Index], y: Index, x: Index
    ) -> tuple[Index, ...]:
        """The result at pixel `x` from row `y` of the task at `place` on, counted through the rows if there is more than
        one."""
        op = self.op
        index: list[Index] = [0] * self.result.rank
        index[op.output_batch], index[op.output_feature] = image, feature
        if op.pointwise:
            pixel = decode(place[0] + x, [self.result.shape[a] for a in op.output_spatial])
        elif len(place) > 1 and self.tile.strip == self.space[-1]:
            row, column = decode((place[-2] + y) * self.space[-1] + x, self.space[-2:])
            pixel = (*place[:-2], row, column)
        else:
            pixel = (*place[:-1], place[-1] + x)
            if len(place) > 1:
                pixel = (*place[:-2], place[-2] + y, pixel[-1])
        for axis, digit in zip(op.output_spatial, pixel, strict=True):
            index[axis] = digit
        return tuple([0 if extent == 1 else i for extent, i in zip(self.result.shape, index, strict=True)])


def number(extent: Index) -> int:
    """An extent that is known."""
    assert isinstance(extent, int)
    return extent


def start(tile: Index, size: int, extent: Index) -> tuple[Index, Index]:
    """Where tile number `tile` starts, and how many of its results the tile before has computed."""
    if size == 1 or (isinstance(extent, int) and extent % size == 0):
        return tile * size, 0
    begin = minimum(tile * size, extent - size)
    return begin, tile * size - begin


def _near(extent: int, most: int, step: int) -> int:
    """About `most` of `extent`: a divisor if there is one near; by steps of `step`."""
    most = max(1, most)
    if most >= extent:
        return extent
    for size in range(most * 9 // 8 // step * step, most // 2, -step):
        if extent % size == 0:
            return size
    return -(-balanced(extent, most) // step) * step
