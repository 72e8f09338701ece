"""What a compiled function reached is guarded: parameters, modules, attributes and names that are others now."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau import nn

SCALE = 2.0
TABLE = fb.ones(3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        self.register_buffer("offset", fb.zeros(3))
        self.factor = 1.0
        self.plain = fb.ones(3)
        self.seen = 0
        self.last: Any = None

    def forward(self, x: fb.Tensor) -> fb.Tensor:
        self.seen += 1
        y = self.head(self.body(x)) * self.factor + self.offset + self.plain
        self.last = self.seen
        return y


@pytest.fixture
def net() -> Net:
    fb.manual_seed(0)
    return Net().eval()


def x() -> fb.Tensor:
    return fb.from_numpy(np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))


def compilations(f: Any) -> int:
    return len([e for group in f._entries.values() for e in group])


def replaced_head(m: Net) -> None:
    m.head = nn.Linear(8, 3)


def more_layers(m: Net) -> None:
    m.body.append(nn.Tanh())


def swapped(m: Net) -> None:
    m.body[1] = nn.Sigmoid()


def inserted(m: Net) -> None:
    m.body.insert(1, nn.Tanh())


def removed(m: Net) -> None:
    del m.body[1]


def weight(m: Net) -> None:
    m.head.weight = nn.Parameter(fb.ones(3, 8))


def weight_in_table(m: Net) -> None:
    m.head._parameters["weight"] = nn.Parameter(fb.ones(3, 8))


def no_bias(m: Net) -> None:
    m.head.bias = None


def buffer(m: Net) -> None:
    m.offset = fb.ones(3) * 4


def attribute(m: Net) -> None:
    m.factor = 3.0


def plain_tensor(m: Net) -> None:
    m.plain = fb.ones(3) * 7


def assigned_state(m: Net) -> None:
    m.load_state_dict({k: v * 2 + 1 for k, v in m.state_dict().items()}, assign=True)


def tied(m: Net) -> None:
    m.body[2].weight = nn.Parameter(fb.ones(8, 8))
    m.body[2].bias = m.body[0].bias


CHANGES: tuple[Callable[[Net], None], ...] = (
    replaced_head, more_layers, swapped, inserted, removed, weight, weight_in_table, no_bias, buffer, attribute,
    plain_tensor, assigned_state, tied,
)  # fmt: skip


#: Every change of a module and of a closure's, and one of each kind by other ways to the module.
CASES = [(change, through) for change in CHANGES for through in ("module", "closure")]
CASES += [
    (change, through)
    for change in (replaced_head, weight, swapped, attribute)
    for through in ("method", "argument", "list")
]


@pytest.mark.parametrize(("change", "through"), CASES)
def test_changes_are_noticed(net: Net, change: Callable[[Net], None], through: str) -> None:
    held = [net]
    functions: dict[str, Any] = {
        "module": net,
        "method": net.forward,
        "closure": lambda t: net(t),
        "argument": lambda t, m: m(t),
        "list": lambda t: held[0](t),
    }
    f = fb.compile(functions[through])
    arguments = (x(), net) if through == "argument" else (x(),)
    with fb.no_grad():
        before = f(*arguments).numpy()
        np.testing.assert_allclose(f(*arguments).numpy(), before)
        change(net)
        expected = net(x()).numpy()
        assert not np.allclose(before, expected)
        for _ in range(2):
            np.testing.assert_allclose(f(*arguments).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_concern_it_compiles_nothing(net: Net) -> None:
    f = fb.compile(net)
    with fb.no_grad():
        f(x())
        (entry,) = [e for group in f._entries.values() for e in group]
        other = Net()
        other.head = nn.Linear(8, 3)  # another module
        net.factor = 1.0  # the same value
        net.head.weight = net.head.weight  # the same parameter
        net(x())  # sets `seen` and `last`, which the function sets itself
        net.head.weight.mul_(2)
        net.train()
        net.eval()
        f(x())
    assert [e for group in f._entries.values() for e in group] == [entry]


def test_train_flags_of_modules_that_only_a_call_shows(net: Net) -> None:
    layers = {"drop": nn.Dropout(0.5)}
    f = fb.compile(lambda t: layers["drop"](t))
    ones = fb.ones(1000)
    layers["drop"].eval()
    assert (f(ones).numpy() == 1).all()
    layers["drop"].train()
    assert (f(ones).numpy() == 0).any()
    layers["drop"].eval()
    assert (f(ones).numpy() == 1).all()


def test_names_that_are_bound_anew() -> None:
    global SCALE, TABLE
    factor, tensor, module = 1.0, fb.ones(3), nn.Linear(3, 3)

    @fb.compile
    def f(t: fb.Tensor) -> fb.Tensor:
        return module(t * SCALE + TABLE) * factor + tensor

    def expected(t: fb.Tensor) -> np.ndarray[Any, Any]:
        return (module(t * SCALE + TABLE) * factor + tensor).numpy()

    t = fb.ones(2, 3)
    with fb.no_grad():
        for change in range(6):
            if change == 1:
                SCALE = 3.0
            elif change == 2:
                TABLE = fb.ones(3) * 5
            elif change == 3:
                factor = 4.0
            elif change == 4:
                tensor = fb.zeros(3)
            elif change == 5:
                module = nn.Linear(3, 3)
            np.testing.assert_allclose(f(t).numpy(), expected(t), rtol=1e-6)
        assert compilations(f) == 1


def test_a_name_that_the_function_binds_itself_is_no_condition() -> None:
    count = 0

    @fb.compile
    def f(t: fb.Tensor) -> fb.Tensor:
        nonlocal count
        count += 1
        return t * 2

    for _ in range(4):
        assert f(fb.ones(2)).tolist() == [2, 2]
    assert count == 1


def test_what_is_replaced_is_not_kept(net: Net) -> None:
    import gc
    import weakref

    f = fb.compile(net)
    with fb.no_grad():
        f(x())
        cell = weakref.ref(net.head.weight._cell)
        net.head = nn.Linear(8, 3)
        f(x())
    gc.collect()
    assert cell() is None


def test_a_training_step_with_a_new_head(net: Net) -> None:
    optimizer = fb.optim.SGD(net.parameters(), lr=0.1)

    def step(t: fb.Tensor) -> fb.Tensor:
        optimizer.zero_grad()
        loss = net(t).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    f = fb.compile(step)
    for _ in range(2):
        f(x())
    old = net.head.weight
    net.head = nn.Linear(8, 3)
    optimizer.add_param_group({"params": list(net.head.parameters())})
    before, stays = net.head.weight.detach().numpy().copy(), old.detach().numpy().copy()
    f(x())
    assert not np.allclose(net.head.weight.detach().numpy(), before)
    np.testing.assert_array_equal(old.detach().numpy(), stays)


def test_modules_are_copied_and_pickled(net: Net) -> None:
    for twin in (copy.deepcopy(net), copy.copy(net.head), pickle.loads(pickle.dumps(net.head))):
        f = fb.compile(twin)
        t = x() if isinstance(twin, Net) else fb.ones(2, 8)
        with fb.no_grad():
            first = f(t).numpy()
            head = twin.head if isinstance(twin, Net) else twin
            head.weight = nn.Parameter(fb.zeros(3, 8))
            assert not np.allclose(f(t).numpy(), first)
            np.testing.assert_allclose(f(t).numpy(), twin(t).numpy(), rtol=1e-6)
