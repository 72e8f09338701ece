"""Gives every intermediate buffer a place in one arena, by lifetimes.

A buffer is alive from the kernel that writes it to the last one that reads it. Buffers share a slot when their lives
do not overlap; a slot is as large as its largest buffer. Sizes may be symbolic, so offsets are expressions.
"""

from __future__ import annotations

from dataclasses import dataclass

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.passes.fuse import Program, tensor_type

ALIGNMENT = 64


@dataclass(frozen=True)
class MemoryPlan:
    """`offsets` of values, `workspaces` of calls (None: none), in bytes from the arena's start; `size` of the arena."""

    offsets: dict[Value, Index]
    workspaces: tuple[Index | None, ...]
    size: Index


class _Slot:
    def __init__(self, size: Index) -> None:
        self.size = size
        self.free_at = -1


def plan(program: Program, workspace_bytes: list[Index]) -> MemoryPlan:
    """Places for all values that are neither parameters nor results of the graph, and for the kernels' workspaces."""
    last: dict[Value, int] = {}
    for step, call in enumerate(program.calls):
        for value in (*call.operands, *call.results):
            last[value] = step
    given = {*program.graph.parameters, *program.graph.results}
    slots: list[_Slot] = []
    homes: dict[Value, _Slot] = {}
    scratch: list[_Slot | None] = []
    for step, call in enumerate(program.calls):
        for value in call.results:
            if value not in given:
                slot = homes[value] = _take(slots, aligned(byte_size(value)), step)
                slot.free_at = last[value]
        workspace = None
        if workspace_bytes[step] != 0:
            workspace = _take(slots, aligned(workspace_bytes[step]), step)
            workspace.free_at = step
        scratch.append(workspace)
    offsets: dict[_Slot, Index] = {}
    total: Index = 0
    for slot in slots:
        offsets[slot] = total
        total = total + slot.size
    places = tuple(None if s is None else offsets[s] for s in scratch)
    return MemoryPlan({v: offsets[s] for v, s in homes.items()}, places, total)


def byte_size(value: Value) -> Index:
    """Bytes of a value's elements."""
    type = tensor_type(value)
    return type.size * type.element.itemsize


def aligned(size: Index) -> Index:
    """`size` rounded up to the arena's alignment."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def _take(slots: list[_Slot], size: Index, step: int) -> _Slot:
    """A slot that is free at `step` and large enough: the smallest such, or the largest free one grown, or a new one."""
    free = [s for s in slots if s.free_at < step]
    for slot in free:
        if slot.size == size:
            return slot
    if isinstance(size, int):
        numbered = [s for s in free if isinstance(s.size, int)]
        fitting = [s for s in numbered if s.size >= size]  # type: ignore[operator]
        if fitting:
            return min(fitting, key=lambda s: s.size)  # type: ignore[arg-type, return-value]
        if numbered:
            largest = max(numbered, key=lambda s: s.size)  # type: ignore[arg-type, return-value]
            largest.size = size
            return largest
    slot = _Slot(size)
    slots.append(slot)
    return slot
