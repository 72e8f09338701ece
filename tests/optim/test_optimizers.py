"""Several steps of every optimizer against PyTorch's, and the learning rates of every schedule."""

import numpy as np
import pytest
import torch

import flambeau as fb

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.9)}),
    ("Adam", {"lr": 0.01, "maximize": True, "eps": 1e-3}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.01}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.01, "initial_accumulator_value": 0.1}),
]


def pair(name, options):
    """The same parameters and optimizer in both; the second parameter gets no gradient in the first step."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(s).astype(np.float32) for s in ((3, 4), (5,), ())]
    theirs = [torch.nn.Parameter(torch.tensor(a)) for a in start]
    mine = [fb.nn.Parameter(fb.tensor(a)) for a in start]
    return (
        mine,
        theirs,
        getattr(fb.optim, name)(mine, **options),
        getattr(torch.optim, name)(theirs, **options),
    )


def advance(mine, theirs, opt, reference, steps, seed):
    rng = np.random.default_rng(seed)
    for i in range(steps):
        opt.zero_grad()
        reference.zero_grad()
        for j, (p, q) in enumerate(zip(mine, theirs)):
            g = rng.standard_normal(p.shape).astype(np.float32)
            if (i, j) != (0, 1):
                p.grad, q.grad = fb.tensor(g), torch.tensor(g)
        opt.step()
        reference.step()


def agree(mine, theirs):
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name, options", CASES)
def test_five_steps_and_a_restart(name, options):
    mine, theirs, opt, reference = pair(name, options)
    advance(mine, theirs, opt, reference, 3, 1)
    agree(mine, theirs)
    again = getattr(fb.optim, name)(mine, **options)
    again.load_state_dict(opt.state_dict())
    advance(mine, theirs, again, reference, 2, 2)
    agree(mine, theirs)
    assert set(opt.state_dict()["param_groups"][0]) >= {"params", "lr", "maximize"}
    assert opt.state_dict()["state"].keys() == reference.state_dict()["state"].keys()


def test_a_changing_learning_rate_compiles_once():
    mine, theirs, opt, reference = pair("SGD", {"lr": 0.1, "momentum": 0.9})
    advance(mine, theirs, opt, reference, 3, 1)
    before = fb.stats().compilations
    for lr in (0.05, 0.03, 0.02):
        opt.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = lr
        advance(mine[:1], theirs[:1], opt, reference, 2, 3)
    assert fb.stats().compilations <= before + 1  # one: now only the first parameter has a gradient
    agree(mine, theirs)


def test_groups_have_options_of_their_own():
    p, q = fb.nn.Parameter(fb.ones(2)), fb.nn.Parameter(fb.ones(2))
    opt = fb.optim.SGD([{"params": [p]}, {"params": [q], "lr": 0.5}], lr=0.1)
    p.grad, q.grad = fb.ones(2), fb.ones(2)
    opt.step()
    assert p.tolist() == pytest.approx([0.9, 0.9]) and q.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        opt.add_param_group({"params": [p]})


def test_zero_grad():
    p = fb.nn.Parameter(fb.ones(2))
    opt = fb.optim.SGD([p], lr=0.1)
    p.grad = fb.ones(2)
    opt.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0.0, 0.0]
    opt.zero_grad()
    assert p.grad is None


def test_closure_and_training_lowers_the_loss():
    fb.manual_seed(0)
    model = fb.nn.Sequential(fb.nn.Linear(4, 16), fb.nn.Tanh(), fb.nn.Linear(16, 1))
    x = fb.randn(32, 4)
    y = (x * x).sum(1, keepdim=True)
    opt = fb.optim.Adam(model.parameters(), lr=0.02)

    def closure():
        opt.zero_grad()
        loss = fb.nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    first = opt.step(closure).item()
    for _ in range(60):
        last = opt.step(closure).item()
    assert last < 0.3 * first


def test_bad_options():
    p = [fb.nn.Parameter(fb.ones(2))]
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        fb.optim.SGD(p, lr=-1)
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum"):
        fb.optim.SGD(p, nesterov=True)
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 1: 1\.0"):
        fb.optim.Adam(p, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="empty parameter list"):
        fb.optim.Adam([])


SCHEDULES = [
    ("StepLR", {"step_size": 3}),
    ("MultiStepLR", {"milestones": [2, 5, 5], "gamma": 0.5}),
    ("LambdaLR", {"lr_lambda": lambda e: 0.9**e}),
    ("MultiplicativeLR", {"lr_lambda": lambda e: 1 - 0.05 * e}),
    ("ConstantLR", {"total_iters": 4}),
    ("LinearLR", {"total_iters": 6}),
    ("ExponentialLR", {"gamma": 0.8}),
    ("PolynomialLR", {"total_iters": 8, "power": 2.0}),
    ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": 13, "cycle_momentum": False}),
]


@pytest.mark.parametrize("name, options", SCHEDULES)
def test_schedule(name, options):
    mine = fb.optim.SGD([fb.nn.Parameter(fb.ones(1))], lr=0.2)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.2)
    a = getattr(fb.optim.lr_scheduler, name)(mine, **options)
    b = getattr(torch.optim.lr_scheduler, name)(theirs, **options)
    for _ in range(11):
        assert a.get_last_lr() == pytest.approx(b.get_last_lr(), rel=1e-9, abs=1e-12)
        mine.step(), theirs.step(), a.step(), b.step()
    again = getattr(fb.optim.lr_scheduler, name)(mine, **options)
    again.load_state_dict(a.state_dict())
    assert again.get_last_lr() == a.get_last_lr()


def test_plateau():
    mine = fb.optim.SGD([fb.nn.Parameter(fb.ones(1))], lr=0.2)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.2)
    a = fb.optim.lr_scheduler.ReduceLROnPlateau(mine, patience=1, cooldown=1)
    b = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, patience=1, cooldown=1)
    for loss in [3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1]:
        a.step(loss), b.step(loss)
        assert mine.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
