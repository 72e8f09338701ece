"""Text of the IR: every operation prints and parses back, random text never crashes, and MLIR's own reader agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau.compiler.dialects.graph  # noqa: F401
from flambeau.compiler.diagnostics import ParseError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.opdef import REGISTRY
from flambeau.compiler.ir.parser import parse_graph, parse_module
from flambeau.compiler.ir.printer import print_module
from flambeau.compiler.ir.types import f32, f64, from_numpy, i32, tensor
from flambeau.compiler.ir.verifier import verify_functions, verify_graph
from flambeau.compiler.pipeline import compile_stages

#: All but the one that holds a Python function, which no text can say; it leaves no trace in what is compiled.
OPERATIONS = sorted(
    name for name in REGISTRY if name.startswith("graph.") and name != "graph.custom_gradient"
)


def sample_graphs(name: str) -> list[Graph]:
    graphs = []
    for sample in REGISTRY[name].samples(None):  # type: ignore[attr-defined]
        arrays = [np.asarray(a) for a in sample.operands]
        parameters = [Value(tensor(a.shape, from_numpy(a.dtype))) for a in arrays]
        operation = create(sample.definition, *parameters, location=("model.py", 12))
        graphs.append(Graph(parameters, operation.results))
    return graphs


@pytest.mark.parametrize("name", OPERATIONS)
def test_round_trip(name: str) -> None:
    for graph in sample_graphs(name):
        text = print_module(graph)
        again = parse_graph(text)
        assert again.key() == graph.key()
        assert [o.location for o in again.operations] == [o.location for o in graph.operations]
        assert print_module(again) == text
        verify_graph(again)


@pytest.mark.parametrize("name", OPERATIONS)
def test_loops_round_trip(name: str) -> None:
    for graph in sample_graphs(name)[:1]:
        kernels = compile_stages(graph, stop_after="loops").kernels.values()
        functions = [f for k in kernels for f in k.functions]
        verify_functions(functions)
        text = print_module(functions)
        module = parse_module(text)
        assert print_module(module.functions) == text
        verify_functions(module.functions)


def test_symbolic_sizes() -> None:
    rows = dim("N")
    x = Value(tensor((rows, 3), f32))
    y = build.broadcast_in_dim(x, (rows, rows * 2 + 1, 3), (0, 2))
    graph = Graph([x], [y])
    text = print_module(graph)
    assert 'tensor<?x?x3xf32, #graph.dims<"N", "(N*2 + 1)", "_">>' in text
    assert parse_graph(text).key() == graph.key()


@pytest.mark.parametrize("name", OPERATIONS)
def test_xdsl_reads_it(name: str) -> None:
    context_module = pytest.importorskip("xdsl.context")
    from xdsl.dialects.builtin import Builtin
    from xdsl.dialects.func import Func
    from xdsl.parser import Parser

    context = context_module.Context(allow_unregistered=True)
    context.load_dialect(Builtin)
    context.load_dialect(Func)
    for graph in sample_graphs(name)[:2]:
        Parser(context, print_module(graph)).parse_module()


UNARY = (build.neg, build.exp, build.abs, build.tanh)
BINARY = (build.add, build.mul, build.sub, build.maximum)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Well-typed graphs of elementwise operations, reductions and reshapes."""
    element = draw(st.sampled_from([f32, f64]))
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, dim("N"), dim("M") * 2]), max_size=3)))
    parameters = [Value(tensor(shape, element)) for _ in range(draw(st.integers(1, 3)))]
    values = list(parameters)
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            values.append(draw(st.sampled_from(UNARY))(draw(st.sampled_from(values))))
        else:
            x = draw(st.sampled_from(values))
            fitting = [v for v in values if v.type is x.type]
            values.append(draw(st.sampled_from(BINARY))(x, draw(st.sampled_from(fitting))))
        if draw(st.integers(0, 3)) == 0 and values[-1].type.rank:  # type: ignore[attr-defined]
            values.append(build.reduce_sum(values[-1], (0,)))
    return Graph(
        parameters, draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)), draw(st.text(max_size=5))
    )


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_random_graphs(graph: Graph) -> None:
    verify_graph(graph)
    text = print_module(graph)
    again = parse_graph(text)
    assert again.key() == graph.key() and again.name == graph.name
    assert print_module(again) == text


def attempt(text: str) -> None:
    try:
        parse_module(text, "fuzz.mlir")
    except ParseError as error:
        assert error.location is not None
        assert "fuzz.mlir:" in str(error)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_random_text(text: str) -> None:
    attempt(text)


VALID = [
    print_module(g)
    for name in ("graph.constant", "graph.convolution", "graph.reduce", "graph.sort")
    for g in sample_graphs(name)[:2]
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_damaged_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    inserted = data.draw(
        st.one_of(
            st.just(""),
            st.sampled_from(["%0", "0", "-1", "f32", "[", ">", '"', ": i64", "99999999999"]),
            st.text(max_size=4),
        )
    )
    attempt(text[:start] + inserted + text[end:])


def test_errors_point_at_the_place() -> None:
    text = print_module(Graph([x := Value(tensor((2,), i32))], [build.neg(x)]), locations=False)
    broken = text.replace('"graph.negate"(%0)', '"graph.negate"(%7)')
    with pytest.raises(ParseError, match=r"%7 is not defined here") as caught:
        parse_module(broken, "a.mlir")
    assert "a.mlir:4:" in str(caught.value)
    assert caught.value.__str__().splitlines()[-1].strip() == "^"
