"""Makes loops over steps smaller: what no step changes is computed before them, what nobody reads is not computed.

Works on the scans of a graph and on those in their bodies. A carry that its body passes on is an invariant, an output
that is a slice of a sequence is that sequence, and equal operands and outputs are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flambeau.compiler.dialects.graph.constants import Constant
from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.passes import Pass
from flambeau.compiler.passes.split_weights import VIEWS


def simplify_scans(graph: Graph) -> Graph:
    """An equal graph whose scans do less in each step."""
    if not any(isinstance(o.definition, Scan) for o in graph.operations):
        return graph
    while True:
        changed = rebuild(graph, _hoist)
        used = {v for o in changed.operations for v in o.operands} | set(changed.results)
        changed = _pruned(changed, used)
        if changed == graph:
            return changed
        graph = changed


# -- what no step changes ------------------------------------------------------------------------------------------


def _hoist(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
    """The same scan, with values that depend on invariants alone computed before it."""
    scan = operation.definition
    if not isinstance(scan, Scan):
        return None
    scan = scan.map_bodies(simplify_scans)
    body = scan.body
    varying: set[Value] = set(body.parameters[: scan.carries + scan.sequences])
    for step in body.operations:
        if any(v in varying for v in step.operands):
            varying.update(step.results)
    read = [v for step in body.operations if step.results[0] in varying for v in step.operands]
    read += body.results
    hoisted: dict[Value, None] = {}
    seen: set[Value] = set()
    while read:
        value = read.pop()
        if value in varying or value in seen or value.owner is None:
            continue
        seen.add(value)
        if _stays(value.owner):
            read.extend(value.owner.operands)
        else:
            hoisted[value] = None
    if not hoisted:
        return (
            None
            if scan is operation.definition
            else Operation(scan, operands, [r.type for r in operation.results], operation._location).results
        )
    before = rebuild(Graph(body.parameters, list(hoisted)), parameters=operands)
    fresh = [Value(v.type) for v in hoisted]
    replaced = dict(zip(hoisted, fresh, strict=True))
    new_body = _substituted(body, replaced, [*body.parameters, *fresh])
    return Operation(
        scan.with_body(new_body),
        [*operands, *before.results],
        [r.type for r in operation.results],
        operation._location,
    ).results


def _stays(operation: Operation) -> bool:
    """Is it made again in each step for nothing? Views and numbers only take up memory elsewhere."""
    definition = operation.definition
    if isinstance(definition, Constant):
        return definition.literal.splat is not None
    return isinstance(definition, VIEWS) or not operation.operands


def _substituted(graph: Graph, values: dict[Value, Value], parameters: Sequence[Value]) -> Graph:
    """`graph` with other values in place of some of its own."""

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        if not any(r in values for r in operation.results) and not any(v in values for v in operands):
            return None
        operands = tuple([values.get(v, v) for v in operands])
        made = Operation(
            operation.definition, operands, [r.type for r in operation.results], operation._location
        )
        return [values.get(old, new) for old, new in zip(operation.results, made.results, strict=True)]

    changed = rebuild(Graph(graph.parameters, graph.results, graph.name), replace)
    return Graph(parameters, [values.get(r, r) for r in changed.results], graph.name)


# -- what nobody reads ---------------------------------------------------------------------------------------------


def _pruned(graph: Graph, used: set[Value]) -> Graph:
    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        if not isinstance(operation.definition, Scan):
            return None
        return _smaller(operation, operands, [r in used for r in operation.results])

    return rebuild(graph, replace)


def _smaller(
    operation: Operation, operands: tuple[Value, ...], used: Sequence[bool]
) -> Sequence[Value] | None:
    scan = operation.definition
    assert isinstance(scan, Scan)
    n, m = scan.carries, scan.carries + scan.sequences
    body = _one_of_equals(scan, operands)
    parameters, results = body.parameters, body.results
    #: The values that take the place of results that the new scan lacks.
    given: dict[int, Value] = {}
    number = {p: i for i, p in enumerate(parameters)}
    passed = [i for i in range(n) if results[i] is parameters[i]]
    for i in passed:
        given[i] = operands[i]
    outputs: dict[Value, int] = {}
    same: dict[int, int] = {}
    for i, value in enumerate(results[n:], n):
        place = number.get(value)
        if place is not None and n <= place < m:
            given[i] = operands[place]
        elif value in outputs:
            same[i] = outputs[value]
        else:
            outputs[value] = i
    live = {i for i, is_used in enumerate(used) if is_used and i not in given and i not in same}
    live |= {same[i] for i, is_used in enumerate(used) if is_used and i in same}
    while True:
        reached = _reached(body, [results[i] for i in sorted(live)])
        more = live | {i for i in range(n) if parameters[i] in reached and i not in passed}
        if more == live:
            break
        live = more
    carries = [i for i in range(n) if i in live]
    sequences = [i for i in range(n, m) if parameters[i] in reached]
    invariants = [i for i in (*passed, *range(m, len(parameters))) if parameters[i] in reached]
    kept = [*carries, *[i for i in range(n, len(results)) if i in live]]
    order = [*carries, *sequences, *invariants]
    if not kept:
        return [given.get(i, r) for i, r in enumerate(operation.results)]
    whole = order == list(range(len(parameters))) and kept == list(range(len(results)))
    if whole and body is scan.body:
        return None
    smaller = Graph([parameters[i] for i in order], [results[i] for i in kept], body.name)
    definition = Scan(smaller, scan.length, len(carries), len(sequences), scan.reverse)
    types = [operation.results[i].type for i in kept]
    made = Operation(definition, [operands[i] for i in order], types, operation._location).results
    new = dict(zip(kept, made, strict=True))
    # A result that is neither made nor given is read by nobody.
    return [new.get(same.get(i, i), given.get(i, r)) for i, r in enumerate(operation.results)]


def _one_of_equals(scan: Scan, operands: Sequence[Value]) -> Graph:
    """The body, reading one of the parameters of the same kind that get the same operand."""
    first: dict[tuple[bool, Value], Value] = {}
    replaced: dict[Value, Value] = {}
    for i in range(scan.carries, len(operands)):
        parameter = scan.body.parameters[i]
        known = first.setdefault((i < scan.carries + scan.sequences, operands[i]), parameter)
        if known is not parameter:
            replaced[parameter] = known
    return _substituted(scan.body, replaced, scan.body.parameters) if replaced else scan.body


def _reached(body: Graph, results: Sequence[Value]) -> set[Value]:
    """The parameters that these results need."""
    read = {v for o in Graph(body.parameters, results).operations for v in o.operands} | set(results)
    return {p for p in body.parameters if p in read}


@dataclass(frozen=True)
class SimplifyScans(Pass):
    """Compute before a scan what no step changes, and not at all what nobody reads."""

    name: ClassVar[str] = "simplify_scans"

    def run(self, graph: Graph) -> Graph:
        return simplify_scans(graph)
