"""Results that are computed differently in different boxes: concatenations, pads, sums of pads.

The conditions under which an operand has an element cut the result into boxes, in each of which every condition is
decided. Each box gets loops of its own, which vectors run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, of_symbol
from flambeau.compiler.lowering.context import tensor_of
from flambeau.compiler.lowering.probe import Reads, axis_symbols, probe

#: A result is cut into at most so many boxes.
MOST = 12

#: Of each axis where a box begins and ends.
Box = tuple[tuple[Index, Index], ...]


def boxes_of(values: Sequence[Value], group: set[Value]) -> list[Box] | None:
    """The boxes of elementwise results of one shape; None if nothing cuts them, or too much does."""
    shape = tensor_of(values[0]).shape
    index = axis_symbols(shape)
    cuts: list[set[int]] = [set() for _ in shape]
    for value in values:
        reads = probe(value, index, lambda v: v.owner is not None and v not in group)
        for position, low, high in reads.conditions:
            for axis, symbol in enumerate(index):
                shift = position - symbol
                extent = shape[axis]
                if not isinstance(symbol, Dim) or not isinstance(shift, int) or not isinstance(extent, int):
                    continue
                for edge in (low, high):
                    if isinstance(edge, int) and 0 < edge - shift < extent:
                        cuts[axis].add(edge - shift)
    if not any(cuts):
        return None
    edges = [[0, *sorted(found), extent] for found, extent in zip(cuts, shape, strict=True)]
    boxes: list[Box] = list(itertools.product(*[list(itertools.pairwise(e)) for e in edges]))
    return boxes if len(boxes) <= MOST else None


def box_index(box: Box) -> tuple[Index, ...]:
    """A position in the box: a symbol for each axis along which it is longer than one."""
    return tuple(
        low if high - low == 1 else of_symbol(Symbol(f"i{n}", low, high - 1, n))
        for n, (low, high) in enumerate(box)
    )


def box_reads(value: Value, box: Box, group: set[Value]) -> Reads:
    """What an element of `value` in the box reads."""
    return probe(value, box_index(box), lambda v: v.owner is not None and v not in group)
