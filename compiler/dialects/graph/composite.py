"""Composite operations: named, with a better gradient or kernel of their own, made of primitives everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Operation, Value, topological
from flambeau.compiler.ir.types import ElementType, TensorType, f32

Array = np.ndarray[Any, Any]


class ThroughDecomposition:
    """Says that the gradient of a composite is that of its decomposition: ``vjp = ThroughDecomposition()``."""


class Composite(GraphOp):
    """Base of the composites: `decompose` gives the same results from other operations."""

    def gradient(
        self, cotangents: Sequence[Value | None], operands: Sequence[Value], results: Sequence[Value]
    ) -> tuple[Value | None, ...]:
        """As `GraphOp.gradient`; reverse mode over the decomposition where `vjp` says so."""
        if isinstance(self.vjp, ThroughDecomposition):
            return decomposed_vjp(self, cotangents, operands)
        return super().gradient(cotangents, operands, results)

    def check_operands(self, operands: Sequence[TensorType], least: int, most: int) -> None:
        """The number of operands, and one float element type among the floating ones."""
        if not least <= len(operands) <= most:
            expected = least if least == most else f"{least} to {most}"
            raise self.reject("wrong number of operands", expected=expected, actual=len(operands))
        first = operands[0].element
        if not first.is_float:
            raise self.reject("unsupported element type", expected="float", actual=first)
        for i, other in enumerate(operands[1:], 2):
            if other.element.is_float and other.element is not first:
                raise self.reject(
                    f"operand {i} has another element type", expected=first, actual=other.element
                )


def decomposed_vjp(
    op: GraphOp, cotangents: Sequence[Value | None], operands: Sequence[Value]
) -> tuple[Value | None, ...]:
    """Reverse mode over ``op.decompose(*operands)``: the operands' cotangents, None where there is none.

    An operand that occurs twice gets its whole cotangent at its first place.
    """
    made = op.decompose(*operands)
    outputs = (made,) if isinstance(made, Value) else tuple(made)
    order = topological(outputs, set(operands))
    active = {v for v in operands if build.element_of(v).is_float}
    steps: list[Operation] = []
    for operation in order:
        if any(v in active for v in operation.operands):
            active.update(r for r in operation.results if build.element_of(r).is_float)
            steps.append(operation)
    total: dict[Value, Value] = {}

    def accumulate(value: Value, cotangent: Value | None) -> None:
        if cotangent is not None and value in active:
            total[value] = build.add(total[value], cotangent) if value in total else cotangent

    for output, cotangent in zip(outputs, cotangents, strict=True):
        accumulate(output, cotangent)
    for operation in reversed(steps):
        received = [total.get(r) for r in operation.results]
        if all(r is None for r in received):
            continue
        definition = operation.definition
        assert isinstance(definition, GraphOp)
        passed = definition.gradient(received, operation.operands, operation.results)
        for operand, cotangent in zip(operation.operands, passed, strict=True):
            accumulate(operand, cotangent)
    return tuple([total.get(v) if v not in operands[:i] else None for i, v in enumerate(operands)])


def wide(x: Value) -> Value:
    """`x` in the type in which composites compute: 16-bit floats in f32, others as they are."""
    return build.convert(x, f32) if build.element_of(x).bits < 32 else x


def narrow(x: Value, element: ElementType) -> Value:
    """`x` rounded to `element`."""
    return build.convert(x, element)


def wide_array(x: Array) -> Array:
    """`wide` of an array."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x
