"""Gradients, hooks, modes and custom functions as in PyTorch."""

import pytest
import torch

import flambeau as fb
from tests.frontend.compare import both

GRADIENTS = """
(x * y).sum()
(x / y).sum()
(x ** 3).sum()
(x.exp() * y).sum()
(x.abs() + 1).log().sum()
x.tanh().mean()
x.sigmoid().sum()
x.relu().sum()
t.softmax(x, 1)[0].sum()
t.log_softmax(x, 1)[:, 0].sum()
x.logsumexp(1).sum()
(x @ y.t()).square().sum()
t.einsum('ij,kj->ik', x, y).sum()
x.max(1).values.sum()
x.max()
x.amax(1).sum()
x.var()
x.std(1).sum()
x.norm()
x.norm(dim=1).sum()
x.prod()
x.cumsum(1).square().sum()
x.t().reshape(-1)[2:9].square().sum()
x[0, 1:3].sum() * x[1].prod()
x[x > 0].square().sum()
x[t.tensor([0, 0, 2])].square().sum()
x.gather(1, t.tensor([[0, 0], [1, 2], [3, 3]])).square().sum()
x.scatter_add(0, t.tensor([[0, 0, 1, 1]] * 3), y).square().sum()
x.masked_fill(y > 0, 2.0).square().sum()
t.where(x > 0, x * 2, y).square().sum()
t.cat([x, y, x]).square().sum()
t.stack([x, y]).prod(0).sum()
x.expand(2, 3, 4).square().sum()
(x + x[0]).square().sum()
(x[:, :1] * y).square().sum()
x.sort(1).values[:, 0].square().sum()
x.topk(2).values.square().sum()
x.clamp(-1, 1).square().sum()
x.diagonal().square().sum()
t.tril(x).square().sum()
x.flip(0)[0].square().sum()
x.repeat(2, 2).square().sum()
t.maximum(x, y).sum()
x.double().sum()
x.split(2)[0].square().sum()
x.unbind(0)[1].square().sum()
x.index_select(1, t.tensor([0, 0])).square().sum()
x.clone().add_(1).mul_(y).sum()
""".strip().split("\n")


def _inputs(t):  # type: ignore[no-untyped-def]
    x = t.tensor(
        [[0.5, -1.25, 2.0, 3.5], [-0.75, 1.0, -2.5, 0.25], [1.75, -3.0, 0.125, 2.25]], requires_grad=True
    )
    y = t.tensor(
        [[1.5, 0.25, -2.0, 3.0], [0.75, -1.5, 2.5, 1.25], [-0.5, 2.0, 1.0, -4.0]], requires_grad=True
    )
    return x, y


@pytest.mark.parametrize("line", GRADIENTS)
def test_gradient(line: str) -> None:
    def program(t):  # type: ignore[no-untyped-def]
        x, y = _inputs(t)
        eval(line, {"t": t, "x": x, "y": y}).backward()
        return x.grad, y.grad

    both(program)


@pytest.mark.parametrize("line", GRADIENTS)
def test_gradient_after_observing_the_loss(line: str) -> None:
    def program(t):  # type: ignore[no-untyped-def]
        x, y = _inputs(t)
        loss = eval(line, {"t": t, "x": x, "y": y})
        before = loss.item()
        loss.backward()
        return before, x.grad, y.grad

    both(lambda t: program(t)[1:])


@pytest.mark.parametrize(
    "line", ["(x ** 3 * y).sum()", "t.softmax(x, 1).square().sum()", "(x @ y.t()).tanh().sum()"]
)
def test_second_gradient(line: str) -> None:
    def program(t):  # type: ignore[no-untyped-def]
        x, y = _inputs(t)
        loss = eval(line, {"t": t, "x": x, "y": y})
        (g,) = t.autograd.grad(loss, x, create_graph=True)
        g.square().sum().backward()
        return g, x.grad, y.grad

    both(program)


def _accumulate(t):  # type: ignore[no-untyped-def]
    x, y = _inputs(t)
    (x * y).sum().backward()
    grad = x.grad
    (x * 2).sum().backward()
    return x.grad, y.grad, grad is x.grad


def _retain(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    h = x * 2
    h.retain_grad()
    h.square().sum().backward()
    return h.grad, x.grad, h.is_leaf, x.is_leaf, h.requires_grad


def _hooks(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    seen = []
    h = x * 2
    h.register_hook(lambda g: g * 10)
    handle = x.register_hook(lambda g: seen.append(g.sum().item()))
    h.sum().backward()
    handle.remove()
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.sum().item()))
    (x * 3).sum().backward()
    return x.grad, seen


