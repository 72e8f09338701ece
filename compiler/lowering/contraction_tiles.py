"""What the schemes of a contraction share: walking tiles, and the way of a register tile's sums to memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flambeau.compiler.ir.dims import Dim, Index, minimum
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter, Value
from flambeau.compiler.lowering.contraction_problem import Batch, Contraction, Panels, Plain, ceil_div
from flambeau.compiler.lowering.microkernel import LaneVectors, ProductSum, outer_product_tile
from flambeau.compiler.lowering.words import multiply_add
from flambeau.compiler.schedule.cpu_contraction import ContractionSchedule


def has_blocks(p: Contraction, s: ContractionSchedule) -> bool:
    """Is K cut into blocks?"""
    return isinstance(p.k, Dim) or (s.block_k > 0 and p.k > s.block_k)


#: How many k ahead a panel's lines are asked for: some kilobytes, the time that memory needs.
FORESEEN = 128


class Layout:
    """Offsets of the packed blocks, and of unfinished sums, in the workspace of the scheme *packed*."""

    def __init__(self, p: Contraction, s: ContractionSchedule) -> None:
        align = 64 // p.accumulator.itemsize
        self.keeps_sums = p.partial is None and has_blocks(p, s)
        self.a: Index = 0
        self.b: Index = ceil_div(ceil_div(p.m, s.rows) * (s.rows * s.block_k) + s.lanes, align) * align
        #: Columns that are packed at a time; None: all of them.
        self.across = s.across if s.across and (isinstance(p.n, Dim) or p.n > s.across) else None
        columns = p.n if self.across is None else self.across
        packed = 0 if p.b.panels is not None else ceil_div(columns, s.columns) * (s.columns * s.block_k)
        self.sums: Index = self.b + packed
        #: What sums start from, by column, where an instruction needs it.
        self.corrections: Index = self.sums + (p.m * p.n if self.keeps_sums else 0)
        self.size: Index = self.corrections
        if p.dot is not None and p.dot.correction:
            extent, width = (p.m, s.rows) if p.dot.by_rows else (columns, s.columns)
            self.size += ceil_div(extent, width) * width


def span(
    b: Emitter,
    total: Index,
    task: Index,
    size: int,
    tile: int,
    body: Callable[[Index, int, Index], None],
) -> None:
    """Tiles of one task's part, [task * size, (task + 1) * size) of `total`.

    ``body(position, extent, valid)``: `extent` is a number, at most `tile`; `valid` is `extent`, but for the last tile of a
    symbolic total, of which it is what is left.
    """
    start = task * size
    if isinstance(total, Dim):
        stop = minimum(start + size, total // tile * tile)
        b.for_(start, stop, tile, lambda i, _: body(i, tile, tile))
        b.for_(stop, minimum(start + size, total), tile, lambda i, _: body(i, tile, total - i))
        return
    whole = total // tile * tile
    stop = minimum(start + size, whole)
    if isinstance(stop, int) and isinstance(start, int) and stop - start == tile:
        body(start, tile, tile)
    elif whole:
        b.for_(start, stop, tile, lambda i, _: body(i, tile, tile))
    if whole < total:
        rest = total - whole
        b.if_equal(task, -(-total // size) - 1, lambda: body(whole, rest, rest))


@dataclass(frozen=True)
class Place:
    """One register tile's part of the result, and of K.

    `rows` x `vectors` (of the schedule's lanes) are computed; of them, `valid_rows` x `valid_columns` exist (each may
    also be larger than the tile).
    """

    batch: Batch
    i: Index
    rows: int
    valid_rows: Index
    j: Index
    vectors: int
    valid_columns: Index
    first: Index
    depth: Index

    @property
    def has_all_rows(self) -> bool:
        """Are all rows known to exist?"""
        return isinstance(self.valid_rows, int) and self.valid_rows >= self.rows

    def moved(self, rows: Index) -> Place:
        """A tile of the same kind, so many rows further down."""
        return replace(self, i=self.i + rows)

    def only_row(self, r: Index) -> Place:
        """The tile's row `r` as a tile."""
        return replace(self, i=self.i + r, rows=1, valid_rows=1)


