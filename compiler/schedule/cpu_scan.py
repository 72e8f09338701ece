"""How a scan runs on a CPU whose rows have nothing to do with one another: how many of them go through all steps together."""

from __future__ import annotations

from flambeau.compiler.schedule.cpu_contraction import CpuShape

#: Rows of a register tile that fill the multipliers, of which a part should have a multiple, and the least and most of them.
TILE = 8
FEWEST, MOST = 6, 16
#: What all parts read in each step comes from L3, in these many times L2 at most: from memory once for all rows would be better.
SHARED = 4


def rows_of_part(count: int, shared: int, cpu: CpuShape) -> int | None:
    """Into parts of how many rows `count` of them are cut, if `shared` bytes are read by all in each step; None if not at
    all."""
    if shared > SHARED * cpu.l2:
        return None
    possible = [r for r in range(FEWEST, MOST + 1) if r < count and count % r == 0]
    return min(possible, key=lambda r: (-(-r // TILE) * TILE / r, r), default=None)
