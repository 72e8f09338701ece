"""What every graph operation's class says, and the bases of the common families."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.diagnostics import NotDifferentiableError
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import ElementType, TensorType


class NotDifferentiable:
    """Says that an operation has no derivative and why: ``vjp = NotDifferentiable("its result is an integer")``.

    `zero=True` means that the derivative is zero where it exists (floor, sign, comparisons): gradients stop there
    silently, as in PyTorch. Otherwise asking for one is an error.
    """

    def __init__(self, why: str, *, zero: bool = False) -> None:
        self.why, self.zero = why, zero


@dataclass(frozen=True)
class Sample:
    """One input from which the tests of an operation are made.

    `operands` are NumPy arrays or scalars; `definition` the operation with its attributes. `torch` computes the same from
    torch tensors, or is None where torch has no counterpart. `differentiable` names the operands whose gradient is
    checked (all floating ones if None). `tolerance` is relative, on top of the dtype's own.
    """

    definition: GraphOp
    operands: tuple[Any, ...]
    torch: Callable[..., Any] | None = None
    differentiable: tuple[int, ...] | None = None
    tolerance: float = 0.0
    note: str = field(default="", compare=False)


class GraphOp(OpDef):
    """An operation on immutable tensors.

    A primitive implements `element_at` (one element of the result from elements of its operands, at any index) or
    belongs to a family that has its own loop schedule (`schedule_family`). A composite implements `decompose`.
    """

    #: What `compiler.passes.fuse` makes of it: "element" composes; the others anchor a kernel of their own.
    schedule_family: ClassVar[str] = "element"
    #: Recomputing one element costs more than reading it back from memory (reduce_window, ...).
    expensive: ClassVar[bool] = False
    #: One element reads many of the operand, which other elements read again: what computes the operand should be run once.
    rereads: ClassVar[bool] = False
    #: Makes a layout of an operand for a kernel: done once, of weights, whatever room the result takes.
    layout: ClassVar[bool] = False
    #: Operands, by number, that must lie in memory: the loops read them by address, not through element functions.
    buffered: ClassVar[tuple[int, ...]] = ()
    #: Its result may be larger than an operand, but no element of an operand is read twice.
    reads_once: ClassVar[bool] = False
    vjp: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name") and cls.vjp is None:
            raise TypeError(
                f"{cls.name} says nothing about its derivative: define vjp, or NotDifferentiable('why')"
            )

    @property
    def is_composite(self) -> bool:
        return type(self).decompose is not GraphOp.decompose

    def has_kernel(self, *operands: TensorType) -> bool:
        """Of a composite: does its `schedule_family` have a kernel for operands of these types, better than its parts?"""
        return False

    def infer(self, *operands: TensorType) -> TensorType | tuple[TensorType, ...]:  # type: ignore[override]
        """Result type from operand types, or an error through `self.reject(rule, expected=, actual=)`."""
        raise NotImplementedError

    def fold(self, *operands: Value) -> Value | Sequence[Value] | None:
        """A simpler equal value (an operand, a constant, another operation), or None."""
        return None

    def decompose(self, *operands: Value) -> Value | Sequence[Value]:
        """The same result from other graph operations (composites only)."""
        raise NotImplementedError(f"{self.name} is primitive")

    def inverse(self, x: TensorType) -> GraphOp | None:
        """Of a layout: the operation that gives x back, bit for bit, from x in this layout; None if there is none."""
        return None

    def map_bodies(self, transform: Callable[[Graph], Graph]) -> GraphOp:
        """The operation with `transform` applied to the graphs that it has as attributes: how passes reach them."""
        return self

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        """One result element. `operands` are accessors: ``x(index) -> scalar``, with `x.type` the TensorType.

        `b` is a `compiler.lowering.elements.ElementBuilder`; a scalar knows its element type (`scalar.element`).
        `index` has one `int | Dim` an axis, each in range.
        """
        raise NotImplementedError(f"{self.name} has no element function")

    def reference(self, *operands: np.ndarray[Any, Any]) -> Any:
        """The result by NumPy (a tuple for several results): the interpreter and the oracle."""
        raise NotImplementedError

    def samples(self) -> Iterable[Sample]:
        """Inputs for tests. A class-level use: called on any instance, or through `Class.samples(None)`."""
        return ()

    def gradient(
        self, cotangents: Sequence[Value | None], operands: Sequence[Value], results: Sequence[Value]
    ) -> tuple[Value | None, ...]:
        """Cotangents of the operands, in graph operations. Calls `vjp(ct, *operands, result=...)`.

        For one result `vjp` gets `ct` and `result` as values; for several, as tuples (an absent cotangent is None).
        """
        rule = self.vjp
        if isinstance(rule, NotDifferentiable):
            if rule.zero:
                return (None,) * len(operands)
            raise NotDifferentiableError(f"{self.name} is not differentiable: {rule.why}")
        single = len(results) == 1
        out = rule(
            cotangents[0] if single else tuple(cotangents),
            *operands,
            result=results[0] if single else tuple(results),
        )
        return tuple(out)


def same_types(op: GraphOp, operands: Sequence[TensorType]) -> TensorType:
    """All operands have one shape and element type, which is returned."""
    first = operands[0]
    for i, other in enumerate(operands[1:], 2):
        if other is not first:
            raise op.reject(
                f"operands must have the same type; operand {i} differs", expected=first, actual=other
            )
    return first


class Elementwise(GraphOp):
    """One result element from the operands' elements at the same index; all types equal unless `infer` says otherwise.

    Subclasses give `element(b, *scalars) -> scalar`; `kinds` restricts the element kinds of the operands.
    """

    kinds: ClassVar[tuple[str, ...]] = ("float", "int", "uint", "bool")
    arity: ClassVar[int] = 1

    def result_element(self, element: ElementType) -> ElementType:
        return element

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != self.arity:
            raise self.reject("wrong number of operands", expected=self.arity, actual=len(operands))
        first = same_types(self, operands)
        if first.element.kind not in self.kinds:
            raise self.reject(
                "unsupported element type", expected=" or ".join(self.kinds), actual=first.element
            )
        return first.with_element(self.result_element(first.element))

    def element(self, b: Any, *scalars: Any) -> Any:
        raise NotImplementedError

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        return self.element(b, *(x(index) for x in operands))
