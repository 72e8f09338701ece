"""Elementwise kernels that read an operand across its rows: transposes, and what is fused with them.

Along the result's last axis such an operand's elements lie far apart, along another axis side by side. Squares of
`lanes` x `lanes` elements are read along that axis, transposed in registers, and kept on the stack; then the element
functions run on the square's rows as they would on memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, minimum, product, recombine
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

    def emit(self) -> None:
        ctx, axis, lanes = self.ctx, self.crossing.axis, self.ctx.lanes
        rows, columns = self.shape[axis], self.shape[-1]
        outer = tuple(d for a, d in enumerate(self.shape[:-1]) if a != axis)
        reach = DOWN * lanes
        blocks = (rows + reach - 1) // reach
        with ctx.rows((*outer, blocks), product(self.shape) * len(self.values)) as at:
            scratch = {n: self._scratch(n) for n in self.crossing.reads}
            low = at[-1] * reach
            high = (
                low + reach if not isinstance(rows, Dim) and rows % reach == 0 else minimum(low + reach, rows)
            )

            def across(column: Index, _: list[Value]) -> None:
                def down(row: Index, _: list[Value]) -> None:
                    self._square(at[:-1], row, column, scratch)

                self.b.for_(low, high, lanes, down)

            self.b.for_(0, columns, lanes, across)

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
        down = self._left(row, self.shape[self.crossing.axis])
        across = self._left(column, self.shape[-1])
        for number, buffer in scratch.items():
            for r, x in enumerate(transpose(self.b, self._read(number, outer, row, down, column, across))):
                ctx.b.vstore(x, buffer, (r * lanes,))
        self.b.for_(
            0, down, 1, lambda r, _: self._row(self._index(outer, row + r, column), r, across, scratch)
        )

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

    def _row(self, index: Position, r: Index, across: Index, scratch: dict[int, Any]) -> None:
        """The group's elements in one row of a square."""
        ctx, lanes = self.ctx, self.ctx.lanes
        known: dict[Value, dict[Position, Scalar]] = {}
        with ctx.b.lanes_of(lanes, None if across == lanes else across) as lane:
            index = (*index[:-1], index[-1] + lane)
            found = accesses(ctx, self.values, index)
            assert found is not None
            for number, buffer in scratch.items():
                value, at = found[number]
                x = ctx.b.vload(buffer, (r * lanes,), lanes)
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
