"""Weights of compiled functions: prepared once, and again whenever one of them was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau import nn


def model() -> nn.Module:
    fb.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 70), nn.ReLU(), nn.BatchNorm1d(70), nn.Linear(70, 33)).eval()


def entries(compiled: Any) -> list[Any]:
    return [e for group in compiled._entries.values() for e in group]


def prepared(entry: Any) -> int:
    """How many values the entry's preparation makes."""
    preparation = entry.executable.executable._preparation
    return len(entry.executable.layouts) + (0 if preparation is None else preparation[0].n_outputs)


def runs(compiled: Any, m: nn.Module) -> None:
    x = fb.randn(20, 40)
    with fb.no_grad():
        np.testing.assert_allclose(compiled(x).numpy(), m(x).numpy(), rtol=1e-4, atol=1e-5)


def test_parameters_and_buffers_are_weights() -> None:
    m = model()
    f = fb.compile(m)
    runs(f, m)
    (entry,) = entries(f)
    assert len(entry.weights) == len([*m.parameters(), *m.buffers()]) - 1  # but for num_batches_tracked
    assert prepared(entry) >= 3  # two layouts and the norm's scale
    held = entry.held
    runs(f, m)
    assert entry.held is held and entries(f) == [entry]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: m[0].weight.mul_(2),
    "part": lambda m: m[3].weight[3:5].fill_(7),
    "through a view": lambda m: m[3].weight.t()[2].zero_(),
    "bias": lambda m: m[0].bias.add_(1),
    "buffer": lambda m: m[2].running_var.mul_(3),
    "data, in place": lambda m: m[0].weight.data.add_(1),
    "data, another tensor": lambda m: setattr(m[0].weight, "data", fb.ones(70, 40)),
    "detached": lambda m: m[0].weight.detach().copy_(fb.ones(70, 40)),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "initialisation": lambda m: nn.init.ones_(m[0].weight),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: str) -> None:
    m = model()
    f = fb.compile(m)
    runs(f, m)
    x = fb.ones(20, 40)
    with fb.no_grad():
        before = f(x).numpy()
        CHANGES[change](m)
        assert not np.allclose(f(x).numpy(), before)
    runs(f, m)


def test_an_optimizers_step_outside_is_noticed() -> None:
    m = model()
    f = fb.compile(m)
    optimizer = fb.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(3):
        runs(f, m)
        m(fb.randn(20, 40)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    runs(f, m)


def test_weights_that_always_change_are_not_prepared() -> None:
    m = model()
    f = fb.compile(m)
    for _ in range(8):
        runs(f, m)
        with fb.no_grad():
            m[0].weight.mul_(1.01)
    fitting = [e for e in entries(f) if e.fits()]
    assert len(fitting) == 1 and m[0].weight._cell not in fitting[0].weights
    assert m[3].weight._cell in fitting[0].weights
    runs(f, m)


def test_nothing_is_prepared_in_a_training_step() -> None:
    m = model().train()
    optimizer = fb.optim.SGD(m.parameters(), lr=0.1)

    @fb.compile
    def step(x: fb.Tensor) -> fb.Tensor:
        optimizer.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    first, *_, last = [step(fb.ones(20, 40)).item() for _ in range(5)]
    assert last < first
    assert all(not e.weights for e in entries(step))


def test_a_programs_own_array_is_read_at_every_call() -> None:
    array = np.ones((40, 70), np.float32)
    w = fb.from_numpy(array)
    f = fb.compile(lambda x: x @ w)
    x = fb.ones(20, 40)
    assert (f(x).numpy() == 40).all()
    array[:] = 2
    assert (f(x).numpy() == 80).all()


def test_copying_from_an_array_copies() -> None:
    array = np.ones(3, np.float32)
    x = fb.zeros(3)
    x.copy_(fb.from_numpy(array))
    array[0] = 5
    assert x.tolist() == [1, 1, 1]


def test_results_that_depend_on_weights_alone() -> None:
    w = fb.randn(50, 60)
    f = fb.compile(lambda x: (x @ w, w.t() * 2, w))
    for _ in range(2):
        y, doubled, same = f(fb.ones(9, 50))
        np.testing.assert_allclose(
            y.numpy(), w.sum(0, keepdim=True).expand(9, 60).numpy(), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(doubled.numpy(), 2 * w.numpy().T)
        np.testing.assert_array_equal(same.numpy(), w.numpy())
        w.add_(1)


def test_symbolic_batch() -> None:
    m = model()
    f = fb.compile(m)
    with fb.no_grad():
        for rows in (20, 7, 33, 1, 2, 100):
            x = fb.randn(rows, 40)
            np.testing.assert_allclose(f(x).numpy(), m(x).numpy(), rtol=1e-4, atol=1e-5)
        m[0].weight.mul_(2)
        for rows in (20, 7, 50):
            x = fb.randn(rows, 40)
            np.testing.assert_allclose(f(x).numpy(), m(x).numpy(), rtol=1e-4, atol=1e-5)


def test_no_weights_under_the_interpreter() -> None:
    from flambeau.compiler import options

    m = model()
    with options.override(interpret=True):
        f = fb.compile(m)
        runs(f, m)
        with fb.no_grad():
            m[0].weight.mul_(2)
        runs(f, m)
