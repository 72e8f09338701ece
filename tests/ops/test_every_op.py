"""Every tensor operation, tested from the samples that its class declares; there is no list of operations here.

Forward: the reference against torch, and every device against the reference. Backward: first and second derivatives
against central differences in f64. Errors: operands that do not fit are rejected by name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import flambeau.compiler.dialects.graph
from flambeau.compiler.diagnostics import TypeInferenceError
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value, create, infer_types
from flambeau.compiler.ir.opdef import REGISTRY
from flambeau.compiler.ir.types import TensorType, f32, from_numpy, i1, tensor
from flambeau.compiler.passes.autodiff import vjp

torch = pytest.importorskip("torch")

Array = np.ndarray[Any, Any]
Run = Callable[[Graph, Sequence[Array]], Sequence[Array]]
CLASSES: list[Any] = [cls for name, cls in sorted(REGISTRY.items()) if name.startswith("graph.")]
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Case:
    """One sample, with its operands as arrays."""

    definition: GraphOp
    operands: tuple[Array, ...]
    sample: Sample

    def graph(self, operands: Sequence[Array] | None = None) -> Graph:
        """The operation alone, on operands of these arrays' types."""
        parameters = [Value(tensor(a.shape, from_numpy(a.dtype))) for a in operands or self.operands]
        return Graph(
            parameters, create(self.definition, *parameters).results, self.definition.name.split(".")[1]
        )

    @property
    def differentiable(self) -> list[int]:
        """Positions of the operands whose gradient is checked."""
        chosen = self.sample.differentiable
        return [
            i
            for i, a in enumerate(self.operands)
            if from_numpy(a.dtype).is_float and (chosen is None or i in chosen)
        ]


def _cases() -> Iterator[Any]:
    for cls in CLASSES:
        for i, sample in enumerate(cls.samples(None)):
            case = Case(sample.definition, tuple(np.asarray(a) for a in sample.operands), sample)
            yield pytest.param(case, id=f"{cls.name.split('.')[1]}-{i}")


CASES = list(_cases())


@pytest.fixture(params=["interpreter", "cpu"])
def run(request: pytest.FixtureRequest) -> Run:
    """Evaluates a graph on one device."""
    if request.param == "interpreter":
        return interpreter.evaluate
    from flambeau.execution import run_graph

    return run_graph


