"""The order in which a program's kernels run: one that keeps few bytes alive at a time.

It starts from the order of the cut (`fuse`), which computes each value before its first reader, and departs from it
three times. A kernel that frees more than it allocates runs as soon as it can, alone or with one that lets it run: a weight's
gradient as soon as its operands are there, rather than when all cotangents are. One that allocates more than it frees waits
until its first reader runs (what `rematerialise` computes again). And whoever reads a parameter runs before the kernel that
may overwrite it.
"""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, evaluate
from flambeau.compiler.passes.fuse import Program, tensor_type

#: What a symbolic size is taken for.
USUAL = 64


def order(program: Program, in_placed: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """The numbers of the program's calls in the order in which they should run.

    `in_placed`: for each call, which results may take the memory of which operands.
    """
    before = constraints(program, in_placed)
    early = _scheduled(program, before)
    plain = _scheduled(program, before, eager=False)
    found = early if _peak(program, early) <= _peak(program, plain) else plain
    late = _delayed(program, before, found)
    return late if _peak(program, late) < _peak(program, found) else found


def constraints(program: Program, in_placed: Sequence[Sequence[tuple[int, int]]]) -> list[set[int]]:
    """For each call, the numbers of those that have to have run before it; `in_placed` as of `order`."""
    before = _dependencies(program)
    _read_before_overwritten(program, in_placed, before)
    return before


def _dependencies(program: Program) -> list[set[int]]:
    maker = {v: n for n, call in enumerate(program.calls) for v in call.results}
    return [{maker[v] for v in call.operands if v in maker} for call in program.calls]


def _read_before_overwritten(
    program: Program, in_placed: Sequence[Sequence[tuple[int, int]]], before: list[set[int]]
) -> None:
    """Adds to `before`, where that closes no circle, the other readers of parameters that a call may overwrite with a
    result of the graph."""
    parameters, results = set(program.graph.parameters), set(program.graph.results)
    readers: dict[Value, list[int]] = {}
    for number, call in enumerate(program.calls):
        for value in call.operands:
            if value in parameters:
                readers.setdefault(value, []).append(number)
    ancestors = [0] * len(before)  # as sets of bits
    for number, calls in enumerate(before):
        for other in calls:
            ancestors[number] |= ancestors[other] | 1 << other
    for number, call in enumerate(program.calls):
        overwritten = {
            call.operands[o]
            for r, o in in_placed[number]
            if call.operands[o] in parameters and call.results[r] in results
        }
        for value in overwritten - results:
            for reader in readers[value]:
                if reader == number or ancestors[number] >> reader & 1:
                    continue
                if ancestors[reader] >> number & 1:
                    continue  # it needs what overwrites: then nothing is overwritten
                before[number].add(reader)
                more = ancestors[reader] | 1 << reader
                for later, known in enumerate(ancestors):
                    if later == number or known >> number & 1:
                        ancestors[later] = known | more


class _Lives:
    """Bytes of the values between kernels, and how many kernels have still to read each."""

    def __init__(self, program: Program) -> None:
        self.calls = program.calls
        given = {*program.graph.parameters, *program.graph.results}
        self.size = {v: _bytes(v) for call in program.calls for v in call.results if v not in given}
        self.left: dict[Value, int] = dict.fromkeys(self.size, 0)
        for call in program.calls:
            for value in set(call.operands):
                if value in self.left:
                    self.left[value] += 1

    def growth(self, number: int) -> int:
        """Bytes that are alive after the call and were not before it, less those the other way round."""
        call = self.calls[number]
        made = sum(self.size[v] for v in call.results if self.left.get(v))
        return made - sum(self.size[v] for v in set(call.operands) if self.left.get(v) == 1)

    def growth_of_pair(self, first: int, second: int) -> int:
        """The same of two calls, of which the second reads results of the first."""
        calls = self.calls[first], self.calls[second]
        operands = [set(call.operands) for call in calls]
        made = {v for call in calls for v in call.results}
        left = {
            v: self.left[v] - sum(v in some for some in operands)
            for v in made | operands[0] | operands[1]
            if v in self.left
        }
        kept = sum(self.size[v] for v in made if left.get(v))
        return kept - sum(self.size[v] for v, readers in left.items() if v not in made and not readers)

    def run(self, number: int) -> None:
        for value in set(self.calls[number].operands):
            if value in self.left:
                self.left[value] -= 1


def _scheduled(program: Program, before: list[set[int]], eager: bool = True) -> list[int]:
    """Ready calls that free memory first if `eager`; then in the order of the program."""
    waiting = [len(calls) for calls in before]
    after: list[list[int]] = [[] for _ in before]
    for number, calls in enumerate(before):
        for other in calls:
            after[other].append(number)
    lives = _Lives(program)
    ready = sorted(n for n, count in enumerate(waiting) if count == 0)
    found: list[int] = []

    def pays(first: int, second: int) -> bool:
        return waiting[second] == 1 and lives.growth_of_pair(first, second) < 0

    while ready:
        chosen = ready[0]
        if eager:
            chosen = next((n for n in ready if lives.growth(n) < 0), -1)
            if chosen < 0:  # what lets another run that frees more than both allocate
                chosen = next((n for n in ready if any(pays(n, m) for m in after[n])), ready[0])
        ready.remove(chosen)
        found.append(chosen)
        lives.run(chosen)
        for number in after[chosen]:
            waiting[number] -= 1
            if waiting[number] == 0:
                ready.append(number)
        ready.sort()
    return found


def _delayed(program: Program, before: list[set[int]], numbers: list[int]) -> list[int]:
    """The same order with each call that allocates more than it frees right before the first that waits for it."""
    after: list[list[int]] = [[] for _ in before]
    for number, calls in enumerate(before):
        for other in calls:
            after[other].append(number)
    size = _Lives(program).size
    readers: dict[Value, list[int]] = {}
    for number, call in enumerate(program.calls):
        for value in set(call.operands):
            if value in size:
                readers.setdefault(value, []).append(number)
    found: list[int] = []  # from the last to the first
    placed: set[int] = set()  # the same
    for number in reversed(numbers):
        call = program.calls[number]
        freed = sum(
            size[v] for v in set(call.operands) if v in size and not any(r in placed for r in readers[v])
        )
        waiting = [n for n in after[number] if n in placed]
        if waiting and freed < sum(size.get(v, 0) for v in call.results):
            at = max(found.index(n) for n in waiting) + 1
        else:
            at = len(found)
        found.insert(at, number)
        placed.add(number)
    return found[::-1]


def _peak(program: Program, numbers: Sequence[int]) -> int:
    """The most bytes alive during any call."""
    lives = _Lives(program)
    alive = most = 0
    for number in numbers:
        call = program.calls[number]
        made = sum(lives.size.get(v, 0) for v in call.results)
        most = max(most, alive + made)
        alive += lives.growth(number)
        lives.run(number)
    return most


def _bytes(value: Value) -> int:
    type = tensor_type(value)
    return _number(type.size) * type.element.itemsize


def _number(size: Index) -> int:
    if isinstance(size, int):
        return size
    return evaluate(size, {s.name: USUAL for s in size.symbols()})