class Tiles:
    """The outer-product schemes' register tiles of one contraction."""

    def __init__(
        self, b: Emitter, problem: Contraction, s: ContractionSchedule, workspace: Buffer | None
    ) -> None:
        self.b, self.p, self.s, self.workspace = b, problem, s, workspace
        self.partial = problem.partial
        #: A single column's position may not occur in the result's index, so it is stored as a scalar.
        self.vector_store = problem.vector_store and problem.n != 1

    def multiply(
        self,
        place: Place,
        a_at: Callable[[int, Index], Value],
        b_at: Callable[[int, Index], Value],
        meanwhile: Callable[[Index], None] | None = None,
        start: list[Value] | None = None,
        neighbours: LaneVectors | None = None,
    ) -> list[Value]:
        """The tile's sums over its part of K, row by row. ``meanwhile(i)`` is what else to do in iteration i over k; `start`
        is what the sums start from; `neighbours` gives A's elements by vectors, for targets that have a use for these."""
        s, element = self.s, self.p.accumulator
        if meanwhile is None and self.p.touches is not None:
            meanwhile = lambda i: self.ask_for_epilogue(place, i)  # noqa: E731
        # LLVM would reassociate longer chains of integer additions, and then needs more registers than there are.
        unroll = s.unroll if self.p.dot is None or self.p.dot.accumulates else 1
        return outer_product_tile(
            self.b,
            element,
            s.lanes,
            place.rows,
            place.vectors,
            place.depth,
            a_at,
            b_at,
            unroll,
            meanwhile,
            product=product_of(self.b, self.p),
            start=start,
            neighbours=neighbours if s.by_lane else None,
        )

    def ask_for_epilogue(self, place: Place, number: Index) -> None:
        """In an iteration of the loop over K, prefetch a vector of each of the epilogue's buffers, if this is the last block,
        and of the unfinished sums; more of them where the loop is shorter than the tile is large."""
        vectors, depth = place.rows * place.vectors, place.depth
        each = -(-vectors // max(1, depth // self.s.unroll)) if isinstance(depth, int) else 1
        for n in range(each):
            self._ask_for_vector(place, minimum(number * each + n, vectors - 1))

    def _ask_for_vector(self, place: Place, at: Index) -> None:
        p = self.p
        assert p.touches is not None
        r, v = (at, 0) if place.vectors == 1 else (at // place.vectors, at % place.vectors)
        column = v * self.s.lanes
        if not has_blocks(p, self.s):
            for buffer, index, written in p.touches(place.batch, place.i + r, place.j + column):
                self.b.prefetch(buffer, index, written)
            return
        # 1 or 0: before the last block all prefetches are of one line.
        last = (place.first + place.depth) // p.k
        for buffer, index, written in p.touches(place.batch, place.i + r * last, place.j + column * last):
            if p.partial is None or buffer is not p.partial.buffer:
                self.b.prefetch(buffer, index, written)
        if p.partial is not None:
            self.b.prefetch(p.partial.buffer, p.partial.at(place.batch, place.i + r, place.j + column), True)

    def k_blocks(self, body: Callable[[Index, Index], None]) -> None:
        """``body(first, depth)`` for each block of K."""
        k, block = self.p.k, self.s.block_k
        if not has_blocks(self.p, self.s):
            body(0, k)
            return
        even = isinstance(k, int) and k % block == 0
        self.b.for_(0, k, block, lambda p, _: body(p, block if even else minimum(k - p, block)))

    def tile_buffer(self) -> Buffer | None:
        """A tile on the stack, where some rows of a tile may not exist or the epilogue takes single elements."""
        some = (
            isinstance(self.p.m, Dim)
            or self.s.scheme == "packed"
            or not self.vector_store
            or self.p.long_store
        )
        return self.b.alloca((self.s.rows * self.s.columns,), self.p.accumulator) if some else None

    def column_mask(self, valid: Index, vector: int) -> Value | None:
        """Which columns of one of the tile's vectors exist; None for all."""
        lanes = self.s.lanes
        if isinstance(valid, int) and valid >= (vector + 1) * lanes:
            return None
        return self.b.mask(valid - vector * lanes, lanes)

    def finish(self, place: Place, sums: list[Value], tile: Buffer | None) -> None:
        """Add what earlier blocks of K left; then the epilogue in the last block, else keep the sums."""
        if place.has_all_rows:
            self._rows(place, sums, tile, 0)
            return
        self.b.if_equal(
            minimum(place.valid_rows, place.rows),
            place.rows,
            lambda: self._rows(place, sums, tile, 0),
            lambda: self._some_rows(place, sums, tile),
        )

    def _some_rows(self, place: Place, sums: list[Value], tile: Buffer | None) -> None:
        """Through the stack, so that rows can be counted."""
        b, lanes, vectors = self.b, self.s.lanes, place.vectors
        for at, x in enumerate(sums):
            b.vector_store(x, tile, (at * lanes,))

        def one(r: Index, _: list[Value]) -> None:
            row = [b.vector_load(tile, ((r * vectors + v) * lanes,), lanes) for v in range(vectors)]
            self._rows(place.only_row(r), row, tile, r * (vectors * lanes))

        b.for_(0, minimum(place.valid_rows, place.rows), 1, one)

    def _rows(self, place: Place, sums: list[Value], tile: Buffer | None, scratch: Index) -> None:
        """All of the place's rows exist. Single elements pass through `tile` from `scratch`."""
        if not has_blocks(self.p, self.s):
            self.epilogue(place, sums, tile, scratch)
            return
        b, lanes, partial = self.b, self.s.lanes, self.partial
        assert partial is not None
        masks = [self.column_mask(place.valid_columns, v) for v in range(place.vectors)]
        later = minimum(place.first, 1)
        # In the first block these masks are empty, so nothing is read and zeros are added.
        reach = [
            b.mask(minimum(place.valid_columns - v * lanes, lanes) * later, lanes)
            for v in range(place.vectors)
        ]
        total = []
        for at, x in enumerate(sums):
            r, v = divmod(at, place.vectors)
            position = partial.at(place.batch, place.i + r, place.j + v * lanes)
            before = b.vector_load(partial.buffer, position, lanes, reach[v])
            total.append(b.add(x, before, self.p.accumulator))

        def keep() -> None:
            for at, x in enumerate(total):
                r, v = divmod(at, place.vectors)
                position = partial.at(place.batch, place.i + r, place.j + v * lanes)
                b.vector_store(x, partial.buffer, position, masks[v])

        b.if_equal(
            place.first + place.depth,
            self.p.k,
            lambda: self.epilogue(place, total, tile, scratch),
            keep,
        )

    def epilogue_of_vector(self, place: Place, tile: Buffer | None, number: Index) -> None:
        """The epilogue of vector `number`, row by row, of a tile whose sums are in `tile`. All its rows and vectors exist, or it
        has one vector a row."""
        lanes, vectors = self.s.lanes, place.vectors
        r, v = (number, 0) if vectors == 1 else (number // vectors, number % vectors)
        valid = place.valid_columns if vectors == 1 else lanes
        row = replace(place.only_row(r), j=place.j + v * lanes, vectors=1, valid_columns=valid)
        self.epilogue(row, [self.b.vector_load(tile, (number * lanes,), lanes)], tile, number * lanes)

    def epilogue(self, place: Place, sums: list[Value], tile: Buffer | None, scratch: Index) -> None:
        """Stores finished sums of rows that all exist. Single elements pass through `tile` from `scratch`."""
        b, p, lanes, vectors = self.b, self.p, self.s.lanes, place.vectors
        if self.vector_store and not (p.long_store and place.rows > 1):
            for v in range(vectors):
                left = place.valid_columns - v * lanes
                count = None if isinstance(left, int) and left >= lanes else left
                with b.lanes_of(lanes, count) as lane:
                    for r in range(place.rows):
                        n = place.j + v * lanes + lane
                        p.store(b.builder, place.batch, place.i + r, n, sums[r * vectors + v])
            return
        for at, x in enumerate(sums):
            b.vector_store(x, tile, (scratch + at * lanes,))

        def one(r: Index, c: Index) -> None:
            x = b.load(tile, (scratch + r * (vectors * lanes) + c,))
            p.store(b.builder, place.batch, place.i + r, place.j + c, x)

        def row(r: Index, _: list[Value]) -> None:
            if self.vector_store:
                at = scratch + r * (vectors * lanes)
                x = [b.vector_load(tile, (at + v * lanes,), lanes) for v in range(vectors)]
                self.epilogue(place.only_row(r), x, tile, at)
                return
            b.for_(0, minimum(place.valid_columns, vectors * lanes), 1, lambda c, _: one(r, c))

        b.for_(0, place.rows, 1, row)


def product_of(b: Emitter, p: Contraction) -> ProductSum | None:
    """How a contraction over words multiplies; None for one over numbers."""
    dot = p.dot
    if dot is None:
        return None
    return lambda x, y, sums: multiply_add(b.builder, x, y, sums, dot, p.accumulator)


def relative(buffer: Buffer, problem: Contraction, i0: Index, j0: Index, columns: Index) -> Plain:
    """Unfinished sums: element (i0, j0) at the buffer's start, `columns` in a row."""
    return Plain(buffer, problem.accumulator, lambda _, m, n: ((m - i0) * columns + n - j0,), unit_depth=True)


def panel_reader(
    b: Emitter, panels: Panels, place: Place, lanes: int, foresee: bool = True
) -> Callable[[int, Index], Value]:
    """Vectors of the panel at the place's column, for k from the place's first on. `foresee`: those some k later are
    asked for."""

    def read(v: int, k: Index) -> Value:
        panel, deep = place.j // panels.width, place.first + k
        if foresee:
            b.prefetch(panels.buffer, panels.at(place.batch, panel, deep + FORESEEN, v * lanes), locality=2)
        at = panels.at(place.batch, panel, deep, v * lanes)
        x = b.vector_load(panels.buffer, at, lanes * panels.group)
        return x if panels.word is None else panels.word(b, x)

    return read


def existing(start: Index, rows: int, valid: Index) -> list[Index]:
    """Positions of a tile's rows, those past the end replaced by the last."""
    if isinstance(valid, int):
        return [start + r for r in range(rows)]
    return [start + minimum(r, valid - 1) for r in range(rows)]
