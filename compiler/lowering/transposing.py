"""Elementwise kernels that read an operand across its rows: transposes, and what is fused with them.

Along the result's last axis such an operand's elements lie far apart, along another axis side by side. Squares of
`lanes` x `lanes` elements are read along that axis and transposed in registers; then the element functions run on the square's
rows as they would on memory, from registers or, where they are long, from the stack.

Results that go past the caches are limited by memory, which wants three things. Stores should complete two neighbouring lines
soon after one another, so squares are done in pairs. The operand should be read in long runs, which the processor does not see
in the order of the squares, so the next squares' lines are prefetched row by row. And vectors should not straddle lines, each
of which would be read twice, since a power of two between rows lets none of them stay in L1: squares begin where a line of
the operand does, and the first and the last ones overlap their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, maximum, minimum, product, recombine
from flambeau.compiler.ir.types import index as index_type
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.elements import Scalar, register_type
from flambeau.compiler.lowering.microkernel import transpose
from flambeau.compiler.lowering.probe import axis_symbols, probe
from flambeau.compiler.lowering.streaming import either_way, streamed
from flambeau.compiler.lowering.views import coefficient_of

Position = tuple[Index, ...]

#: Rows of the result, in squares, that a task walks along together: each reads this many cache lines of a row in turn.
DOWN = 8
#: Up to which cost of an element the rows of a square are computed from registers, each by code of its own.
SHORT = 4


@dataclass(frozen=True)
class Crossing:
    """`axis`: the result's axis along which some operands are contiguous. `reads`: which of the group's accesses, in the
    order of `accesses`, are."""

    axis: int
    reads: tuple[int, ...]


def accesses(
    ctx: LoweringContext, values: Sequence[Value], index: Position
) -> list[tuple[Value, Position]] | None:
    """What the elements at `index` read from memory outside the group; None if the code has no form for vectors,
    or positions come from data."""
    group = set(values)
    found: list[tuple[Value, Position]] = []
    for value in values:
        reads = probe(value, index, lambda v: v.owner is not None and (v not in ctx.memory or v in group))
        if not (reads.straight and reads.static):
            return None
        found += reads.accesses
    return found


def crossing_of(ctx: LoweringContext, values: Sequence[Value]) -> Crossing | None:
    """How the group crosses its operands' rows, if it does and squares would help."""
    shape = tensor_of(values[0]).shape
    index = axis_symbols(shape)
    last = _symbol(index[-1])
    if last is None or _narrow(shape[-1], ctx.lanes):
        return None
    found = accesses(ctx, values, index)
    axes: dict[int, list[int]] = {}
    for number, (value, at) in enumerate(found or ()):
        offset = _offset(value, at)
        if coefficient_of(offset, last) in (0, 1):
            continue
        for axis, position in enumerate(index[:-1]):
            symbol = _symbol(position)
            if symbol is not None and coefficient_of(offset, symbol) == 1:
                axes.setdefault(axis, []).append(number)
                break
    if len(axes) != 1:
        return None
    ((axis, reads),) = axes.items()
    return None if _narrow(shape[axis], ctx.lanes) else Crossing(axis, tuple(reads))


def _narrow(extent: Index, lanes: int) -> bool:
    return not isinstance(extent, Dim) and extent < lanes // 2


def _symbol(position: Index) -> Symbol | None:
    if not isinstance(position, Dim):
        return None
    (symbol,) = position.symbols()
    return symbol


def _offset(value: Value, at: Position) -> Index:
    offset: Index = 0
    for size, position in zip(tensor_of(value).shape, at, strict=True):
        offset = offset * size + position
    return recombine(offset)


def lower_transposing(
    ctx: LoweringContext, values: Sequence[Value], crossing: Crossing, results: set[Value]
) -> None:
    """Emit the group's values, all of one shape."""
    last = tensor_of(values[0]).shape[-1]
    whole = isinstance(last, int) and last % ctx.lanes == 0
    past = streamed(ctx, [v for v in values if v in results]) if whole else frozenset()
    either_way(ctx, past, lambda past: _Squares(ctx, values, crossing, results, past).emit())


