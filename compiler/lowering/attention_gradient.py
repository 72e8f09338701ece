"""The gradient of attention without the matrices of probabilities in memory.

For each batch element, blocks of queries meet blocks of keys: the scores are made again as in the forward pass, a row for
each key, and the probabilities follow from the logarithms of their sums. The three products that give the cotangents read
q, k and ct as they lie. Those of keys and values are summed in the results, those of a block's queries on the stack, always
in one order. T. Dao et al., "FlashAttention", 2022, algorithm 4.
"""

from __future__ import annotations

from collections.abc import Callable

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, maximum, minimum
from flambeau.compiler.lowering.attention import Blocks
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.contraction_emitter import Buffer
from flambeau.compiler.lowering.contraction_problem import Batch
from flambeau.compiler.lowering.microkernel import outer_product_tile

#: ``left(row, k)``: a number, as an index into a block of scores.
At = Callable[[int, Index], Index]


def lower_attention_gradient(ctx: LoweringContext, operation: Operation) -> None:
    """Emit an `attention_gradient`."""
    _Backward(ctx, operation).emit()


class _Backward(Blocks):
    def __init__(self, ctx: LoweringContext, operation: Operation) -> None:
        super().__init__(ctx, operation, 6)
        self.lse, self.shared, self.ct = operation.operands[3:6]

    def emit(self) -> None:
        self.b.parallel(list(self.batch), self._task)

    def _task(self, batch: list[Index]) -> None:
        s = self.s
        assert isinstance(self.e, int) and isinstance(self.e_v, int)
        self.turned_q, self.turned_ct = self.scratch(self.e * s.queries), self.scratch(self.e_v * s.queries)
        #: Probabilities, and the cotangents of scores times the scale: a row for each key.
        self.p, self.ds = self.scratch(s.keys * s.queries), self.scratch(s.keys * s.queries)
        self.dq = self.scratch(s.queries * self.padded(self.e))
        self.tile = self.scratch(s.rows * s.columns)
        _, dk, dv = self.operation.results
        self._clear(dk, batch)
        self._clear(dv, batch)
        self.b.for_(0, self.length, s.queries, lambda i, _: self._queries(batch, i))

    def _clear(self, result: Value, batch: Batch) -> None:
        width = tensor_of(result).shape[-1]
        assert isinstance(width, int)

        def row(j: Index, _: list[Value]) -> None:
            for c in range(0, width, self.s.lanes):
                self.keep(self.number(0), result, (*batch, j), c, width - c)

        self.b.for_(0, self.keys, 1, row)

    def _queries(self, batch: Batch, i: Index) -> None:
        """One block of queries."""
        s, width = self.s, self.padded(self.e)
        self.turn(self.q, batch, i, self.turned_q)
        self.turn(self.ct, batch, i, self.turned_ct)
        self.fill(self.dq, s.queries * width, 0)
        self.b.for_(0, self.reach(i), s.keys, lambda j, _: self._keys(batch, i, j))
        result = self.operation.results[0]

        def row(q: Index, _: list[Value]) -> None:
            assert isinstance(self.e, int)
            for c in range(0, self.e, s.lanes):
                x = self.b.vector_load(self.dq, (q * width + c,), s.lanes)
                self.keep(x, result, (*batch, i + q), c, self.e - c)

        self.b.for_(0, self.present(i, s.queries, self.length), 1, row)

    def _keys(self, batch: Batch, i: Index, j: Index) -> None:
        """What a block of queries and a block of keys give to each other."""
        s = self.s
        keys, queries = self.present(j, s.keys, self.keys), self.present(i, s.queries, self.length)
        self.b.for_(0, s.queries, s.columns, lambda q, _: self._scores(batch, i, j, q, keys))
        # Keys after the block's last query are seen by none.
        seen = self.seen(keys, i, j, s.queries)

        def key_rows(t: Index, _: list[Value]) -> None:
            # Queries before a tile's first key do not see it.
            first = maximum(0, j + t - i) if self.causal else 0
            self._to_keys(batch, i, j, t, first, queries - first, keys)

        self.b.for_(0, minimum(seen, i + queries - j) if self.causal else seen, s.rows, key_rows)
        self.b.for_(0, queries, s.rows, lambda q, _: self._to_queries(batch, i, j, q, keys))

    def _scores(self, batch: Batch, i: Index, j: Index, q: Index, keys: Index) -> None:
        """Probabilities and cotangents of scores of some queries."""
        b, s, vectors = self.ctx.b, self.s, range(self.s.vectors)
        places = [q + v * s.lanes for v in vectors]
        lse, shared = (
            [self.vector(x, batch, i + at, self.left(i + at)) for at in places]
            for x in (self.lse, self.shared)
        )

        def tile(t: Index, _: list[Value]) -> None:
            sums = self.product(self.k, batch, j + t, self.turned_q, q)
            for n, x in enumerate(sums):
                r, v = divmod(n, s.vectors)
                score = self.score(x, batch, i + places[v], j + t + r)
                p = self.call("exp", b.fsub(score, lse[v]))
                self.b.vector_store(p, self.p, ((t + r) * s.queries + places[v],))
            sums = self.product(self.v, batch, j + t, self.turned_ct, q)
            for n, x in enumerate(sums):
                r, v = divmod(n, s.vectors)
                at = ((t + r) * s.queries + places[v],)
                p = self.b.vector_load(self.p, at, s.lanes)
                ds = b.fmul(b.fmul(p, b.fsub(x, shared[v])), self.scale)
                self.b.vector_store(ds, self.ds, at)

        self.b.for_(0, self.seen(keys, i + q, j, s.columns), s.rows, tile)

    def _sums(
        self, block: Buffer, at: At, depth: Index, right: Value, row: Callable[[Index], tuple[Index, ...]],
        first: int, vectors: int,
    ) -> list[Value]:  # fmt: skip
        """A register tile: numbers of a block of scores times rows of an operand, from column `first`."""
        s, width = self.s, tensor_of(right).shape[-1]

        def column(v: int, k: Index) -> Value:
            start = first + v * s.lanes
            return self.vector(right, row(k), start, width - start)

        return outer_product_tile(
            self.b,
            self.element,
            s.lanes,
            s.rows,
            vectors,
            depth,
            lambda r, k: self.b.load(block, (at(r, k),)),
            column,
        )

    def _to_keys(
        self, batch: Batch, i: Index, j: Index, t: Index, first: Index, depth: Index, keys: Index
    ) -> None:
        """Add to the cotangents of the keys and values of a tile's rows."""
        s = self.s
        _, dk, dv = self.operation.results
        for block, right, result in ((self.ds, self.q, dk), (self.p, self.ct, dv)):
            width = tensor_of(result).shape[-1]
            for c, vectors in self.columns(width):
                sums = self._sums(
                    block,
                    lambda r, k: (t + r) * s.queries + first + k,
                    depth,
                    right,
                    lambda k: (*batch, i + first + k),
                    c,
                    vectors,
                )
                self._add_rows(sums, result, batch, j + t, keys - t, c, vectors)

    def _add_rows(
        self, sums: list[Value], result: Value, batch: Batch, j: Index, rows: Index, first: int, vectors: int
    ) -> None:
        """Add a tile's rows, as far as they exist, to a result's."""
        b, s, width = self.ctx.b, self.s, tensor_of(result).shape[-1]
        memory = self.ctx.memory[result]

        def add(r: Index, row: list[Value]) -> None:
            for v, x in enumerate(row):
                start = first + v * s.lanes
                with self.b.lanes_of(s.lanes, self.count(width - start)) as lane:
                    at = (*batch, j + r, start + lane)
                    b.store(b.fadd(b.load(memory, at), x), memory, at)

        if isinstance(self.keys, int) and self.keys % s.rows == 0:
            for r in range(s.rows):
                add(r, sums[r * vectors : (r + 1) * vectors])
            return
        for n, x in enumerate(sums):
            self.b.vector_store(x, self.tile, (n * s.lanes,))

        def one(r: Index, _: list[Value]) -> None:
            at = r * (vectors * s.lanes)
            add(r, [self.b.vector_load(self.tile, (at + v * s.lanes,), s.lanes) for v in range(vectors)])

        self.b.for_(0, minimum(s.rows, rows), 1, one)

    def _to_queries(self, batch: Batch, i: Index, j: Index, q: Index, keys: Index) -> None:
        """Add to the cotangents of a tile's queries."""
        b, s = self.ctx.b, self.s
        seen = self.seen(keys, i + q, j, s.rows)
        for c, vectors in self.columns(self.e):
            sums = self._sums(
                self.ds,
                lambda r, k: k * s.queries + q + r,
                seen,
                self.k,
                lambda k: (*batch, j + k),
                c,
                vectors,
            )
            for n, x in enumerate(sums):
                r, v = divmod(n, vectors)
                at = ((q + r) * self.padded(self.e) + c + v * s.lanes,)
                before = self.b.vector_load(self.dq, at, s.lanes)
                self.b.vector_store(b.fadd(before, x), self.dq, at)
