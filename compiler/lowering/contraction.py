"""The contraction template: result[batch, m, n] = sum over k of A[batch, m, k] * B[batch, n, k], as loops.

Matrix products and convolutions (forward and gradients) are instances. The operands are read through element
functions or, where they simply lie in memory, directly; the result leaves through an epilogue. Four schemes, chosen
by `schedule.cpu_contraction`:

- *direct*: both operands as they lie, register tiles over M and N;
- *panel*: a panel of B is packed on the stack by each task, A as it lies;
- *dot*: both operands have K along memory and one of M and N is small: vectors run along K;
- *packed*: blocks of K; both operands packed into the workspace, by all tasks together, then tiles.

After K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flambeau.compiler.ir.dims import Dim, Index, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter, Value
from flambeau.compiler.lowering.contraction_packing import Operand, Panel, Plain, pack_panel
from flambeau.compiler.lowering.microkernel import dot_tile, outer_product_tile
from flambeau.compiler.schedule.cpu_contraction import ContractionSchedule, CpuShape, OperandFacts, choose

Store = Callable[[Emitter, Sequence[Index], Index, Index, Value], None]
VectorStore = Callable[[Emitter, Sequence[Index], Index, Index, Value, "Value | None"], None]
Batch = Sequence[Index]


@dataclass(frozen=True)
class Contraction:
    """An abstract contraction.

    `a` is indexed (m, k) and `b` is indexed (n, k), whatever their layouts. `store` is the epilogue of one element;
    `store_vector`, where the epilogue can take consecutive n at once, that of a vector (with an optional mask).
    `partial` is memory, in the accumulator's type and with n along memory, that may hold unfinished sums (the result
    itself, usually); without it the workspace does. `inner` are the sizes of the inner digits of k, if it has any.
    """

    batch: tuple[Index, ...]
    m: Index
    n: Index
    k: Index
    accumulator: ElementType
    a: Operand
    b: Operand
    store: Store
    store_vector: VectorStore | None = None
    partial: Plain | None = None
    inner: tuple[int, ...] = ()


def into_buffer(plain: Plain) -> tuple[Store, VectorStore | None]:
    """`store` and `store_vector` that write sums to `plain` (indexed (m, n)), converted to its element type."""

    def store(b: Emitter, batch: Batch, m: Index, n: Index, value: Value) -> None:
        b.store(b.cast(value, plain.element), plain.buffer, plain.at(batch, m, n))

    def store_vector(b: Emitter, batch: Batch, m: Index, n: Index, value: Value, mask: Value | None) -> None:
        b.vector_store(b.cast(value, plain.element), plain.buffer, plain.at(batch, m, n), mask)

    return store, store_vector if plain.unit_depth else None


def schedule_of(problem: Contraction, cpu: CpuShape) -> tuple[Contraction, ContractionSchedule]:
    """The problem, its operands exchanged where that helps, and its schedule."""
    facts = [_facts(problem, problem.a), _facts(problem, problem.b)]
    if problem.n == 1 and problem.m != 1 and not (facts[0].plain and facts[0].unit_depth):
        problem, facts = _exchanged(problem), facts[::-1]
    p = problem
    return p, choose(p.m, p.n, p.k, p.accumulator, facts[0], facts[1], cpu)


def _facts(problem: Contraction, operand: Operand) -> OperandFacts:
    plain = operand.plain
    if plain is None:
        return OperandFacts(False, False, False)
    return OperandFacts(plain.element is problem.accumulator, plain.unit_row, plain.unit_depth)


def _exchanged(p: Contraction) -> Contraction:
    """A matrix times a column as a row times a matrix."""
    return replace(
        p,
        m=p.n,
        n=p.m,
        a=p.b,
        b=p.a,
        store=lambda b, batch, m, n, value: p.store(b, batch, n, m, value),
        store_vector=None,
        partial=None,
    )


def workspace_elements(problem: Contraction, cpu: CpuShape) -> Index:
    """Elements of the accumulator's type that `emit` needs in its workspace (aligned to 64 bytes); 0 if none."""
    problem, s = schedule_of(problem, cpu)
    return _Layout(problem, s).size if s.scheme == "packed" or _needs_sums(problem, s) else 0


