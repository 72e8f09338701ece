"""Schedules of a contraction that are worth measuring: the analytic model's, those of other schemes, and their neighbours.

A search starts from `starts`, goes from the fastest to the fastest of its `neighbours` as long as that is faster, and ends with
a comparison against the analytic model's schedule: only what is clearly faster replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.schedule.cpu_contraction import (
    UNROLL,
    ContractionSchedule,
    CpuShape,
    OperandFacts,
    register_tile,
)

#: Register tiles that are tried: (rows, vectors).
TILES = ((8, 2), (12, 2), (10, 2), (6, 2), (4, 2), (8, 3), (6, 4), (12, 1), (8, 1), (16, 1), (4, 4))
#: Depths of blocks of K that are tried.
DEPTHS = (64, 96, 128, 160, 192, 256, 344, 512, 768, 1024)
#: A schedule replaces another if it takes less than this part of its time.
FASTER = 0.98
#: Starts that take longer than this, as a multiple of the fastest, are not looked at again.
HOPELESS = 1.5


@dataclass(frozen=True)
class Request:
    """What `cpu_contraction.choose` is asked, and in this order; extents are known."""

    m: int
    n: int
    k: int
    accumulator: ElementType
    a: OperandFacts
    b: OperandFacts
    cpu: CpuShape
    batched: bool = False
    words: bool = False

    @property
    def lanes(self) -> int:
        return max(1, self.cpu.vector_bits // self.accumulator.bits)


def fits(r: Request, s: ContractionSchedule) -> bool:
    """May the contraction run so?"""
    if s.rows < 1 or s.vectors < 1 or s.task_rows < 1 or s.task_columns < 1 or s.unroll < 1:
        return False
    if s.scheme == "dot":
        plain = r.a.plain and r.b.plain and r.a.unit_depth and r.b.unit_depth
        return plain and s.rows * s.vectors + s.vectors + 1 <= r.cpu.registers
    if s.rows * s.vectors + s.vectors + 1 > r.cpu.registers or s.block_k < 1:
        return False
    in_panels = r.b.panel == s.columns
    if s.scheme == "direct":
        return r.a.plain and (in_panels or (r.b.plain and r.b.unit_row))
    if s.scheme == "panel":
        return r.a.plain and s.block_k == r.k and r.k * s.columns * r.accumulator.itemsize <= 4 * r.cpu.l1
    if s.scheme == "few":
        return r.b.plain and r.lanes > 1 and not r.batched and s.task_columns % s.rows == 0
    # Columns that are packed at a time are whole tasks; panels that are there already are not packed.
    return not s.across or (not r.b.panel and s.across % s.task_columns == 0)


def starts(r: Request) -> list[ContractionSchedule]:
    """One schedule of each scheme that may be used."""
    lanes = r.lanes
    rows, vectors = register_tile(r.cpu, lanes)
    if r.b.panel:
        vectors = max(1, r.b.panel // lanes)
        rows = max(1, min(rows, (r.cpu.registers - vectors - 1) // vectors))
    wide = vectors * lanes
    down = -(-r.m // rows)
    depth = _depth(r, 512)
    tasks = wide * max(1, min(8, -(-r.n // wide)))
    whole = -(-r.k // UNROLL) * UNROLL
    found = [
        ContractionSchedule("direct", lanes, rows, vectors, r.k, rows * min(down, 16), wide * 4),
        ContractionSchedule("panel", lanes, rows, vectors, r.k, rows * down, wide),
        ContractionSchedule(
            "packed",
            lanes,
            rows,
            vectors,
            depth,
            rows * min(down, 8),
            tasks,
            across=0 if r.b.panel else 4 * tasks,
        ),
        ContractionSchedule("dot", lanes, min(r.m, 4), min(r.n, 4), 0, max(r.m, 1), 64, 2),
    ]
    if r.b.unit_depth:
        found.append(ContractionSchedule("few", lanes, 8, 1, whole, r.m, 8 * lanes))
    else:
        found += [
            ContractionSchedule("few", lanes, 12, 1, _depth(r, 64), r.m, 24 * lanes),
            ContractionSchedule("few", lanes, 12, 2, _depth(r, 160), r.m, 24 * lanes),
        ]
    return [s for s in found if fits(r, s)]


def _depth(r: Request, depth: int) -> int:
    return max(1, min(r.k, depth))


def neighbours(r: Request, s: ContractionSchedule) -> list[ContractionSchedule]:
    """Schedules that differ from `s` in one choice, and may be used."""
    found = dict.fromkeys(_changes(r, s))
    return [x for x in found if x != s and fits(r, x)]


def _changes(r: Request, s: ContractionSchedule) -> Iterator[ContractionSchedule]:
    down, across = max(1, s.task_rows // s.rows), max(1, s.task_columns // s.columns)
    for rows, vectors in TILES:
        if r.b.panel and s.scheme != "few" and vectors * s.lanes != r.b.panel:
            continue
        if rows > r.m and s.scheme != "few":
            continue
        wide = vectors * s.lanes
        if s.scheme == "dot":
            yield replace(s, rows=min(rows, r.m), vectors=vectors, task_rows=max(r.m, 1))
        elif s.scheme == "few":
            unit = rows * s.lanes
            yield replace(s, rows=rows, vectors=vectors, task_columns=unit * max(1, s.task_columns // unit))
        else:
            columns = wide * max(1, s.task_columns // wide)
            total = columns * max(1, s.across // columns) if s.across else 0
            tall = rows * max(1, s.task_rows // rows)
            yield replace(s, rows=rows, vectors=vectors, task_rows=tall, task_columns=columns, across=total)
    if s.scheme in ("packed", "few", "direct"):
        for depth in (*DEPTHS, r.k):
            if depth <= r.k:
                yield replace(s, block_k=depth, foresee=depth if s.foresee else 0)
    for unroll in (2, 4, 8):
        yield replace(s, unroll=unroll)
    if s.scheme in ("direct", "packed"):
        yield replace(s, task_rows=s.rows * max(1, down // 2))
        yield replace(s, task_rows=s.rows * min(-(-r.m // s.rows), down * 2))
    if s.scheme != "panel":
        step = s.columns if s.scheme in ("direct", "packed") else s.task_columns // across or 1
        unit = s.rows * s.lanes if s.scheme == "few" else step
        half, double = max(unit, s.task_columns // 2 // unit * unit), s.task_columns * 2
        yield replace(s, task_columns=half, across=s.across // half * half if s.across else 0)
        if s.task_columns < r.n:
            total = max(double, s.across // double * double) if s.across else 0
            yield replace(s, task_columns=double, across=total)
    if s.across:
        yield replace(s, across=s.across * 2)
        yield replace(s, across=max(s.task_columns, s.across // 2 // s.task_columns * s.task_columns))
        yield replace(s, ahead=not s.ahead)
    if s.scheme == "direct" and not r.b.panel:
        yield replace(s, foresee=0 if s.foresee else min(s.block_k, 16))
    if s.scheme == "dot":
        yield replace(s, foresee=0 if s.foresee else s.vectors)


def search(
    request: Request,
    model: ContractionSchedule,
    measure: Callable[[ContractionSchedule], float],
    budget: int,
) -> tuple[ContractionSchedule, int]:
    """The fastest schedule found with `budget` measurements, and how many were made. ``measure(s)`` gives seconds, infinite
    for a schedule that cannot run."""
    seconds: dict[ContractionSchedule, float] = {}

    def time(s: ContractionSchedule) -> float:
        if s not in seconds and len(seconds) < budget:
            seconds[s] = measure(s)
        return seconds.get(s, float("inf"))

    for s in (model, *starts(request)):
        time(s)
    fastest = min(seconds.values())
    # The other schemes' first tiles may be far from their best: each that is not hopeless gets its turn.
    for start in sorted((s for s in seconds if seconds[s] <= HOPELESS * fastest), key=lambda s: seconds[s]):
        best = start
        while True:
            following = min(neighbours(request, best), key=time, default=best)
            if not time(following) < FASTER * time(best):
                break
            best = following
    return min(seconds, key=lambda s: seconds[s]), len(seconds)
