"""The whole stack in seconds: read this first."""

import numpy as np

import flambeau as fb


def test_a_tensor_is_computed() -> None:
    x = fb.tensor([1.0, 2.0, 3.0])
    assert (x * 2 + 1).tolist() == [3.0, 5.0, 7.0]


def test_matrix_product() -> None:
    a, b = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.ones((3, 4), np.float32)
    np.testing.assert_array_equal((fb.from_numpy(a) @ fb.from_numpy(b)).numpy(), a @ b)


def test_gradient() -> None:
    x = fb.tensor([1.0, 2.0], requires_grad=True)
    (x**2 + 3 * x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [5.0, 7.0]


def test_second_gradient() -> None:
    x = fb.tensor(2.0, requires_grad=True)
    (g,) = fb.autograd.grad(x**3, x, create_graph=True)
    (h,) = fb.autograd.grad(g, x)
    assert g is not None and h is not None and (g.item(), h.item()) == (12.0, 12.0)


def test_views_share_memory() -> None:
    x = fb.zeros(2, 3)
    x.t()[1] += 1
    x.view(-1)[0] = 5
    assert x.tolist() == [[5.0, 1.0, 0.0], [0.0, 1.0, 0.0]]


def test_gradient_descent_finds_the_line() -> None:
    fb.manual_seed(0)
    x = fb.rand(64, 1)
    y = 3 * x - 1
    w, b = fb.zeros(1, 1, requires_grad=True), fb.zeros(1, requires_grad=True)
    for _ in range(300):
        loss = (x @ w + b - y).square().mean()
        w.grad = b.grad = None
        loss.backward()
        with fb.no_grad():
            w -= 0.5 * w.grad
            b -= 0.5 * b.grad
    assert abs(w.item() - 3) < 1e-2 and abs(b.item() + 1) < 1e-2


def test_a_loop_compiles_once() -> None:
    def step(k: int) -> float:
        return (fb.arange(4.0) * (k + 0.5)).sum().item()

    assert step(1) == 9.0
    compiled = fb.stats().compilations
    assert [step(k) for k in (2, 3)] == [15.0, 21.0]
    assert fb.stats().compilations == compiled


def test_compiled_function() -> None:
    total = fb.zeros(2)

    @fb.compile
    def add(x: fb.Tensor) -> fb.Tensor:
        total.add_(x)
        return total * 2

    assert [add(fb.ones(2)).tolist() for _ in range(2)] == [[2.0, 2.0], [4.0, 4.0]]


def test_repr() -> None:
    assert repr(fb.ones(2, requires_grad=True) / 3) == "tensor([0.3333, 0.3333], grad_fn=<DivBackward0>)"