def emit(
    b: Emitter, problem: Contraction, cpu: CpuShape, workspace: Buffer | None = None
) -> ContractionSchedule:
    """Emit the loops of `problem`; returns the schedule that was used."""
    problem, s = schedule_of(problem, cpu)
    if s.scheme == "dot":
        _Dot(b, problem, s).emit()
    elif s.scheme == "packed":
        _Packed(b, problem, s, workspace).emit()
    else:
        _Direct(b, problem, s, workspace).emit()
    return s


def _up(a: Index, b: int) -> Index:
    return (a + b - 1) // b


def _blocks(p: Contraction, s: ContractionSchedule) -> bool:
    """Is K cut into blocks?"""
    return isinstance(p.k, Dim) or (s.block_k > 0 and p.k > s.block_k)


def _needs_sums(p: Contraction, s: ContractionSchedule) -> bool:
    return s.scheme == "packed" and p.partial is None and _blocks(p, s)


class _Layout:
    """Offsets of the packed blocks, and of unfinished sums, in the workspace."""

    def __init__(self, p: Contraction, s: ContractionSchedule) -> None:
        align = 64 // p.accumulator.itemsize
        self.a: Index = 0
        self.b: Index = _up(_up(p.m, s.rows) * (s.rows * s.block_k) + s.lanes, align) * align
        self.sums: Index = self.b + _up(p.n, s.columns) * (s.columns * s.block_k)
        self.size: Index = self.sums + (p.m * p.n if _needs_sums(p, s) else 0)


def span(
    b: Emitter,
    total: Index,
    task: Index,
    size: int,
    tasks: Index,
    tile: int,
    body: Callable[[Index, int, Index], None],
) -> None:
    """Tiles of one task's part, [task * size, (task + 1) * size) of `total`.

    ``body(position, extent, valid)``: `extent` is static, at most `tile`; `valid` is `extent` unless the total is
    symbolic, when it is what is left of the total.
    """
    start = task * size
    if isinstance(total, Dim):
        b.for_(start, minimum(start + size, total), tile, lambda i, _: body(i, tile, total - i))
        return
    whole = total // tile * tile
    stop: Index = minimum(start + size, whole)
    if isinstance(stop, int) and isinstance(start, int) and stop - start == tile:
        body(start, tile, tile)
    elif whole:
        b.for_(start, stop, tile, lambda i, _: body(i, tile, tile))
    if whole == total:
        return
    if tasks == 1:
        body(whole, total - whole, total - whole)
        return
    b.if_equal(task, tasks - 1, lambda: body(whole, total - whole, total - whole))


