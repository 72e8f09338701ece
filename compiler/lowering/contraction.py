"""The contraction template: matrix products and convolutions, forward and gradients, as loops.

The operands are read through element functions or, where they simply lie in memory, directly; the result leaves
through an epilogue. Five schemes, chosen by `schedule.cpu_contraction`:

- *direct*: both operands as they lie, register tiles over M and N;
- *panel*: a panel of B is packed on the stack by each task, A as it lies;
- *dot*: both operands have K along memory and one of M and N is small: vectors run along K;
- *few*: A packed, few rows, and a large B, which is read once, as it lies (`contraction_few.py`);
- *packed*: blocks of K; both operands packed into the workspace, by all tasks together, then tiles.

A B that lies in panels already (a weight) is read from there, in the schemes *direct* and *packed*.

After K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flambeau.compiler.ir.dims import Dim, Index, minimum
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter, Value
from flambeau.compiler.lowering.contraction_few import Few, FewLayout
from flambeau.compiler.lowering.contraction_packing import Packer, Panel
from flambeau.compiler.lowering.contraction_problem import (
    Batch,
    Contraction,
    Operand,
    Panels,
    Plain,
    ceil_div,
    exchanged,
)
from flambeau.compiler.lowering.contraction_tiles import (
    Layout,
    Place,
    Tiles,
    has_blocks,
    product_of,
    relative,
    span,
)
from flambeau.compiler.lowering.microkernel import dot_tile
from flambeau.compiler.lowering.words import in_words, multiply_add, ones
from flambeau.compiler.schedule.cpu_contraction import (
    Chooser,
    ContractionSchedule,
    CpuShape,
    OperandFacts,
    choose,
)
from flambeau.compiler.targets.dots import DotInstruction

#: Bytes of a row that a packing task copies before it goes on to the next, where rows are neighbours in memory.
PACKED_RUN = 1024
#: So that threads get equal parts of few panels, their depth is shared too.
PACKED_DEPTH = 64
#: How many k ahead a panel's lines are asked for: some kilobytes, the time that memory needs.
FORESEEN = 128
#: Arrays that an epilogue works on from which on it is long.
LATE_ARRAYS = 4


def schedule_of(
    problem: Contraction, cpu: CpuShape, chooser: Chooser = choose
) -> tuple[Contraction, ContractionSchedule]:
    """The problem, its operands exchanged where that helps, and its schedule."""
    a, b = _facts(problem, problem.a), _facts(problem, problem.b)
    if problem.n == 1 and problem.m != 1 and not (a.plain and a.unit_depth):
        problem, a, b = exchanged(problem), b, a
    dot = problem.dot
    k = problem.k if dot is None else ceil_div(problem.k, dot.group)
    batched = any(extent != 1 for extent in problem.batch)
    schedule = chooser(problem.m, problem.n, k, problem.accumulator, a, b, cpu, batched, dot is not None)
    if b.panel != schedule.columns:  # another machine's panels: read as any other element function
        problem = replace(problem, b=replace(problem.b, panels=None))
    if dot is not None:
        if problem.b.panels is not None and problem.b.panels.flip:
            problem = replace(problem, dot=dot.with_flipped_b())
        problem = in_words(problem)
    return problem, schedule


def _facts(problem: Contraction, operand: Operand) -> OperandFacts:
    plain = operand.plain
    if plain is None:
        width = 0 if operand.panels is None else operand.panels.width
        return OperandFacts(False, False, False, width)
    # Without a loss of time only words that need no change, and without a mask only whole ones.
    dot, k = problem.dot, problem.k
    whole = dot is not None and isinstance(k, int) and k % dot.group == 0 and not dot.flip
    in_words = whole and plain.unit_depth and dot is not None and plain.element.bits == dot.piece.bits
    return OperandFacts(
        plain.element is problem.accumulator, plain.unit_row, plain.unit_depth, in_words=in_words
    )


def workspace_elements(problem: Contraction, cpu: CpuShape, chooser: Chooser = choose) -> Index:
    """How many elements of the accumulator's type `emit` needs as workspace, aligned to 64 bytes; 0 for none."""
    problem, s = schedule_of(problem, cpu, chooser)
    if s.scheme == "few":
        return FewLayout(problem, s).size
    return Layout(problem, s).size if s.scheme == "packed" else 0


def emit(
    b: Emitter,
    problem: Contraction,
    cpu: CpuShape,
    workspace: Buffer | None = None,
    chooser: Chooser = choose,
) -> ContractionSchedule:
    """Emit the loops of `problem`; returns the schedule that was used.

    `workspace`: a one-dimensional buffer of `workspace_elements` elements, if there are any. Not inside a parallel
    body: the scheme *packed* runs one parallel loop after another.
    """
    problem, s = schedule_of(problem, cpu, chooser)
    if 0 in (*problem.batch, problem.m, problem.n):
        return s  # an empty result
    if s.scheme == "dot":
        _Dot(b, problem, s).emit()
    elif s.scheme == "few":
        Few(b, problem, s, workspace).emit()
    elif s.scheme == "packed":
        _Packed(b, problem, s, workspace).emit()
    else:
        _Direct(b, problem, s, workspace).emit()
    return s


#: ``at(row or column, k, mask)``: a vector along K.
AlongDepth = Callable[[int, Index, "Value | None"], Value]


