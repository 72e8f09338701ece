"""The scheme *packed*: blocks of K; both operands packed into the workspace, by all tasks together, then tiles.

After K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from collections.abc import Callable

from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.lowering.contraction_emitter import Buffer, Value
from flambeau.compiler.lowering.contraction_packing import Packer, Panel
from flambeau.compiler.lowering.contraction_problem import Batch, Operand, Plain, ceil_div
from flambeau.compiler.lowering.contraction_tiles import (
    Layout,
    Place,
    Tiles,
    has_blocks,
    panel_reader,
    relative,
)
from flambeau.compiler.lowering.microkernel import LaneVectors
from flambeau.compiler.lowering.words import multiply_add, ones
from flambeau.compiler.targets.dots import DotInstruction

#: Bytes of a row that a packing task copies before it goes on to the next, where rows are neighbours in memory.
PACKED_RUN = 1024
#: So that threads get equal parts of few panels, their depth is shared too.
PACKED_DEPTH = 64


class Packed(Tiles):
    """The scheme *packed*: per batch element and block of K, pack both operands, then multiply."""

    def emit(self) -> None:
        p = self.p
        self.layout = layout = Layout(p, self.s)
        if layout.keeps_sums:
            self.partial = relative(self.workspace, p, 0, -layout.sums, p.n)
        self._batches([], list(p.batch))

    def _batches(self, batch: list[Index], left: list[Index]) -> None:
        if left:
            self.b.for_(0, left[0], 1, lambda at, _: self._batches([*batch, at], left[1:]))
            return
        across = self.layout.across
        if across is None:
            self.k_blocks(lambda first, depth: self._block(batch, first, depth, 0, self.p.n, True))
            return
        if has_blocks(self.p, self.s):
            self.b.for_(0, self.p.n, across, lambda j, _: self._stripe(batch, j, across))
            return
        self._pack_a(batch, 0, self.p.k)
        self.b.for_(
            0,
            self.p.n,
            across,
            lambda j, _: self._block(batch, 0, self.p.k, j, self._reach(j, across), False),
        )

    def _stripe(self, batch: Batch, j: Index, across: int) -> None:
        """All of K for some columns, whose sums stay in the cache meanwhile."""
        end = self._reach(j, across)
        self.k_blocks(lambda first, depth: self._block(batch, first, depth, j, end, True))

    def _reach(self, j: Index, across: int) -> Index:
        n = self.p.n
        return j + across if isinstance(n, int) and n % across == 0 else minimum(j + across, n)

    def _pack_a(self, batch: Batch, first: Index, depth: Index) -> None:
        self._pack(self.p.a, batch, self.layout.a, self.s.rows, 0, self.p.m, first, depth)
        dot = self.p.dot
        if dot is not None and dot.correction and dot.by_rows:
            self._correct(dot, self.s.rows, self.layout.a, self.p.m, depth)

    def _block(
        self, batch: Batch, first: Index, depth: Index, left: Index, right: Index, pack_a: bool
    ) -> None:
        """K from `first`, columns from `left` to below `right`."""
        p, s = self.p, self.s
        if p.b.panels is None:
            self._pack(p.b, batch, self.layout.b, s.columns, left, right, first, depth)
            if p.dot is not None and p.dot.correction:
                self._correct(p.dot, s.columns, self.layout.b, right - left, depth)
        if pack_a:
            self._pack_a(batch, first, depth)

        # Threads take contiguous parts of the tasks: the larger operand's order lets each use what it packed itself.
        by_rows = isinstance(p.m, int) and isinstance(p.n, int) and p.m > p.n
        down, across = ceil_div(p.m, s.task_rows), ceil_div(right - left, s.task_columns)

        def task(at: list[Index]) -> None:
            tile = self.tile_buffer()
            im, jn = at if by_rows else at[::-1]
            i0, j0 = im * s.task_rows, left + jn * s.task_columns
            i1, j1 = minimum(i0 + s.task_rows, p.m), minimum(j0 + s.task_columns, right)

            def row(i: Index, _: list[Value]) -> None:
                self.b.for_(j0, j1, s.columns, lambda j, _: self._tile(batch, i, j, left, first, depth, tile))

            self.b.for_(i0, i1, s.rows, row)

        self.b.parallel([down, across] if by_rows else [across, down], task)

    def _correct(self, dot: DotInstruction, width: int, packed: Index, extent: Index, depth: Index) -> None:
        """What the sums of `extent` rows or columns, packed in panels of `width`, start from."""
        b, s, p, workspace, layout = self.b, self.s, self.p, self.workspace, self.layout
        builder, vectors = b.builder, -(-width // s.lanes)

        def panel(at: list[Index]) -> None:
            one = ones(builder, s.lanes)
            start = packed + at[0] * (width * s.block_k)

            def step(k: Index, sums: list[Value]) -> list[Value]:
                found = []
                for v in range(vectors):
                    # Of a panel narrower than a vector, neighbours are read and not used.
                    word = b.vector_load(workspace, (start + k * width + v * s.lanes,), s.lanes)
                    x, y = (word, one) if dot.by_rows else (one, word)
                    found.append(multiply_add(builder, x, y, sums[v], dot, p.accumulator))
                return found

            sums = b.for_(0, depth, 1, step, [b.zero(p.accumulator, s.lanes)] * vectors)
            for v, x in enumerate(sums):
                correction = builder.imul(x, builder.const("i32", dot.correction))
                rest = width - v * s.lanes
                mask = None if rest >= s.lanes else b.mask(rest, s.lanes)
                place = layout.corrections + at[0] * width + v * s.lanes
                b.vector_store(correction, workspace, (place,), mask)

        b.parallel([ceil_div(extent, width)], panel)

    def _start(self, i: Index, j: Index, packed_from: Index) -> list[Value] | None:
        """What the sums of a tile start from; None for zeros."""
        b, s, dot = self.b, self.s, self.p.dot
        if dot is None or not dot.correction:
            return None
        at = self.layout.corrections
        if dot.by_rows:
            rows = [b.splat(b.load(self.workspace, (at + i + r,)), s.lanes) for r in range(s.rows)]
            return [x for x in rows for _ in range(s.vectors)]
        columns = at + (j - packed_from)
        start = [b.vector_load(self.workspace, (columns + v * s.lanes,), s.lanes) for v in range(s.vectors)]
        return start * s.rows

    def _pack(
        self,
        operand: Operand,
        batch: Batch,
        start: Index,
        width: int,
        low: Index,
        high: Index,
        first: Index,
        depth: Index,
    ) -> None:
        """Rows [low, high) of an operand as panels of `width` rows, by parallel tasks. `low` is a multiple of `width`."""
        s, p = self.s, self.p
        packer = Packer(self.b, operand, p.accumulator, s.lanes, p.inner)
        extent = high - low
        panels = ceil_div(extent, width)
        # Where rows are neighbours in memory, several panels share the cache lines and pages that a task walks through.
        plain = operand.plain
        group = max(1, PACKED_RUN // (width * p.accumulator.itemsize)) if plain and plain.unit_row else 1

        def panel(number: Index, rows: Index) -> Panel:
            offset = start + number * (width * s.block_k)
            return Panel(self.workspace, offset, width, low + number * width, rows, first, depth)

        def partial(number: Index, _: list[Value]) -> None:
            packer.pack(batch, panel(number, left_of(extent, number * width, width)))

        def several(at: list[Index]) -> None:
            begin, end = at[0] * group, minimum(at[0] * group + group, extent // width)
            upper = at[1] * PACKED_DEPTH

            def depths(k: Index, _: list[Value]) -> None:
                self.b.for_(begin, end, 1, lambda n, _: packer.copy_row(batch, panel(n, width), k))

            self.b.for_(upper, minimum(upper + PACKED_DEPTH, depth), 1, depths)

        if group > 1:
            if extent // width != 0:
                self.b.parallel([ceil_div(extent // width, group), ceil_div(depth, PACKED_DEPTH)], several)
            if not (isinstance(extent, int) and extent % width == 0):
                self.b.for_(extent // width, panels, 1, partial)
        else:
            self.b.parallel([panels], lambda at: partial(at[0], []))

    def _tile(
        self,
        batch: Batch,
        i: Index,
        j: Index,
        packed_from: Index,
        first: Index,
        depth: Index,
        tile: Buffer | None,
    ) -> None:
        b, p, s, workspace = self.b, self.p, self.s, self.workspace
        rows, columns = left_of(p.m, i, s.rows), left_of(p.n, j, s.columns)
        place = Place(batch, i, s.rows, rows, j, s.vectors, columns, first, depth)
        left = self.layout.a + i * s.block_k
        right = self.layout.b + (j - packed_from) * s.block_k
        in_panels = None if p.b.panels is None else panel_reader(b, p.b.panels, place, s.lanes)

        def a_at(r: int, k: Index) -> Value:
            return b.load(workspace, (left + k * s.rows + r,))

        def b_at(v: int, k: Index) -> Value:
            if in_panels is not None:
                return in_panels(v, k)
            return b.vector_load(workspace, (right + k * s.columns + v * s.lanes,), s.lanes)

        meanwhile = None
        if s.ahead and p.b.plain is not None:
            meanwhile = self._fetch(p.b.plain, batch, i, j, packed_from, first, depth)
        # Behind the last panel's last row lie as many elements as a vector has.
        rows_of = LaneVectors(
            lambda r, k: b.vector_load(workspace, (left + k * s.rows + r,), s.lanes), along_depth=False
        )
        start = self._start(i, j, packed_from)
        self.finish(place, self.multiply(place, a_at, b_at, meanwhile, start, rows_of), tile)

    def _fetch(
        self, plain: Plain, batch: Batch, i: Index, j: Index, left: Index, first: Index, depth: Index
    ) -> Callable[[Index], None]:
        """Prefetches of B's next block of K, or of the next columns' first, where columns are neighbours in memory: each tile
        asks for its share of the lines."""
        p, s, b = self.p, self.s, self.b
        line = 64 // plain.element.itemsize
        wide = -(-s.across // line)
        iterations = s.block_k // s.unroll
        tiles = s.across // s.columns * (s.task_rows // s.rows)
        each = -(-wide * s.block_k // (tiles * iterations))
        number = ((j - left) // s.columns * (s.task_rows // s.rows) + i // s.rows) * iterations
        # 1 in the last block of K, else 0.
        last = (first + depth) // p.k
        row, k = left + last * s.across, (first + depth) - last * p.k

        def ask(iteration: Index) -> None:
            for at in range(each):
                place = (number + iteration) * each + at
                n, deep = row + place % wide * line, k + place // wide
                b.prefetch(plain.buffer, plain.at(batch, n, deep), locality=2)

        return ask


def left_of(extent: Index, start: Index, tile: int) -> Index:
    """What is left of `extent` from `start` on, or `tile` if tiles divide it."""
    return tile if isinstance(extent, int) and extent % tile == 0 else extent - start
