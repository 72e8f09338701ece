"""Fusion: which kernels a graph becomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.composites_norm import Softmax
from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value, apply, create
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.passes.decompose import decompose
from flambeau.compiler.passes.fuse import Program, fuse
from flambeau.compiler.passes.simplify import simplify
from flambeau.compiler.pipeline import compile_stages
from flambeau.compiler.signature import byte_size
from flambeau.execution import run_graph


def program(graph: Graph) -> Program:
    return fuse(simplify(decompose(graph)))


def families(graph: Graph) -> list[str]:
    return [call.kernel.family for call in program(graph).calls]


def value(*shape: int) -> Value:
    return Value(tensor(shape, f32))


def test_pointwise_chain_is_one_kernel() -> None:
    x, y = value(8, 16), value(16)
    result = build.tanh(build.add(build.exp(build.neg(x)), build.broadcast_in_dim(y, (8, 16), (1,))))
    assert families(Graph([x, y], [result])) == ["element"]


def test_what_two_contractions_share_is_the_first_ones_epilogue() -> None:
    """A bias between convolutions is added once, as the first stores, not at each element that the second reads."""
    x, w, bias, v = value(1, 4, 6, 6), value(8, 4, 3, 3), value(8), value(8, 8, 1, 1)
    first = apply(convolution_of(2, 1, 1), x, w)
    biased = build.add(first, build.broadcast_along(bias, (1, 8, 6, 6), 1))
    second = apply(convolution_of(2), biased, v)
    calls = program(Graph([x, w, bias, v], [build.add(second, biased)])).calls
    assert [len(call.results) for call in calls] == [1, 1]
    assert [o.name for o in calls[0].kernel.graph.operations if o.name == "graph.add"] == ["graph.add"]
    assert calls[1].operands[:2] == (biased, v)


def test_softmax_is_one_kernel() -> None:
    x = value(8, 64)
    found = program(Graph([x], [create(Softmax(1), x).result]))
    assert [c.kernel.family for c in found.calls] == ["rows"]
    assert len(found.calls[0].results) == 1


def test_statistics_join_their_rows() -> None:
    x = value(8, 64)
    mean = build.mul(build.reduce_sum(x, (1,)), 1 / 64)
    centred = build.sub(x, build.expand_reduced(mean, (8, 64), (1,)))
    variance = build.mul(build.reduce_sum(build.mul(centred, centred), (1,)), 1 / 64)
    result = build.div(centred, build.expand_reduced(build.sqrt(variance), (8, 64), (1,)))
    assert families(Graph([x], [result])) == ["rows"]


def test_column_sums_stand_alone() -> None:
    x = value(8, 64)
    total = build.reduce_sum(x, (0,))
    result = build.sub(x, build.broadcast_in_dim(total, (8, 64), (1,)))
    assert families(Graph([x], [result])) == ["columns", "element"]


def test_rows_that_read_other_rows_stay_apart() -> None:
    x = value(8, 64)
    total = build.reduce_sum(x, (1,))
    flipped = build.reverse(total, (0,))
    result = build.sub(x, build.broadcast_in_dim(flipped, (8, 64), (0,)))
    assert len(families(Graph([x], [result]))) == 2


def test_expensive_values_are_not_computed_for_every_column() -> None:
    x = value(8)
    result = build.broadcast_in_dim(build.exp(x), (8, 64), (0,))
    assert families(Graph([x], [result])) == ["element", "element"]


def test_equal_kernels_have_equal_keys() -> None:
    x, y = value(8, 64), value(8, 64)
    graph = Graph([x, y], [build.reduce_sum(build.exp(x), (0,)), build.reduce_sum(build.exp(y), (0,))])
    first, second = program(graph).calls
    assert first.kernel.key() == second.kernel.key()


def test_an_optimizers_update_is_one_kernel() -> None:
    p, g, m, v = value(5, 7), value(5, 7), value(5, 7), value(5, 7)
    first = build.add(m, build.mul(build.sub(g, m), 0.1))
    second = build.add(build.mul(v, 0.99), build.mul(build.mul(g, g), 0.01))
    new = build.sub(p, build.div(first, build.add(build.sqrt(second), 1e-8)))
    found = program(Graph([p, g, m, v], [first, second, new]))
    assert [len(call.results) for call in found.calls] == [3]


@pytest.mark.parametrize(("depth", "apart"), [(64, False), (256, False), (512, True)])
def test_an_optimizers_step_behind_a_deep_product_is_a_kernel_of_its_own(depth: int, apart: bool) -> None:
    """Where the product is shallow the step runs within its tiles; so does what reads few arrays."""
    x, y, p, m, v = value(depth, 24), value(depth, 40), value(24, 40), value(24, 40), value(24, 40)
    g = build.dot_general(x, y, ((0,), (0,)))
    after = build.add(build.mul(m, 0.9), build.mul(g, 0.1))
    square = build.add(build.mul(v, 0.99), build.mul(build.square(g), 0.01))
    adam = build.sub(p, build.div(after, build.sqrt(square)))
    graph = Graph([x, y, p, m, v], [adam, after, square, g])
    assert families(graph) == (["contraction", "element"] if apart else ["contraction"])
    momentum = Graph([x, y, p, m], [build.sub(p, after), after, g])
    assert families(momentum) == ["contraction"]
    rng = np.random.default_rng(5)
    arrays = [np.abs(rng.standard_normal(build.shape_of(q))).astype(np.float32) + 1 for q in graph.parameters]
    for ours, theirs in zip(run_graph(graph, arrays), interpreter.evaluate(graph, arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, 2e-5, 2e-5)


def test_kernels_with_another_between_them_stay_apart() -> None:
    x, y = value(8, 16), value(8, 16)
    first, second = build.exp(x), build.exp(y)
    total = build.expand_reduced(build.reduce_sum(second, (0,)), (8, 16), (0,))
    between = build.mul(build.tanh(total), x)
    last = build.add(build.add(first, second), between)
    found = program(Graph([x, y], [first, second, between, last]))
    done: set[Value] = {x, y}
    for call in found.calls:
        assert done.issuperset(call.operands)
        done.update(call.results)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Chains of pointwise operations, row and column reductions, and their broadcasts."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 40)))
    parameters = [value(*shape), value(*shape)]
    values = list(parameters)
    for _ in range(draw(st.integers(1, 9))):
        x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.integers(0, 6))
        if kind <= 1:
            values.append((build.add, build.mul)[kind](x, y))
        elif kind == 2:
            values.append(build.tanh(x))
        elif kind == 3:
            values.append(build.reverse(x, (draw(st.integers(0, 1)),)))
        else:
            axes = ((0,), (1,), (0, 1))[kind - 4]
            total = build.reduce(x, draw(st.sampled_from(["sum", "max"])), axes)
            values.append(build.expand_reduced(build.tanh(total), shape, axes))
    return Graph(parameters, draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)))


@given(graphs())
def test_random_graphs_agree_with_the_interpreter(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape).astype(np.float32) for p in graph.parameters]  # type: ignore[attr-defined]
    for actual, expected in zip(run_graph(graph, arrays), interpreter.evaluate(graph, arrays), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


def test_a_scalar_may_be_computed_from_a_matrix_of_one_element() -> None:
    x = value(1, 1)
    scalar = build.tanh(build.reduce(x, "sum", (0, 1)))
    graph = Graph([x], [build.add(build.expand_reduced(scalar, (1, 1), (0, 1)), x)])
    (found,) = run_graph(graph, [np.full((1, 1), 0.5, np.float32)])
    np.testing.assert_allclose(found, np.full((1, 1), 0.5 + np.tanh(0.5)), rtol=1e-6)


@given(graphs())
def test_buffers_that_live_together_lie_apart(graph: Graph) -> None:
    """But for a result in the place of an operand that its kernel reads for the last time."""
    compilation = compile_stages(graph, stop_after="plan")
    found, memory = compilation.program, compilation.memory
    assert found is not None and memory is not None
    last = {v: step for step, call in enumerate(found.calls) for v in (*call.operands, *call.results)}
    first = {v: step for step, call in enumerate(found.calls) for v in call.results}
    shared = set()
    for call, name in zip(found.calls, compilation.names, strict=True):
        shared.update((call.results[r], call.operands[o]) for r, o in compilation.kernels[name].in_place)
    placed = list(memory.offsets)
    for a in placed:
        start, size = memory.offsets[a], byte_size(a)
        assert isinstance(start, int) and isinstance(size, int) and isinstance(memory.size, int)
        assert start % 64 == 0 and start + size <= memory.size
        for b in placed:
            if a is b or last[a] < first[b] or last[b] < first[a]:
                continue
            other, extent = memory.offsets[b], byte_size(b)
            if start + size <= other or other + extent <= start:  # type: ignore[operator]
                continue
            assert start == other
            assert ((a, b) in shared and last[b] == first[a]) or ((b, a) in shared and last[a] == first[b])


@given(graphs())
def test_kernels_run_after_what_they_read(graph: Graph) -> None:
    compilation = compile_stages(graph, stop_after="plan")
    assert compilation.program is not None
    known = {*compilation.program.graph.parameters}
    for call in compilation.program.calls:
        assert known.issuperset(call.operands)
        known.update(call.results)


def test_a_chain_of_kernels_stays_in_one_place() -> None:
    x = value(64, 64)
    y = x
    for _ in range(6):
        total = build.expand_reduced(build.reduce_sum(y, (0,)), (64, 64), (0,))
        y = build.tanh(build.mul(y, build.tanh(total)))
    memory = compile_stages(Graph([x], [y]), stop_after="plan").memory
    assert memory is not None and isinstance(memory.size, int)
    assert memory.size <= 64 * 64 * 4 + 2 * 64 * 4


def test_a_weights_gradient_does_not_wait_for_all_cotangents() -> None:
    """Six layers: a cotangent is dropped when its weight's gradient is there."""
    size = 128
    weights = [value(size, size) for _ in range(6)]
    x = value(size, size)
    inputs = [x]
    for w in weights:
        inputs.append(build.tanh(build.matmul(inputs[-1], w)))
    cotangent, gradients = inputs[-1], []
    for w, before in zip(reversed(weights), reversed(inputs[:-1]), strict=True):
        gradients.append(build.matmul(build.transpose(before, (1, 0)), cotangent))
        cotangent = build.tanh(build.matmul(cotangent, build.transpose(w, (1, 0))))
    memory = compile_stages(Graph([x, *weights], gradients[::-1]), stop_after="plan").memory
    assert memory is not None and isinstance(memory.size, int)
    assert memory.size <= 7 * size * size * 4  # in the order in which they were asked for it would be 11


