"""Graphs that are recorded in one step: a derivative, an optimizer's update.

The walk (`tape.py`) sees one rule with some results; the operations between are made when somebody asks for the owner of
a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flambeau.compiler.dialects.graph.autograd_ops import Copy, StopGradient
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.planning import not_recording
from flambeau.tape import INSIDE, Recorded, Recorder, Rule, caller_place, recorded


class Replay:
    """What computes `results` of `inputs`, ready to be recorded again and again on other inputs of the same types.

    `differentiable`: derivatives flow through it, from the inputs that require grad now.
    """

    __slots__ = ("graph", "types", "flows", "size")

    def __init__(
        self, inputs: Sequence[Value], results: Sequence[Value], differentiable: bool = False
    ) -> None:
        parameters = [Value(v.type) for v in inputs]  # of its own: nothing of the first run is kept
        with not_recording():
            self.graph = rebuild(Graph(inputs, results), None, parameters)
        self.size = len(self.graph.operations)
        self.types = tuple([v.type for v in results])
        self.flows: tuple[bool, ...] = (False,) * len(self.types)
        if differentiable:
            for parameter, v in zip(parameters, inputs):
                parameter.requires_grad = v.requires_grad
            _let_flow(self.graph.operations)
            self.flows = tuple([v.requires_grad for v in self.graph.results])

    def record(self, inputs: tuple[Value, ...], now: Recorder) -> list[Recorded]:
        """The results of these inputs."""
        step = now.walk(self, inputs, any(self.flows))
        place = caller_place() if step is None else step.place
        run = _Run(self, inputs)
        made: list[Recorded] = []
        for number, (type_, flows) in enumerate(zip(self.types, self.flows)):
            value = recorded(type_, _Result(run, number), inputs, place)
            if step is not None:
                value.number = now.base + now.count
                now.count += 1
            if flows:
                value.requires_grad = True
                if step is not None and step.whole and len(self.types) == 1:
                    value.step = step
            made.append(value)
        now.recorded += self.size
        return made


def _let_flow(operations: Iterable[Operation]) -> None:
    """Says of each result whether derivatives flow through it, operands first."""
    for operation in operations:
        if isinstance(operation.definition, StopGradient):
            continue
        if any(v.requires_grad for v in operation.operands):
            for result in operation.results:
                result.requires_grad = result.type.element.kind == "float"  # type: ignore[attr-defined]


def replay_of(value: Value) -> Replay | None:
    """Which replay recorded a value, if one did."""
    rule = value.rule if isinstance(value, Recorded) else None
    return rule.run.replay if isinstance(rule, _Result) else None


class _Run:
    """The operations of one time, made if somebody asks."""

    __slots__ = ("replay", "inputs", "results")

    def __init__(self, replay: Replay, inputs: tuple[Value, ...]) -> None:
        self.replay, self.inputs = replay, inputs
        self.results: tuple[Value, ...] | None = None

    def result(self, number: int) -> Value:
        if self.results is None:
            made = rebuild(self.replay.graph, None, self.inputs)
            for operation in made.operations:
                for result in operation.results:
                    result.number = INSIDE
            if any(self.replay.flows):
                _let_flow(made.operations)
            self.results = made.results
        return self.results[number]


class _Result(Rule):
    """One of the results of a run."""

    __slots__ = ("run", "number")

    def __init__(self, run: _Run, number: int) -> None:
        self.run, self.number = run, number

    def operation(self, value: Recorded) -> Operation:
        same = self.run.result(self.number)
        made = same.owner
        assert made is not None
        if len(made.results) > 1:
            return Operation(Copy(), (same,), (), made._location, results=(value,))
        return Operation(made.definition, made.operands, (), made._location, results=(value,))
