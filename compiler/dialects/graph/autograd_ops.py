"""Identities that only autograd tells apart: they change where derivatives flow, never a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Elementwise, GraphOp, NotDifferentiable, Sample, same_types
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import TensorType

Array = np.ndarray[Any, Any]


class StopGradient(Elementwise):
    """The operand, of which the result is independent for autograd: `detach`, and a parameter after an update."""

    name = "graph.stop_gradient"
    vjp = NotDifferentiable("gradients stop here", zero=True)

    def decompose(self, x: Value) -> Value:  # type: ignore[override]
        return x

    def reference(self, x: Array) -> Array:
        return x

    def samples(self) -> Iterable[Sample]:
        yield Sample(StopGradient(), (np.array([1.0, -2.0], np.float32),), differentiable=())


class Copy(Elementwise):
    """The operand, as a value of its own: `clone`."""

    name = "graph.copy"

    def element(self, b: Any, x: Any) -> Any:
        return x

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Sequence[Value]:
        return (ct,)

    def reference(self, x: Array) -> Array:
        return x.copy()

    def samples(self) -> Iterable[Sample]:
        yield Sample(Copy(), (np.array([[1.0, -2.0]], np.float32),))
        yield Sample(Copy(), (np.array([True, False]),))


class GradientOf(GraphOp):
    """The first operand's value; the derivative flows to the second, which has the same type.

    What a tensor with a history holds after a write that autograd does not see (under `no_grad`); with `zero`, after one
    that overwrote it with something independent, so that the derivative that flows on is zero.
    """

    name = "graph.gradient_of"
    zero: bool = False

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        return same_types(self, operands)

    def decompose(self, value: Value, source: Value) -> Value:  # type: ignore[override]
        return value

    def vjp(self, ct: Value, value: Value, source: Value, *, result: Value) -> Sequence[Value | None]:
        return (None, build.zeros_like(ct) if self.zero else ct)

    def reference(self, value: Array, source: Array) -> Array:
        return value

    def samples(self) -> Iterable[Sample]:
        x = np.array([1.0, -2.0], np.float32)
        yield Sample(GradientOf(), (x, x), differentiable=())


class CustomGradient(GraphOp):
    """The first `results` operands, whose derivative a Python function gives: `autograd.Function`.

    `function(cotangents) -> cotangents of the other operands`; it is called while a gradient is recorded and leaves no
    trace in compiled code.
    """

    name = "graph.custom_gradient"
    function: Any
    results: int = 1

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        if len(operands) < self.results:
            raise self.reject("fewer operands than results", expected=self.results, actual=len(operands))
        return operands[: self.results]

    def vjp(self, ct: Any, *operands: Value, result: Any) -> Sequence[Value | None]:
        cotangents = ct if isinstance(ct, tuple) else (ct,)
        return (*(None,) * self.results, *self.function(cotangents))

    def decompose(self, *operands: Value) -> Sequence[Value]:
        return operands[: self.results]

    def reference(self, *operands: Array) -> Any:
        return operands[0] if self.results == 1 else operands[: self.results]

    def samples(self) -> Iterable[Sample]:
        x = np.array([1.0, -2.0], np.float32)
        yield Sample(CustomGradient(_no_cotangents), (x,), differentiable=())


def _no_cotangents(cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    """The rule of a function of nothing."""
    return ()
