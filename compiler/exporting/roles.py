"""What an exported graph's parameters and results are, and the signature that a library tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.exporting.cpu_features import required_features
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.lowering.context import tensor_of
from flambeau.compiler.pipeline import Compilation
from flambeau.runtime import abi

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ExportRoles:
    """What each of a graph's parameters and results is, in their order.

    Parameters come as inputs, then weights, then state; results as outputs, then the state's successors. `inputs` and
    `outputs` are their names; `weights` and `state` names and contents (the state's are what a new handle starts from).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[tuple[str, Array], ...] = ()
    state: tuple[tuple[str, Array], ...] = ()


def check(graph: Graph, roles: ExportRoles) -> None:
    expected = len(roles.inputs) + len(roles.weights) + len(roles.state)
    if len(graph.parameters) != expected:
        raise CompilationError(f"the graph has {len(graph.parameters)} parameters, the roles name {expected}")
    if len(graph.results) != len(roles.outputs) + len(roles.state):
        raise CompilationError(
            f"the graph has {len(graph.results)} results, the roles name {len(roles.outputs) + len(roles.state)}"
        )
    kept = [*roles.weights, *roles.state]
    for (label, array), parameter in zip(kept, graph.parameters[len(roles.inputs) :], strict=True):
        type = tensor_of(parameter)
        if array.shape != type.shape or array.dtype != type.element.numpy:
            raise CompilationError(
                f"{label}: the parameter is {type}, its content {array.dtype}{list(array.shape)}"
            )
    for (label, _), before, after in zip(
        roles.state,
        graph.parameters[len(roles.inputs) + len(roles.weights) :],
        graph.results[len(roles.outputs) :],
        strict=True,
    ):
        if before.type is not after.type:
            raise CompilationError(
                f"the state {label} is {before.type} before a step and {after.type} after it"
            )


def _described(label: str, value: Value) -> dict[str, Any]:
    type = tensor_of(value)
    shape = [d if isinstance(d, int) else str(d) for d in type.shape]
    return {"name": label, "dtype": type.element.numpy.name, "shape": shape}


def used_weights(c: Compilation, roles: ExportRoles) -> dict[int, Array]:
    """The weights that the compiled code reads, by their parameter's number: others were prepared, and only that is kept."""
    assert c.simplified is not None
    read = {v for operation in c.simplified.operations for v in operation.operands} | {*c.simplified.results}
    numbered = enumerate(roles.weights, len(roles.inputs))
    return {n: array for n, (_, array) in numbered if c.simplified.parameters[n] in read}


def signature_of(
    c: Compilation,
    roles: ExportRoles,
    name: str,
    weights_file: str | None,
    weight_bytes: int,
) -> dict[str, Any]:
    graph = c.graph
    first_state = len(roles.inputs) + len(roles.weights)
    assert c.memory is not None
    return {
        "abi": abi.VERSION,
        "name": name,
        "kind": "training_step" if roles.state else "inference",
        "symbols": [s.name for s in c.symbols],
        "inputs": [_described(n, v) for n, v in zip(roles.inputs, graph.parameters, strict=False)],
        "outputs": [_described(n, v) for n, v in zip(roles.outputs, graph.results, strict=False)],
        "state": [
            _described(n, v) for (n, _), v in zip(roles.state, graph.parameters[first_state:], strict=True)
        ],
        "weights": [
            _described(n, v)
            for (n, _), v in zip(roles.weights, graph.parameters[len(roles.inputs) :], strict=False)
        ],
        "weights_file": weights_file,
        "weight_bytes": weight_bytes,
        "workspace": str(c.memory.size),
        "kernels": len(c.kernels),
        "target": {
            "triple": c.target.triple,
            "cpu": c.target.cpu,
            "requires": [n for n, *_ in required_features(c.target)],
        },
    }
