"""`graph.expanded_depthwise`: a pointwise convolution and the depthwise one that reads it, with what lies between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.diagnostics import VerificationError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.dialects.graph.oracle import F
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Operation, Value, apply
from flambeau.compiler.ir.types import TensorType, f32, tensor
from flambeau.compiler.ir.verifier import verify_graph


class ExpandedDepthwise(GraphOp):
    """What `body` computes: a convolution with windows of one element, elementwise operations, a depthwise convolution.

    The body's parameters are the input, the first kernel, the second kernel, and vectors over the features between; it has
    two convolutions and one result. So the (many) features between need never lie in memory all at once (M. Sandler et
    al., "MobileNetV2", 2018, section 5.1). The pass `expand_depthwise` makes these.
    """

    name = "graph.expanded_depthwise"
    schedule_family: ClassVar[str] = "contraction"
    buffered: ClassVar[tuple[int, ...]] = (0,)
    vjp = NotDifferentiable("it is made when everything is differentiated already")
    body: Graph

    @property
    def convolutions(self) -> tuple[Operation, Operation]:
        """The pointwise one and the depthwise one."""
        first, second = (o for o in self.body.operations if isinstance(o.definition, Convolution))
        return first, second

    def infer(self, *operands: TensorType) -> TensorType:
        expected = tuple([build.type_of(p) for p in self.body.parameters])
        if operands != expected:
            raise self.reject(
                "operands of the types of the body's parameters", expected=expected, actual=operands
            )
        return build.type_of(self.body.results[0])

    def verify(self, operation: Operation) -> None:
        verify_graph(self.body)
        found = [o for o in self.body.operations if isinstance(o.definition, Convolution)]
        if len(found) != 2 or len(self.body.results) != 1 or self.body.results[0].owner is not found[1]:
            raise VerificationError(
                f"{self.name}: the body ends in the second of two convolutions", operation.location
            )

    def reference(self, *operands: np.ndarray[Any, Any]) -> Any:
        return interpreter.evaluate(self.body, operands)[0]

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)
        for stride in (1, 2):
            shapes = ((2, 3, 5, 6), (8, 3, 1, 1), (8, 1, 3, 3), (8,))
            body = _example(shapes, stride)
            arrays = tuple([rng.standard_normal(s).astype(np.float32) for s in shapes])

            def torch(x: Any, w: Any, v: Any, b: Any, stride: int = stride) -> Any:
                return F.conv2d(F.relu(F.conv2d(x, w, b)), v, None, stride, 1, 1, 8)

            yield Sample(ExpandedDepthwise(body), arrays, torch)


def _example(shapes: tuple[tuple[int, ...], ...], stride: int) -> Graph:
    """A bias and a ReLU between."""
    x, w, v, bias = (Value(tensor(s, f32)) for s in shapes)
    made = apply(convolution_of(2), x, w)
    made = build.maximum(build.add(made, build.broadcast_along(bias, build.shape_of(made), 1)), 0)
    return Graph([x, w, v, bias], [apply(convolution_of(2, stride, 1, 1, shapes[1][0]), made, v)], "body")
