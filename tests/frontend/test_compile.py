"""`compile`: one executable for a whole call, with state, gradients and random numbers."""

import numpy as np
import pytest

import flambeau as fb
from flambeau.runtime.buffer import address_of


def _executables() -> int:
    return fb.stats().compilations


def test_pure_function() -> None:
    f = fb.compile(lambda x, y: (x + y) * 2)
    for k in range(3):
        x = fb.arange(4.0) + k
        assert f(x, x).tolist() == [4 * (i + k) for i in range(4)]


def test_same_signature_compiles_once() -> None:
    f = fb.compile(lambda x: x.exp().sum())
    f(fb.ones(3))
    before = _executables()
    assert f(fb.tensor([0.0, 0.0, 0.0])).item() == 3
    assert _executables() == before
    f(fb.ones(4))
    assert _executables() > before


@pytest.mark.parametrize("size", [3, 150, 700])
def test_results_that_somebody_has_are_not_overwritten(size: int) -> None:
    f = fb.compile(lambda x, y: (x * 2, x @ y))
    x = fb.ones(size, size)
    kept = []
    for k in range(8):
        double, product = f(x * k, x)
        if k == 2:
            kept.append((k, double, product.numpy()[1:]))  # the tensor, and only a view of its memory
        if k == 3:
            kept.append((k, double[:, 1], memoryview(product.numpy())))
        if k == 4:
            kept.append((k, np.from_dlpack(double), product.detach()))
    for k, double, product in kept:
        assert (np.asarray(double) == 2 * k).all() and (np.asarray(product) == size * k).all()


def test_results_that_nobody_has_are_written_again() -> None:
    f = fb.compile(lambda x: x + 1)
    x = fb.zeros(200, 200)
    places = []
    for _ in range(6):
        y = f(x)
        places.append(address_of(y.numpy()))
    assert len(set(places[2:])) == 2


def _entries(f):  # type: ignore[no-untyped-def]
    return sum(len(e) for e in f._entries.values())


def test_a_returned_detached_loss_is_no_state() -> None:
    w = fb.ones(3, requires_grad=True)

    def step(x: fb.Tensor) -> fb.Tensor:
        w.grad = None
        loss = (w * x).square().sum()
        loss.backward()
        with fb.no_grad():
            w.sub_(w.grad * 0.1)
        return loss.detach()

    f = fb.compile(step)
    first = f(fb.ones(3)).item()
    assert first == 3 and _entries(f) == 1
    second = f(fb.ones(3)).item()
    before = _executables()
    assert second < first and f(fb.ones(3)).item() < second
    assert _executables() == before


def test_what_is_kept_of_a_returned_alias_is_real() -> None:
    kept = {}

    def f(x: fb.Tensor) -> fb.Tensor:
        kept["y"] = x * 2
        return kept["y"].detach()

    g = fb.compile(f)
    for k in (1.0, 2.0):
        assert g(fb.ones(2) * k).tolist() == [2 * k] * 2
        assert kept["y"].tolist() == [2 * k] * 2


def test_detached_arguments_are_themselves() -> None:
    f = fb.compile(lambda x: x * 2)
    for n, k in ((3, 1.0), (3, 5.0), (4, 7.0), (5, 9.0)):
        owner = (fb.ones(n) * k).requires_grad_()
        assert f(owner.detach()).tolist() == [2 * k] * n

    def double(x: fb.Tensor, y: fb.Tensor) -> None:
        x.mul_(2)
        y.add_(1)

    g = fb.compile(double)
    for k in (1.0, 3.0):
        owner = (fb.ones(2) * k).requires_grad_()
        alias = owner.detach()
        g(alias, alias[1:])
        assert owner.tolist() == [2 * k, 2 * k + 1]


def test_the_second_size_becomes_symbolic() -> None:
    calls = []

    def f(x: fb.Tensor, y: fb.Tensor) -> fb.Tensor:
        calls.append(x.shape)
        return (x @ y).softmax(1) * x.shape[0] + x.mean()

    g = fb.compile(f)
    rng = np.random.default_rng(0)
    for n in (5, 7, 9, 1, 30, 2):
        x = fb.tensor(rng.standard_normal((n, 4)).astype(np.float32))
        y = fb.tensor(rng.standard_normal((4, 6)).astype(np.float32))
        np.testing.assert_allclose(g(x, y).numpy(), f(x, y).numpy(), rtol=1e-5, atol=1e-6)
        calls.pop()
    assert [int(c[0]) if isinstance(c[0], int) else "N" for c in calls] == [5, "N", 1]


def test_sizes_that_were_equal_share_a_symbol() -> None:
    g = fb.compile(lambda x, y: x + y)
    for n in (3, 5, 8):
        assert g(fb.ones(n), fb.ones(n)).tolist() == [2.0] * n
    assert g(fb.ones(4), fb.ones(1)).tolist() == [2.0] * 4
    with pytest.raises(RuntimeError, match="size"):
        g(fb.ones(4), fb.ones(6))


