"""Cheap values are computed again for the backward half, with the same bits, and the arena is smaller for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau import nn
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.passes.rematerialise import rematerialise
from flambeau.compiler.pipeline import compile_stages
from flambeau.execution import run_graph


def layers(count: int = 3, rows: Any = 64, width: int = 32) -> Graph:
    """Products with tanh between, and the gradients of the products' matrices, as autodiff writes them."""
    x = Value(tensor((rows, width), f32))
    weights = [Value(tensor((width, width), f32)) for _ in range(count)]
    inputs, before = [x], []
    for w in weights:
        before.append(build.matmul(inputs[-1], w))
        inputs.append(build.tanh(before[-1]))
    ct, gradients = build.mul(inputs[-1], inputs[-1]), []
    for w, made, h, u in reversed(list(zip(weights, inputs[1:], inputs, before, strict=False))):
        # The derivative reads the product too, as a GELU's does: so it is kept, and its tanh need not be.
        ct = build.mul(build.mul(ct, build.sub(1, build.mul(made, made))), u)
        gradients.append(build.matmul(build.transpose(h, (1, 0)), ct))
        ct = build.matmul(ct, build.transpose(w, (1, 0)))
    return Graph([x, *weights], gradients)


def arena(graph: Graph) -> int:
    memory = compile_stages(graph, stop_after="plan").memory
    assert memory is not None and isinstance(memory.size, int)
    return memory.size


def barriers(graph: Graph) -> int:
    return sum(o.name == "graph.optimization_barrier" for o in graph.operations)


def test_the_same_bits_and_less_memory() -> None:
    graph = layers(8)
    changed = rematerialise(graph, least=1 << 10)
    assert barriers(changed) > 0
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape).astype(np.float32) * 0.3 for p in graph.parameters]  # type: ignore[attr-defined]
    for got, expected in zip(
        interpreter.evaluate(changed, arrays), interpreter.evaluate(graph, arrays), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    assert arena(changed) < 0.9 * arena(graph)


def test_small_values_and_unknown_sizes_are_kept() -> None:
    graph = layers()
    assert rematerialise(graph) is graph
    graph = layers(rows=dim("n"))
    assert rematerialise(graph, least=1) is graph


def test_what_must_be_kept_for_it_is_not_repeated() -> None:
    """exp(x @ w), read again late, while nobody else reads the product late: keeping that instead saves nothing."""
    x, w = Value(tensor((64, 64), f32)), Value(tensor((64, 64), f32))
    e = build.exp(build.matmul(x, w))
    y = build.matmul(build.matmul(build.matmul(e, w), w), w)
    graph = Graph([x, w], [build.matmul(y, e)])
    assert rematerialise(graph, least=1) is graph


def test_inference_keeps_its_graph() -> None:
    x = Value(tensor((64, 64), f32))
    weights = [Value(tensor((64, 64), f32)) for _ in range(4)]
    h = x
    for w in weights:
        h = build.tanh(build.matmul(h, w))
    graph = Graph([x, *weights], [h])
    assert rematerialise(graph, least=1) is graph


def step_graph() -> tuple[Graph, list[Any]]:
    """A training step of norms and GELUs, in primitive operations, and contents of its parameters."""
    fb.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(32, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 48), nn.GELU(approximate="tanh"),
        nn.LayerNorm(48), nn.Linear(48, 16),
    )  # fmt: skip
    optimizer = fb.optim.SGD(net.parameters(), lr=1e-2)

    def step(x: fb.Tensor) -> fb.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    graph = fb.export(step, fb.zeros(40, 32)).graph
    simplified = compile_stages(graph, stop_after="simplify").simplified
    assert simplified is not None
    rng = np.random.default_rng(0)
    return simplified, [
        np.asarray(rng.standard_normal(p.type.shape) * 0.3).astype(p.type.element.numpy)  # type: ignore[attr-defined]
        for p in simplified.parameters
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_step(threads: int) -> None:
    graph, arrays = step_graph()
    changed = rematerialise(graph, least=1 << 10)
    assert barriers(changed) > 0
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    try:
        again, kept = run_graph(changed, arrays), run_graph(graph, arrays)
    finally:
        fb.set_num_threads(before)
    exact = interpreter.evaluate(graph, arrays)
    for got, expected, reference in zip(again, kept, exact, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got, reference, rtol=1e-3, atol=1e-4)
