"""How attention runs on a CPU: the register tile, and the blocks of queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.schedule.cpu_contraction import CpuShape

#: Queries of a task, and keys that it meets at a time: with heads of 64 numbers a block of scores, of queries, of keys and
#: of values takes 16 KiB each, which two levels of cache hold.
BLOCK = 64


@dataclass(frozen=True)
class AttentionSchedule:
    """Register tiles are `rows` x `vectors * lanes`; a task has `queries` queries, and goes through `keys` keys at a
    time. `queries` is a multiple of `columns` and of `rows` (tiles of values have a row a query), `keys` of `rows`."""

    lanes: int
    rows: int
    vectors: int
    queries: int
    keys: int

    @property
    def columns(self) -> int:
        """Columns of the register tile."""
        return self.vectors * self.lanes


def choose(queries: Index, accumulator: ElementType, cpu: CpuShape) -> AttentionSchedule:
    """The schedule for so many queries."""
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    # No more than columns: of a causal block, scores are made for columns of queries, and read by rows of them.
    rows = min(8 if cpu.registers >= 32 else 4, 2 * lanes)
    unit = math.lcm(2 * lanes, rows)
    block = -(-BLOCK // unit) * unit
    if isinstance(queries, int):
        block = min(block, -(-queries // unit) * unit)
    return AttentionSchedule(lanes, rows, 2, block, max(BLOCK, block))
