"""What lies in memory and will be read soon: prefetches where the processor would not find the order by itself."""

from __future__ import annotations

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.lowering.context import LoweringContext
from flambeau.compiler.lowering.probe import probe

Position = tuple[Index, ...]


def reads_of(ctx: LoweringContext, value: Value, index: Position) -> list[tuple[Value, Position]]:
    """The buffers and positions in them from which the element of `value` at `index` comes; none where they depend on data."""
    if value in ctx.memory:
        return [(ctx.memory[value], index)]
    reads = probe(value, index, lambda v: v.owner is not None and v not in ctx.memory)
    return [(ctx.memory[v], at) for v, at in reads.accesses if v in ctx.memory] if reads.static else []
