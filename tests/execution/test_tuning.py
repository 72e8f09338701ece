"""The autotuner: what it finds is right, is kept, and is found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flambeau import tuning
from flambeau.compiler import options
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.schedule.tuning import starts
from flambeau.execution import run_graph
from flambeau.runtime import threads

SIZES = (37, 65, 130)


@pytest.fixture(autouse=True)
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tuning is on, with a cache of its own and little time."""
    monkeypatch.setattr(tuning, "BUDGET", 3)
    monkeypatch.setattr(tuning, "LEAST", 1e-4)
    monkeypatch.setattr(tuning, "_known", {})
    with options.override(tune=True, cache_dir=str(tmp_path)):
        yield


def product(m: Any, n: int, k: int) -> Graph:
    """relu(a @ b + c): a kernel with an epilogue."""
    a, b, c = Value(tensor((m, k), f32)), Value(tensor((k, n), f32)), Value(tensor((n,), f32))
    total = build.matmul(a, b)
    return Graph([a, b, c], [build.maximum(build.add(total, build.broadcast_in_dim(c, (m, n), (1,))), 0.0)])


def arrays(m: int, n: int, k: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n), (n,))]


def check(result: np.ndarray[Any, Any], given: list[np.ndarray[Any, Any]]) -> None:
    a, b, c = (x.astype(np.float64) for x in given)
    np.testing.assert_allclose(result, np.maximum(a @ b + c, 0), rtol=0, atol=1e-4)


def never(*_: Any) -> Any:
    raise AssertionError("searched again")


def test_what_is_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arrays(*SIZES)
    (first,) = run_graph(product(*SIZES), given)
    check(first, given)
    found = dict(tuning._known)
    assert len(found) == 1
    # As in another process, which knows nothing but what is on disk; the graph's own code is not there.
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "search", never)
    graph, other = product(*SIZES), Value(tensor((3,), f32))
    both = Graph([*graph.parameters, other], [*graph.results, build.exp(other)])
    again, _ = run_graph(both, [*given, np.ones(3, np.float32)])
    np.testing.assert_array_equal(again, first)
    assert tuning._known == found


def test_a_faster_schedule_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []

    def search(request: Any, model: Any, measure: Any, budget: int) -> Any:
        tried = [model, *(s for s in starts(request) if s.scheme != model.scheme)]
        if not chosen:  # all that is tried is compiled, run, and compared with the model's result
            assert all(np.isfinite(measure(s)) for s in tried)
        chosen.append(tried[1])
        return chosen[-1], len(tried)

    monkeypatch.setattr(tuning, "search", search)
    monkeypatch.setattr(tuning._Trial, "compared", lambda self, before, after: [1.0, 0.5])
    given = arrays(*SIZES)
    check(run_graph(product(*SIZES), given)[0], given)
    assert list(tuning._known.values()) == chosen
    before = threads.num_threads()
    try:
        threads.set_num_threads(3)  # is another question
        check(run_graph(product(*SIZES), given)[0], given)
    finally:
        threads.set_num_threads(before)
    assert len(tuning._known) == len(chosen) == 2


def test_what_is_not_clearly_faster_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning._Trial, "compared", lambda self, before, after: [1.0, 0.99])
    given = arrays(*SIZES)
    check(run_graph(product(*SIZES), given)[0], given)
    assert list(tuning._known.values()) == [None]


def test_wrong_schedules_are_out() -> None:
    trial_results = [np.ones(3, np.float32), np.array([1, 1, np.nan], np.float32)]
    assert not tuning._close(*trial_results)
    assert tuning._close(trial_results[0], trial_results[0] * np.float32(1 + 1e-6))


def test_unknown_sizes_are_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "search", never)
    given = arrays(*SIZES)
    check(run_graph(product(dim("M"), *SIZES[1:]), given)[0], given)
    assert list(tuning._known.values()) == [None]
