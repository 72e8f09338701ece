"""A trace has memory of its own: the program's tensors stay as they are, for other threads and if the function fails."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau import nn


def model() -> nn.Sequential:
    fb.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def _switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def step_of(m: nn.Module) -> Callable[[fb.Tensor], fb.Tensor]:
    """A function that reads, writes and sets gradients, and leaves all as it was."""

    def step(t: fb.Tensor) -> fb.Tensor:
        m.zero_grad()
        loss = m(t).square().mean()
        loss.backward()
        with fb.no_grad():
            for p in m.parameters():
                p.sub_(p.grad * 0)
        m.zero_grad()
        return loss.detach()

    return step


def test_threads_read_what_another_traces(_switching: None) -> None:
    m, x = model(), fb.ones(2, 6)
    shown = m[0].weight.detach()[1:3]
    with fb.no_grad():
        expected, part = m(x).numpy(), shown.numpy().copy()
        compiled = fb.compile(m)
        compiled(x)
    failures: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        try:
            with fb.no_grad():
                while not stop.is_set():
                    np.testing.assert_allclose(m(x).numpy(), expected, rtol=1e-5)
                    np.testing.assert_allclose(compiled(x).numpy(), expected, rtol=1e-5)
                    np.testing.assert_array_equal((shown * 1).numpy(), part)
                    assert all(p.grad is None for p in m.parameters())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            fb.compile(lambda t: m(t).detach())(x)
            assert np.isfinite(fb.compile(step_of(m))(x).item())
            fb.export(m, x)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def test_threads_trace_at_once(_switching: None) -> None:
    m, x = model(), fb.ones(2, 6)
    with fb.no_grad():
        expected = m(x).numpy()
    failures: list[Any] = []

    def work() -> None:
        try:
            for _ in range(5):
                np.testing.assert_allclose(
                    fb.compile(lambda t: m(t).detach())(x).numpy(), expected, rtol=1e-5
                )
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_a_function_that_fails_has_changed_nothing() -> None:
    m, x = model(), fb.ones(2, 6)
    m(x).sum().backward()
    view = m[0].weight.detach()[0]
    before = [(p.detach().numpy().copy(), p.grad, p.grad.numpy().copy(), p._version) for p in m.parameters()]
    row = view.numpy().copy()

    def fails(t: fb.Tensor) -> fb.Tensor:
        m(t).sum().backward()
        with fb.no_grad():
            for p in m.parameters():
                p.add_(1)
            view.zero_()
        m[0].weight.grad = None
        m[2].bias.requires_grad_(False)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fb.compile(fails)(x)
    for p, (value, gradient, content, version) in zip(m.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), value)
        assert p.grad is gradient and p._version == version and p.requires_grad
        np.testing.assert_array_equal(p.grad.numpy(), content)
    np.testing.assert_array_equal(view.numpy(), row)


def test_a_view_made_before_sees_what_a_compiled_function_writes() -> None:
    x = fb.zeros(4, 3)
    view, alias = x[1], x.detach()

    @fb.compile
    def f(t: fb.Tensor) -> fb.Tensor:
        view.add_(t)
        alias.mul_(2)
        return view + x[1] + alias[1]

    for call in (1, 2):
        before = x[1].numpy().copy()
        got = f(fb.ones(3)).numpy()
        np.testing.assert_array_equal(x[1].numpy(), 2 * (before + 1))
        np.testing.assert_array_equal(got, 3 * x[1].numpy())
        np.testing.assert_array_equal(view.numpy(), x[1].numpy())
        np.testing.assert_array_equal(alias.numpy(), x.numpy())
        assert call


def test_modules_in_the_body_of_a_scan() -> None:
    cell = nn.Linear(3, 3)

    def step(carry: fb.Tensor, x: fb.Tensor) -> tuple[fb.Tensor, fb.Tensor]:
        carry = cell(carry) + x
        return carry, carry * 2

    xs = fb.ones(4, 2, 3)

    def run(t: fb.Tensor) -> fb.Tensor:
        return fb.scan(step, fb.zeros(2, 3), t)[1]

    with fb.no_grad():
        expected = run(xs).numpy()
        compiled = fb.compile(run)
        np.testing.assert_allclose(compiled(xs).numpy(), expected, rtol=1e-6)
        cell.weight = nn.Parameter(fb.zeros(3, 3))
        np.testing.assert_allclose(compiled(xs).numpy(), run(xs).numpy(), rtol=1e-6)