def assert_close(actual: Any, expected: Any, extra: float = 0.0) -> None:
    """Same shape and dtype, and equal up to the dtype's tolerance, NaN where NaN is expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    tolerance = TOLERANCE.get(actual.dtype.name, 0.0) + extra
    if not tolerance:
        np.testing.assert_array_equal(actual, expected)
        return
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), tolerance, tolerance)


def to_torch(array: Array) -> Any:
    """A torch tensor with a copy of the array."""
    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(x: Any) -> Array:
    """The array of a torch tensor."""
    x = x.detach().resolve_neg().contiguous()
    if x.dtype is torch.bfloat16:
        return np.asarray(x.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(x.numpy())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
def test_declares_samples(cls: Any) -> None:
    samples = list(cls.samples(None))
    assert samples
    assert all(type(s.definition) is cls for s in samples)


@pytest.mark.parametrize("case", CASES)
def test_result_types_are_those_of_the_reference(case: Case) -> None:
    types = infer_types(case.definition, tuple(p.type for p in case.graph().parameters))
    arrays = interpreter.run_definition(case.definition, case.operands)
    assert [tensor(a.shape, from_numpy(a.dtype)) for a in arrays] == list(types)


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].sample.torch is not None])
def test_reference_agrees_with_torch(case: Case) -> None:
    expected = case.sample.torch(*map(to_torch, case.operands))  # type: ignore[misc]
    if isinstance(expected, torch.Tensor):
        expected = (expected,)
    actual = interpreter.run_definition(case.definition, case.operands)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, from_torch(theirs), case.sample.tolerance)


@pytest.mark.parametrize("case", CASES)
def test_runs(case: Case, run: Run) -> None:
    expected = interpreter.run_definition(case.definition, case.operands)
    for ours, theirs in zip(run(case.graph(), case.operands), expected, strict=True):
        assert_close(ours, theirs, case.sample.tolerance)


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].definition.is_composite])
def test_decomposition_agrees_with_the_reference(case: Case) -> None:
    expected = interpreter.run_definition(case.definition, case.operands)
    actual = interpreter.evaluate(interpreter.decomposition(case.definition, case.operands), case.operands)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, case.sample.tolerance)


# -- derivatives -------------------------------------------------------------------------------------------------------


def in_f64(operands: Sequence[Array]) -> list[Array]:
    """Float arrays in f64, others as they are."""
    return [a.astype(np.float64) if from_numpy(a.dtype).is_float else a for a in operands]


def float_results(graph: Graph) -> list[Value]:
    """Results that are floats."""
    return [r for r in graph.results if isinstance(r.type, TensorType) and r.type.element.is_float]


def derivative(graph: Graph, wrt: Sequence[int]) -> Graph | None:
    """(parameters, cotangents of float results) → gradients of the parameters `wrt`; None if all are zero."""
    results = float_results(graph)
    cotangents = [Value(r.type) for r in results]
    found = vjp(results, [graph.parameters[i] for i in wrt], cotangents)
    if all(g is None for g in found):
        return None
    gradients = []
    for i, gradient in zip(wrt, found, strict=True):
        if gradient is None:
            kind = graph.parameters[i].type
            assert isinstance(kind, TensorType)
            gradient = flambeau.compiler.dialects.graph.build.zeros(kind)
        gradients.append(gradient)
    return Graph([*graph.parameters, *cotangents], gradients, f"{graph.name}_vjp")


def numbers(types: Sequence[Any], seed: int) -> list[Array]:
    """Normal arrays of these types."""
    random = np.random.default_rng(seed)
    return [np.asarray(random.standard_normal(t.shape)).astype(t.element.numpy) for t in types]


def check_gradient(
    graph: Graph, wrt: Sequence[int], operands: Sequence[Array], tolerance: float
) -> Graph | None:
    """The graph's gradient against central differences along random directions; gives the gradient's graph."""
    gradient = derivative(graph, wrt)
    results = float_results(graph)
    forward = Graph(graph.parameters, results)
    cotangents = numbers([r.type for r in results], 1)
    if gradient is None:
        gradients = [np.zeros_like(operands[i]) for i in wrt]
    else:
        gradients = interpreter.evaluate(gradient, [*operands, *cotangents])

    def project(at: Sequence[Array]) -> float:
        return float(
            sum(np.sum(r * c) for r, c in zip(interpreter.evaluate(forward, at), cotangents, strict=True))
        )

    step = 1e-6
    for position, found in zip(wrt, gradients, strict=True):
        for seed in range(3):
            (direction,) = numbers([graph.parameters[position].type], 10 + seed)
            moved = [list(operands), list(operands)]
            moved[0][position] = operands[position] + step * direction
            moved[1][position] = operands[position] - step * direction
            slope = (project(moved[0]) - project(moved[1])) / (2 * step)
            actual = float(np.sum(found * direction))
            assert actual == pytest.approx(slope, rel=tolerance, abs=tolerance), f"operand {position}"
    return gradient


def raises_not_differentiable(case: Case) -> bool:
    rule = case.definition.vjp
    return isinstance(rule, NotDifferentiable) and not rule.zero


GRADIENT_CASES = [
    c
    for c in CASES
    if c.values[0].differentiable
    and float_results(c.values[0].graph())
    and not raises_not_differentiable(c.values[0])
]


def smooth(case: Case) -> tuple[Graph, list[Array]]:
    """The case in f64. Skips operations whose attributes fix another result type."""
    operands = in_f64(case.operands)
    try:
        graph = case.graph(operands)
    except TypeInferenceError as error:
        pytest.skip(f"the attributes fix the element type: {error}")
    if any(r.type.element.bits < 64 for r in float_results(graph)):  # type: ignore[attr-defined]
        pytest.skip("the attributes fix the result's element type")
    return graph, operands


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradient_has_the_operands_types(case: Case) -> None:
    derivative(case.graph(), case.differentiable)  # vjp checks each operation's cotangents


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_first_and_second_gradient(case: Case) -> None:
    graph, operands = smooth(case)
    gradient = check_gradient(graph, case.differentiable, operands, 1e-5 + case.sample.tolerance)
    if gradient is None:
        return
    cotangents = numbers([p.type for p in gradient.parameters[len(operands) :]], 2)
    again = [*case.differentiable, *range(len(operands), len(gradient.parameters))]
    check_gradient(gradient, again, [*operands, *cotangents], 1e-4 + case.sample.tolerance)


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradient_runs(case: Case, run: Run) -> None:
    gradient = derivative(case.graph(), case.differentiable)
    if gradient is None:
        return
    cotangents = numbers([p.type for p in gradient.parameters[len(case.operands) :]], 3)
    arrays = [*case.operands, *cotangents]
    for ours, theirs in zip(run(gradient, arrays), interpreter.evaluate(gradient, arrays), strict=True):
        assert_close(ours, theirs, case.sample.tolerance)


# -- errors ------------------------------------------------------------------------------------------------------------


def _misfits(types: tuple[TensorType, ...]) -> Iterator[tuple[TensorType, ...]]:
    """Operand types with one changed: another rank, another element type."""
    for i, type in enumerate(types):
        for changed in (
            type.with_shape((7, *type.shape)),
            type.with_element(i1 if not type.element.is_bool else f32),
        ):
            yield (*types[:i], changed, *types[i + 1 :])


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].operands])
def test_operands_that_do_not_fit_are_rejected(case: Case) -> None:
    types = tuple([p.type for p in case.graph().parameters])
    rejected = 0
    for misfit in _misfits(types):  # type: ignore[arg-type]
        try:
            infer_types(case.definition, misfit)
        except TypeInferenceError as error:
            assert str(error).startswith(f"{case.definition.name}: ")
            rejected += 1
    if len(types) > 1 and case.definition.name != "graph.optimization_barrier":  # takes any two
        assert rejected
    with pytest.raises(TypeInferenceError, match=case.definition.name.replace(".", r"\.")):
        infer_types(case.definition, ())
