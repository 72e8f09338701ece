"""`graph.optimization_barrier`: an order between computations that no data asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import TensorType

Array = np.ndarray[Any, Any]


class OptimizationBarrier(GraphOp):
    """The first operand, for computations that are not to run before the second operand is there (StableHLO's
    `optimization_barrier`, with one result). The second one's content is not read; any types."""

    name = "graph.optimization_barrier"
    vjp = NotDifferentiable("it is made when everything is differentiated already")

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        return operands[0]

    def element_at(self, b: Any, index: tuple[Index, ...], x: Any, after: Any) -> Any:
        return x(index)

    def reference(self, x: Array, after: Array) -> Array:
        return x

    def samples(self) -> Iterable[Sample]:
        x = np.array([[1.0, -2.0, 3.0]], np.float32)
        yield Sample(OptimizationBarrier(), (x, np.arange(5)), differentiable=())
        yield Sample(OptimizationBarrier(), (np.array([True, False]), x), differentiable=())
