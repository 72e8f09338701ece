"""Convolutions of small images, product by product: at awkward sizes, in every direction, with an epilogue, with threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.blocked_convolution import BlockedConvolution
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import Symbol, of_symbol
from flambeau.compiler.ir.types import ElementType, element_type, f32, i32, tensor
from flambeau.compiler.passes.block_convolutions import block_convolutions
from flambeau.compiler.passes.undilate import undilate
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.compiler.schedule.cpu_small_convolution import SmallConvolution, small_convolution
from flambeau.execution import run_graph
from flambeau.runtime import threads

torch = pytest.importorskip("torch")


def _graph(op: Convolution, x: tuple[int, ...], w: tuple[int, ...], element: ElementType = f32) -> Graph:
    left, right = Value(tensor(x, element)), Value(tensor(w, element))
    return Graph([left, right], [apply(op, left, right)])


def _plan(graph: Graph, cpu: CpuShape | None = None) -> SmallConvolution | None:
    (operation,) = graph.operations
    definition = operation.definition
    assert isinstance(definition, Convolution)
    return small_convolution(definition, *[p.type for p in graph.parameters], cpu or CpuShape())  # type: ignore[misc]


def _integers(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    types = [p.type for p in graph.parameters]
    return [rng.integers(-4, 5, t.shape).astype(t.element.numpy) for t in types]  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_sums_are_exact_for_small_integers(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    window = tuple(data.draw(st.integers(1, (12, 4, 2)[rank - 1])) for _ in range(rank))
    assume(2 <= np.prod(window) <= 12)

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    space = tuple(data.draw(st.integers(1, n)) for n in (3, 7, 8)[-rank:])
    op = replace(
        convolution_of(rank, each(1, 3), 0, each(1, 2)),
        padding=tuple(zip(each(-1, 3), each(-1, 3), strict=True)),
        lhs_dilation=each(1, 3),
        window_reversal=tuple(bool(n) for n in each(0, 1)),
    )
    if data.draw(st.booleans()):
        op = replace(op, kernel_input_feature=0, kernel_output_feature=1)
    batch, channels, features = (
        data.draw(st.integers(low, high)) for low, high in ((1, 5), (16, 50), (16, 40))
    )
    kernel = [0, 0, *window]
    kernel[op.kernel_input_feature], kernel[op.kernel_output_feature] = channels, features
    element = element_type(data.draw(st.sampled_from(["f32", "f32", "f64", "bf16"])))
    graph = _graph(op, (batch, channels, *space), tuple(kernel), element)
    (result,) = graph.results
    assume(0 not in result.type.shape and np.prod(result.type.shape[2:]) <= 64)  # type: ignore[attr-defined]
    assert _plan(graph) is not None, "the case must reach the code under test"
    arrays = _integers(graph)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
def test_products_with_padding_are_not_made(size: int) -> None:
    plan = _plan(_graph(convolution_of(2, 1, 1), (3, 32, size, size), (32, 32, 3, 3)))
    assert plan is not None
    assert len(plan.products) == (3 * size - 2) ** 2
    assert [pixel for tile in plan.tiles for pixel in tile] == list(range(size * size))


def test_who_has_the_schedule() -> None:
    same = convolution_of(2, 1, 1)
    small = _graph(same, (8, 64, 4, 4), (64, 64, 3, 3))
    assert _plan(small) is not None
    for vector_bits, registers in ((256, 16), (128, 32), (128, 16)):
        plan = _plan(small, CpuShape(vector_bits, registers))
        assert plan is not None
        assert plan.together * max(len(tile) for tile in plan.tiles) < registers
    assert _plan(_graph(same, (8, 64, 9, 9), (64, 64, 3, 3))) is None  # 81 pixels
    assert _plan(_graph(same, (99, 64, 4, 4), (64, 64, 3, 3))) is None  # many images
    assert _plan(_graph(same, (8, 3, 4, 4), (64, 3, 3, 3))) is None  # few channels
    assert _plan(_graph(convolution_of(2), (8, 64, 4, 4), (64, 64, 1, 1))) is None  # a plain product
    assert _plan(_graph(convolution_of(2), (8, 64, 7, 7), (64, 64, 5, 5))) is None  # 25 taps
    assert _plan(_graph(convolution_of(2, 1, 1, 1, 2), (8, 64, 4, 4), (64, 32, 3, 3))) is None  # groups
    assert _plan(_graph(same, (8, 64, 4, 4), (64, 64, 3, 3), i32)) is None
    batch = of_symbol(Symbol("N", 1))
    assert _plan(_graph(same, (batch, 64, 4, 4), (64, 64, 3, 3))) is None  # type: ignore[arg-type]


def test_only_kernels_that_are_not_prepared_stay() -> None:
    cpu = CpuShape()
    op = convolution_of(2, 2, 1)
    graph = _graph(op, (8, 64, 4, 4), (64, 64, 3, 3))
    assert block_convolutions(graph, cpu).key() == graph.key()
    prepared = block_convolutions(graph, cpu, [graph.parameters[1]])
    assert any(isinstance(o.definition, BlockedConvolution) for o in prepared.operations)
    dilated = replace(op, window_strides=(1, 1), padding=((1, 2), (1, 2)), lhs_dilation=(2, 2))
    graph = _graph(dilated, (8, 64, 2, 2), (64, 64, 3, 3))
    assert undilate(graph, cpu).key() == graph.key()
    assert undilate(graph, cpu, [graph.parameters[1]]).key() != graph.key()
    assert undilate(graph).key() != graph.key()


def test_an_epilogue_and_computed_operands() -> None:
    op = convolution_of(2, 1, 1)
    x, w = Value(tensor((3, 17, 5, 3), f32)), Value(tensor((19, 17, 3, 3), f32))
    before = Value(tensor((3, 19, 5, 3), f32))
    made = build.maximum(build.add(apply(op, build.abs(x), build.mul(w, 2)), before), 0)
    graph = Graph([x, w, before], [made])
    arrays = _integers(graph)
    expected = np.maximum(op.reference(np.abs(arrays[0]), arrays[1] * 2) + arrays[2], 0)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, expected)


def test_threads_give_the_same_bits() -> None:
    graph = _graph(convolution_of(2, 1, 1), (3, 64, 5, 5), (100, 64, 3, 3))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape, np.float32) for p in graph.parameters]  # type: ignore[attr-defined]
    before, results = threads.num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            threads.set_num_threads(count)
            results.append(run_graph(graph, arrays)[0])
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(2, 1), (5, 2), (7, 1), (8, 3)])
def test_first_and_second_gradients_are_pytorchs(size: int, stride: int, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 18, size, size)), rng.standard_normal((18, 18, 3, 3))]
    weights = rng.standard_normal(arrays[0].shape), rng.standard_normal(arrays[1].shape)

    def second(m: object) -> list[np.ndarray]:
        x, w = (m.tensor(a, requires_grad=True) for a in arrays)  # type: ignore[attr-defined]
        vx, vw = (m.tensor(a) for a in weights)  # type: ignore[attr-defined]
        functional = m.nn.functional  # type: ignore[attr-defined]
        function = functional.conv_transpose2d if transposed else functional.conv2d
        y = function(x, w, stride=stride, padding=1)
        first = m.autograd.grad((y * y * y).sum(), (x, w), create_graph=True)  # type: ignore[attr-defined]
        total = (first[0] * vx).sum() + (first[1] * vw).sum()
        then = m.autograd.grad(total, (x, w))  # type: ignore[attr-defined]
        return [v.detach().numpy() for v in (y, *first, *then)]

    for found, expected in zip(second(fb), second(torch), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_errors_are_no_larger_than_numpy_in_f32() -> None:
    graph = _graph(convolution_of(2, 1, 1), (4, 256, 4, 4), (64, 256, 3, 3))
    (operation,) = graph.operations
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape) for p in graph.parameters]  # type: ignore[attr-defined]
    exact = operation.definition.reference(*arrays)  # type: ignore[attr-defined]
    (found,) = run_graph(graph, [a.astype(np.float32) for a in arrays])
    assert np.abs(found - exact).max() <= 1e-6 * np.abs(exact).max()