def test_parts_that_do_not_overlap_are_joined() -> None:
    """The gradient of `permute(...).unbind()`: one copy of each part, by vectors, in the order in which it is read."""
    parts = [value(4, 2, 8, 16) for _ in range(3)]

    def moved(x: Value, place: int) -> Value:
        low, high = (place, 0, 0, 0, 0), (2 - place, 0, 0, 0, 0)
        padded = build.pad(build.reshape(x, (1, 4, 2, 8, 16)), low, high)
        return build.reshape(build.transpose(padded, (1, 3, 0, 2, 4)), (4, 8, 96))

    total = build.add(build.add(moved(parts[2], 2), moved(parts[1], 1)), moved(parts[0], 0))
    weight = value(96, 5)
    graph = Graph([*parts, weight], [build.matmul(build.reshape(total, (32, 96)), weight)])
    names = [o.name for o in simplify(graph).operations]
    assert names.count("graph.concatenate") == 1
    assert "graph.pad" not in names and "graph.add" not in names
    found = program(graph)
    assert [c.kernel.family for c in found.calls] == ["element", "contraction"]
    # Before the reshape, where the rows are those of the parts.
    assert found.calls[0].results[0].type.shape == (4, 8, 3, 2, 16)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape).astype(np.float32) for p in graph.parameters]  # type: ignore[attr-defined]
    for ours, expected in zip(run_graph(graph, arrays), interpreter.evaluate(graph, arrays), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_what_overlaps_is_added() -> None:
    x, y = value(3), value(3)
    total = build.add(build.pad(x, (0,), (2,)), build.pad(y, (2,), (0,)))
    assert [o.name for o in simplify(Graph([x, y], [total])).operations].count("graph.add") == 1


def test_a_long_chain_is_not_a_deep_recursion() -> None:
    """A kernel has several values, each of many operations: none is looked at through the others."""
    x = value(2)
    y = x
    for _ in range(400):
        y = build.add(build.mul(y, 0.5), x)
    graph, array = Graph([x], [y]), np.array([1.0, -2.0], np.float32)
    (found,) = run_graph(graph, [array])
    np.testing.assert_allclose(found, 2 * array, rtol=1e-5)
