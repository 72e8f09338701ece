"""Results in the memory of operands: the same bits as in memory of their own, and never over what somebody still sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.composites_norm import Softmax
from flambeau.compiler.ir.core import Graph, create
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads
from tests.passes.test_fuse import graphs, value


def check(graph: Graph) -> int:
    """Every pair alone, and all together as far as they do not exclude each other; the number of pairs."""
    run = ArrayExecutable(graph)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape).astype(np.float32) for p in graph.parameters]  # type: ignore[attr-defined]
    expected = run(arrays)
    together: dict[int, int] = {}
    for result, parameter in run.overwrites:
        if parameter not in together.values():
            together.setdefault(result, parameter)
    for chosen in [*({r: p} for r, p in run.overwrites), together]:
        own = [a.copy() for a in arrays]
        found = run(own, into={r: own[p] for r, p in chosen.items()})
        for n, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_array_equal(actual, wanted)
            assert n not in chosen or actual is own[chosen[n]]
    return len(run.overwrites)


@given(graphs())
def test_random_graphs(graph: Graph) -> None:
    check(graph)


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 20), st.integers(1, 3))
def test_an_epilogue_updates_in_place(m: int, n: int, k: int, workers: int) -> None:
    updated(m, n, k, workers)


@pytest.mark.parametrize(("m", "n", "k"), [(100, 130, 2000), (257, 65, 700), (1, 300, 400), (300, 1, 400)])
def test_an_epilogue_updates_in_place_where_sums_are_kept(m: int, n: int, k: int) -> None:
    updated(m, n, k, 2)


def updated(m: int, n: int, k: int, workers: int) -> None:
    x, y, w, moment = value(m, k), value(k, n), value(m, n), value(m, n)
    gradient = build.matmul(x, y)
    new = build.add(build.mul(moment, 0.9), gradient)
    before = threads.num_threads()
    threads.set_num_threads(workers)
    try:
        pairs = check(Graph([x, y, w, moment], [new, build.sub(w, build.mul(new, 0.1)), gradient]))
    finally:
        threads.set_num_threads(before)
    assert pairs == 4


def test_a_softmax_takes_its_operands_place() -> None:
    x = value(9, 50)
    assert check(Graph([x], [create(Softmax(1), x).result])) == 1


def test_what_is_read_elsewhere_is_not_overwritten() -> None:
    x = value(6, 6)
    total = build.expand_reduced(build.reduce_sum(x, (0,)), (6, 6), (0,))
    assert check(Graph([x], [build.transpose(x, (1, 0))])) == 0
    assert check(Graph([x], [build.add(build.reverse(x, (0,)), x)])) == 0
    assert check(Graph([x], [build.tanh(x), build.mul(x, total)])) >= 1
    assert check(Graph([x], [build.tanh(x), x])) == 0


def test_reads_come_before_the_kernel_that_overwrites() -> None:
    w, g, x = value(8, 8), value(8, 8), value(8, 8)
    new = build.sub(w, g)
    graph = Graph([w, g, x], [new, build.matmul(x, w)])
    assert (0, 0) in ArrayExecutable(graph).overwrites
    check(graph)


# -- compiled steps ----------------------------------------------------------------------------------------------------

SIZE = 70_000


def address(t: Any) -> int:
    return int(t.detach().numpy().ctypes.data)


def stepping() -> tuple[Any, Any]:
    p = fb.nn.Parameter(fb.arange(SIZE, dtype=fb.float32) / SIZE)
    optimizer = fb.optim.SGD([p], lr=0.5, momentum=0.5)

    @fb.compile
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = (p * x).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    x = fb.ones(SIZE)
    step(x), step(x)
    return p, lambda: step(x)


def test_a_step_writes_into_the_state_that_it_read() -> None:
    p, step = stepping()
    place, gradient, before = address(p), address(p.grad), p.detach().numpy().copy()
    step()
    assert (address(p), address(p.grad)) == (place, gradient)
    np.testing.assert_allclose(p.detach().numpy(), before - 0.5 * 1.75, rtol=1e-5)
    np.testing.assert_array_equal(p.grad.numpy(), np.ones(SIZE))


@pytest.mark.parametrize(
    "keep",
    [
        lambda p: p.detach().numpy(),
        lambda p: p.detach().numpy()[3:],
        lambda p: p.detach().clone(),
        lambda p: (p * 1).detach() + 0,
        lambda p: memoryview(p.detach().numpy()),
        lambda p: np.from_dlpack(p.detach()),
    ],
)
def test_what_somebody_kept_stays(keep: Any) -> None:
    p, step = stepping()
    kept = keep(p)
    before = np.array(kept.numpy() if isinstance(kept, fb.Tensor) else kept)
    step()
    np.testing.assert_array_equal(np.asarray(kept.numpy() if isinstance(kept, fb.Tensor) else kept), before)


def test_history_before_the_step_keeps_what_it_reads() -> None:
    p, step = stepping()
    old = p.detach().numpy().copy()
    loss = (p * p).sum()
    step()
    p.grad = None
    loss.backward()
    np.testing.assert_allclose(p.grad.numpy(), 2 * old, rtol=1e-6)


def test_an_alias_sees_the_new_content_and_a_kept_gradient_stays_as_in_pytorch() -> None:
    p, step = stepping()
    alias, gradient = p.detach(), p.grad.numpy()
    step()
    np.testing.assert_array_equal(alias.numpy(), p.detach().numpy())
    np.testing.assert_array_equal(gradient, np.ones(SIZE))


def test_two_tensors_of_one_value_are_not_overwritten() -> None:
    p, step = stepping()
    q = fb.nn.Parameter(p.detach().clone())
    before = q.detach().numpy().copy()
    step()
    np.testing.assert_array_equal(q.detach().numpy(), before)
