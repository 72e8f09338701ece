"""Kernels of sliding windows: pooling, where its extremes lie, and windows added up where they overlap.

A task makes one row of the result (of `overlap_add` and `window_scatter`: as many rows as the stride). *Reading* windows, it
copies the rows that the windows see to the stack, with the padding around them, so that every tap is one vector load without
a test; where extremes or sums are wanted, these rows are one by then. *Adding* windows, it sums those that reach an element
in registers.

What has no such form (symbolic sizes, dilated operands, large windows) is computed element by element.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.contraction import accumulator_of, encode
from flambeau.compiler.dialects.graph.overlap_add import OverlapAdd
from flambeau.compiler.dialects.graph.reduce_window import (
    ReduceWindow,
    ReduceWindowIndex,
    Windowed,
    WindowScatter,
    highest,
    lowest,
)
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, maximum, product
from flambeau.compiler.ir.types import ElementType, TensorType, i1, i32, i64
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar, register_type
from flambeau.compiler.lowering.elementwise import lower_elements
from flambeau.compiler.lowering.probe import axis_symbols, probe

#: Bytes of stack that a task may use, and taps whose code is written out.
MOST = 64 << 10
TAPS = 81

Position = tuple[Index, ...]


@dataclass(frozen=True)
class Windows:
    """`counts` windows of `sizes` over the last axes of a tensor, whose extents are `shape` there and `lead` before.

    Tap t of window o lies at ``o * stride + t * dilation - low``.
    """

    lead: tuple[Index, ...]
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Axes but the last."""
        return len(self.shape) - 1

    def reach(self, axis: int) -> int:
        """From the first window's first tap to the last one's last, inclusive."""
        return (
            (self.counts[axis] - 1) * self.strides[axis] + (self.sizes[axis] - 1) * self.dilations[axis] + 1
        )

    def taps(self) -> int:
        count = 1
        for n in self.sizes:
            count *= n
        return count


def lower_window(ctx: LoweringContext, operation: Operation) -> None:
    """Emit an operation of the family, and its epilogue."""
    definition = definition_of(operation)
    windows = _windows(definition, [tensor_of(v) for v in operation.operands])
    if windows is None or not _straight(ctx, operation):
        lower_elements(ctx, ctx.results, set(ctx.results))
        return
    kind = _Adding if isinstance(definition, OverlapAdd | WindowScatter) else _Reading
    task = kind(ctx, operation, windows)
    if task.bytes() > MOST:
        lower_elements(ctx, ctx.results, set(ctx.results))
        return
    task.emit()


def _straight(ctx: LoweringContext, operation: Operation) -> bool:
    """Can vectors run what the operands are made of?"""

    def inline(v: Value) -> bool:
        return v.owner is not None and v not in ctx.memory

    return all(
        v in ctx.memory or probe(v, axis_symbols(tensor_of(v).shape), inline).straight
        for v in operation.operands
    )


def _windows(definition: OverlapAdd | Windowed, operands: Sequence[TensorType]) -> Windows | None:
    if isinstance(definition, OverlapAdd):
        (x,) = operands
        found = _static(
            definition.leading(x), definition.shape, definition.window(x), definition.strides,
            definition.dilations, definition.low, definition.positions(x),
        )  # fmt: skip
    else:
        shape = definition.shape if isinstance(definition, WindowScatter) else operands[0].shape
        attributes = (
            definition.window_dimensions, definition.window_strides, definition.padding, definition.window_dilations
        )  # fmt: skip
        trivial = (1, 1, (0, 0), 1)
        kept = [a for a, entry in enumerate(zip(*attributes, strict=True)) if entry != trivial]
        if not shape or set(definition.base_dilations) != {1}:
            return None
        first = min([*kept, len(shape) - 1])
        found = _static(
            shape[:first],
            shape[first:],
            definition.window_dimensions[first:],
            definition.window_strides[first:],
            definition.window_dilations[first:],
            [low for low, _ in definition.padding[first:]],
            definition.window_shape(shape)[first:],
        )
    if found is None or found.taps() > TAPS:
        return None
    if isinstance(definition, ReduceWindowIndex):
        # Distances within a window are positions' distances if positions count all of its axes.
        return found if _sees_something(found) and definition.first_axis <= len(found.lead) else None
    return found


