"""`flambeau.scan`: loops over steps in user programs, against loops in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import flambeau as fb
from tests.nn.compare import close, ours


def loop(combine_fn: Any, init: Any, xs: Any, *, dim: int = 0, reverse: bool = False) -> Any:
    """What `scan` computes, by a loop in torch; `xs` is a tensor or a dictionary of tensors."""
    listed = xs if isinstance(xs, dict) else {"": xs}
    length = next(iter(listed.values())).shape[dim]
    found = []
    for t in range(length)[:: -1 if reverse else 1]:
        parts = {k: v.select(dim, t) for k, v in listed.items()}
        init, y = combine_fn(init, parts if isinstance(xs, dict) else parts[""])
        found.append(y)
    return init, torch.stack(found[:: -1 if reverse else 1])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_values_and_gradients_of_what_the_step_closes_over(dim: int, reverse: bool) -> None:
    a = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    h = torch.randn(4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 4, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def run(scan: Any, a: Any, h: Any, x: Any, scale: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            carry = ((carry @ a + x.sum(0)) * scale / 4).tanh()
            return carry, carry * x + 2

        return scan(step, h, x, dim=dim, reverse=reverse)

    mine = [ours(v) for v in (a, h, x, scale)]
    y, z = run(fb.scan, *mine), run(loop, a, h, x, scale)
    close(y, z, 1e-10)
    for found in (y, z):
        (found[0].sum() + found[1].square().sum()).backward()
    for p, q in zip(mine, (a, h, x, scale)):
        close(p.grad, q.grad, 1e-8)


def test_trees_of_tensors() -> None:
    def step(carry: Any, x: Any) -> Any:
        total, count = carry["total"], carry["count"]
        new = {"total": total + x["a"] * x["b"].sum(), "count": count + 1}
        return new, total * count

    xs = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    init = {"total": torch.zeros(3), "count": torch.tensor(0)}
    last, y = fb.scan(step, {k: ours(v) for k, v in init.items()}, {k: ours(v) for k, v in xs.items()})
    expected, z = loop(step, init, xs)
    close(y, z)
    for key, value in expected.items():
        close(last[key], value)
    assert last["count"].item() == 5


def test_derivatives_stop_where_the_step_stops_them() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def run(library: Any, scan: Any, x: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            with library.no_grad():
                kept = carry * x
            return carry + kept + x.detach() * x, carry

        return scan(step, library.zeros(3, dtype=library.float64), x)

    mine = ours(x)
    y, z = run(fb, fb.scan, mine), run(torch, loop, x)
    close(y, z, 1e-12)
    y[0].sum().backward()
    z[0].sum().backward()
    close(mine.grad, x.grad, 1e-12)


def test_second_gradients() -> None:
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def run(scan: Any, x: Any) -> Any:
        return scan(lambda c, x: (c * x.sin() + x, c * c), x[0] * 2, x)

    def twice(library: Any, scan: Any, x: Any) -> Any:
        last, y = run(scan, x)
        (g,) = library.autograd.grad(last + y.sum(), [x], create_graph=True)
        (g,) = library.autograd.grad(g.square().sum(), [x], create_graph=True)
        return library.autograd.grad(g.sum(), [x])

    mine = ours(x)
    close(twice(fb, fb.scan, mine), twice(torch, loop, x), 1e-8)


def test_inside_a_compiled_function() -> None:
    weight = fb.randn(3, 3, requires_grad=True)

    def step(x: Any) -> Any:
        last, y = fb.scan(lambda c, x: ((c @ weight + x).tanh(), c), fb.zeros(3), x)
        (gradient,) = fb.autograd.grad(last.sum() + y.sum(), [weight])
        return y.detach(), gradient

    compiled = fb.compile(step)
    for length in (4, 4, 6, 9):
        x = fb.randn(length, 3)
        for a, b in zip(compiled(x), step(x)):
            np.testing.assert_allclose(a.numpy(), b.numpy(), 1e-5, 1e-5)


def test_a_long_loop_is_one_small_graph() -> None:
    before = fb.stats().compilations
    last, _ = fb.scan(lambda c, x: (c + x, c), fb.tensor(0.0), fb.ones(5000))
    assert last.item() == 5000
    assert fb.stats().compilations == before + 1


def test_what_a_step_must_not_do() -> None:
    x, outside = fb.ones(3, 2), fb.zeros(2)
    with pytest.raises(RuntimeError, match="observed"):
        fb.scan(lambda c, x: (c * x.sum().item(), c), fb.zeros(2), x)
    with pytest.raises(RuntimeError, match="must not write to tensors that it did not make"):
        fb.scan(lambda c, x: (outside.add_(x), c), fb.zeros(2), x)
    with pytest.raises(RuntimeError, match="carry of init's shapes and dtypes"):
        fb.scan(lambda c, x: (c.sum(), c), fb.zeros(2), x)
    with pytest.raises(RuntimeError, match="same structure"):
        fb.scan(lambda c, x: ((c, c), c), fb.zeros(2), x)
    with pytest.raises(RuntimeError, match="one size in dimension 0"):
        fb.scan(lambda c, x: (c, c), fb.zeros(2), (x, fb.ones(4, 2)))
    np.testing.assert_array_equal(outside.numpy(), [0, 0])
    total, _ = fb.scan(lambda c, x: (c.clone().add_(x), c), fb.zeros(2), x)  # its own tensors it may write
    np.testing.assert_array_equal(total.numpy(), [3, 3])