class _Tiles:
    """What the outer-product schemes share: one register tile, from reading A and B to the epilogue."""

    def __init__(
        self, b: Emitter, problem: Contraction, s: ContractionSchedule, workspace: Buffer | None
    ) -> None:
        self.b, self.p, self.s = b, problem, s
        self.workspace = workspace
        self.partial = problem.partial
        if _needs_sums(problem, s):
            sums = _Layout(problem, s).sums
            self.partial = Plain(
                workspace, problem.accumulator, lambda _, m, n: (sums + m * problem.n + n,), unit_depth=True
            )

    def multiply(
        self,
        rows: int,
        vectors: int,
        depth: Index,
        a_at: Callable[[int, Index], Value],
        b_at: Callable[[int, Index], Value],
    ) -> list[Value]:
        return outer_product_tile(
            self.b, self.p.accumulator, self.s.lanes, rows, vectors, depth, a_at, b_at, self.s.unroll
        )

    def finish(
        self,
        batch: Batch,
        sums: list[Value],
        i: Index,
        rows: int,
        valid_rows: Index,
        j: Index,
        vectors: int,
        valid_columns: Index,
        first: Index,
        depth: Index,
        tile: Buffer | None,
    ) -> None:
        """Add what earlier blocks of K left, and write unfinished sums or run the epilogue."""
        full = isinstance(valid_rows, int) and valid_rows >= rows
        if full:
            self._finish(batch, sums, i, rows, rows, j, vectors, valid_columns, first, depth, tile)
            return
        self.b.if_equal(
            minimum(valid_rows, rows),
            rows,
            lambda: self._finish(batch, sums, i, rows, rows, j, vectors, valid_columns, first, depth, tile),
            lambda: self._finish(
                batch, sums, i, rows, valid_rows, j, vectors, valid_columns, first, depth, tile
            ),
        )

    def _finish(
        self,
        batch: Batch,
        sums: list[Value],
        i: Index,
        rows: int,
        valid_rows: Index,
        j: Index,
        vectors: int,
        valid_columns: Index,
        first: Index,
        depth: Index,
        tile: Buffer | None,
    ) -> None:
        b, lanes, width = self.b, self.s.lanes, vectors * self.s.lanes
        masks = [self._mask(valid_columns, v) for v in range(vectors)]
        full = isinstance(valid_rows, int) and valid_rows >= rows
        whole = not _blocks(self.p, self.s)
        if full and (whole or self.partial is not None) and (not whole or self.p.store_vector is not None):
            self._rows(
                batch,
                [sums[r * vectors : (r + 1) * vectors] for r in range(rows)],
                i,
                j,
                masks,
                first,
                depth,
                valid_columns,
                tile,
            )
            return
        assert tile is not None
        for r in range(rows):
            for v in range(vectors):
                b.vector_store(sums[r * vectors + v], tile, (r * width + v * lanes,))

        def one_row(r: Index, _: list[Value]) -> None:
            if self.p.store_vector is not None or not whole:
                row = [b.vector_load(tile, (r * width + v * lanes,), lanes) for v in range(vectors)]
                self._rows(batch, [row], i + r, j, masks, first, depth, valid_columns, None, r * width, tile)
                return
            self._elements(batch, i + r, j, valid_columns, width, tile, r * width)

        b.for_(0, rows if full else minimum(valid_rows, rows), 1, one_row)

    def _elements(
        self, batch: Batch, row: Index, j: Index, valid_columns: Index, width: int, tile: Buffer, start: Index
    ) -> None:
        b = self.b
        stop = minimum(valid_columns, width)
        b.for_(0, stop, 1, lambda c, _: self.p.store(b, batch, row, j + c, b.load(tile, (start + c,))))

    def _mask(self, valid: Index, vector: int) -> Value | None:
        lanes = self.s.lanes
        if isinstance(valid, int) and valid >= (vector + 1) * lanes:
            return None
        return self.b.mask(valid - vector * lanes, lanes)

    def _rows(
        self,
        batch: Batch,
        rows: list[list[Value]],
        i: Index,
        j: Index,
        masks: list[Value | None],
        first: Index,
        depth: Index,
        valid_columns: Index,
        tile: Buffer | None,
        start: Index = 0,
        row_tile: Buffer | None = None,
    ) -> None:
        """Vectors of whole rows: add earlier blocks; then the epilogue in the last block, else keep the sums."""
        b, lanes, partial = self.b, self.s.lanes, self.partial
        whole = not _blocks(self.p, self.s)
        if not whole:
            assert partial is not None
            # In the first block the masks are empty, so nothing is read and zeros are added.
            later = minimum(first, 1)
            reach = [
                b.mask(minimum(valid_columns - v * lanes, lanes) * later, lanes) for v in range(len(masks))
            ]
            rows = [
                [
                    b.add(
                        x,
                        b.vector_load(
                            partial.buffer, partial.at(batch, i + r, j + v * lanes), lanes, reach[v]
                        ),
                    )
                    for v, x in enumerate(row)
                ]
                for r, row in enumerate(rows)
            ]

        def keep() -> None:
            assert partial is not None
            for r, row in enumerate(rows):
                for v, x in enumerate(row):
                    b.vector_store(x, partial.buffer, partial.at(batch, i + r, j + v * lanes), masks[v])

        def epilogue() -> None:
            if self.p.store_vector is not None:
                for r, row in enumerate(rows):
                    for v, x in enumerate(row):
                        self.p.store_vector(b, batch, i + r, j + v * lanes, x, masks[v])
                return
            buffer = tile if row_tile is None else row_tile
            width = len(masks) * lanes
            for r, row in enumerate(rows):
                for v, x in enumerate(row):
                    b.vector_store(x, buffer, (start + r * width + v * lanes,))
            b.for_(
                0,
                len(rows),
                1,
                lambda r, _: self._elements(batch, i + r, j, valid_columns, width, buffer, start + r * width),
            )

        if whole:
            epilogue()
            return
        b.if_equal(first + depth, self.p.k, epilogue, keep)

    def k_blocks(self, body: Callable[[Index, Index], None]) -> None:
        """`body(first, depth)` for each block of K."""
        k, block = self.p.k, self.s.block_k
        if not _blocks(self.p, self.s):
            body(0, k)
            return
        even = isinstance(k, int) and k % block == 0
        self.b.for_(0, k, block, lambda p, _: body(p, block if even else minimum(k - p, block)))

    def tile_buffer(self) -> Buffer | None:
        """A stack tile, where the epilogue or the edges may need one."""
        symbolic = isinstance(self.p.m, Dim) or self.s.scheme == "packed"
        if self.p.store_vector is not None and not symbolic:
            return None
        return self.b.alloca((self.s.rows * self.s.columns,), self.p.accumulator)


