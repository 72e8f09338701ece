"""Attention without the matrix of scores in memory: blocks of queries meet blocks of keys.

Scores are made transposed, a row for each key with the queries along vectors: the maximum and the sum of a query's row
are then operations on whole vectors, and keys and values are read as they lie, a number at a time for all queries of a
tile. Only the queries are transposed, once a task. The maximum and the sum so far are corrected as blocks arrive.
T. Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.types import ElementType, f32
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import Buffer, LoopEmitter
from flambeau.compiler.lowering.contraction_packing import Packer, Panel
from flambeau.compiler.lowering.contraction_problem import Batch, Operand, ceil_div
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import LaneVectors, outer_product_tile
from flambeau.compiler.schedule.cpu_attention import choose
from flambeau.compiler.schedule.cpu_contraction import cpu_shape


def lower_attention(ctx: LoweringContext, operation: Operation) -> None:
    """Emit a `scaled_dot_product_attention`."""
    _Forward(ctx, operation).emit()


class Blocks:
    """What attention and its gradient share: the operands, and blocks of scores."""

    def __init__(self, ctx: LoweringContext, operation: Operation, mask: int) -> None:
        self.ctx, self.operation = ctx, operation
        self.b = LoopEmitter(ctx.b, ctx.e.half)
        self.q, self.k, self.v = operation.operands[:3]
        self.mask = operation.operands[mask] if len(operation.operands) > mask else None
        definition = definition_of(operation)
        type = tensor_of(self.q)
        self.causal: bool = definition.is_causal
        self.element: ElementType = f32 if type.element.bits < 32 else type.element
        self.batch, self.length, self.keys = type.shape[:-2], type.shape[-2], tensor_of(self.k).shape[-2]
        self.e, self.e_v = type.shape[-1], tensor_of(self.v).shape[-1]
        cpu = cpu_shape(ctx.target)
        self.s, self.by_lane = choose(self.length, self.element, cpu), cpu.by_lane
        self.scale = self.number(definition.factor(type))

    # -- numbers -------------------------------------------------------------------------------------------------------
    def number(self, value: float) -> Value:
        """A vector of a number."""
        return self.b.splat(self.ctx.e.constant(value, self.element).value, self.s.lanes)

    def call(self, name: str, x: Value) -> Value:
        """A function of a vector."""
        return self.ctx.e.math(name, Scalar(x, self.element)).value

    def scalar(self, value: Value, index: Sequence[Index]) -> Value:
        """An element of an operand, in the type of the sums."""
        return self.ctx.e.convert(self.ctx.read(value, tuple(index)), self.element).value

    def vector(self, value: Value, row: Sequence[Index], start: Index, left: Index) -> Value:
        """Elements of an operand's row from `start`, of which `left` exist; the others are zero."""
        with self.b.lanes_of(self.s.lanes, self.count(left)) as lane:
            return self.ctx.spread(self.scalar(value, (*row, start + lane)))

    def keep(self, x: Value, value: Value, row: Sequence[Index], start: Index, left: Index) -> None:
        """The way back of `vector`, to a result's memory."""
        e = self.ctx.e
        with self.b.lanes_of(self.s.lanes, self.count(left)) as lane:
            y = e.convert(Scalar(x, self.element), tensor_of(value).element)
            e.store(y, self.ctx.memory[value], (*row, start + lane))

    def count(self, left: Index) -> Index | None:
        """How many lanes exist, if not all do."""
        return None if isinstance(left, int) and left >= self.s.lanes else left

    def scratch(self, size: int) -> Buffer:
        return self.b.alloca((size,), self.element)

    def fill(self, buffer: Buffer, size: int, value: float) -> None:
        """Set all of a buffer on the stack."""
        x, lanes = self.number(value), self.s.lanes
        self.b.for_(0, size, lanes, lambda at, _: self.b.vector_store(x, buffer, (at,)))

    def padded(self, size: Index) -> int:
        """A row of so many numbers, in whole vectors."""
        assert isinstance(size, int)
        return -(-size // self.s.lanes) * self.s.lanes

    def columns(self, size: Index) -> list[tuple[int, int]]:
        """The register tile's steps along a row: (first column, vectors)."""
        wide = self.padded(size)
        return [(at, min(self.s.columns, wide - at) // self.s.lanes) for at in range(0, wide, self.s.columns)]

    # -- blocks --------------------------------------------------------------------------------------------------------
    def reach(self, i: Index) -> Index:
        """How many keys the block of queries from `i` sees."""
        return minimum(self.keys, i + self.s.queries) if self.causal else self.keys

    def seen(self, present: Index, i: Index, j: Index, queries: int) -> Index:
        """Of `present` keys from `j`, those that the last of `queries` queries from `i` sees."""
        return minimum(present, i + queries - j) if self.causal else present

    def present(self, start: Index, block: int, extent: Index) -> Index:
        """How much of a block exists."""
        if isinstance(extent, int) and extent % block == 0:
            return block
        return minimum(block, extent - start)

    def left(self, i: Index) -> Index:
        """How many queries there are from `i`, or a vector's worth if blocks divide them."""
        whole = isinstance(self.length, int) and self.length % self.s.queries == 0
        return self.s.lanes if whole else self.length - i

    def turn(self, value: Value, batch: Batch, i: Index, buffer: Buffer) -> None:
        """The queries' rows of `value` from `i`, transposed: a row for each element, zeros for queries that do not exist."""

        def load(_: Any, at: Batch, row: Index, k: Index) -> Value:
            return self.ctx.spread(self.scalar(value, (*at, row, k)))

        depth = tensor_of(value).shape[-1]
        left = self.length - i
        if isinstance(self.length, int) and self.length % self.s.queries == 0:
            left = self.s.queries
        packer = Packer(self.b, Operand(load, None, "depth"), self.element, self.s.lanes)
        packer.pack(batch, Panel(buffer, 0, self.s.queries, i, left, 0, depth))

    def product(self, value: Value, batch: Batch, j: Index, turned: Buffer, q: Index) -> list[Value]:
        """Rows of `value` (keys or values) from `j` times queries from the block's `q`: a register tile, a row a key."""
        s = self.s
        whole = isinstance(self.keys, int) and self.keys % s.rows == 0
        rows = [j + r if whole else minimum(j + r, self.keys - 1) for r in range(s.rows)]

        def column(v: int, k: Index) -> Value:
            return self.b.vector_load(turned, (k * s.queries + q + v * s.lanes,), s.lanes)

        return outer_product_tile(
            self.b,
            self.element,
            s.lanes,
            s.rows,
            s.vectors,
            tensor_of(value).shape[-1],
            lambda r, k: self.scalar(value, (*batch, rows[r], k)),
            column,
        )

    def score(self, x: Value, batch: Batch, i: Index, j: Index) -> Value:
        """The score of a key for a vector of queries from `i`, from the product of their rows."""
        b, lanes = self.ctx.b, self.s.lanes
        x = b.fmul(x, self.scale)
        closed = self.number(-math.inf)
        if self.mask is not None:
            x = self._masked(x, batch, i, j, closed)
        if self.causal:
            x = b.select(b.create_mask(j - i, lanes), closed, x)
        return x

    def _masked(self, x: Value, batch: Batch, i: Index, j: Index, closed: Value) -> Value:
        assert self.mask is not None
        type, b = tensor_of(self.mask), self.ctx.b
        existing = minimum(j, self.keys - 1)

        def at(lane: Index) -> tuple[Index, ...]:
            index = (*batch, i + lane, existing)[len(batch) + 2 - type.rank :]
            return tuple(0 if d == 1 else p for d, p in zip(type.shape, index, strict=True))

        with self.b.lanes_of(self.s.lanes, self.count(self.length - i)) as lane:
            if type.element.is_bool:
                return b.select(self.ctx.read(self.mask, at(lane)).value, x, closed)
            return b.fadd(x, self.ctx.spread(self.scalar(self.mask, at(lane))))


class _Forward(Blocks):
    def __init__(self, ctx: LoweringContext, operation: Operation) -> None:
        super().__init__(ctx, operation, 3)

    def emit(self) -> None:
        self.b.parallel([*self.batch, ceil_div(self.length, self.s.queries)], self._task)

    def _task(self, at: list[Index]) -> None:
        s = self.s
        batch, i = at[:-1], at[-1] * s.queries
        assert isinstance(self.e, int)
        self.turned = self.scratch(self.e * s.queries)
        self.block = self.scratch(s.keys * s.queries)
        self.out = self.scratch(s.queries * self.padded(self.e_v))
        #: Of each query, so far: the maximum, the sum, and what the sum before the last block is multiplied by.
        self.top, self.total, self.decay = (self.scratch(s.queries) for _ in range(3))
        self.turn(self.q, batch, i, self.turned)
        self.fill(self.top, s.queries, -math.inf)
        self.fill(self.total, s.queries, 0)
        self.fill(self.out, s.queries * self.padded(self.e_v), 0)
        self.b.for_(0, self.reach(i), s.keys, lambda j, _: self._keys(batch, i, j))
        self._finish(batch, i)

    def _keys(self, batch: Batch, i: Index, j: Index) -> None:
        """One block of keys."""
        s = self.s
        present = self.present(j, s.keys, self.keys)
        self.b.for_(0, s.queries, s.columns, lambda q, _: self._softmax(batch, i, j, q, present))
        queries = self.present(i, s.queries, self.length)
        self.b.for_(0, queries, s.rows, lambda q, _: self._values(batch, i, j, q, present))

    def _softmax(self, batch: Batch, i: Index, j: Index, q: Index, present: Index) -> None:
        """The block's exponentials for some queries, and their maxima and sums."""
        b, s, vectors = self.ctx.b, self.s, range(self.s.vectors)
        places = [q + v * s.lanes for v in vectors]
        seen = self.seen(present, i + q, j, s.columns)

        def scores(t: Index, top: list[Value]) -> list[Value]:
            sums = self.product(self.k, batch, j + t, self.turned, q)
            for r in range(s.rows):
                for v in vectors:
                    x = self.score(sums[r * s.vectors + v], batch, i + places[v], j + t + r)
                    self.b.vector_store(x, self.block, ((t + r) * s.queries + places[v],))
                    top[v] = b.select(b.fcmp("ogt", x, top[v]), x, top[v])
            return top

        before = [self.b.vector_load(self.top, (at,), s.lanes) for at in places]
        top = self.b.for_(0, seen, s.rows, scores, before)
        infinity, zero = self.number(-math.inf), self.number(0)
        # Where nothing was seen yet, all scores are -inf, and so are they less zero.
        shift = [b.select(b.fcmp("oeq", x, infinity), zero, x) for x in top]

        def exponentials(t: Index, sums: list[Value]) -> list[Value]:
            for v in vectors:
                at = (t * s.queries + places[v],)
                x = self.call("exp", b.fsub(self.b.vector_load(self.block, at, s.lanes), shift[v]))
                self.b.vector_store(x, self.block, at)
                sums[v] = b.fadd(sums[v], x)
            return sums

        sums = self.b.for_(0, seen, 1, exponentials, [zero for _ in vectors])
        for v in vectors:
            decay = self.call("exp", b.fsub(before[v], shift[v]))
            total = self.b.vector_load(self.total, (places[v],), s.lanes)
            self.b.vector_store(b.fma(total, decay, sums[v]), self.total, (places[v],))
            self.b.vector_store(top[v], self.top, (places[v],))
            self.b.vector_store(decay, self.decay, (places[v],))

    def _values(self, batch: Batch, i: Index, j: Index, q: Index, present: Index) -> None:
        """Some queries' sums of values, with the block's added."""
        b, s = self.ctx.b, self.s
        seen = self.seen(present, i + q, j, s.rows)
        decay = [self.b.splat(self.b.load(self.decay, (q + r,)), s.lanes) for r in range(s.rows)]
        queries_of = LaneVectors(
            lambda r, k: self.b.vector_load(self.block, (k * s.queries + q + r,), s.lanes), along_depth=False
        )
        assert isinstance(self.e_v, int)
        for first, vectors in self.columns(self.e_v):

            def value(v: int, k: Index, c: int = first) -> Value:
                start = c + v * s.lanes
                return self.vector(self.v, (*batch, j + k), start, self.e_v - start)

            sums = outer_product_tile(
                self.b,
                self.element,
                s.lanes,
                s.rows,
                vectors,
                seen,
                lambda r, k: self.b.load(self.block, (k * s.queries + q + r,)),
                value,
                neighbours=queries_of if self.by_lane else None,
            )
            for n, x in enumerate(sums):
                r, v = divmod(n, vectors)
                at = ((q + r) * self.padded(self.e_v) + first + v * s.lanes,)
                before = self.b.vector_load(self.out, at, s.lanes)
                self.b.vector_store(b.fma(before, decay[r], x), self.out, at)

    def _finish(self, batch: Batch, i: Index) -> None:
        """Divide by the sums, and store both results."""
        b, s = self.ctx.b, self.s
        out, lse = self.operation.results
        zero, one = self.number(0), self.number(1)

        def sums(q: Index, _: list[Value]) -> None:
            total = self.b.vector_load(self.total, (q,), s.lanes)
            closed = b.fcmp("oeq", total, zero)
            self.b.vector_store(b.select(closed, zero, b.fdiv(one, total)), self.decay, (q,))
            x = b.fadd(self.b.vector_load(self.top, (q,), s.lanes), self.call("log", total))
            x = b.select(closed, zero, x)
            self.keep(x, lse, batch, i + q, self.left(i + q))

        def row(q: Index, _: list[Value]) -> None:
            share = self.b.splat(self.b.load(self.decay, (q,)), s.lanes)
            assert isinstance(self.e_v, int)
            for c in range(0, self.e_v, s.lanes):
                x = self.b.vector_load(self.out, (q * self.padded(self.e_v) + c,), s.lanes)
                self.keep(b.fmul(x, share), out, (*batch, i + q), c, self.e_v - c)

        self.b.for_(0, s.queries, s.lanes, sums)
        self.b.for_(0, self.present(i, s.queries, self.length), 1, row)


__all__ = ["Blocks", "lower_attention"]
