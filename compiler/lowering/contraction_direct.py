"""The schemes *direct* and *panel*: A as it lies; B as it lies, in panels that are there already, or one panel of it packed on
the stack by each task."""

from __future__ import annotations

from collections.abc import Callable

from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.lowering.contraction_emitter import Buffer, Value
from flambeau.compiler.lowering.contraction_packing import Packer, Panel
from flambeau.compiler.lowering.contraction_problem import Batch, Plain, ceil_div
from flambeau.compiler.lowering.contraction_tiles import (
    Place,
    Tiles,
    existing,
    has_blocks,
    panel_reader,
    relative,
    span,
)
from flambeau.compiler.lowering.microkernel import LaneVectors

#: Arrays that an epilogue works on from which on it is long.
LATE_ARRAYS = 4


class Direct(Tiles):
    """The schemes *direct* and *panel*."""

    def emit(self) -> None:
        p, s = self.p, self.s
        self.b.parallel([*p.batch, ceil_div(p.m, s.task_rows), ceil_div(p.n, s.task_columns)], self._task)

    def _task(self, at: list[Index]) -> None:
        b, p, s = self.b, self.p, self.s
        batch, im, jn = at[:-2], at[-2], at[-1]
        tile = self.tile_buffer()
        panel = None
        if s.scheme == "panel":
            panel = b.alloca((s.block_k * s.columns,), p.accumulator)
        if p.partial is None and has_blocks(p, s):
            sums = b.alloca((s.task_rows * s.task_columns,), p.accumulator)
            self.partial = relative(sums, p, im * s.task_rows, jn * s.task_columns, s.task_columns)
        packer = Packer(b, p.b, p.accumulator, s.lanes, p.inner)
        top = im * s.task_rows

        def column(first: Index, depth: Index, j: Index, extent: int, valid: Index) -> None:
            vectors = -(-extent // s.lanes)
            late = self._finishes_late(vectors, valid)
            if panel is not None:
                packer.pack(batch, Panel(panel, 0, vectors * s.lanes, j, valid, first, depth))

            def row(i: Index, rows: int, valid_rows: Index) -> None:
                place = Place(batch, i, rows, valid_rows, j, vectors, valid, first, depth)
                self._tile(place, panel, tile, top if late else None)

            span(b, p.m, im, s.task_rows, s.rows, row)
            if late:
                place = Place(batch, top, s.rows, s.rows, j, vectors, valid, first, depth)
                last = place.moved(s.task_rows - s.rows)
                count = s.rows * vectors
                b.for_(0, count, 1, lambda at, _: self.epilogue_of_vector(last, tile, at))

        def block(first: Index, depth: Index) -> None:
            def columns(j: Index, extent: int, valid: Index) -> None:
                column(first, depth, j, extent, valid)

            span(b, p.n, jn, s.task_columns, s.columns, columns)

        self.k_blocks(block)

    def _finishes_late(self, vectors: int, valid: Index) -> bool:
        """Does the epilogue of a tile run within the next one's loop over K? That of an optimizer's step does if K is short: its
        divisions and roots take time in which products could be made, and no processor looks so far ahead as to see both."""
        p, s = self.p, self.s
        if not (p.long_store and self.vector_store and isinstance(p.m, int) and isinstance(p.k, int)):
            return False
        if p.touches is None or len(p.touches([0] * len(p.batch), 0, 0)) < LATE_ARRAYS:
            return False
        whole = p.m % s.task_rows == 0 and s.task_rows % s.rows == 0 and s.task_rows >= 2 * s.rows
        full = vectors == 1 or (isinstance(valid, int) and valid >= vectors * s.lanes)
        iterations = p.k // s.unroll
        return (
            whole
            and full
            and s.rows * vectors <= iterations <= 4 * s.rows * s.vectors
            and not has_blocks(p, s)
        )

    def _tile(
        self, place: Place, panel: Buffer | None, tile: Buffer | None, late_from: Index | None = None
    ) -> None:
        """One tile. `late_from`: the first row of a task whose tiles are finished late."""
        b, s, lanes = self.b, self.s, self.s.lanes
        left, right, panels = self.p.a.plain, self.p.b.plain, self.p.b.panels
        assert left is not None
        in_panels = None if panels is None else panel_reader(b, panels, place, lanes, not s.ahead)
        masks = [self.column_mask(place.valid_columns, v) for v in range(place.vectors)]
        rows = existing(place.i, place.rows, place.valid_rows)

        words = self.p.a.words

        def a_at(r: int, k: Index) -> Value:
            if words is not None:
                return words.one(b, place.batch, rows[r], place.first + k)
            return b.load(left.buffer, left.at(place.batch, rows[r], place.first + k))

        def b_at(v: int, k: Index) -> Value:
            if in_panels is not None:
                return in_panels(v, k)
            if panel is not None:
                return b.vector_load(panel, ((k * place.vectors + v) * lanes,), lanes)
            assert right is not None
            at = right.at(place.batch, place.j + v * lanes, place.first + k)
            if s.foresee:
                ahead = right.at(place.batch, place.j + v * lanes, place.first + k + s.foresee)
                b.prefetch(right.buffer, ahead, locality=2)
            return b.vector_load(right.buffer, at, lanes, masks[v])

        neighbours = self._neighbours(left, place, rows)
        if late_from is None:
            sums = self.multiply(place, a_at, b_at, self._fetch_next(place), neighbours=neighbours)
            self.finish(place, sums, tile)
            return
        before, count = place.moved(-s.rows), place.rows * place.vectors

        def meanwhile(number: Index) -> None:
            self.ask_for_epilogue(place, number)

            def finish_before() -> None:
                b.if_equal(
                    minimum(number, count - 1), number, lambda: self.epilogue_of_vector(before, tile, number)
                )

            b.if_equal(place.i, late_from, lambda: None, finish_before)

        for at, x in enumerate(self.multiply(place, a_at, b_at, meanwhile, neighbours=neighbours)):
            b.vector_store(x, tile, (at * lanes,))

    def _neighbours(self, left: Plain, place: Place, rows: list[Index]) -> LaneVectors | None:
        """A's elements by vectors, if they are neighbours in memory."""
        b, lanes, words = self.b, self.s.lanes, self.p.a.words

        def at(r: int, k: Index) -> Value:
            if words is not None:
                return words.along_depth(b, place.batch, rows[r], place.first + k, lanes)
            return b.vector_load(left.buffer, left.at(place.batch, rows[r], place.first + k), lanes)

        if words is not None or left.unit_depth:
            return LaneVectors(at, along_depth=True)
        if left.unit_row and isinstance(place.valid_rows, int) and place.rows % lanes == 0:
            return LaneVectors(at, along_depth=False)
        return None

    def _fetch_next(self, place: Place) -> Callable[[Index], None] | None:
        """What an iteration over K does besides: prefetch its share of what is multiplied next, and what the
        epilogue works on."""
        p, s = self.p, self.s
        if not s.ahead:
            return None
        fetch = self._next_panel(place) if p.b.panels is not None else self._next_in_batch(place)

        def ask(iteration: Index) -> None:
            fetch(place.first // s.unroll + iteration)
            if p.touches is not None:
                self.ask_for_epilogue(place, iteration)

        return ask

    def _next_panel(self, place: Place) -> Callable[[Index], None]:
        """A share of B's next panel, which a task's tiles fetch together."""
        b, p, s, panels = self.b, self.p, self.s, self.p.b.panels
        m, n, k = p.m, p.n, p.k
        assert panels is not None and isinstance(m, int) and isinstance(n, int) and isinstance(k, int)
        iterations = max(1, k // s.unroll)
        total = -(-min(m, s.task_rows) // s.rows) * iterations
        tile = place.i % s.task_rows // s.rows
        following = (place.j // panels.width + 1) % -(-n // panels.width)
        vectors = panels.width // s.lanes
        each = -(-k * vectors // total)

        def ask(iteration: Index) -> None:
            number = (tile * iterations + iteration) * each
            for at in range(each):
                deep, v = (number + at) // vectors, (number + at) % vectors
                where = panels.at(place.batch, following, deep, v * s.lanes)
                b.prefetch(panels.buffer, where, locality=2)

        return ask

    def _next_in_batch(self, place: Place) -> Callable[[Index], None]:
        """A share of the next batch element's operands."""
        p, s = self.p, self.s
        m, n, k = p.m, p.n, p.k
        assert isinstance(m, int) and isinstance(n, int) and isinstance(k, int)
        iterations = max(1, k // s.unroll)
        across = -(-n // s.columns)
        total = -(-m // s.rows) * across * iterations
        tile = place.i // s.rows * across + place.j // s.columns
        axis = max(axis for axis, extent in enumerate(p.batch) if extent != 1)
        batch = [at + 1 if number == axis else at for number, at in enumerate(place.batch)]

        def ask(iteration: Index) -> None:
            for operand, extent in ((p.a, m), (p.b, n)):
                if operand.plain is not None:
                    self._ask(operand.plain, batch, extent, tile * iterations + iteration, total)

        return ask

    def _ask(self, plain: Plain, batch: Batch, extent: int, number: Index, total: int) -> None:
        """Part `number`, of `total`, of a matrix's lines."""
        k = self.p.k
        assert isinstance(k, int)
        line = 64 // plain.element.itemsize
        wide = -(-(k if plain.unit_depth else extent) // line)
        lines = wide * (extent if plain.unit_depth else k)
        for more in range(-(-lines // total)):
            at = number * lines // total + more
            far, near = at // wide, at % wide * line
            row, deep = (far, near) if plain.unit_depth else (near, far)
            self.b.prefetch(plain.buffer, plain.at(batch, row, deep), locality=2)
