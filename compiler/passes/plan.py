"""Gives every intermediate buffer a place in one arena, by lifetimes, and says what may be overwritten.

A buffer is alive from the kernel that writes it to the last one that reads it. A result takes the memory of an operand of
its kernel where the kernel allows that and nobody reads the operand later. Such chains of values are placed by falling
size, each at the lowest offset at which nothing else lies while it is alive (as Y. Pisarchyk and J. Lee, "Efficient memory
management for deep neural net inference", 2020). Symbolic sizes cannot be compared, so they get slots behind the rest, which
equal sizes share.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.passes.fuse import Program
from flambeau.compiler.signature import byte_size

ALIGNMENT = 64

Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class MemoryPlan:
    """`offsets` of values, `workspaces` of calls (None: none), in bytes from the arena's start; `size` of the arena.

    `overwrites`: pairs of a result of the graph and a parameter whose memory may be the same: the parameter is read for
    the last time by the kernel that writes the result.
    """

    offsets: dict[Value, Index]
    workspaces: tuple[Index | None, ...]
    size: Index
    overwrites: tuple[tuple[Value, Value], ...] = ()


@dataclass(eq=False)
class _Block:
    """Memory that is alive from one step to another: a chain of values, or a call's workspace."""

    size: Index
    first: int
    last: int
    offset: Index = 0


def plan(
    program: Program,
    workspace_bytes: Sequence[Index],
    in_place: Sequence[Pairs] | None = None,
    steps: Sequence[int] | None = None,
) -> MemoryPlan:
    """Places for all values that are neither parameters nor results of the graph, and for the kernels' workspaces.

    `in_place`: for each call, which results may take the memory of which operands; None: no call has any. `steps`: when each
    call runs, several perhaps at the same time; None: one after the other.
    """
    if in_place is None:
        in_place = [()] * len(program.calls)
    if steps is None:
        steps = range(len(program.calls))
    last: dict[Value, int] = {}
    #: How many calls of its last step mention a value.
    mentions: dict[Value, int] = {}
    for step, call in zip(steps, program.calls, strict=True):
        for value in dict.fromkeys((*call.operands, *call.results)):
            mentions[value] = mentions[value] + 1 if last.get(value) == step else 1
            last[value] = step
    given = {*program.graph.parameters, *program.graph.results}
    homes: dict[Value, _Block] = {}
    scratch: list[_Block | None] = []
    blocks: list[_Block] = []
    for call, step, pairs, bytes_ in zip(program.calls, steps, in_place, workspace_bytes, strict=True):
        taken: set[int] = set()
        for number, value in enumerate(call.results):
            if value in given:
                continue
            operand = next(
                (
                    o
                    for r, o in pairs
                    if r == number
                    and o not in taken
                    and call.operands[o] in homes
                    and last[call.operands[o]] == step
                    and mentions[call.operands[o]] == 1
                ),
                None,
            )
            if operand is None:
                block = _Block(aligned(byte_size(value)), step, last[value])
                blocks.append(block)
            else:
                taken.add(operand)
                block = homes[call.operands[operand]]
                block.last = last[value]
            homes[value] = block
        workspace = None
        if bytes_ != 0:
            workspace = _Block(aligned(bytes_), step, step)
            blocks.append(workspace)
        scratch.append(workspace)
    size = _place(blocks)
    return MemoryPlan(
        {v: block.offset for v, block in homes.items()},
        tuple([None if block is None else block.offset for block in scratch]),
        size,
        _overwrites(program, in_place, steps, last, mentions),
    )


def _overwrites(
    program: Program,
    in_place: Sequence[Pairs],
    steps: Sequence[int],
    last: dict[Value, int],
    mentions: dict[Value, int],
) -> tuple[tuple[Value, Value], ...]:
    parameters, results = set(program.graph.parameters), set(program.graph.results)
    return tuple(
        [
            (call.results[r], call.operands[o])
            for step, call, pairs in zip(steps, program.calls, in_place, strict=True)
            for r, o in pairs
            if call.results[r] in results
            and call.operands[o] in parameters
            and last[call.operands[o]] == step
            and mentions[call.operands[o]] == 1
        ]
    )


def aligned(size: Index) -> Index:
    """`size` rounded up to the arena's alignment."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def _place(blocks: list[_Block]) -> Index:
    """Sets the blocks' offsets; returns the arena's size."""
    total = 0
    placed: list[tuple[int, int, _Block]] = []  # start, end, sorted
    for block in sorted(
        [b for b in blocks if isinstance(b.size, int)], key=lambda b: (-_int(b.size), b.first)
    ):
        size, at = _int(block.size), 0
        best: tuple[int, int] | None = None  # size of the gap, its start
        for start, end, other in placed:
            if other.last < block.first or block.last < other.first:
                continue
            if start - at >= size and (best is None or start - at < best[0]):
                best = (start - at, at)
            at = max(at, end)
        block.offset = start = at if best is None else best[1]
        insort(placed, (start, start + size, block), key=lambda p: p[:2])
        total = max(total, start + size)
    return _place_symbolic([b for b in blocks if not isinstance(b.size, int)], total)


def _place_symbolic(blocks: list[_Block], start: Index) -> Index:
    """Slots from `start` on, one for each size and time; returns their end."""
    slots: list[_Block] = []
    for block in blocks:
        slot = next((s for s in slots if s.last < block.first and s.size == block.size), None)
        if slot is None:
            slot = _Block(block.size, block.first, block.last, start)
            slots.append(slot)
            start = start + block.size
        slot.last = block.last
        block.offset = slot.offset
    return start


def _int(size: Index) -> int:
    assert isinstance(size, int)
    return size
