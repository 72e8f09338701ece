"""From values that are wanted to what computes them: the structure of their graph, and an executable that is found by it.

A plan belongs to a structure. A route belongs to a step of a walk (`tape.py`), and spares the look at the structure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flambeau.compiler import options
from flambeau.compiler.dialects.graph.autograd_ops import CustomGradient
from flambeau.compiler.dialects.graph.constants import Constant
from flambeau.compiler.dialects.graph.shape import BroadcastInDim
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild, untraced
from flambeau.recent import Recent
from flambeau.reverse import Meta, reverse
from flambeau.sizes import Family, Form, generalised
from flambeau.tape import INSIDE, Recorded

Executable = Callable[[list[Any]], list[Any]]
not_recording = untraced


class Statistics:
    """Counts of compilations, structural cache hits and evaluations since the program began."""

    def __init__(self) -> None:
        self.compilations = self.hits = self.evaluations = 0

    def __repr__(self) -> str:
        return f"compilations={self.compilations}, hits={self.hits}, evaluations={self.evaluations}"


statistics = Statistics()


def stats() -> Statistics:
    """What has been compiled and evaluated so far in this process."""
    return statistics


def explain(text: str) -> None:
    """Says why something was not as quick as it could be, where FLAMBEAU_DEBUG asks for it."""
    if options.current().debug >= 1:
        print(f"flambeau: {text}", file=sys.stderr)


class Plan:
    """An executable, and which values, by their numbers in the structure, it computes beside those that are wanted."""

    __slots__ = ("executable", "kept")

    def __init__(self, executable: Executable, kept: tuple[int, ...]) -> None:
        self.executable, self.kept = executable, kept


class Route:
    """What is wanted at a step of the walk, computed: `path` leads from the wanted values to all that matter, each the
    source of an earlier one; `leaves` and `kept` are positions in it."""

    __slots__ = ("plan", "path", "leaves", "kept")

    def __init__(self, plan: Plan, wanted: list[Value], leaves: list[Value], kept: list[Value]) -> None:
        self.plan = plan
        self.path, places = path_to([*leaves, *kept], wanted)
        self.leaves = tuple([places[v] for v in leaves])
        self.kept = tuple([places[v] for v in kept])


_PLANS: Recent[Any, Plan] = Recent(1024)
_FAMILIES: Recent[Any, Family] = Recent(256)


def planned(wanted: list[Value]) -> tuple[Plan, list[Value], list[Any], list[Value]]:
    """How `wanted` is computed, found by the structure: the plan, the leaves, their contents, and what is computed
    besides."""
    found, numbers, leaves, contents = structure(wanted)
    key = found, options.current().code
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS[key] = _plan(found, wanted, numbers, leaves)
    else:
        statistics.hits += 1
    by_number = list(numbers)
    return plan, leaves, contents, [by_number[i] for i in plan.kept]


def path_to(
    ends: Sequence[Value], starts: Sequence[Value], past_content: bool = False
) -> tuple[list[tuple[int, int]], dict[Value, int]]:
    """Steps from `starts` to all of `ends`, for `follow`, and the positions of the values on the way. Known content ends a
    way unless it goes `past_content`. KeyError if there is no way to an end."""
    before: dict[Value, tuple[Value, int]] = {}
    stack = list(starts)
    seen = set(starts)

    def reach(found: Value, value: Value, number: int) -> None:
        if found not in seen:
            seen.add(found)
            before[found] = value, number
            if past_content or found.data is None:
                stack.append(found)

    while stack:
        value = stack.pop()
        for number, source in enumerate(value.sources):
            reach(source, value, number)
        if not isinstance(value, Recorded) and value.owner is not None:
            for result in value.owner.results:
                reach(result, value, ~result.index)
    places: dict[Value, int] = {v: i for i, v in reversed(list(enumerate(starts)))}
    path: list[tuple[int, int]] = []
    for end in ends:
        way = []
        value = end
        while value not in places:
            way.append(value)
            value = before[value][0]
        for value in reversed(way):
            origin, number = before[value]
            path.append((places[origin], number))
            places[value] = len(starts) + len(path) - 1
    return path, places


def follow(path: Sequence[tuple[int, int]], values: list[Value]) -> list[Value]:
    """Appends to `values` what a path leads to: at each step a source of an earlier value, or (negative) another result of
    its operation. IndexError where it is not there any more."""
    for position, number in path:
        value = values[position]
        values.append(value.sources[number] if number >= 0 else value.owner.results[~number])  # type: ignore[union-attr]
    return values


def structure(wanted: Sequence[Value]) -> tuple[Any, dict[Value, int], list[Value], list[Any]]:
    """The graph below `wanted` as a hashable key, its values in a fixed order, its leaves (known values), and their
    contents: as they are seen here, since another thread may release one (`weights`) or compute one."""
    numbers: dict[Value, int] = {}
    leaves: list[Value] = []
    contents: list[Any] = []
    parts: list[Any] = []
    done: set[Operation] = set()
    stack: list[Any] = [(v, 0) for v in reversed(wanted)]
    while stack:
        value, visited = stack.pop()
        if value in numbers:
            continue
        array = value.data
        operation = value.owner
        if array is None and operation is None:
            array = value.data  # computed in between
            if array is None:
                raise RuntimeError(f"a value without content was observed: {value!r}")
        if array is not None or operation is None:
            numbers[value] = len(numbers)
            leaves.append(value)
            contents.append(array)
            parts.append(value.type)
            continue
        if operation in done:  # another result of an operation that is numbered already
            continue
        if not visited:
            stack.append((value, 1))
            for operand in reversed(operation.operands):
                if operand not in numbers:
                    stack.append((operand, 0))
            continue
        done.add(operation)
        definition = operation.definition
        kind = CustomGradient if type(definition) is CustomGradient else definition
        parts.append((kind, tuple([numbers[v] for v in operation.operands]), value.requires_grad))
        for result in operation.results:
            numbers[result] = len(numbers)
    return (tuple(parts), tuple([numbers[v] for v in wanted])), numbers, leaves, contents


def _plan(found: Any, wanted: list[Value], numbers: dict[Value, int], leaves: list[Value]) -> Plan:
    """The plan of a structure that is new, but perhaps in its sizes alone."""
    parts, targets = found
    rest = [part[1:] if isinstance(part, tuple) else None for part in parts]
    known = set(leaves)
    operations = list(dict.fromkeys([v.owner for v in numbers if v not in known and v.owner is not None]))
    form = Form(leaves, operations, (tuple(rest), targets))
    key = form.key, options.current().code
    family = _FAMILIES.get(key)
    if family is None:
        family = _FAMILIES[key] = Family()
    plan: Plan | None = family.find(form.numbers)
    if plan is not None:
        statistics.hits += 1
        return plan
    statistics.compilations += 1
    kept = _read_by_derivatives(wanted, numbers)
    keep = tuple([numbers[v] for v in kept])
    python = any(isinstance(o.definition, CustomGradient) for o in operations)
    pattern = None if python or options.current().interpret else family.pattern(form)
    with not_recording():
        if pattern is not None:
            try:
                plan = Plan(compiled(generalised(leaves, operations, wanted + kept, pattern)), keep)
                family.add(pattern, plan)
                return plan
            except Exception as error:  # whatever a symbolic size does to some rule: one size at a time, then
                explain(f"a graph is compiled for each size: {error}")
                family.add(pattern, None)
        graph = Graph(leaves, wanted + kept)
        # Parameters of their own: a leaf that requires grad keeps its history, which the compiler must not see.
        graph = rebuild(graph, without_python, [Value(v.type) for v in leaves])
        return Plan(compiled(graph), keep)


def without_python(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
    if isinstance(operation.definition, CustomGradient):
        return operands[: operation.definition.results]
    return None


def _read_by_derivatives(wanted: list[Value], numbers: dict[Value, int]) -> list[Value]:
    """Pending values that the derivative of `wanted` reads: kept, lest `backward` computes "
    "the forward again."""
    roots = [v for v in wanted if v.requires_grad and v.owner is not None and not _freed(v)]
    if not roots:
        return []
    inside = set(numbers)
    roots = [v for v in roots if v in inside]
    with not_recording():
        try:
            seeds = [Value(v.type) for v in roots]
            cotangents = reverse(roots, seeds, python=False)
        except Exception:  # an operation without a derivative: backward will say so, observing need not
            return []
        stop = inside | set(seeds)
        gradient = Graph((), [ct for v, ct in cotangents.items() if _is_leaf(v)])
        read: dict[Value, None] = {}
        stack = list(gradient.results)
        seen: set[Value] = set()
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in stop:
                if value in inside and value.data is None and value not in wanted:
                    read[value] = None
            elif value.owner is not None:
                stack.extend(value.owner.operands)
    return [v for v in sorted(read, key=numbers.__getitem__) if v.number != INSIDE and not _quickly_made(v)]