class _Direct(Tiles):
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
        in_panels = None if panels is None else panel_reader(b, panels, place, lanes)
        masks = [self.column_mask(place.valid_columns, v) for v in range(place.vectors)]
        rows = _existing(place.i, place.rows, place.valid_rows)

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

        if late_from is None:
            self.finish(place, self.multiply(place, a_at, b_at), tile)
            return
        before, count = place.moved(-s.rows), place.rows * place.vectors

        def meanwhile(number: Index) -> None:
            self.ask_for_epilogue(place, number)

            def finish_before() -> None:
                b.if_equal(
                    minimum(number, count - 1), number, lambda: self.epilogue_of_vector(before, tile, number)
                )

            b.if_equal(place.i, late_from, lambda: None, finish_before)

        for at, x in enumerate(self.multiply(place, a_at, b_at, meanwhile)):
            b.vector_store(x, tile, (at * lanes,))


class _Packed(Tiles):
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
            packer.pack(batch, panel(number, _left(extent, number * width, width)))

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
        rows, columns = _left(p.m, i, s.rows), _left(p.n, j, s.columns)
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
        start = self._start(i, j, packed_from)
        self.finish(place, self.multiply(place, a_at, b_at, meanwhile, start), tile)

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


class _Dot:
    """The scheme *dot*."""

    def __init__(self, b: Emitter, problem: Contraction, s: ContractionSchedule) -> None:
        self.b, self.p, self.s = b, problem, s

    def emit(self) -> None:
        p, s = self.p, self.s
        self.b.parallel([*p.batch, ceil_div(p.m, s.task_rows), ceil_div(p.n, s.task_columns)], self._task)

    def _task(self, at: list[Index]) -> None:
        b, p, s = self.b, self.p, self.s
        symbolic = isinstance(p.m, Dim) or isinstance(p.n, Dim)
        tile = b.alloca((s.rows * s.vectors,), p.accumulator) if symbolic else None

        def columns(j: Index, width: int, right: Index) -> None:
            def rows(i: Index, height: int, left: Index) -> None:
                self._tile(at[:-2], i, height, left, j, width, right, tile)

            span(b, p.m, at[-2], s.task_rows, s.rows, rows)

        span(b, p.n, at[-1], s.task_columns, s.vectors, columns)

    def _reader(self, operand: Operand, batch: Batch, rows: list[Index], foresee: int = 0) -> AlongDepth:
        plain, words = operand.plain, operand.words
        assert plain is not None

        def read(r: int, k: Index, mask: Value | None) -> Value:
            if foresee:
                self.b.prefetch(plain.buffer, plain.at(batch, rows[r] + foresee, k), locality=2)
            if words is not None:
                return words.along_depth(self.b, batch, rows[r], k, self.s.lanes, mask is not None)
            return self.b.vector_load(plain.buffer, plain.at(batch, rows[r], k), self.s.lanes, mask)

        return read

    def _tile(
        self,
        batch: Batch,
        i: Index,
        rows: int,
        valid_rows: Index,
        j: Index,
        columns: int,
        valid_columns: Index,
        tile: Buffer | None,
    ) -> None:
        b, p, s = self.b, self.p, self.s
        a_at = self._reader(p.a, batch, _existing(i, rows, valid_rows))
        b_at = self._reader(p.b, batch, _existing(j, columns, valid_columns), s.foresee)
        sums = self._sums(rows, columns, a_at, b_at)
        if tile is None:
            for at, x in enumerate(sums):
                p.store(b.builder, batch, i + at // columns, j + at % columns, x)
            return
        for at, x in enumerate(sums):
            b.store(x, tile, (at,))

        def one(r: Index, c: Index) -> None:
            p.store(b.builder, batch, i + r, j + c, b.load(tile, (r * columns + c,)))

        def row(r: Index, _: list[Value]) -> None:
            b.for_(0, minimum(valid_columns, columns), 1, lambda c, _: one(r, c))

        b.for_(0, minimum(valid_rows, rows), 1, row)

    def _sums(self, rows: int, columns: int, a_at: AlongDepth, b_at: AlongDepth) -> list[Value]:
        """The tile's sums. What an instruction needs as a correction is the product of one more row, of ones."""
        b, p, s, dot = self.b, self.p, self.s, self.p.dot
        whole = None if p.a.words is None else p.a.words.whole
        corrects = dot is not None and dot.correction != 0

        def left(r: int, k: Index, mask: Value | None) -> Value:
            return ones(b.builder, s.lanes) if r == rows else a_at(r, k, mask)

        sums = dot_tile(
            b,
            p.accumulator,
            s.lanes,
            rows + corrects,
            columns,
            p.k,
            left,
            b_at,
            s.unroll,
            whole,
            product_of(b, p),
        )
        if not corrects:
            return sums
        assert dot is not None
        builder = b.builder
        offsets = [builder.imul(x, builder.const("i32", dot.correction)) for x in sums[rows * columns :]]
        return [builder.iadd(x, offsets[at % columns]) for at, x in enumerate(sums[: rows * columns])]


def panel_reader(b: Emitter, panels: Panels, place: Place, lanes: int) -> Callable[[int, Index], Value]:
    """Vectors of the panel at the place's column, for k from the place's first on."""

    def read(v: int, k: Index) -> Value:
        panel, deep = place.j // panels.width, place.first + k
        b.prefetch(panels.buffer, panels.at(place.batch, panel, deep + FORESEEN, v * lanes), locality=2)
        at = panels.at(place.batch, panel, deep, v * lanes)
        x = b.vector_load(panels.buffer, at, lanes * panels.group)
        return x if panels.word is None else panels.word(b, x)

    return read


def _left(extent: Index, start: Index, tile: int) -> Index:
    """What is left of `extent` from `start` on, or `tile` if tiles divide it."""
    return tile if isinstance(extent, int) and extent % tile == 0 else extent - start


def _existing(start: Index, rows: int, valid: Index) -> list[Index]:
    """Positions of a tile's rows, those past the end replaced by the last."""
    if isinstance(valid, int):
        return [start + r for r in range(rows)]
    return [start + minimum(r, valid - 1) for r in range(rows)]
