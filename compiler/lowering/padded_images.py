"""The padded copy of some images, for convolutions whose input is padded, or does not lie in memory as they read it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.lowering.blocked_problem import BlockedProblem
from flambeau.compiler.lowering.context import tensor_of


class PaddedImages:
    """`copy` (image, input feature, *extents) has the images of a convolution's input, zeros around them."""

    def __init__(self, problem: BlockedProblem, copy: Value) -> None:
        self.problem, self.copy = problem, copy

    def fill(self, first: Index, image: Index, channel: Index) -> None:
        """Copies one channel of an image, which is number `first + image` of the input, row by row."""
        p, copy = self.problem, self.copy
        op, ctx, x = p.op, p.ctx, tensor_of(p.x)
        #: Where, in each dimension of the copy, the input is.
        inside = [
            (min(max(low, 0), extent), min(max(low + size, 0), extent))
            for low, size, extent in zip(p.lows, p.sizes, p.extents, strict=True)
        ]
        start, stop = inside[-1]

        def row(at: tuple[Index, ...]) -> None:
            conditions = [
                ctx.e.in_bounds(digit, *bounds).value for digit, bounds in zip(at, inside[:-1], strict=True)
            ]

            def read() -> None:
                self._zeros((image, channel, *at), 0, start)
                self._zeros((image, channel, *at), stop, p.extents[-1])
                for chunk, lanes in self._chunks(start, stop):
                    with lanes as lane:
                        index: list[Index] = [0] * x.rank
                        index[op.input_batch], index[op.input_feature] = first + image, channel
                        for axis, digit, low in zip(
                            op.input_spatial, (*at, chunk + lane), p.lows, strict=True
                        ):
                            index[axis] = digit - low
                        scalar = ctx.e.convert(ctx.read(p.x, tuple(index)), p.accumulator)
                        ctx.b.store(ctx.spread(scalar.value), copy, (image, channel, *at, chunk + lane))

            if not conditions:
                read()
                return
            condition = conditions[0]
            for other in conditions[1:]:
                condition = ctx.b.iand(condition, other)
            ctx.b.if_(condition, read, lambda: self._zeros((image, channel, *at), 0, p.extents[-1]))

        ctx.nest(p.extents[:-1], row)

    def _zeros(self, at: tuple[Index, ...], start: int, stop: int) -> None:
        zero = self.problem.b.zero(self.problem.accumulator, self.problem.tile.lanes)
        for chunk, lanes in self._chunks(start, stop):
            with lanes as lane:
                self.problem.ctx.b.store(zero, self.copy, (*at, chunk + lane))

    def _chunks(self, start: int, stop: int) -> Sequence[tuple[Index, AbstractContextManager[Index]]]:
        """Vectors of positions from `start` to `stop`."""
        lanes = self.problem.tile.lanes
        return [
            (at, self.problem.b.lanes_of(lanes, None if stop - at >= lanes else stop - at))
            for at in range(start, stop, lanes)
        ]
