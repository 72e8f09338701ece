"""Packing: an operand's block, rewritten so that the register tile reads it in order.

A panel holds `width` rows (of A: along M; of B: along N) for each k: element (row, k) lies at ``k * width + row``.
Rows past the operand's end hold zeros, so the tile needs no masks while it multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter, Value
from flambeau.compiler.lowering.contraction_problem import Batch, Operand
from flambeau.compiler.lowering.microkernel import transpose

#: How many rows ahead packing asks for memory: rows lie far apart, so the hardware does not foresee them.
AHEAD = 16


@dataclass(frozen=True)
class Panel:
    """Rows [row, row + width) and k in [first, first + depth) of an operand, to go to `buffer` from `start`.

    `rows` is what the operand still has from `row` on; it may be less than `width`, or more.
    """

    buffer: Buffer
    start: Index
    width: int
    row: Index
    rows: Index
    first: Index
    depth: Index

    @property
    def full(self) -> bool:
        """Are all the panel's rows known to exist?"""
        return isinstance(self.rows, int) and self.rows >= self.width

    @property
    def valid(self) -> Index:
        """How many of the panel's rows exist."""
        return self.width if self.full else minimum(self.rows, self.width)


class Packer:
    """Packs panels of one operand.

    `inner` are the sizes of the inner digits of k (for a convolution: kernel height and width): where they divide the
    block, the loop over k is a nest over the digits, and the divisions in the element function disappear.
    """

    def __init__(
        self, b: Emitter, operand: Operand, accumulator: ElementType, lanes: int, inner: Sequence[int] = ()
    ) -> None:
        self.b, self.operand, self.accumulator, self.lanes = b, operand, accumulator, lanes
        self.inner = tuple(inner)

    def pack(self, batch: Batch, panel: Panel) -> None:
        """Emit the packing of one panel."""
        plain, along = self.operand.plain, self.operand.along
        if plain is not None and (plain.unit_row or plain.unit_depth):
            along = "row" if plain.unit_row else "depth"
        if along == "row" and self.lanes > 1:
            self._rows(batch, panel)
        elif along == "depth" and self.lanes > 1:
            self._transposed(batch, panel)
        else:
            self._elements(batch, panel, 0)

    def _read(self, batch: Batch, row: Index, k: Index, row_wise: bool, count: Index | None) -> Value:
        """A vector of `lanes` elements from (row, k), along rows or along k, or of those below `count`."""
        b, plain = self.b, self.operand.plain
        if plain is not None:
            mask = None if count is None else b.mask(count, self.lanes)
            if self.operand.words is not None:
                if row_wise:
                    return self.operand.words.along_rows(b, batch, row, k, self.lanes, mask)
                return self.operand.words.along_depth(b, batch, row, k, self.lanes)
            x = b.vector_load(plain.buffer, plain.at(batch, row, k), self.lanes, mask)
            return b.cast(x, plain.element, self.accumulator)
        if self.operand.run:
            return self._pieces(batch, row, k, row_wise, count)
        with b.lanes_of(self.lanes, count) as lane:
            if row_wise:
                return self.operand.load(b.builder, batch, row + lane, k)
            return self.operand.load(b.builder, batch, row, k + lane)

    def _pieces(self, batch: Batch, row: Index, k: Index, row_wise: bool, count: Index | None) -> Value:
        """The same where neighbours are neighbours in memory within runs only: a masked vector of each run."""
        b, lanes, run = self.b, self.lanes, self.operand.run
        start = row if row_wise else k
        offset = start % run
        limit = lanes if count is None else count
        total = b.zero(self.accumulator, lanes)
        for piece in range((lanes - 2) // run + 2):
            first = piece * run - offset
            mask = b.between(first, minimum(first + run, limit), lanes)
            # In the lanes of the mask, and only those are read, the position within the run is below `run`.
            within = b.symbol(-first, 0, run - lanes)
            with b.some_lanes(lanes, mask) as lane:
                at = (start // run + piece) * run + within + lane
                x = self.operand.load(b.builder, batch, *((at, k) if row_wise else (row, at)))
            total = b.select(mask, x, total)
        return total

    def _chunks(self, panel: Panel) -> list[tuple[int, Value | None]]:
        """The panel's rows in vectors: the first row of each, and the mask that keeps a store inside the panel."""
        lanes, width = self.lanes, panel.width
        starts = range(0, width, lanes)
        return [(s, None if width - s >= lanes else self.b.mask(width - s, lanes)) for s in starts]

    def copy_row(self, batch: Batch, panel: Panel, k: Index) -> None:
        """All rows of a full panel for one k, where rows are neighbours in memory."""
        plain, ahead = self.operand.plain, panel.first + minimum(k + AHEAD, panel.depth - 1)
        for s, write in self._chunks(panel):
            count = None if panel.width - s >= self.lanes else panel.width - s
            if plain is not None:
                self.b.prefetch(plain.buffer, plain.at(batch, panel.row + s, ahead))
            x = self._read(batch, panel.row + s, panel.first + k, True, count)
            self.b.vector_store(x, panel.buffer, (panel.start + k * panel.width + s,), write)

    def _rows(self, batch: Batch, panel: Panel) -> None:
        """Rows are neighbours in memory: copy vectors."""
        b, lanes = self.b, self.lanes
        chunks = self._chunks(panel)

        def copy(full: bool) -> None:
            valid = panel.width if full else minimum(panel.rows, panel.width)

            def one(k: Index, _: list[Value]) -> None:
                for s, write in chunks:
                    count = None if isinstance(valid, int) and valid - s >= lanes else valid - s
                    if self.operand.plain is None and count is not None and not self.operand.run:
                        b.vector_store(b.zero(self.accumulator, lanes), panel.buffer, at(k, s), write)
                        x = self._read(batch, panel.row + s, panel.first + k, True, count)
                        b.vector_store(x, panel.buffer, at(k, s), b.mask(count, lanes))
                        continue
                    x = self._read(batch, panel.row + s, panel.first + k, True, count)
                    b.vector_store(x, panel.buffer, at(k, s), write)

            if self.operand.plain is None:
                self._depth(panel, 0, lambda k: one(k, []))
                return
            b.for_(0, panel.depth, 1, one)

        def at(k: Index, start: int) -> tuple[Index]:
            return (panel.start + k * panel.width + start,)

        if isinstance(panel.rows, int):
            copy(panel.full)
            return
        b.if_equal(panel.valid, panel.width, lambda: copy(True), lambda: copy(False))

    def _transposed(self, batch: Batch, panel: Panel) -> None:
        """K runs along memory: squares of `lanes` x `lanes` are transposed in registers."""
        reader, whole = self.operand.words, panel.depth
        if reader is not None:  # a last word that lacks elements cannot be read in a vector
            whole = minimum(whole, reader.whole - panel.first)
        whole = whole // self.lanes * self.lanes
        for start, write in self._chunks(panel):
            self._squares(batch, panel, start, write, whole)
        if panel.depth - whole != 0:
            self._elements(batch, panel, whole)

    def _squares(self, batch: Batch, panel: Panel, start: int, write: Value | None, whole: Index) -> None:
        b, lanes, width, valid = self.b, self.lanes, panel.width, panel.valid
        height = min(lanes, width - start)
        zero = b.zero(self.accumulator, lanes)
        short = not (isinstance(valid, int) and valid >= start + height)
        keep = b.mask(valid - start, lanes) if short else write

        def square(k: Index, _: list[Value]) -> None:
            read = self._read_square(batch, panel, start, height, k)
            for u, x in enumerate(transpose(b, read + [zero] * (lanes - height))):
                at = (panel.start + (k + u) * width + start,)
                if short:
                    b.vector_store(zero, panel.buffer, at, write)
                b.vector_store(x, panel.buffer, at, keep)

        b.for_(0, whole, lanes, square)

    def _read_square(self, batch: Batch, panel: Panel, start: int, height: int, k: Index) -> list[Value]:
        """Vectors along k of rows from `start`. Rows that do not exist are read from one that does."""
        b, lanes = self.b, self.lanes

        def one(r: Index) -> Value:
            row = panel.row + minimum(start + r, panel.valid - 1)
            return self._read(batch, row, panel.first + k, False, None)

        if self.operand.plain is not None:
            return [one(r) for r in range(height)]
        # An element function's code is long: one copy of it, in a loop.
        scratch = b.alloca((lanes * height,), self.accumulator)
        b.for_(0, height, 1, lambda r, _: b.vector_store(one(r), scratch, (r * lanes,)))
        return [b.vector_load(scratch, (r * lanes,), lanes) for r in range(height)]

    def _elements(self, batch: Batch, panel: Panel, skip: Index) -> None:
        """Any element function, for k from `skip`. The row is the outer loop: what depends on it alone is computed
        once."""
        b, lanes, width = self.b, self.lanes, panel.width
        if not panel.full:
            chunks = self._chunks(panel)

            def blank(k: Index, _: list[Value]) -> None:
                for s, write in chunks:
                    at = (panel.start + k * width + s,)
                    b.vector_store(b.zero(self.accumulator, lanes), panel.buffer, at, write)

            b.for_(skip, panel.depth, 1, blank)

        def one(r: Index, k: Index) -> None:
            x = self.operand.load(b.builder, batch, panel.row + r, panel.first + k)
            b.store(x, panel.buffer, (panel.start + k * width + r,))

        b.for_(0, panel.valid, 1, lambda r, _: self._depth(panel, skip, lambda k: one(r, k)))

    def _depth(self, panel: Panel, skip: Index, one: Callable[[Index], None]) -> None:
        b, digits = self.b, 1
        for size in self.inner:
            digits *= size

        def nest(k: Index, sizes: Sequence[int]) -> None:
            if not sizes:
                one(k)
                return
            b.for_(0, sizes[0], 1, lambda d, _: nest(k * sizes[0] + d, sizes[1:]))

        if digits > 1 and skip == 0 and panel.depth % digits == 0 and panel.first % digits == 0:
            b.for_(0, panel.depth // digits, 1, lambda outer, _: nest(outer, self.inner))
            return
        b.for_(skip, panel.depth, 1, lambda k, _: one(k))
