"""Small kernels that do not depend on one another run at the same time, a thread some of them: an optimizer's update of many
small parameters is one parallel loop.

Each of them stays on one thread then, whatever it would do alone. What they read and write does not overlap: the memory plan
takes them for one step.
"""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.passes.fuse import KernelCall
from flambeau.compiler.signature import byte_size

#: Bytes that a kernel reads and writes at most, and that all of them do together at least: about ten microseconds, below which
#: threads that share one kernel wait for one another longer than they work; and some times what a parallel loop costs.
SMALL = 1 << 18
WORTHWHILE = 1 << 16


def together(
    calls: Sequence[KernelCall], before: Sequence[set[int]], alone: Sequence[bool]
) -> list[list[int]]:
    """The calls' numbers in steps, in order: those in one step may run at the same time.

    `before`: which calls have to have run before each. `alone`: calls that cannot run beside others.
    """
    steps: list[list[int]] = []
    current: list[int] = []
    total = 0

    def close() -> None:
        nonlocal current, total
        steps.extend([current] if total >= WORTHWHILE else [[n] for n in current])
        current, total = [], 0

    for number, call in enumerate(calls):
        bytes_ = _bytes(call)
        if alone[number] or bytes_ is None or bytes_ > SMALL:
            close()
            steps.append([number])
            continue
        if not before[number].isdisjoint(current):
            close()
        current.append(number)
        total += bytes_
    close()
    return steps


def _bytes(call: KernelCall) -> int | None:
    """What it reads and writes, if it is a pointwise or row kernel of known sizes."""
    if call.kernel.family not in ("element", "rows"):
        return None
    total = 0
    for value in (*call.operands, *call.results):
        size = byte_size(value)
        if not isinstance(size, int):
            return None
        total += size
    return total