class _Squares:
    """The loops over squares of one group."""

    def __init__(
        self,
        ctx: LoweringContext,
        values: Sequence[Value],
        crossing: Crossing,
        results: set[Value],
        past: frozenset[Value],
    ) -> None:
        self.ctx, self.values, self.crossing, self.results, self.past = ctx, values, crossing, results, past
        self.shape = tensor_of(values[0]).shape
        self.b = LoopEmitter(ctx.b, ctx.e.half)
        cost = sum(probe(v, axis_symbols(self.shape), lambda v: v not in ctx.memory).cost for v in values)
        self.short = cost <= SHORT and len(crossing.reads) == 1
        # Squares that overlap compute some elements twice, from what they were before: `past` results lie on no operand.
        rows = self.shape[crossing.axis]
        self.overlapping = bool(past) and isinstance(rows, int) and rows >= ctx.lanes

    def emit(self) -> None:
        ctx, axis, lanes = self.ctx, self.crossing.axis, self.ctx.lanes
        rows, columns = self.shape[axis], self.shape[-1]
        outer = tuple(d for a, d in enumerate(self.shape[:-1]) if a != axis)
        reach = DOWN * lanes
        pair = 2 * lanes if self.past and isinstance(columns, int) and columns % (2 * lanes) == 0 else lanes
        shift = self._behind_line() if self.overlapping else 0
        blocks = (rows + (lanes - 1 if self.overlapping else 0) + reach - 1) // reach
        with ctx.rows((*outer, blocks), product(self.shape) * len(self.values)) as at:
            scratch = {n: self._scratch(n) for n in self.crossing.reads}
            low = at[-1] * reach - shift
            squares = minimum((rows - low + lanes - 1) // lanes, DOWN)

            def across(column: Index, _: list[Value]) -> None:
                def down(square: Index, _: list[Value]) -> None:
                    if self.past:
                        self._prefetch(at[:-1], low, square, column + pair, pair)
                    row = low + square * lanes
                    if self.overlapping:
                        row = minimum(maximum(row, 0), rows - lanes)
                    for c in range(0, pair, lanes):
                        self._square(at[:-1], row, column + c, scratch)

                self.b.for_(0, squares, 1, down)

            self.b.for_(0, columns, pair, across)

    def _behind_line(self) -> Index:
        """How many elements behind the start of a vector the operand begins."""
        ctx, b = self.ctx, self.ctx.b
        found = accesses(ctx, self.values, tuple(0 for _ in self.shape))
        assert found is not None
        value, _ = found[self.crossing.reads[0]]
        size = tensor_of(value).element.itemsize
        inside = b.iand(b.address(ctx.memory[value]), b.constant(index_type, ctx.lanes * size - 1))
        elements = b.lshr(inside, b.constant(index_type, size.bit_length() - 1))
        return b.symbol(elements, 0, ctx.lanes - 1)

    def _prefetch(self, outer: Position, low: Index, square: Index, column: Index, lines: int) -> None:
        """The share of one step in the lines that the next `lines` columns will read: some runs of `DOWN` lines."""
        ctx = self.ctx
        for number in self.crossing.reads:
            for line in range(lines):
                run, place = divmod(line, DOWN)
                index = self._index(outer, low + place * ctx.lanes, column + square * (lines // DOWN) + run)
                found = accesses(ctx, self.values, index)
                assert found is not None
                value, at = found[number]
                ctx.b.prefetch(ctx.memory[value], at, locality=2)

    def _scratch(self, number: int) -> Value:
        found = accesses(self.ctx, self.values, axis_symbols(self.shape))
        assert found is not None
        element = tensor_of(found[number][0]).element
        lanes = self.ctx.lanes
        return self.ctx.b.alloca((lanes * lanes,), register_type(element))

    def _index(self, outer: Position, row: Index, column: Index) -> Position:
        index = list(outer)
        index.insert(self.crossing.axis, row)
        return (*index, column)

    def _left(self, start: Index, extent: Index) -> Index:
        """How many of a square's rows or columns exist."""
        lanes = self.ctx.lanes
        return (
            lanes if not isinstance(extent, Dim) and extent % lanes == 0 else minimum(extent - start, lanes)
        )

    def _square(self, outer: Position, row: Index, column: Index, scratch: dict[int, Any]) -> None:
        ctx, lanes = self.ctx, self.ctx.lanes
        down = lanes if self.overlapping else self._left(row, self.shape[self.crossing.axis])
        across = self._left(column, self.shape[-1])
        turned = {
            number: transpose(self.b, self._read(number, outer, row, down, column, across))
            for number in scratch
        }
        if self.short and down == lanes:
            for r in range(lanes):
                self._row(self._index(outer, row + r, column), across, {n: x[r] for n, x in turned.items()})
            return
        for number, buffer in scratch.items():
            for r, x in enumerate(turned[number]):
                ctx.b.vstore(x, buffer, (r * lanes,))

        def one(r: Index, _: list[Value]) -> None:
            loaded = {n: ctx.b.vload(buffer, (r * lanes,), lanes) for n, buffer in scratch.items()}
            self._row(self._index(outer, row + r, column), across, loaded)

        self.b.for_(0, down, 1, one)

    def _read(
        self, number: int, outer: Position, row: Index, down: Index, column: Index, across: Index
    ) -> list[Value]:
        """A vector along the crossed axis for each column; columns that do not exist are read from one that does."""
        ctx, lanes = self.ctx, self.ctx.lanes
        vectors = []
        with ctx.b.lanes_of(lanes, None if down == lanes else down) as lane:
            for c in range(lanes):
                place = c if across == lanes else minimum(c, across - 1)
                found = accesses(ctx, self.values, self._index(outer, row + lane, column + place))
                assert found is not None
                value, at = found[number]
                vectors.append(ctx.spread(ctx.e.load(ctx.memory[value], at).value))
        return vectors

    def _row(self, index: Position, across: Index, read: dict[int, Value]) -> None:
        """The group's elements in one row of a square; `read` has what its crossing accesses give."""
        ctx, lanes = self.ctx, self.ctx.lanes
        known: dict[Value, dict[Position, Scalar]] = {}
        with ctx.b.lanes_of(lanes, None if across == lanes else across) as lane:
            index = (*index[:-1], index[-1] + lane)
            found = accesses(ctx, self.values, index)
            assert found is not None
            for number, x in read.items():
                value, at = found[number]
                known.setdefault(value, {})[at] = Scalar(x, tensor_of(value).element)
            for value in known:
                ctx.overrides[value] = lambda at, v=value: known[v].get(at)  # type: ignore[misc]
            for value in self.values:
                known.setdefault(value, {})[index] = ctx.compute(value, index)
                ctx.overrides[value] = lambda at, v=value: known[v].get(at)  # type: ignore[misc]
            for value in self.values:  # after all loads: a result may lie where an operand does
                if value in self.results:
                    ctx.e.store(known[value][index], ctx.memory[value], index, value in self.past)
        for value in known:
            del ctx.overrides[value]
        ctx.forget()


__all__ = ["Crossing", "crossing_of", "lower_transposing"]