def _static(lead: Sequence[Index], *rest: Sequence[Index]) -> Windows | None:
    numbers: list[tuple[int, ...]] = []
    for values in rest:
        if not all(isinstance(n, int) for n in values):
            return None
        numbers.append(tuple([n for n in values if isinstance(n, int)]))
    shape, sizes, strides, dilations, low, counts = numbers
    if not shape or 0 in (*lead, *shape, *sizes, *counts):
        return None
    return Windows(tuple(lead), shape, sizes, strides, dilations, low, counts)


def _sees_something(w: Windows) -> bool:
    """Does every window have an element, the first of which is easily told?"""
    for axis, low in enumerate(w.low):
        inside = low == 0 and w.reach(axis) <= w.shape[axis]
        last = (w.counts[axis] - 1) * w.strides[axis] - low
        if not inside and not (w.dilations[axis] == 1 and 0 <= low < w.sizes[axis] and last < w.shape[axis]):
            return False
    return True


class _Task:
    """What both kinds share."""

    def __init__(self, ctx: LoweringContext, operation: Operation, windows: Windows) -> None:
        self.ctx, self.w, self.made = ctx, windows, operation.results[0]
        self.operands = operation.operands
        self.op = definition_of(operation)
        self.result = tensor_of(self.made)

    def padded(self, extent: int) -> int:
        """Elements of a line on the stack: vectors start anywhere in it."""
        lanes = self.ctx.lanes
        return -(-extent // lanes) * lanes + 2 * lanes

    def along(self, extent: int, body: Callable[[Index], None]) -> None:
        """``body(position)`` for a row's positions, which contain the lane."""
        b, lanes = self.ctx.b, self.ctx.lanes
        if extent == 1:
            body(0)
            return
        whole = extent // lanes * lanes
        if whole:
            with b.for_(0, whole, lanes) as loop, b.lanes_of(lanes) as lane:
                body(loop.index + lane)
        if extent > whole:
            with b.lanes_of(lanes, extent - whole) as lane:
                body(whole + lane)

    def fill(self, buffer: Value, count: int, value: Scalar) -> None:
        b, lanes = self.ctx.b, self.ctx.lanes
        spread = b.broadcast(value.value, lanes)
        with b.for_(0, count, lanes) as loop:
            b.vstore(spread, buffer, (loop.index,))

    def inside(self, positions: Sequence[Index], extents: Sequence[int], body: Callable[[], None]) -> None:
        """`body` where every position exists."""
        e = self.ctx.e
        tests = [e.in_bounds(at, 0, n) for at, n in zip(positions, extents, strict=True)]
        condition = e.constant(1, i1)
        for test in tests:
            condition = e.and_(condition, test)
        self.ctx.b.if_(condition.value, lambda: body())

    def store(self, index: Position, scalar: Scalar) -> None:
        """The result's element, through the epilogue."""
        self.ctx.finish(self.made, index, self.ctx.e.convert(scalar, self.result.element))


class _Adding(_Task):
    """`overlap_add` and `window_scatter`: each element is the sum of what the windows that reach it have there.

    Elements with one remainder by the strides are reached by the same taps, so a vector of them is a sum of vectors of
    neighbouring windows, in registers; vectors of all remainders are interleaved.
    """

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


class _Reading(_Task):
    """`reduce_window` and `reduce_window_index`."""

    def __init__(self, ctx: LoweringContext, operation: Operation, windows: Windows) -> None:
        super().__init__(ctx, operation, windows)
        self.element = tensor_of(self.operands[0]).element
        self.pitch = self.padded(windows.reach(windows.rows))
        self.row_taps = list(itertools.product(*[range(n) for n in windows.sizes[: windows.rows]]))
        kind = self.op.kind
        self.nothing = (
            0 if kind == "sum" else lowest(self.element) if kind == "max" else highest(self.element)
        )
        #: What lines hold: elements, or the sums of some rows' elements.
        self.within = accumulator_of(self.element, self.element) if kind == "sum" else self.element
        self.lines = 1 if isinstance(self.op, ReduceWindow) else len(self.row_taps)

    def bytes(self) -> int:
        return self.lines * self.pitch * register_type(self.within).itemsize

    def emit(self) -> None:
        ctx, w, rows = self.ctx, self.w, self.w.rows
        work = product(self.result.shape) * (3 * w.taps() + 4)
        with ctx.rows((*w.lead, *w.counts[:rows]), work) as position:
            lead, window = position[: len(w.lead)], position[len(w.lead) :]
            count = self.lines * self.pitch
            lines = ctx.b.alloca((count,), register_type(self.within))
            # What no copy below writes is padding.
            self.fill(lines, count, ctx.e.constant(self.nothing, self.within))
            for number, taps in enumerate(self.row_taps):
                at = [
                    o * s + t * d - low
                    for o, s, t, d, low in zip(window, w.strides, taps, w.dilations, w.low, strict=False)
                ]

                def copy(number: int = number, at: list[Index] = at) -> None:
                    self._copy(lines, number, (*lead, *at))

                self.inside(at, w.shape[:rows], copy)
            make = self._extreme_at if isinstance(self.op, ReduceWindowIndex) else self._reduced

            def chunk(at: Index) -> None:
                self.store((*lead, *window, at), make(lines, lead, (*window, at)))

            self.along(w.counts[-1], chunk)

    def _copy(self, lines: Value, number: int, row: Position) -> None:
        """The part of an operand's row that windows see; combined with the rows before it, if there is one line for all."""
        ctx, w = self.ctx, self.w
        low = w.low[-1]
        first = max(0, -low)
        extent = min(w.shape[-1], w.reach(w.rows) - low) - first

        def chunk(at: Index) -> None:
            x = ctx.e.convert(ctx.read(self.operands[0], (*row, first + at)), self.within)
            place = (number % self.lines * self.pitch + first + low + at,)
            if self.lines < len(self.row_taps):
                x = self._combine(Scalar(ctx.b.load(lines, place), self.within), x)
            ctx.b.store(ctx.spread(x.value), lines, place)

        if extent > 0:
            self.along(extent, chunk)

    def _tap(self, lines: Value, number: int, tap: int, at: Index) -> Scalar:
        w = self.w
        place = number * self.pitch + at * w.strides[-1] + tap * w.dilations[-1]
        return Scalar(self.ctx.b.load(lines, (place,)), self.within)

    def _combine(self, x: Scalar, y: Scalar) -> Scalar:
        e = self.ctx.e
        combine: Callable[[Scalar, Scalar], Scalar] = {"sum": e.add, "max": e.max, "min": e.min}[self.op.kind]
        return combine(x, y)

    def _reduced(self, lines: Value, lead: Position, window: Position) -> Scalar:
        total = self._tap(lines, 0, 0, window[-1])
        for tap in range(1, self.w.sizes[-1]):
            total = self._combine(total, self._tap(lines, 0, tap, window[-1]))
        return total

    def _extreme_at(self, lines: Value, lead: Position, window: Position) -> Scalar:
        """Which tap has the first extreme element, as a distance from the first tap; then its position."""
        e, w = self.ctx.e, self.w
        direction = "GT" if self.op.kind == "max" else "LT"
        shape, start = tensor_of(self.operands[0]).shape, self.op.first_axis
        corner = [o * s - low for o, s, low in zip(window, w.strides, w.low, strict=True)]
        # Padding is never better, so it is enough to start from an element that exists.
        first = [maximum(at, 0) - at for at in corner]
        where = e.index_to_scalar(encode(first, w.shape), i32)
        best = e.constant(self.nothing, self.element)
        for number, taps in enumerate(self.row_taps):
            for tap in range(w.sizes[-1]):
                x = self._tap(lines, number, tap, window[-1])
                better = e.compare(direction, x, best)
                if self.element.is_float:
                    # The first NaN wins and stays.
                    better = e.or_(better, e.compare("NE", x, x))
                    better = e.and_(better, e.compare("EQ", best, best))
                distance = encode([t * d for t, d in zip((*taps, tap), w.dilations, strict=True)], w.shape)
                where = e.select(better, e.constant(distance, i32), where)
                best = e.select(better, x, best)
        base = encode((*lead, *corner)[start:], shape[start:])
        return e.add(e.index_to_scalar(base, i64), e.convert(where, i64))
