"""Gives what a scan's products read in each step the layout in which they read it without packing, before the loop."""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.passes.pack_weights import pack_weights
from flambeau.compiler.passes.simplify_scans import simplify_scans
from flambeau.compiler.targets.machine import TargetDescription

#: A scan of fewer steps reads its invariants as they lie.
STEPS = 4


def pack_invariants(graph: Graph, target: TargetDescription) -> Graph:
    """An equal graph whose scans read the invariants on the right side of products from panels, packed before the loop."""

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        scan = operation.definition
        if not isinstance(scan, Scan):
            return None
        body = pack_invariants(scan.body, target)
        if not isinstance(scan.length, int) or scan.length >= STEPS:
            body = pack_weights(body, body.parameters[scan.carries + scan.sequences :], target, repeated=True)
        if body == scan.body:
            return None
        types = [r.type for r in operation.results]
        return Operation(scan.with_body(body), operands, types, operation._location).results

    packed = rebuild(graph, replace)
    return simplify_scans(packed) if packed != graph else graph
