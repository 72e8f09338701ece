"""The derivative of a scalar by the leaves of its history, made once for all values that came about in the same way."""

from __future__ import annotations

from typing import Any

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.autograd_ops import Copy
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.planning import follow, not_recording, path_to
from flambeau.reverse import Meta, history, is_leaf, reverse
from flambeau.tape import Place, Recorded, Recorder, Rule, recorded


class Derivative:
    """A graph from forward values to the leaves' gradients, and how these values are found from the root.

    `path` leads to them (`planning.path_to`); `interior`, `leaves` and `inputs` are positions in it: values that
    derivatives flow through, those that they end at, and what the graph reads. A result is a number of the graph's
    results, or of an input that is the gradient itself (negative: ~number).
    """

    __slots__ = ("graph", "types", "path", "interior", "leaves", "inputs", "results")

    def __init__(self, root: Value) -> None:
        through = [r for operation in history([root]) for r in operation.results if r.requires_grad]
        with not_recording():
            cotangents = reverse([root], [build.ones_like(root)])
        ends = [v for v in cotangents if is_leaf(v)]
        gradients = [cotangents[v] for v in ends]
        read = [v for v in _below(gradients) if v.number >= 0 or v.data is not None]
        self.path, places = path_to([*through, *ends, *read], [root], past_content=True)
        self.interior = [places[v] for v in through]
        self.leaves = [places[v] for v in ends]
        self.inputs = [places[v] for v in read]
        made = [v for v in gradients if v not in read]
        with not_recording():  # parameters of its own: nothing of the first run is kept
            self.graph = rebuild(Graph(read, made), None, [Value(v.type) for v in read])
        self.types = tuple([v.type for v in made])
        self.results = [~read.index(v) if v in read else made.index(v) for v in gradients]

    def of(self, root: Value, now: Recorder, place: Place) -> list[tuple[Value, Value]] | None:
        """The leaves and their gradients, recorded. None if somebody wants to see what happens between them."""
        values = follow(self.path, [root])
        for i in self.interior:
            meta = values[i].hooks
            if meta.__class__ is Meta and (meta.hooks or meta.retain or meta.freed or meta.leaf):
                return None
        leaves = [values[i] for i in self.leaves]
        for leaf in leaves:
            meta = leaf.hooks
            if meta.__class__ is not Meta or not meta.leaf or meta.hooks or meta.retain or meta.function:
                return None
        inputs = tuple([values[i] for i in self.inputs])
        made: list[Value] = []
        if self.types:
            step = now.walk(self, inputs, False, place)
            run = _Run(self.graph, inputs)
            for number, type_ in enumerate(self.types):
                value = recorded(type_, _Part(run, number), inputs, place)
                if step is not None:
                    value.number = now.base + now.count
                    now.count += 1
                made.append(value)
            now.recorded += len(self.graph.operations)
        return [(leaf, inputs[~r] if r < 0 else made[r]) for leaf, r in zip(leaves, self.results)]


class _Run:
    """The derivative's operations for one backward pass, made if somebody asks."""

    __slots__ = ("graph", "inputs", "results")

    def __init__(self, graph: Graph, inputs: tuple[Value, ...]) -> None:
        self.graph, self.inputs = graph, inputs
        self.results: tuple[Value, ...] | None = None

    def result(self, number: int) -> Value:
        if self.results is None:
            self.results = rebuild(self.graph, None, self.inputs).results
        return self.results[number]


class _Part(Rule):
    """One of the gradients of a backward pass."""

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


def derivative_of(root: Value) -> Derivative | None:
    """The kept derivative of a value, by the way in which it came about; None where only its history tells."""
    if root.__class__ is not Recorded or root.step is None:
        return None
    found: Any = root.step.derivative
    if found is None:
        scalar = all(d == 1 for d in build.shape_of(root))
        found = root.step.derivative = Derivative(root) if scalar else False
    return found or None


def _below(gradients: list[Value]) -> list[Value]:
    """What the gradients are made of, as far as it was made for them, and where that ends."""
    found: dict[Value, None] = {}
    stack = list(reversed(gradients))
    while stack:
        value = stack.pop()
        if value in found:
            continue
        found[value] = None
        if value.number < 0 and value.data is None and value.owner is not None:
            stack.extend(reversed(value.owner.operands))
    return list(found)