def test_a_training_step_takes_any_batch() -> None:
    def make() -> object:
        fb.manual_seed(0)
        net = fb.nn.Sequential(fb.nn.Linear(4, 8), fb.nn.BatchNorm1d(8), fb.nn.ReLU(), fb.nn.Linear(8, 3))
        optimizer = fb.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step(x: fb.Tensor, y: fb.Tensor) -> fb.Tensor:
            optimizer.zero_grad()
            loss = fb.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    plain, compiled = make(), fb.compile(make())
    rng = np.random.default_rng(1)
    found = []
    for n in (6, 6, 6, 9, 12, 5, 12):
        x = fb.tensor(rng.standard_normal((n, 4)).astype(np.float32))
        y = fb.tensor(rng.integers(0, 3, n))
        found.append((plain(x, y).item(), compiled(x, y).item()))  # type: ignore[operator]
    np.testing.assert_allclose(*zip(*found, strict=True), rtol=1e-4)
    traces = []
    function = compiled.function
    compiled.function = lambda x, y: traces.append(x.shape) or function(x, y)
    for n in (7, 20, 11):
        compiled(fb.ones(n, 4), fb.zeros(n, dtype=fb.int64))
    assert traces == []


def test_a_function_that_needs_its_sizes_is_compiled_for_each() -> None:
    def f(x: fb.Tensor) -> fb.Tensor:
        total = x[0] * 0
        for i in range(len(x)):
            total = total + x[i] * i
        return total

    g = fb.compile(f)
    for n in (2, 4, 3, 5):
        assert g(fb.ones(n)).item() == f(fb.ones(n)).item()


def test_writes_to_captured_and_argument_tensors() -> None:
    total = fb.zeros(3)

    def f(x: fb.Tensor) -> None:
        total.add_(x)
        x.mul_(2)

    g = fb.compile(f)
    x = fb.ones(3)
    for _ in range(3):
        g(x)
    assert total.tolist() == [7.0] * 3
    assert x.tolist() == [8.0] * 3


def test_training_step_is_the_same_as_without() -> None:
    rng = np.random.default_rng(0)
    data = fb.tensor(rng.standard_normal((8, 3)).astype(np.float32))
    target = fb.tensor(rng.standard_normal((8, 2)).astype(np.float32))

    def make():  # type: ignore[no-untyped-def]
        w = fb.ones(3, 2).div_(3).requires_grad_()
        b = fb.zeros(2, requires_grad=True)

        def step(x, y):  # type: ignore[no-untyped-def]
            w.grad = b.grad = None
            loss = ((x @ w + b).tanh() - y).square().mean()
            loss.backward()
            with fb.no_grad():
                for p in (w, b):
                    p.sub_(p.grad * 0.1)
            return loss.detach()

        return w, b, step

    w1, b1, eager = make()
    w2, b2, step = make()
    step = fb.compile(step)
    for k in range(6):
        assert abs(eager(data, target).item() - step(data, target).item()) < 1e-6
        if k == 2:
            before = _executables()
    assert before == _executables()
    assert fb.allclose(w1, w2) and fb.allclose(b1, b2)
    assert fb.allclose(w1.grad, w2.grad)
    assert w2.is_leaf and w2.requires_grad


def test_random_numbers_stay_random_and_reproduce() -> None:
    f = fb.compile(lambda: fb.rand(4))
    fb.manual_seed(3)
    a, b = f().tolist(), f().tolist()
    fb.manual_seed(3)
    assert a != b
    assert [f().tolist(), fb.rand(4).tolist()] == [a, b]


def test_state_made_by_the_first_call() -> None:
    state: dict[str, fb.Tensor] = {}

    def f(x: fb.Tensor) -> fb.Tensor:
        if "momentum" not in state:
            state["momentum"] = x * 1.0
        else:
            state["momentum"].mul_(0.5).add_(x)
        return state["momentum"] + 0.0

    g = fb.compile(f)
    x = fb.ones(2)
    assert [g(x).tolist()[0] for _ in range(4)] == [1.0, 1.5, 1.75, 1.875]


def test_provided_scalar_does_not_compile_again() -> None:
    from flambeau.creation import provided_scalar

    rate = [0.5]
    f = fb.compile(lambda x: x * provided_scalar(lambda: rate[0]))
    assert f(fb.ones(1)).item() == 0.5
    before = _executables()
    rate[0] = 0.25
    assert f(fb.ones(1)).item() == 0.25
    fb.sync()
    assert _executables() - before <= 1  # the new argument itself at most


def test_python_arguments_are_guards() -> None:
    f = fb.compile(lambda x, k: x * k)
    assert [f(fb.ones(1), k).item() for k in (2, 3, 2.5)] == [2, 3, 2.5]


def test_result_with_history_can_be_differentiated() -> None:
    w = fb.ones(2, requires_grad=True)
    f = fb.compile(lambda x: (w * x).sum())
    for k in (1.0, 2.0):
        f(fb.ones(2) * k).backward()
    assert w.grad is not None and w.grad.tolist() == [3.0, 3.0]


def test_function_that_observes_a_value_warns_and_works() -> None:
    f = fb.compile(lambda x: x + 1 if x.sum().item() > 0 else x - 1)
    with pytest.warns(UserWarning, match="observes"):
        assert f(fb.ones(1)).item() == 2
    assert f(-fb.ones(1)).item() == -2


def test_error_leaves_everything_as_it_was() -> None:
    t = fb.ones(2)

    def f() -> None:
        t.add_(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        fb.compile(f)()
    assert t.tolist() == [1.0, 1.0]
