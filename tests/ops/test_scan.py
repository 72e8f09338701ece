"""Scans beyond their samples: text, passes, any length and batch, several threads, scans in scans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.compiler.diagnostics import ParseError, TypeInferenceError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.packing import PackPanels
from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.dims import Index, dim
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.parser import parse_graph
from flambeau.compiler.ir.printer import print_module
from flambeau.compiler.ir.types import f32, f64, tensor
from flambeau.compiler.ir.verifier import verify_graph
from flambeau.compiler.passes.autodiff import vjp
from flambeau.compiler.passes.decompose import decompose
from flambeau.compiler.passes.simplify import simplify
from flambeau.compiler.passes.simplify_scans import simplify_scans
from flambeau.compiler.pipeline import compile_stages
from flambeau.execution import run_graph
from flambeau.runtime import threads


def recurrence(batch: Index, features: int, hidden: int) -> Graph:
    """h = tanh(x wᵀ + h uᵀ + bias), and how much it changed."""
    h, x = Value(tensor((batch, hidden), f64)), Value(tensor((batch, features), f64))
    u, w, bias = (Value(tensor(s, f64)) for s in ((hidden, hidden), (hidden, features), (hidden,)))
    inside = build.add(build.dot_general(x, w, ((1,), (1,))), build.dot_general(h, u, ((1,), (1,))))
    after = build.tanh(build.add(inside, build.broadcast_in_dim(bias, (batch, hidden), (1,))))
    return Graph([h, x, u, w, bias], [after, after, build.sub(after, h)], "body")


def scan_graph(length: Index, batch: Index, features: int, hidden: int, reverse: bool = False) -> Graph:
    """The scan of `recurrence`."""
    body = recurrence(batch, features, hidden)
    types = [build.type_of(p) for p in body.parameters]
    types[1] = types[1].with_shape((length, *types[1].shape))
    parameters = [Value(t) for t in types]
    return Graph(parameters, create(Scan(body, length, 1, 1, reverse), *parameters).results, "recurrence")


def gradient(graph: Graph) -> Graph:
    """The gradient of all parameters, for cotangents that are more parameters."""
    cotangents = [Value(r.type) for r in graph.results]
    found = vjp(graph.results, graph.parameters, cotangents)
    return Graph([*graph.parameters, *cotangents], [g for g in found if g is not None], "gradient")


def arrays(graph: Graph, **sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [
        [sizes[repr(d)] if not isinstance(d, int) else d for d in build.shape_of(p)] for p in graph.parameters
    ]
    return [rng.standard_normal(s) / 2 for s in shapes]


def scans(graph: Graph) -> list[Scan]:
    return [o.definition for o in graph.operations if isinstance(o.definition, Scan)]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 35),
    st.booleans(),
    st.integers(1, 4),
)
def test_compiled_code_agrees_with_the_interpreter(
    length: int, batch: int, features: int, hidden: int, reverse: bool, workers: int
) -> None:
    before = threads.num_threads()
    threads.set_num_threads(workers)
    try:
        for graph in (g := scan_graph(length, batch, features, hidden, reverse), gradient(g)):
            given_arrays = arrays(graph)
            for ours, theirs in zip(
                run_graph(graph, given_arrays), evaluate(graph, given_arrays), strict=True
            ):
                np.testing.assert_allclose(ours, theirs, 1e-10, 1e-10, strict=True)
    finally:
        threads.set_num_threads(before)


def test_length_and_batch_may_be_symbols() -> None:
    forward = scan_graph(dim("T"), dim("N"), 3, 5)
    for graph in (forward, gradient(forward)):
        for length, batch in ((1, 4), (6, 2), (3, 1)):
            given_arrays = arrays(graph, T=length, N=batch)
            for ours, theirs in zip(
                run_graph(graph, given_arrays), evaluate(graph, given_arrays), strict=True
            ):
                np.testing.assert_allclose(ours, theirs, 1e-10, 1e-10, strict=True)


def test_text_is_read_back() -> None:
    for graph in (
        forward := scan_graph(dim("T"), dim("N"), 3, 5),
        gradient(forward),
        scan_graph(4, 2, 3, 5, True),
    ):
        verify_graph(graph)
        text = print_module(graph)
        assert parse_graph(text) == graph
        assert print_module(parse_graph(text)) == text


def test_text_of_a_body_that_reads_outside_is_refused() -> None:
    text = print_module(scan_graph(4, 2, 3, 5), locations=False)
    lines = text.splitlines()
    inner = next(i for i, line in enumerate(lines) if "graph.tanh" in line)
    lines[inner] = lines[inner].replace(lines[inner].split("(")[1].split(")")[0], "%0")
    with pytest.raises(ParseError, match="not defined here"):
        parse_graph("\n".join(lines))


def test_errors_name_the_rule() -> None:
    body = recurrence(2, 3, 5)
    good = [tensor(s, f64) for s in ((2, 5), (4, 2, 3), (5, 5), (5, 3), (5,))]
    assert Scan(body, 4, 1, 1).infer(*good)[1] is tensor((4, 2, 5), f64)
    with pytest.raises(
        TypeInferenceError, match=r"operand 1, a sequence, does not fit .* got tensor<7x2x3xf64>"
    ):
        Scan(body, 4, 1, 1).infer(good[0], tensor((7, 2, 3), f64), *good[2:])
    narrower = Graph(body.parameters, [build.convert(body.results[0], f32)])
    with pytest.raises(TypeInferenceError, match="carry 0 must keep its type"):
        Scan(narrower, 4, 1, 1).infer(*good)


def test_results_that_nobody_reads_are_not_computed() -> None:
    graph = scan_graph(4, 2, 3, 5)
    (scan,) = scans(simplify_scans(Graph(graph.parameters, graph.results[1:2])))
    assert len(scan.body.results) == 2
    assert simplify_scans(Graph(graph.parameters, [graph.parameters[0]])).operations == ()


def test_what_no_step_changes_is_computed_before() -> None:
    h, x, u = (Value(tensor(s, f64)) for s in ((2, 5), (2, 5), (5, 5)))
    after = build.add(build.matmul(h, build.transpose(build.exp(u), (1, 0))), x)
    scan = Scan(Graph([h, x, u], [after]), 3, 1, 1)
    parameters = [Value(tensor(s, f64)) for s in ((2, 5), (3, 2, 5), (5, 5))]
    graph = Graph(parameters, create(scan, *parameters).results)
    changed = simplify_scans(graph)
    (inner,) = scans(changed)
    assert [o.name for o in inner.body.operations] == ["graph.transpose", "graph.dot_general", "graph.add"]
    given_arrays = arrays(graph)
    np.testing.assert_allclose(evaluate(changed, given_arrays)[0], evaluate(graph, given_arrays)[0])


def test_a_weights_gradient_is_one_product_behind_the_loop() -> None:
    graph = simplify(simplify_scans(decompose(gradient(scan_graph(4, 2, 3, 5)))))
    backward = scans(graph)[-1]
    assert backward.reverse
    assert backward.carries == 1  # the hidden state's cotangent, and no sums of weights' gradients
    assert sum(isinstance(o.definition, DotGeneral) for o in graph.operations) == 2


def test_scans_in_scans() -> None:
    inner = recurrence(2, 3, 5)
    h, xs, u, w, bias = (Value(tensor(s, f64)) for s in ((2, 5), (4, 2, 3), (5, 5), (5, 3), (5,)))
    last, outputs, _ = create(Scan(inner, 4, 1, 1, True), h, xs, u, w, bias).results
    scan = Scan(Graph([h, xs, u, w, bias], [last, outputs], "outer"), 3, 1, 1)
    parameters = [Value(tensor(s, f64)) for s in ((2, 5), (3, 4, 2, 3), (5, 5), (5, 3), (5,))]
    forward = Graph(parameters, create(scan, *parameters).results)
    for graph in (forward, gradient(forward)):
        assert parse_graph(print_module(graph)) == graph
        given_arrays = arrays(graph)
        for ours, theirs in zip(run_graph(graph, given_arrays), evaluate(graph, given_arrays), strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-10, 1e-10, strict=True)


def test_weights_of_a_steps_products_are_packed_before_the_loop() -> None:
    h, x, w = (Value(tensor(s, f32)) for s in ((16, 64), (16, 96), (96, 64)))
    sums = build.add(build.dot_general(h, w, ((1,), (1,))), x)
    scan = Scan(Graph([h, x, w], [build.slice_axis(sums, 1, 0, 64), sums]), 9, 1, 1)
    parameters = [Value(tensor(s, f32)) for s in ((16, 64), (9, 16, 96), (96, 64))]
    graph = Graph(parameters, create(scan, *parameters).results)
    simplified = compile_stages(graph, stop_after="simplify").simplified
    assert simplified is not None
    (inner,) = scans(simplified)
    assert not any(isinstance(o.definition, PackPanels) for o in inner.body.operations)
    assert sum(isinstance(o.definition, PackPanels) for o in simplified.operations) == 1
    given_arrays = [a.astype(np.float32) / 4 for a in arrays(graph)]
    for ours, theirs in zip(run_graph(graph, given_arrays), evaluate(graph, given_arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-4, 1e-4, strict=True)


def test_a_scan_of_one_step_is_that_step() -> None:
    for graph in (forward := scan_graph(1, 2, 3, 5), gradient(forward)):
        assert not scans(simplify(graph))
        given_arrays = arrays(graph)
        for ours, theirs in zip(run_graph(graph, given_arrays), evaluate(graph, given_arrays), strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-10, 1e-10, strict=True)


def test_a_scan_of_no_steps_gives_its_start() -> None:
    graph = scan_graph(0, 2, 3, 5)
    given_arrays = arrays(graph)
    for ours, theirs in zip(run_graph(graph, given_arrays), evaluate(graph, given_arrays), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