def _no_grad(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    with t.no_grad():
        a = x * 2
        x.sub_(1.0)
        with t.enable_grad():
            b = x * 3
    (x * x).sum().backward()
    return a.requires_grad, b.requires_grad, x, x.grad, x.is_leaf


def _detach(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    d = x.detach()
    d.mul_(2)
    e = x.detach().clone().requires_grad_()
    (x * e).sum().backward()
    return x, d.requires_grad, x.grad, e.grad


def _detached_leaf(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    z = (x * 2).detach().requires_grad_()
    (z * z).sum().backward()
    return z.grad, x.grad is None


def _view_as_leaf(t):  # type: ignore[no-untyped-def]
    base = t.arange(6.0)
    x = base.reshape(2, 3).t().requires_grad_()
    (x * x).sum().backward()
    with t.no_grad():
        x.mul_(2)
        base.add_(1)
    return base, x, x.grad, x.is_leaf, base.requires_grad


def _in_place_history(t):  # type: ignore[no-untyped-def]
    x, y = _inputs(t)
    a = t.zeros(3, 4)
    a[1] = x[0]
    a[:, 2] += y[:, 1]
    a.t()[0].mul_(2)
    a.square().sum().backward()
    return a, x.grad, y.grad


def _backward_arguments(t):  # type: ignore[no-untyped-def]
    x, y = _inputs(t)
    (x * y).backward(t.ones(3, 4) * 2, inputs=[x])
    return x.grad, y.grad is None


def _leaf_in_place(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    x.add_(1)


def _no_scalar(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    (x * 2).backward()


def _no_history(t):  # type: ignore[no-untyped-def]
    t.ones(3).sum().backward()


def _unused(t):  # type: ignore[no-untyped-def]
    x, y = _inputs(t)
    t.autograd.grad(x.sum(), y)


def _unused_allowed(t):  # type: ignore[no-untyped-def]
    x, y = _inputs(t)
    found = t.autograd.grad(x.sum(), [x, y], allow_unused=True)
    return found[0], found[1] is None


def _twice(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    loss = x.exp().sum()
    loss.backward()
    loss.backward()


def _twice_retained(t):  # type: ignore[no-untyped-def]
    x, _ = _inputs(t)
    loss = x.exp().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return x.grad


def _integers(t):  # type: ignore[no-untyped-def]
    t.arange(3).requires_grad_()


def _numpy_of_grad(t):  # type: ignore[no-untyped-def]
    _inputs(t)[0].numpy()


def _function(t):  # type: ignore[no-untyped-def]
    class Cube(t.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx, x, k):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            ctx.k = k
            return x * x * x * k

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            return 3 * x * x * g * ctx.k, None

    x, _ = _inputs(t)
    y = Cube.apply(x, 2.0)
    (g,) = t.autograd.grad(y.sum(), x, create_graph=True)
    g.sum().backward()
    return y, g, x.grad


def _functional(t):  # type: ignore[no-untyped-def]
    f = t.autograd.functional
    x = t.tensor([1.0, 2.0, 3.0])
    v = t.tensor([0.5, 1.0, -1.0])
    return (
        f.jacobian(lambda a: a.exp() * a.sum(), x),
        f.hessian(lambda a: (a**3).sum() * a[0], x),
        f.vjp(lambda a: a * a, x, v),
        f.jvp(lambda a: a * a * a[0], x, v),
    )


def _training(t):  # type: ignore[no-untyped-def]
    w = t.tensor([[0.1, -0.2], [0.3, 0.4]], requires_grad=True)
    b = t.zeros(2, requires_grad=True)
    x = t.arange(8.0).reshape(4, 2) / 8
    target = t.tensor([[0.0, 1.0]] * 4)
    losses = []
    for i in range(5):
        loss = ((x @ w + b).tanh() - target).square().mean()
        losses.append(loss.item())
        w.grad = b.grad = None
        loss.backward()
        with t.no_grad():
            w -= 0.5 / (i + 1) * w.grad
            b.sub_(b.grad, alpha=0.1)
    return w, b, [round(v, 5) for v in losses]


@pytest.mark.parametrize(
    "program",
    [_accumulate, _retain, _hooks, _no_grad, _detach, _detached_leaf, _view_as_leaf,
     _in_place_history, _backward_arguments,
     _leaf_in_place, _no_scalar, _no_history, _unused, _unused_allowed, _twice, _twice_retained, _integers,
     _numpy_of_grad, _function, _functional, _training],
)  # fmt: skip
def test_program(program) -> None:  # type: ignore[no-untyped-def]
    both(program)


@pytest.mark.parametrize("program", [_leaf_in_place, _no_scalar, _no_history])
def test_message(program) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError) as theirs:
        program(torch)
    with pytest.raises(RuntimeError) as mine:
        program(fb)
    assert str(mine.value).split("\n")[0] == str(theirs.value).split("\n")[0]


def test_a_loop_compiles_once() -> None:
    w = fb.ones(3, requires_grad=True)
    for step in range(6):
        loss = (w * fb.tensor([1.0, 2.0, 3.0])).square().sum()
        loss.backward()
        with fb.no_grad():
            w -= 0.01 * (step + 0.5) * w.grad
        w.grad = None
        loss.item()
        if step == 1:
            compiled = fb.stats().compilations
    assert fb.stats().compilations == compiled
