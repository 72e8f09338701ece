"""Evaluates graphs by the operations' NumPy references: the oracle of the compiled code, and the constant folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.compiler.diagnostics import VerificationError
from flambeau.compiler.ir import dims
from flambeau.compiler.ir.core import Graph, Operation, Value, create, rebuild
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import TensorType, from_numpy, tensor

Array = np.ndarray[Any, Any]


def evaluate(graph: Graph, arrays: Sequence[Any]) -> list[Array]:
    """The graph's results for these arrays, one a parameter.

    Symbolic dimensions take their numbers from the arrays' shapes. Raises VerificationError where an array does not
    fit its parameter, or an operation's reference gives another type than the operation says.
    """
    if len(arrays) != len(graph.parameters):
        raise VerificationError(f"graph {graph.name} takes {len(graph.parameters)} arrays, got {len(arrays)}")
    given = [np.asarray(a) for a in arrays]
    binding = bind(graph, given)
    values: dict[Value, Array] = dict(zip(graph.parameters, given))
    for operation in graph.operations:
        operands = [values[v] for v in operation.operands]
        for value, array in zip(operation.results, run_operation(operation, operands, binding), strict=True):
            values[value] = array
    return [values[r] for r in graph.results]


def bind(graph: Graph, arrays: Sequence[Array]) -> dict[str, int]:
    """The number of each dimension symbol that is a dimension of a parameter. VerificationError if shapes disagree."""
    binding: dict[str, int] = {}
    for i, (parameter, array) in enumerate(zip(graph.parameters, arrays)):
        expected = _tensor_type(parameter)
        if from_numpy(array.dtype) is not expected.element or array.ndim != expected.rank:
            raise VerificationError(
                f"parameter {i} of graph {graph.name} is {expected}, got {array.dtype}{list(array.shape)}"
            )
        for d, size in zip(expected.shape, array.shape):
            if isinstance(d, Dim) and repr(d).isidentifier():
                binding.setdefault(repr(d), size)
    for i, (parameter, array) in enumerate(zip(graph.parameters, arrays)):
        shape = static_shape(_tensor_type(parameter), binding)
        if shape != array.shape:
            raise VerificationError(
                f"parameter {i} of graph {graph.name}: expected shape {shape}, got {array.shape}"
            )
    return binding


def static_shape(type: TensorType, binding: dict[str, int]) -> tuple[int, ...]:
    """The shape in numbers. KeyError if a symbol has none."""
    return tuple([dims.evaluate(d, binding) for d in type.shape])


def specialise(definition: OpDef, binding: dict[str, int]) -> OpDef:
    """The definition with numbers for the symbols in its attributes."""
    changed = {}
    for field, value in definition.attribute_items():
        new = _specialised(value, binding)
        if new is not value:
            changed[field.name] = new
    return type(definition)(**{**definition.attributes, **changed}) if changed else definition


def _specialised(value: Any, binding: dict[str, int]) -> Any:
    if isinstance(value, Dim):
        return dims.evaluate(value, binding)
    if isinstance(value, tuple):
        new = tuple([_specialised(v, binding) for v in value])
        return value if all(a is b for a, b in zip(new, value)) else new
    if isinstance(value, Graph):
        return _specialised_graph(value, binding)
    return value


def _specialised_graph(graph: Graph, binding: dict[str, int]) -> Graph:
    """The graph with numbers for symbols in its types and attributes; itself if there are none."""

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        definition = specialise(operation.definition, binding)
        return None if definition is operation.definition else create(definition, *operands).results

    types = [_tensor_type(p) for p in graph.parameters]
    numbers = [t if t.is_static else t.with_shape(static_shape(t, binding)) for t in types]
    parameters = [p if a is b else Value(b) for p, a, b in zip(graph.parameters, types, numbers)]
    if all(a is b for a, b in zip(parameters, graph.parameters)):
        new = rebuild(graph, replace)
    else:
        new = rebuild(graph, replace, parameters)
    return graph if new.key() == graph.key() else new


def run_operation(
    operation: Operation, operands: Sequence[Array], binding: dict[str, int]
) -> tuple[Array, ...]:
    """The results of one operation; checks their types."""
    found = run_definition(specialise(operation.definition, binding), operands)
    for value, array in zip(operation.results, found, strict=True):
        expected = _tensor_type(value)
        if array.dtype != expected.element.numpy or array.shape != static_shape(expected, binding):
            raise VerificationError(
                f"{operation.name}: its reference gives {array.dtype}{list(array.shape)}, its type is {expected}",
                operation.location,
            )
    return found


def run_definition(definition: Any, operands: Sequence[Any]) -> tuple[Array, ...]:
    """The results of an operation on arrays: by its reference, or through its decomposition if it has none."""
    arrays = [np.asarray(a) for a in operands]
    if not _has_reference(type(definition)):
        return tuple(evaluate(decomposition(definition, arrays), arrays))
    with np.errstate(all="ignore"):
        found = definition.reference(*arrays)
    return tuple([np.asarray(a) for a in (found if isinstance(found, tuple | list) else (found,))])


def decomposition(definition: Any, arrays: Sequence[Array]) -> Graph:
    """A composite's decomposition on operands of these arrays' types, as a graph."""
    parameters = [Value(tensor(a.shape, from_numpy(a.dtype))) for a in arrays]
    results = definition.decompose(*parameters)
    return Graph(
        parameters,
        [results] if isinstance(results, Value) else list(results),
        definition.name.replace(".", "_"),
    )


def _has_reference(cls: type[Any]) -> bool:
    """Does a class below the bases define `reference`? The base only raises."""
    owner = next(c for c in cls.__mro__ if "reference" in c.__dict__)
    return owner.__name__ != "GraphOp"


def _tensor_type(value: Value) -> TensorType:
    if not isinstance(value.type, TensorType):
        raise VerificationError(f"the interpreter evaluates tensors, got a value of type {value.type}")
    return value.type
