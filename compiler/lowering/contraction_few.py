"""Few rows of A against a B that comes from memory: B is read once, where it lies, and not packed.

The register tile lies on its side: its vectors run along M, over panels of A that are packed before, and it broadcasts
elements of B. So every element of B is used for many rows when it arrives. The sums, columns side by side, are kept in the
workspace and transposed in registers when all of K is done. While a tile is computed, its successor's lines are fetched to L2:
the hardware does not foresee many short pieces of memory.
"""

from __future__ import annotations

from collections.abc import Callable

from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.lowering.contraction_emitter import Buffer, Value
from flambeau.compiler.lowering.contraction_packing import Packer, Panel
from flambeau.compiler.lowering.contraction_problem import Batch, Contraction, Plain, ceil_div
from flambeau.compiler.lowering.contraction_tiles import Place, Tiles, has_blocks
from flambeau.compiler.lowering.microkernel import LaneVectors, outer_product_tile, transpose
from flambeau.compiler.schedule.cpu_contraction import ContractionSchedule

#: K that one task packs of A.
PACKED_DEPTH = 128
#: Bytes of a row of B between the column that is computed and the one that is fetched.
FETCHED_AHEAD = 768
#: Groups of rows from which on they are a loop.
MANY = 3


class FewLayout:
    """Offsets in the workspace: A in panels of `wide` rows, all of K each, then the sums, `height` for each column."""

    def __init__(self, p: Contraction, s: ContractionSchedule) -> None:
        assert isinstance(p.m, int)
        self.groups: int = -(-p.m // s.columns)
        self.wide: int = s.columns
        self.height: int = self.groups * self.wide
        self.sums: Index = p.k * self.height
        # Tiles, and squares that are transposed, may reach past the last column.
        self.size: Index = self.sums + (ceil_div(p.n, s.task_columns) * s.task_columns) * self.height


class Few(Tiles):
    """The scheme *few*."""

    def emit(self) -> None:
        self.layout = FewLayout(self.p, self.s)
        self._batches([], list(self.p.batch))

    def _batches(self, batch: list[Index], left: list[Index]) -> None:
        if left:
            self.b.for_(0, left[0], 1, lambda at, _: self._batches([*batch, at], left[1:]))
            return
        self._pack(batch)
        tasks = ceil_div(self.p.n, self.s.task_columns)
        self.b.parallel([tasks], lambda at: self._task(batch, at[0] * self.s.task_columns))

    def _pack(self, batch: Batch) -> None:
        p, layout = self.p, self.layout
        packer = Packer(self.b, p.a, p.accumulator, self.s.lanes, p.inner)

        def part(at: list[Index]) -> None:
            first = at[0] * PACKED_DEPTH
            even = isinstance(p.k, int) and p.k % PACKED_DEPTH == 0
            depth = PACKED_DEPTH if even else minimum(p.k - first, PACKED_DEPTH)

            def group(number: Index, rows: int) -> None:
                start = (number * p.k + first) * layout.wide
                row = number * layout.wide
                packer.pack(batch, Panel(self.workspace, start, layout.wide, row, rows, first, depth))

            self._each(p.m, layout.wide, group)

        self.b.parallel([ceil_div(p.k, PACKED_DEPTH)], part)

    def _each(self, m: Index, wide: int, body: Callable[[Index, int], None]) -> None:
        """`body(number, rows)` for each `wide` rows of `m`; a loop, where they are many: LLVM takes long enough for one."""
        assert isinstance(m, int)
        whole = m // wide
        if whole < MANY:
            for number in range(whole):
                body(number, wide)
        else:
            self.b.for_(0, whole, 1, lambda at, _: body(at, wide))
        if m % wide:
            body(whole, m % wide)

    def _task(self, batch: Batch, left: Index) -> None:
        b, p, s, layout = self.b, self.p, self.s, self.layout
        right = left + s.task_columns if p.n % s.task_columns == 0 else minimum(left + s.task_columns, p.n)
        blocks = has_blocks(p, s)
        if blocks:
            zero, begin = b.zero(p.accumulator, s.lanes), layout.sums + left * layout.height
            count = s.task_columns * layout.height
            b.for_(0, count, s.lanes, lambda at, _: b.vector_store(zero, self.workspace, (begin + at,)))

        def block(first: Index, depth: Index) -> None:
            b.for_(left, right, s.rows, lambda j, _: self._tile(batch, left, j, first, depth, blocks))

        self.k_blocks(block)
        tile = b.alloca((s.lanes * s.lanes,), p.accumulator)
        b.for_(left, right, s.lanes, lambda j, _: self._store(batch, j, tile))

    def _tile(self, batch: Batch, left: Index, j: Index, first: Index, depth: Index, blocks: bool) -> None:
        """`rows` columns of the result, all rows; `depth` of K from `first`."""
        b, p, s, layout = self.b, self.p, self.s, self.layout
        plain = p.b.plain
        assert plain is not None
        even = isinstance(p.n, int) and p.n % s.rows == 0
        columns = [j + c if even else minimum(j + c, p.n - 1) for c in range(s.rows)]

        def b_element(c: Index, k: Index) -> Value:
            assert isinstance(c, int)
            return b.load(plain.buffer, plain.at(batch, columns[c], first + k))

        neighbours = None
        if s.by_lane and plain.unit_depth:
            along = lambda c, k: b.vector_load(plain.buffer, plain.at(batch, columns[c], first + k), s.lanes)  # noqa: E731
            neighbours = LaneVectors(along, along_depth=True)
        fetch = self._successor(plain, batch, left, j, first, s.block_k if blocks else 0)

        def group(number: Index, fetches: bool) -> None:
            panel = (number * p.k + first) * layout.wide

            def a_vector(v: int, k: Index) -> Value:
                return b.vector_load(self.workspace, (panel + k * layout.wide + v * s.lanes,), s.lanes)

            sums = outer_product_tile(
                b,
                p.accumulator,
                s.lanes,
                s.rows,
                s.vectors,
                depth,
                b_element,
                a_vector,
                s.unroll,
                fetch if fetches else None,
                neighbours=neighbours,
            )
            for at, x in enumerate(sums):
                c, v = divmod(at, s.vectors)
                place = (layout.sums + (j + c) * layout.height + number * layout.wide + v * s.lanes,)
                if blocks:
                    x = b.add(x, b.vector_load(self.workspace, place, s.lanes), p.accumulator)
                b.vector_store(x, self.workspace, place)

        group(0, True)
        if layout.groups > MANY:
            b.for_(1, layout.groups, 1, lambda at, _: group(at, False))
            return
        for number in range(1, layout.groups):
            group(number, False)

    def _successor(
        self, plain: Plain, batch: Batch, left: Index, j: Index, first: Index, block: int
    ) -> Callable[[Index], None]:
        """What an iteration over K fetches: some lines that a later tile reads, or the next block of K at the end of a row."""
        b, p, s = self.b, self.p, self.s
        line = 64 // plain.element.itemsize
        if not plain.unit_row:
            each = -(-s.rows * s.unroll // line)

            def rows(iteration: Index) -> None:
                for at in range(each):
                    number = iteration * each + at
                    at_row, at_k = j + s.rows + number % s.rows, first + number // s.rows * line
                    b.prefetch(plain.buffer, plain.at(batch, at_row, at_k), locality=2)

            return rows
        ahead = min(FETCHED_AHEAD // plain.element.itemsize, s.task_columns)
        past = (j + ahead - left) // s.task_columns  # 1 at the row's end, else 0
        column = b.symbol(j + ahead - past * s.task_columns, 0, p.n + ahead)
        row = b.symbol(first + past * block, 0, p.k + block)

        def columns(iteration: Index) -> None:
            for u in range(s.unroll):
                at = plain.at(batch, column, row + iteration * s.unroll + u)
                b.prefetch(plain.buffer, at, locality=2)

        return columns

    def _store(self, batch: Batch, j: Index, tile: Buffer) -> None:
        """The epilogue of `lanes` columns: squares of the sums, transposed."""
        b, p, lanes, layout = self.b, self.p, self.s.lanes, self.layout
        assert isinstance(p.m, int)
        valid = lanes if isinstance(p.n, int) and p.n % lanes == 0 else p.n - j

        def square(number: Index, rows: int) -> None:
            i = number * lanes
            columns = [
                b.vector_load(self.workspace, (layout.sums + (j + c) * layout.height + i,), lanes)
                for c in range(lanes)
            ]
            place = Place(batch, i, rows, rows, j, 1, valid, 0, p.k)
            self.epilogue(place, transpose(b, columns)[:rows], tile, 0)

        self._each(p.m, lanes, square)
