"""An update that is known is recorded in one step; whatever has changed since is seen."""

import numpy as np
import pytest
import torch

import flambeau as fb
from flambeau.compiler import options
from flambeau.optim.updates import KEPT
from tests.optim.test_optimizers import CASES, advance, agree, pair


def change_nothing(opt, params, m):
    pass


def change_options(opt, params, m):
    opt.param_groups[0]["weight_decay"] = 0.2


def change_rate(opt, params, m):
    opt.param_groups[0]["lr"] = 0.03


def change_rate_to_a_tensor(opt, params, m):
    opt.param_groups[0]["lr"] = m.tensor(0.05)


def change_state(opt, params, m):
    state = opt.state[params[0]]
    for key in ("exp_avg", "momentum_buffer"):
        if key in state:
            state[key] = m.ones_like(params[0])


def change_state_in_place(opt, params, m):
    for x in opt.state[params[0]].values():
        if x is not None and x.ndim:
            x.mul_(0.5)


def change_data(opt, params, m):
    params[0].data = m.ones_like(params[0].data) * 2.0


def change_memory(opt, params, m):
    whole = m.zeros(2, 3, 4) + 1.0
    params[0].data = whole[1]


def freeze(opt, params, m):
    params[1].requires_grad_(False)
    params[1].grad = None


def load(opt, params, m):
    opt.load_state_dict(opt.state_dict())


@pytest.fixture(autouse=True)
def interpreted():
    """What is tested here is what is recorded, not the code that is made of it."""
    with options.override(interpret=True):
        yield


CHANGES = [
    change_nothing,
    change_options,
    change_rate,
    change_rate_to_a_tensor,
    change_state,
    change_state_in_place,
    change_data,
    change_memory,
    freeze,
    load,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name, given", [CASES[1], CASES[4]], ids=["SGD", "Adam"])
def test_what_changes_between_steps(name, given, change):
    mine, theirs, opt, reference = pair(name, given)
    advance(mine, theirs, opt, reference, 5, 1)
    assert opt._updates._replayed == 2  # first another set of parameters, and then state is made
    if change is not change_rate_to_a_tensor or name == "SGD":  # PyTorch's Adam wants it to be capturable
        change(opt, mine, fb)
        change(reference, theirs, torch)
    if change is freeze:
        mine, theirs = mine[::2], theirs[::2]
    for seed in range(3):
        advance(mine, theirs, opt, reference, 2, seed)
    agree(mine, theirs)


def test_gradients_that_are_one_tensor_views_or_have_a_history():
    mine, theirs, opt, reference = pair("SGD", {"lr": 0.1, "momentum": 0.9})
    for i in range(8):
        for params, m in ((mine, fb), (theirs, torch)):
            g = m.tensor(np.random.default_rng(i).standard_normal((3, 4)).astype(np.float32))
            params[0].grad = g
            params[1].grad = m.ones(5) if i % 2 else m.ones(2, 5)[1]
            params[2].grad = g[0, 0]
            if i == 5:
                other = m.nn.Parameter(m.ones(3, 4))
                params[0].grad = (other * 2.0).sum() * g
        opt.step()
        reference.step()
    agree(mine, theirs)


def test_parameters_that_share_a_gradient():
    for m in (fb, torch):
        a, b = m.nn.Parameter(m.ones(3)), m.nn.Parameter(m.zeros(3))
        opt = m.optim.SGD([a, b], lr=1.0)
        for i in range(4):
            a.grad = m.ones(3)
            b.grad = a.grad if i % 2 else m.ones(3)
            opt.step()
        assert (a.tolist(), b.tolist()) == ([-3.0] * 3, [-4.0] * 3)


def test_a_step_is_part_of_the_evaluation_and_a_write():
    """What was read before a step stays; versions count; a view of the parameter sees the step; histories begin anew."""
    for m in (fb, torch):
        w = m.nn.Parameter(m.tensor([1.0, 2.0]))
        opt = m.optim.SGD([w], lr=0.1)
        view, versions = w.detach()[1:], []
        for _ in range(4):
            opt.zero_grad()
            (w * w).sum().backward()
            before = w.detach().clone()
            opt.step()
            versions.append(w._version)
            assert w.is_leaf and w.requires_grad and w.grad_fn is None
            assert before.tolist() != w.tolist() and view.tolist() == [w[1].item()]
        assert np.diff(versions).tolist() == [1, 1, 1]


def test_an_option_that_changes_at_every_step_is_not_compiled_at_every_step():
    mine, theirs, opt, reference = pair("SGD", {"lr": 0.1, "momentum": 0.9})
    compiled = []
    for i in range(KEPT * 4):
        opt.param_groups[0]["momentum"] = reference.param_groups[0]["momentum"] = 0.9 - 0.01 * i
        advance(mine, theirs, opt, reference, 1, i)
        compiled.append(fb.stats().compilations)
    agree(mine, theirs)
    assert compiled[-1] == compiled[2 * KEPT] and len(opt._updates._known[id(opt.param_groups[0])]) <= KEPT


def test_optimizers_with_equal_updates_share_code():
    def train():
        w = fb.nn.Parameter(fb.ones(7, 3))
        opt = fb.optim.Adam([w], lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            w.square().sum().backward()
            opt.step()
        return w.tolist()

    first, before = train(), fb.stats().compilations
    assert train() == first and fb.stats().compilations == before
