"""Kernels of sliding windows: pooling and where its extremes lie; those that add windows are in `added_windows.py`.

A task makes one row of the result. It copies the rows that the windows see to the stack, with the padding around them, so that
every tap is one vector load without a test; where extremes or sums are wanted, these rows are one by then. What has no
such form (symbolic sizes, dilated operands, large windows) is computed element by element.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

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
from flambeau.compiler.ir.types import TensorType, i32, i64
from flambeau.compiler.lowering.added_windows import Adding
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar, register_type
from flambeau.compiler.lowering.elementwise import lower_elements
from flambeau.compiler.lowering.probe import axis_symbols, probe
from flambeau.compiler.lowering.window_task import Position, Task, Windows

#: Bytes of stack that a task may use, and taps whose code is written out.
MOST = 64 << 10
TAPS = 81


def lower_window(ctx: LoweringContext, operation: Operation) -> None:
    """Emit an operation of the family, and its epilogue."""
    definition = definition_of(operation)
    windows = _windows(definition, [tensor_of(v) for v in operation.operands])
    if windows is None or not _straight(ctx, operation):
        lower_elements(ctx, ctx.results, set(ctx.results))
        return
    kind = Adding if isinstance(definition, OverlapAdd | WindowScatter) else _Reading
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


class _Reading(Task):
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
