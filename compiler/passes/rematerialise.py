"""Computes cheap pointwise values again where they are read late, rather than keep them from forward to backward.

A training step is fullest between its forward and its backward half. A value that is alive there, and that a few pointwise
operations give from others that are alive there anyway, need not be kept: its late readers read a copy of these operations
(T. Chen et al., "Training deep nets with sublinear memory cost", 2016, for the idea). So of a GELU layer the product remains,
and of a layer norm its input and two numbers a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph.base import Elementwise
from flambeau.compiler.dialects.graph.comparison_logic import Convert, Select
from flambeau.compiler.dialects.graph.constants import Constant
from flambeau.compiler.dialects.graph.optimization_barrier import OptimizationBarrier
from flambeau.compiler.dialects.graph.pointwise_math import FloatFunction
from flambeau.compiler.dialects.graph.shape import BroadcastInDim, Reshape
from flambeau.compiler.ir.core import Graph, Operation, Value, apply
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.passes.fuse import fuse

#: Smaller values are kept: they stay in the cache, and keeping them takes little memory.
LEAST = 1 << 20
#: Operations that may be repeated for one value, and how many of them may be transcendental functions.
OPERATIONS, FUNCTIONS = 24, 1
#: Values whose readers are fewer operations away are not kept for long.
LONG = 8
#: The share of the fullest moment that has to be saved.
SHARE = 0.05
#: Again for each element, at the same position or one of a smaller operand.
_POINTWISE = (Elementwise, Select, Convert, BroadcastInDim, Reshape, Constant)


def rematerialise(graph: Graph, least: int = LEAST) -> Graph:
    """An equal graph, the same bits, whose fullest moment is less full, where that pays. Unknown sizes are kept."""
    if not _may_pay(graph, least):
        return graph
    lives = _Lives(graph, {v for call in fuse(graph).calls for v in call.results})
    turn, most = lives.fullest(least)
    again = _worth_repeating(graph, lives, turn, least)
    if sum(_bytes(v) for v in again) < SHARE * most:
        return graph
    return _Repeating(again, lives, turn).graph(graph)


def _may_pay(graph: Graph, least: int) -> bool:
    """Is a large pointwise value read long after it is made? (Asking fusion what it stores takes longer.)"""
    made: dict[Value, int] = {}
    for number, operation in enumerate(graph.operations):
        if any(number - made.get(v, number) > LONG for v in operation.operands):
            return True
        if isinstance(operation.definition, _POINTWISE) and _bytes(operation.results[0]) >= least:
            made[operation.results[0]] = number
    return False


class _Lives:
    """From which operation to which a value is alive, counted in the graph's order.

    Only values that fusion puts into memory (`stored`) are; an operation that it inlines runs where its result is read.
    """

    def __init__(self, graph: Graph, stored: set[Value]) -> None:
        self.stored = stored
        self.first: dict[Value, int] = {}
        self.last: dict[Value, int] = {}
        self.length = len(graph.operations)
        for number, operation in enumerate(graph.operations):
            self.first.update(dict.fromkeys(operation.results, number))
        self.last = dict(self.first)
        for number in reversed(range(self.length)):
            operation = graph.operations[number]
            inlined = not any(r in stored for r in operation.results)
            runs = max(self.last[r] for r in operation.results) if inlined else number
            for value in operation.operands:
                if value in self.last:
                    self.last[value] = max(self.last[value], runs)

    def fullest(self, least: int) -> tuple[int, int]:
        """When the values of at least so many bytes take most room, and how much."""
        change = [0] * (self.length + 1)
        for value in self.stored:
            if value in self.first and _bytes(value) >= least:
                change[self.first[value]] += _bytes(value)
                change[self.last[value] + 1 if self.last[value] < self.length else -1] -= _bytes(value)
        turn = most = now = 0
        for number, bytes_ in enumerate(change):
            now += bytes_
            if now > most:
                turn, most = number, now
        return turn, most

    def across(self, value: Value, turn: int) -> bool:
        """Is it stored before, and read after?"""
        return value in self.stored and self.first[value] < turn < self.last[value]


def _worth_repeating(graph: Graph, lives: _Lives, turn: int, least: int) -> set[Value]:
    """Large values that are alive at the turn, and that others that are alive there give cheaply."""
    again: set[Value] = set()
    results = set(graph.results)
    for operation in graph.operations[:turn]:
        if not isinstance(operation.definition, _POINTWISE):
            continue
        (value,) = operation.results
        large = _bytes(value) >= least and value not in results
        if large and lives.across(value, turn) and _cheap(value, again, lives, turn, least):
            again.add(value)
    return again


def _cheap(value: Value, again: set[Value], lives: _Lives, turn: int, least: int) -> bool:
    """Do few operations give it from what is kept?"""
    seen: set[Value] = {value}
    pending, count, functions = [value], 0, 0
    while pending:
        operation = pending.pop().owner
        assert operation is not None
        count += 1
        functions += isinstance(operation.definition, FloatFunction)
        if count > OPERATIONS or functions > FUNCTIONS:
            return False
        for operand in operation.operands:
            if operand in seen or operand not in lives.first:  # a parameter
                continue
            seen.add(operand)
            owner = operand.owner
            assert owner is not None
            if lives.across(operand, turn) and operand not in again:  # kept
                continue
            if isinstance(owner.definition, _POINTWISE):
                pending.append(operand)
            elif _bytes(operand) >= least // 16:  # would have to be kept for this
                return False
    return True


class _Repeating:
    """Makes the graph in which what runs after the turn reads copies of `again`, made from what is kept.

    A barrier keeps a copy from running before its first reader can: else fusion would find it together with the original.
    """

    def __init__(self, again: set[Value], lives: _Lives, turn: int) -> None:
        self.again, self.lives, self.turn = again, lives, turn
        self.copies: dict[Value, Value] = {}
        self.known: dict[Value, Value] = {}
        self.latest: Value | None = None  # what was stored last, after the turn

    def graph(self, graph: Graph) -> Graph:
        new: dict[Value, Value] = {}
        for number, operation in enumerate(graph.operations):
            after = number > self.turn
            operands = tuple(
                [new[v] if v in new else self.late(v) if after else v for v in operation.operands]
            )
            if operands != operation.operands:
                types = [r.type for r in operation.results]
                changed = Operation(operation.definition, operands, types, operation._location)
                new.update(zip(operation.results, changed.results, strict=True))
            if after and operation.results[0] in self.lives.stored:
                self.latest = new.get(operation.results[0], operation.results[0])
        return Graph(graph.parameters, [new.get(r, r) for r in graph.results], graph.name)

    def late(self, value: Value) -> Value:
        """What stands for a value after the turn. Only expressions that fusion inlines are followed."""
        if value in self.again:
            return self.repeat(value)
        if value not in self.known:
            self.known[value] = value
            owner = value.owner
            if owner is not None and self.inlined(value):
                operands = tuple([self.late(v) for v in owner.operands])
                if operands != owner.operands:
                    self.known[value] = _like(owner, operands)
        return self.known[value]

    def repeat(self, value: Value) -> Value:
        """The value computed again, from what is kept."""
        if value not in self.copies:
            owner = value.owner
            if owner is not None and owner.operands and (value in self.again or self.inlined(value)):
                self.copies[value] = _like(owner, tuple([self.repeat(v) for v in owner.operands]))
            else:
                self.copies[value] = self.wait(value) if value in self.lives.stored else value
        return self.copies[value]

    def inlined(self, value: Value) -> bool:
        """Is it a pointwise value that is not in memory?"""
        owner = value.owner
        return (
            value in self.lives.first
            and value not in self.lives.stored
            and owner is not None
            and isinstance(owner.definition, _POINTWISE)
        )

    def wait(self, value: Value) -> Value:
        """A value that is kept, for what is not to run yet."""
        return value if self.latest is None else apply(OptimizationBarrier(), value, self.latest)


def _like(operation: Operation, operands: tuple[Value, ...]) -> Value:
    """The pointwise operation on other operands."""
    (result,) = operation.results
    return Operation(operation.definition, operands, [result.type], operation._location).results[0]


def _bytes(value: Value) -> int:
    """0 for a size that is not known."""
    assert isinstance(value.type, TensorType)
    size = value.type.size
    return size * value.type.element.itemsize if isinstance(size, int) else 0


@dataclass(frozen=True)
class Rematerialise(Pass):
    """Compute cheap pointwise values again instead of keeping them from forward to backward."""

    name: ClassVar[str] = "rematerialise"
    least: int = LEAST

    def run(self, graph: Graph) -> Graph:
        return rematerialise(graph, self.least)
