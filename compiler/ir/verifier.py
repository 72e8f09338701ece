"""The IR's rules, executable: what every graph and every loop-level function must satisfy."""

from __future__ import annotations

from collections.abc import Iterable

from flambeau.compiler.diagnostics import FlambeauError, VerificationError
from flambeau.compiler.ir.core import Block, Graph, Operation, Value, infer_types
from flambeau.compiler.ir.types import FunctionType


def verify_graph(graph: Graph) -> None:
    """Check a graph. Raises VerificationError with the operation's location."""
    known = set(graph.parameters)
    if len(known) != len(graph.parameters):
        raise VerificationError(f"graph {graph.name}: a value is a parameter twice")
    for operation in graph.operations:
        _check_operands(operation, known)
        _check_types(operation)
        operation.definition.verify(operation)
        known.update(operation.results)
    for number, result in enumerate(graph.results):
        if result not in known:
            raise VerificationError(
                f"graph {graph.name}: result {number} is neither computed nor a parameter"
            )


def verify_functions(functions: Iterable[Operation]) -> None:
    """Check loop-level functions. Raises VerificationError."""
    for function in functions:
        if function.name != "func.func" or len(function.regions) != 1:
            raise VerificationError(
                f"expected func.func with one region, found {function.name}", function.location
            )
        _verify_block(function.regions[0].block, set(), function)


def _verify_block(block: Block, outside: set[Value], parent: Operation) -> None:
    known = {*outside, *block.arguments}
    if not block.operations:
        raise VerificationError(f"{parent.name}: a block without a terminator", parent.location)
    for position, operation in enumerate(block.operations):
        _check_operands(operation, known)
        if not getattr(operation.definition, "explicit_results", False):
            _check_types(operation)
        last = position == len(block.operations) - 1
        if getattr(operation.definition, "is_terminator", False) != last:
            rule = (
                "a block ends in a terminator" if last else "a terminator is the last operation of its block"
            )
            raise VerificationError(f"{operation.name}: {rule}", operation.location)
        operation.definition.verify(operation)
        for region in operation.regions:
            _verify_block(region.block, known, operation)
        known.update(operation.results)


def _check_operands(operation: Operation, known: set[Value]) -> None:
    for number, value in enumerate(operation.operands):
        if value not in known:
            raise VerificationError(
                f"{operation.name}: operand {number} is used before it is defined, or outside its region",
                operation.location,
            )


def _check_types(operation: Operation) -> None:
    operands = tuple([v.type for v in operation.operands])
    actual = tuple([r.type for r in operation.results])
    try:
        expected = infer_types(operation.definition, operands)
    except FlambeauError as error:
        raise VerificationError(error.message, operation.location) from None
    if expected != actual:
        raise VerificationError(
            f"{operation.name}: expected the type {FunctionType.get(operands, expected)}, "
            f"got {FunctionType.get(operands, actual)}",
            operation.location,
        )
