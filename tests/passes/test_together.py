"""Small kernels that do not depend on one another run in one parallel loop."""

from __future__ import annotations

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.passes import together as passes
from flambeau.compiler.passes.fuse import Kernel, KernelCall, Program
from flambeau.compiler.passes.plan import plan
from flambeau.compiler.passes.together import together
from flambeau.compiler.pipeline import compile_stages
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads


def call(operands: list[Value], count: int = 1, size: int = 4096, family: str = "element") -> KernelCall:
    results = tuple([Value(tensor((size,), f32)) for _ in range(count)])
    return KernelCall(Kernel(Graph([], []), family), tuple(operands), results)


def given(size: int = 4096) -> Value:
    return Value(tensor((size,), f32))


def test_neighbours_that_need_nothing_of_one_another_are_one_step() -> None:
    a, b, c = call([given()]), call([given()]), call([given()])
    d = call([a.results[0]])
    assert together([a, b, c, d], [set(), set(), set(), {0}], [False] * 4) == [[0, 1, 2], [3]]


def test_large_ones_and_others_stay_alone() -> None:
    large, product = call([given()], size=passes.SMALL), call([given()], family="contraction")
    calls = [call([given()]), large, call([given()]), product, call([given()]), call([given()])]
    steps = together(calls, [set()] * 6, [False] * 4 + [False, True])
    assert steps == [[0], [1], [2], [3], [4], [5]]


def test_little_work_is_not_worth_a_loop() -> None:
    calls = [call([given(8)], size=8) for _ in range(3)]
    assert together(calls, [set()] * 3, [False] * 3) == [[0], [1], [2]]


def test_the_plan_keeps_apart_what_is_alive_in_one_step() -> None:
    """The second call could take the first one's operand's place, or the first its own operand's, were they not together."""
    start = call([given()])
    (x,) = start.results
    first, second = call([x]), call([x])
    last = call([first.results[0], second.results[0]])
    program = Program(Graph([*start.operands], [*last.results]), (start, first, second, last))
    pairs = [(), ((0, 0),), ((0, 0),), ()]
    one_by_one = plan(program, [0] * 4, pairs)
    assert one_by_one.offsets[second.results[0]] == one_by_one.offsets[x]
    at_once = plan(program, [0] * 4, pairs, [0, 1, 1, 2])
    places = [at_once.offsets[v] for v in (x, *first.results, *second.results)]
    assert len(set(places)) == 3


def test_a_parameter_is_not_overwritten_beside_its_reader() -> None:
    x = given()
    first, second = call([x]), call([x])
    results = [*first.results, *second.results]
    program = Program(Graph([x], results), (first, second))
    pairs = [((0, 0),), ((0, 0),)]
    assert plan(program, [0, 0], pairs).overwrites == ((second.results[0], x),)
    assert plan(program, [0, 0], pairs, [0, 0]).overwrites == ()


SIZES = (1, 7, 64, 513, 2000, 4099)


def _many() -> tuple[Graph, list[np.ndarray]]:
    """Pointwise chains and softmaxes of small tensors, and sums over them."""
    rng = np.random.default_rng(0)
    parameters, results = [], []
    for number in range(40):
        size = SIZES[number % len(SIZES)]
        shape = (size,) if number % 3 else (3, size)
        x, y = Value(tensor(shape, f32)), Value(tensor(shape, f32))
        z = build.mul(build.exp(build.mul(x, 0.1)), y)
        z = (
            z
            if number % 2
            else build.sub(
                z, build.expand_reduced(build.reduce_sum(z, (len(shape) - 1,)), shape, (len(shape) - 1,))
            )
        )
        parameters += [x, y]
        results += [z, build.add(y, 1)]
    return Graph(parameters, results), [
        rng.standard_normal(tuple(p.type.shape)).astype(np.float32) for p in parameters
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_same_bits_as_one_after_the_other(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, arrays = _many()
    with monkeypatch.context() as patch:
        patch.setattr(passes, "SMALL", 0)
        c = compile_stages(graph, stop_after="plan")
        assert len(set(c.steps)) == len(c.steps)
        expected = ArrayExecutable(graph)(arrays)
    c = compile_stages(graph, stop_after="plan")
    assert len(set(c.steps)) < len(c.steps) / 4
    before = threads.num_threads()
    threads.set_num_threads(workers)
    try:
        run = ArrayExecutable(graph)
        for _ in range(3):
            for actual, wanted in zip(run(arrays), expected, strict=True):
                np.testing.assert_array_equal(actual, wanted)
    finally:
        threads.set_num_threads(before)