class _Direct(_Tiles):
    """The schemes *direct* and *panel*."""

    def emit(self) -> None:
        p, s = self.p, self.s
        down, across = _up(p.m, s.task_rows), _up(p.n, s.task_columns)

        def task(at: list[Index]) -> None:
            batch, im, jn = at[:-2], at[-2], at[-1]
            if down == 1:
                im = 0
            if across == 1:
                jn = 0
            tile = self.tile_buffer()
            panel = None
            if s.scheme == "panel":
                panel = self.b.alloca((s.block_k * s.columns,), p.accumulator)
            if p.partial is None and _blocks(p, s):
                sums = self.b.alloca((s.task_rows * s.task_columns,), p.accumulator)
                i0, j0 = im * s.task_rows, jn * s.task_columns
                self.partial = Plain(
                    sums, p.accumulator, lambda _, m, n: ((m - i0) * s.task_columns + n - j0,)
                )

            def column(first: Index, depth: Index, j: Index, extent: int, valid: Index) -> None:
                vectors = -(-extent // s.lanes)
                if panel is not None:
                    target = Panel(panel, 0, vectors * s.lanes)
                    pack_panel(
                        self.b, p.b, batch, target, j, valid, first, depth, p.accumulator, s.lanes, p.inner
                    )
                span(
                    self.b,
                    p.m,
                    im,
                    s.task_rows,
                    down,
                    s.rows,
                    lambda i, rows, valid_rows: self._tile(
                        batch, i, rows, valid_rows, j, vectors, valid, first, depth, panel, tile
                    ),
                )

            self.k_blocks(
                lambda first, depth: span(
                    self.b,
                    p.n,
                    jn,
                    s.task_columns,
                    across,
                    s.columns,
                    lambda j, extent, valid: column(first, depth, j, extent, valid),
                )
            )

        self.b.parallel([*p.batch, down, across], task)

    def _tile(
        self,
        batch: Batch,
        i: Index,
        rows: int,
        valid_rows: Index,
        j: Index,
        vectors: int,
        valid_columns: Index,
        first: Index,
        depth: Index,
        panel: Buffer | None,
        tile: Buffer | None,
    ) -> None:
        b, p, lanes = self.b, self.p, self.s.lanes
        masks = [self._mask(valid_columns, v) for v in range(vectors)]
        a = p.a.plain
        assert a is not None
        last = valid_rows - 1

        def a_at(r: int, k: Index) -> Value:
            row = i + r if isinstance(valid_rows, int) else i + minimum(r, last)
            return b.load(a.buffer, a.at(batch, row, first + k))

        def b_at(v: int, k: Index) -> Value:
            if panel is not None:
                return b.vector_load(panel, (k * (vectors * lanes) + v * lanes,), lanes)
            assert p.b.plain is not None
            return b.vector_load(
                p.b.plain.buffer, p.b.plain.at(batch, j + v * lanes, first + k), lanes, masks[v]
            )

        sums = self.multiply(rows, vectors, depth, a_at, b_at)
        self.finish(batch, sums, i, rows, valid_rows, j, vectors, valid_columns, first, depth, tile)


class _Packed(_Tiles):
    """The scheme *packed*: per batch element and block of K, pack both operands, then multiply."""

    def emit(self) -> None:
        self._batches([], list(self.p.batch))

    def _batches(self, batch: list[Index], left: list[Index]) -> None:
        if left:
            self.b.for_(0, left[0], 1, lambda at, _: self._batches([*batch, at], left[1:]))
            return
        self.k_blocks(lambda first, depth: self._block(batch, first, depth))

    def _block(self, batch: Batch, first: Index, depth: Index) -> None:
        b, p, s = self.b, self.p, self.s
        layout = _Layout(p, s)
        workspace, acc, lanes = self.workspace, p.accumulator, s.lanes

        def pack(operand: Operand, start: Index, width: int, extent: Index) -> None:
            def one(at: list[Index]) -> None:
                left = width if isinstance(extent, int) and extent % width == 0 else extent - at[0] * width
                panel = Panel(workspace, start + at[0] * (width * s.block_k), width)
                pack_panel(b, operand, batch, panel, at[0] * width, left, first, depth, acc, lanes, p.inner)

            b.parallel([_up(extent, width)], one)

        pack(p.b, layout.b, s.columns, p.n)
        pack(p.a, layout.a, s.rows, p.m)

        def task(at: list[Index]) -> None:
            tile = self.tile_buffer()

            def one(i: Index, j: Index) -> None:
                left = layout.a + i * s.block_k
                right = layout.b + j * s.block_k
                sums = self.multiply(
                    s.rows,
                    s.vectors,
                    depth,
                    lambda r, k: b.load(workspace, (left + k * s.rows + r,)),
                    lambda v, k: b.vector_load(workspace, (right + k * s.columns + v * lanes,), lanes),
                )
                rows = s.rows if isinstance(p.m, int) and p.m % s.rows == 0 else p.m - i
                columns = s.columns if isinstance(p.n, int) and p.n % s.columns == 0 else p.n - j
                self.finish(batch, sums, i, s.rows, rows, j, s.vectors, columns, first, depth, tile)

            i0, j0 = at[0] * s.task_rows, at[1] * s.task_columns
            b.for_(
                i0,
                minimum(i0 + s.task_rows, p.m),
                s.rows,
                lambda i, _: (
                    b.for_(j0, minimum(j0 + s.task_columns, p.n), s.columns, lambda j, _: one(i, j)) and None
                ),
            )

        b.parallel([_up(p.m, s.task_rows), _up(p.n, s.task_columns)], task)


class _Dot:
    """The scheme *dot*."""

    def __init__(self, b: Emitter, problem: Contraction, s: ContractionSchedule) -> None:
        self.b, self.p, self.s = b, problem, s

    def emit(self) -> None:
        p, s = self.p, self.s
        columns = s.vectors
        down, across = _up(p.m, s.task_rows), _up(p.n, s.task_columns)

        def task(at: list[Index]) -> None:
            batch = at[:-2]
            im = 0 if down == 1 else at[-2]
            jn = 0 if across == 1 else at[-1]
            symbolic = isinstance(p.m, Dim) or isinstance(p.n, Dim)
            tile = self.b.alloca((s.rows * columns,), p.accumulator) if symbolic else None
            span(
                self.b,
                p.n,
                jn,
                s.task_columns,
                across,
                columns,
                lambda j, width, right: span(
                    self.b,
                    p.m,
                    im,
                    s.task_rows,
                    down,
                    s.rows,
                    lambda i, height, left: self._tile(batch, i, height, left, j, width, right, tile),
                ),
            )

        self.b.parallel([*p.batch, down, across], task)

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
        b, p, lanes = self.b, self.p, self.s.lanes

        def reader(
            operand: Operand, start: Index, valid: Index
        ) -> Callable[[int, Index, Value | None], Value]:
            plain = operand.plain
            assert plain is not None

            def read(r: int, k: Index, mask: Value | None) -> Value:
                row = start + r if isinstance(valid, int) else start + minimum(r, valid - 1)
                return b.vector_load(plain.buffer, plain.at(batch, row, k), lanes, mask)

            return read

        sums = dot_tile(
            b,
            p.accumulator,
            lanes,
            rows,
            columns,
            p.k,
            reader(p.a, i, valid_rows),
            reader(p.b, j, valid_columns),
            self.s.unroll,
        )
        if tile is None:
            for r in range(rows):
                for c in range(columns):
                    p.store(b, batch, i + r, j + c, sums[r * columns + c])
            return
        for at, x in enumerate(sums):
            b.store(x, tile, (at,))
        b.for_(
            0,
            minimum(valid_rows, rows),
            1,
            lambda r, _: (
                b.for_(
                    0,
                    minimum(valid_columns, columns),
                    1,
                    lambda c, _: p.store(b, batch, i + r, j + c, b.load(tile, (r * columns + c,))),
                )
                and None
            ),
        )
