"""The scheme *dot*: both operands have K along memory and one of M and N is small: vectors run along K."""

from __future__ import annotations

from collections.abc import Callable

from flambeau.compiler.ir.dims import Dim, Index, minimum
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter, Value
from flambeau.compiler.lowering.contraction_problem import Batch, Contraction, Operand, ceil_div
from flambeau.compiler.lowering.contraction_tiles import existing, product_of, span
from flambeau.compiler.lowering.microkernel import dot_tile
from flambeau.compiler.lowering.words import ones
from flambeau.compiler.schedule.cpu_contraction import ContractionSchedule

#: ``at(row or column, k, mask)``: a vector along K.
AlongDepth = Callable[[int, Index, "Value | None"], Value]


class Dot:
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
        a_at = self._reader(p.a, batch, existing(i, rows, valid_rows))
        b_at = self._reader(p.b, batch, existing(j, columns, valid_columns), s.foresee)
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
