"""Windows added up where they overlap: `overlap_add`, and `window_scatter`, the gradient of pooling's extremes.

A task makes as many rows of the result as the stride. Elements with one remainder by the strides are reached by the same taps,
so a vector of them is a sum of vectors of neighbouring windows, in registers; vectors of all remainders are interleaved.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flambeau.compiler.dialects.graph.contraction import accumulator_of, encode
from flambeau.compiler.dialects.graph.overlap_add import OverlapAdd
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.types import ElementType, i1, i64
from flambeau.compiler.lowering.context import LoweringContext
from flambeau.compiler.lowering.elements import Scalar, register_type
from flambeau.compiler.lowering.window_task import Position, Task, Windows


class Adding(Task):
    """Each element is the sum of what the windows that reach it have there."""

    def __init__(self, ctx: LoweringContext, operation: Operation, windows: Windows) -> None:
        super().__init__(ctx, operation, windows)
        element = self.result.element
        self.within: ElementType = accumulator_of(element, element)
        self.phases = list(itertools.product(*[range(s) for s in windows.strides[: windows.rows]]))

    def bytes(self) -> int:
        return self.w.strides[-1] * self.ctx.lanes * self.within.itemsize

    def emit(self) -> None:
        ctx, w, rows = self.ctx, self.w, self.w.rows
        first = [low // s for low, s in zip(w.low[:rows], w.strides, strict=False)]
        counts = [
            (low + n - 1) // s - low // s + 1
            for low, n, s in zip(w.low[:rows], w.shape, w.strides, strict=False)
        ]
        work = product(self.result.shape) * (w.taps() + 4)
        with ctx.rows((*w.lead, *counts), work) as position:
            lead = position[: len(w.lead)]
            q = [at + f for at, f in zip(position[len(w.lead) :], first, strict=True)]
            for phase in self.phases:
                at = [i * s + p - low for i, s, p, low in zip(q, w.strides, phase, w.low, strict=False)]

                def row(phase: tuple[int, ...] = phase, at: list[Index] = at) -> None:
                    self._row(lead, q, phase, at)

                self.inside(at, w.shape[:rows], row)

    def _row(self, lead: Position, q: Sequence[Index], phase: tuple[int, ...], at: Sequence[Index]) -> None:
        """One row of the result, by vectors of windows: those for which some reach beyond the first or the last window, and
        those between."""
        ctx, w, lanes, stride = self.ctx, self.w, self.ctx.lanes, self.w.strides[-1]
        reached: list[tuple[tuple[int, ...], list[Index], Scalar]] = []
        for taps in itertools.product(*[range(n) for n in w.sizes[: w.rows]]):
            places = [t * d for t, d in zip(taps, w.dilations, strict=False)]
            if any(p % s != r for p, s, r in zip(places, w.strides, phase, strict=False)):
                continue
            window = [i - p // s for i, p, s in zip(q, places, w.strides, strict=False)]
            exists = ctx.e.constant(1, i1)
            for position, count in zip(window, w.counts, strict=False):
                exists = ctx.e.and_(exists, ctx.e.in_bounds(position, 0, count))
            reached.append((taps, window, exists))
        #: How far each tap's window is from the vector's number; of each remainder.
        distances = [
            [
                (t, (r + w.low[-1]) // stride - t * w.dilations[-1] // stride)
                for t in range(w.sizes[-1])
                if t * w.dilations[-1] % stride == (r + w.low[-1]) % stride
            ]
            for r in range(stride)
        ]
        every = [d for taps in distances for _, d in taps]
        extent, count = w.shape[-1], w.counts[-1]
        total = -(-extent // (stride * lanes)) * lanes
        low = -(-max(0, -min(every, default=0)) // lanes) * lanes
        high = min(count - max(every, default=0), extent // stride) // lanes * lanes
        low, high = (low, high) if low < high else (total, total)
        line = ctx.b.alloca((stride * lanes,), register_type(self.within)) if stride > 2 else None
        for start, stop, edge in ((0, low, True), (low, high, False), (high, total, True)):
            if start == stop:
                continue
            with ctx.b.for_(start, stop, lanes) as loop:
                with ctx.b.lanes_of(lanes) as lane:
                    sums = [self._sum(lead, reached, taps, loop.index + lane, edge) for taps in distances]
                self._store_vectors((*lead, *at), loop.index * stride, sums, line, edge)

    def _sum(
        self,
        lead: Position,
        reached: Sequence[tuple[tuple[int, ...], list[Index], Scalar]],
        taps: Sequence[tuple[int, int]],
        number: Index,
        edge: bool,
    ) -> Value:
        """A vector of elements with one remainder."""
        e, nothing = self.ctx.e, self.ctx.e.constant(0, self.within)
        total: Scalar | None = None
        for row_taps, window, exists in reached:
            for tap, distance in taps:
                place = number + distance
                condition = e.and_(exists, e.in_bounds(place, 0, self.w.counts[-1])) if edge else exists
                x = e.guarded(
                    condition,
                    lambda t=(*row_taps, tap), at=(*window, place): self._contribution(lead, t, at),  # type: ignore[misc]
                    nothing,
                )
                total = x if total is None else e.add(total, x)
        return self.ctx.spread((nothing if total is None else total).value)

    def _store_vectors(
        self, row: Position, start: Index, sums: Sequence[Value], line: Value | None, edge: bool
    ) -> None:
        """Interleaved, through the epilogue: elements from `start` of a row."""
        b, lanes, stride, extent = self.ctx.b, self.ctx.lanes, self.w.strides[-1], self.w.shape[-1]
        if extent == 1:  # no lanes: its position may not occur in the result's index
            self.store((*row, 0), Scalar(b.extract(sums[0], 0), self.within))
            return
        both = [lane // 2 + lanes * (lane % 2) for lane in range(2 * lanes)]
        if line is not None:
            for number, x in enumerate(sums):
                b.vstore(x, line, (number * lanes,))
        for part in range(stride):
            position = start + part * lanes
            with b.lanes_of(lanes, extent - position if edge else None) as lane:
                if line is not None:
                    at = part * lanes + lane
                    x = b.load(line, (at % stride * lanes + at // stride,))
                elif stride == 2:
                    x = b.shuffle(sums[0], sums[1], both[part * lanes : (part + 1) * lanes])
                else:
                    (x,) = sums
                self.store((*row, position + lane), Scalar(x, self.within))

    def _contribution(self, lead: Position, taps: tuple[int, ...], window: Position) -> Scalar:
        ctx, w = self.ctx, self.w
        if isinstance(self.op, OverlapAdd):
            return ctx.e.convert(ctx.read(self.operands[0], (*lead, *taps, *window)), self.within)
        ct, chosen = self.operands
        here = [
            o * s + t * d - low
            for o, s, t, d, low in zip(window, w.strides, taps, w.dilations, w.low, strict=True)
        ]
        mine = ctx.e.index_to_scalar(encode((*lead, *here), self.result.shape), i64)
        hit = ctx.e.compare("EQ", ctx.read(chosen, (*lead, *window)), mine)
        x = ctx.e.convert(ctx.read(ct, (*lead, *window)), self.within)
        return ctx.e.select(hit, x, ctx.e.constant(0, self.within))