def _quickly_made(value: Value) -> bool:
    """Better made again than kept: numbers, and what repeats known content."""
    if isinstance(value.definition, BroadcastInDim):
        return value.sources[0].data is not None
    return isinstance(value.definition, Constant)


def _freed(value: Value) -> bool:
    return isinstance(value.hooks, Meta) and value.hooks.freed


def _is_leaf(value: Value) -> bool:
    return value.owner is None or (isinstance(value.hooks, Meta) and value.hooks.leaf)


def compiled(graph: Graph, weights: int = 0) -> Any:
    """The switch between compiled code and the interpreter; the compiler loads when it is first needed.

    The last `weights` parameters keep their content from call to call: `weights.hold` takes it, and calls give what that
    returns as a second argument.
    """
    if options.current().interpret:
        return Interpreted(graph)
    from flambeau.execution import ArrayExecutable, DynamicExecutable

    static = all(isinstance(d, int) for p in graph.parameters for d in p.type.shape)  # type: ignore[attr-defined]
    return ArrayExecutable(graph, weights) if static else DynamicExecutable(graph, weights)


class Interpreted:
    """A graph run by the operations' own NumPy rules: slow, and independent of code generation."""

    overwrites = ()
    layouts = ()

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reads = range(len(graph.parameters))

    def hold(self, arrays: list[Any], laid_out: list[Any]) -> list[Any]:
        return arrays

    def __call__(self, arrays: list[Any], held: Sequence[Any] = (), into: Any = None) -> list[Any]:
        with not_recording():
            found = interpreter.evaluate(self.graph, [*arrays, *held])
        return [np.require(a, requirements="C").reshape(a.shape) for a in found]
