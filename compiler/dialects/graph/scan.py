"""A loop over steps: what is carried from one step to the next, slices of sequences, and stacked results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.diagnostics import VerificationError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.dialects.graph.oracle import torch_stack
from flambeau.compiler.dialects.graph.scan_gradient import scan_gradient
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, TensorType, f32, f64, i64, tensor
from flambeau.compiler.ir.verifier import verify_graph

Array = np.ndarray[Any, Any]


class Scan(GraphOp):
    """Runs `body` `length` times: ``carries, outputs[t] = body(carries, sequences[t], invariants)``.

    Operands: the first `carries` are the carried values' start, the next `sequences` are cut along axis 0, which is
    `length` long, and the others are the same in each step. The body's parameters have these types, those of sequences
    without axis 0; its results are the carries' next values and the step's outputs. Results: the carries after the last
    step, then each output stacked along a new axis 0. With `reverse` the steps go from the last slice to the first, and
    slice t of a result belongs to slice t of the sequences. The body refers to nothing but its parameters.

    The derivative is a scan the other way round, over what the body's derivative reads (stacked by the forward scan). It
    is what JAX calls `lax.scan`; in StableHLO a `while` with dynamic slices.
    """

    name = "graph.scan"
    schedule_family: ClassVar[str] = "scan"
    body: Graph
    length: Index
    carries: int
    sequences: int
    reverse: bool = False

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        body = self.body
        if not 0 <= self.carries <= len(body.results) or self.sequences < 0:
            raise self.reject(
                "the body's results begin with the carries", expected=self.carries, actual=len(body.results)
            )
        if not body.results:
            raise self.reject("the body has no results")
        if len(operands) != len(body.parameters):
            raise self.reject(
                "as many operands as the body has parameters",
                expected=len(body.parameters),
                actual=len(operands),
            )
        if self.carries + self.sequences > len(operands):
            raise self.reject(
                "as many operands as carries and sequences",
                expected=self.carries + self.sequences,
                actual=len(operands),
            )
        for number, (given, parameter) in enumerate(zip(operands, body.parameters, strict=True)):
            expected = parameter.type
            assert isinstance(expected, TensorType)
            what = "invariant"
            if number < self.carries:
                what = "carry"
            elif number < self.carries + self.sequences:
                what = "sequence"
                expected = expected.with_shape((self.length, *expected.shape))
            if given is not expected:
                raise self.reject(
                    f"operand {number}, a {what}, does not fit the body", expected=expected, actual=given
                )
        for number in range(self.carries):
            before, after = body.parameters[number].type, body.results[number].type
            if before is not after:
                raise self.reject(
                    f"carry {number} must keep its type from step to step", expected=before, actual=after
                )
        types = [build.type_of(r) for r in body.results]
        stacked = [t.with_shape((self.length, *t.shape)) for t in types[self.carries :]]
        return (*types[: self.carries], *stacked)

    def verify(self, operation: Operation) -> None:
        verify_graph(self.body)
        inside = {*self.body.parameters, *[r for o in self.body.operations for r in o.results]}
        if any(v not in inside for o in self.body.operations for v in o.operands):
            raise VerificationError(
                f"{self.name}: the body refers to nothing but its parameters", operation.location
            )

    def map_bodies(self, transform: Callable[[Graph], Graph]) -> Scan:
        body = transform(self.body)
        return self if body == self.body else self.with_body(body)

    def with_body(self, body: Graph) -> Scan:
        """The same loop around another body of the same parameters."""
        return Scan(body, self.length, self.carries, self.sequences, self.reverse)

    def fold(self, *operands: Value) -> Sequence[Value] | None:
        n = self.carries
        if self.length == 0:
            types = self.infer(*[build.type_of(v) for v in operands])
            return (*operands[:n], *[build.zeros(t) for t in types[n:]])
        if self.length != 1:
            return None
        slices = [build.squeeze(x, 0) for x in operands[n : n + self.sequences]]
        step = rebuild(self.body, parameters=[*operands[:n], *slices, *operands[n + self.sequences :]])
        return (*step.results[:n], *[build.expand_dims(y, 0) for y in step.results[n:]])

    def vjp(self, ct: Any, *operands: Value, result: Any) -> Sequence[Value | None]:
        cotangents = ct if isinstance(ct, tuple) else (ct,)
        return scan_gradient(self, cotangents, operands, result if isinstance(result, tuple) else (result,))

    def reference(self, *operands: Array) -> tuple[Array, ...]:
        split = self.carries + self.sequences
        carried, sequences, rest = operands[: self.carries], operands[self.carries : split], operands[split:]
        outputs = [
            np.empty([int(d) for d in (self.length, *build.shape_of(r))], build.element_of(r).numpy)  # type: ignore[arg-type]
            for r in self.body.results[self.carries :]
        ]
        steps = range(self.length)  # type: ignore[arg-type]
        for t in reversed(steps) if self.reverse else steps:
            found = interpreter.evaluate(self.body, [*carried, *[x[t] for x in sequences], *rest])
            carried = tuple(found[: self.carries])
            for output, array in zip(outputs, found[self.carries :], strict=True):
                output[t] = array
        return (*carried, *outputs)

    def samples(self) -> Iterable[Sample]:
        yield from _samples()


# -- samples -------------------------------------------------------------------------------------------------------


def _samples() -> Iterable[Sample]:
    rng = np.random.default_rng(0)
    for element in (f64, f32):
        for length, reverse in ((5, False), (4, True), (1, False)):
            operands = [rng.standard_normal(s) for s in ((2, 3), (length, 2, 4), (3, 3), (4, 3))]
            yield Sample(
                Scan(_recurrence(element), length, 1, 1, reverse),
                tuple(a.astype(element.numpy) for a in operands),
                lambda h, x, u, w, r=reverse: _torch_recurrence(h, x, u, w, r),
            )
    products = Scan(_products(), 6, 2, 1)
    yield Sample(products, (np.array(1.0), np.array(3), rng.standard_normal(6)), _torch_products)
    yield Sample(
        Scan(_powers(), 4, 1, 0), (rng.standard_normal(3), rng.standard_normal((3, 3))), _torch_powers
    )
    shifted = (rng.standard_normal(2), rng.standard_normal(2), rng.standard_normal((7, 2)))
    yield Sample(Scan(_fibonacci(), 7, 2, 1), shifted, _torch_fibonacci)


def _recurrence(element: ElementType) -> Graph:
    """h = tanh(x w + h u); gives h and what h was."""
    h, x, u, w = (Value(tensor(s, element)) for s in ((2, 3), (2, 4), (3, 3), (4, 3)))
    after = build.tanh(build.add(build.matmul(x, w), build.matmul(h, u)))
    return Graph([h, x, u, w], [after, after, h], "body")


def _torch_recurrence(h: Any, x: Any, u: Any, w: Any, reverse: bool) -> Any:
    after, before = [], []
    for step in x.flip(0) if reverse else x:
        before.append(h)
        h = (step @ w + h @ u).tanh()
        after.append(h)
    stacked = [torch_stack(found[::-1] if reverse else found) for found in (after, before)]
    return (h, *stacked)


def _products() -> Graph:
    """A running product, and a counter that only the outputs show."""
    total, count, x = Value(tensor((), f64)), Value(tensor((), i64)), Value(tensor((), f64))
    after = build.mul(total, x)
    return Graph(
        [total, count, x], [after, build.add(count, 2), build.mul(after, build.convert(count, f64)), count]
    )


def _torch_products(total: Any, count: Any, x: Any) -> Any:
    outputs, counts = [], []
    for step in x:
        total = total * step
        outputs.append(total * count)
        counts.append(count)
        count = count + 2
    return total, count, torch_stack(outputs), torch_stack(counts)


def _powers() -> Graph:
    """x = m x, without any sequence."""
    x, m = Value(tensor((3,), f64)), Value(tensor((3, 3), f64))
    after = build.dot_general(m, x, ((1,), (0,)))
    return Graph([x, m], [after, after], "body")


def _torch_powers(x: Any, m: Any) -> Any:
    found = []
    for _ in range(4):
        x = m @ x
        found.append(x)
    return x, torch_stack(found)


def _fibonacci() -> Graph:
    """Two carries, of which one becomes the other."""
    a, b, x = (Value(tensor((2,), f64)) for _ in range(3))
    return Graph([a, b, x], [b, build.add(build.mul(a, x), b), build.mul(a, b)], "body")


def _torch_fibonacci(a: Any, b: Any, x: Any) -> Any:
    found = []
    for step in x:
        found.append(a * b)
        a, b = b, a * step + b
    return a, b, torch_stack(found)
