"""What a module is beyond its forward: names, state, hooks, modes, printing."""

import copy

import pytest
import torch

import flambeau as fb
from tests.nn.compare import close, ours


def build(nn):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 3)
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU()])
            self.table = nn.ModuleDict({"x": nn.Sequential(nn.Linear(3, 1), nn.Tanh())})
            self.tied = self.a

        def forward(self, x):
            x = self.a(x)
            for layer in self.layers:
                x = layer(x)
            return self.table["x"](x)

    return Block()


def test_names_and_printing_are_pytorchs():
    mine, theirs = build(fb.nn), build(torch.nn)
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for method in ("named_parameters", "named_modules", "named_children"):
        assert [n for n, _ in getattr(mine, method)()] == [n for n, _ in getattr(theirs, method)()]
    assert mine.get_submodule("table.x.0") is mine.table["x"][0]
    assert mine.get_parameter("a.weight") is mine.tied.weight


def test_load_state_dict_tells_what_does_not_fit():
    model = fb.nn.Linear(2, 3)
    with pytest.raises(
        RuntimeError, match=r'(?s)Unexpected key\(s\) in state_dict: "c".*size mismatch for weight'
    ):
        model.load_state_dict({"weight": fb.ones(3, 3), "bias": fb.ones(3), "c": fb.ones(1)})
    found = model.load_state_dict({"bias": fb.ones(3)}, strict=False)
    assert found.missing_keys == ["weight"] and model.bias.tolist() == [1.0] * 3


def test_assignments():
    model = fb.nn.Linear(2, 3)
    with pytest.raises(TypeError, match="cannot assign"):
        model.weight = fb.ones(3, 2)
    model.weight = None
    assert "weight" not in model.state_dict()
    model.register_buffer("seen", fb.zeros(2), persistent=False)
    assert [n for n, _ in model.named_buffers()] == ["seen"] and "seen" not in model.state_dict()
    del model.seen
    assert not hasattr(model, "seen")

    class Early(fb.nn.Module):
        def __init__(self):
            self.a = fb.nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Early()


def test_modes_dtypes_and_requires_grad():
    model = build(fb.nn)
    assert not any(m.training for m in model.eval().modules()) and all(
        m.training for m in model.train().modules()
    )
    parameter = model.a.weight
    assert model.double().a.weight is parameter and parameter.dtype is fb.float64 and parameter.is_leaf
    assert model(fb.ones(1, 2, dtype=fb.float64)).dtype is fb.float64
    model.requires_grad_(False)
    assert not model(fb.ones(1, 2, dtype=fb.float64)).requires_grad


def test_forward_hooks():
    model, seen = fb.nn.Linear(2, 2), []
    before = model.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    after = model.register_forward_hook(lambda m, args, out: seen.append(args[0].tolist()))
    model(fb.ones(1, 2))
    before.remove()
    model(fb.ones(1, 2))
    after.remove()
    model(fb.ones(1, 2))
    assert seen == [[[2.0, 2.0]], [[1.0, 1.0]]]


def test_backward_hooks_see_and_change_gradients():
    torch.manual_seed(0)
    x = torch.randn(3, 2, requires_grad=True)
    theirs, mine = torch.nn.Linear(2, 4), fb.nn.Linear(2, 4)
    mine.load_state_dict({k: ours(v.detach()) for k, v in theirs.state_dict().items()})
    y, seen = ours(x), {}
    for model, key in ((theirs, "theirs"), (mine, "mine")):
        model.register_full_backward_pre_hook(lambda m, g: (g[0] * 3,))
        model.register_full_backward_hook(
            lambda m, gi, go, k=key: seen.setdefault(k, (gi, go)) and (gi[0] * 2,)
        )
    (theirs(x) ** 2).sum().backward()
    (mine(y) ** 2).sum().backward()
    for a, b in zip(seen["mine"], seen["theirs"]):
        close(a, b)
    close(y.grad, x.grad)
    close(mine.weight.grad, theirs.weight.grad)


def test_a_copy_is_independent():
    model = build(fb.nn)
    other = copy.deepcopy(model)
    with fb.no_grad():
        other.a.weight.zero_()
    assert other.tied is other.a and model.a.weight.abs().sum().item() > 0
    assert other.a.weight.requires_grad and type(other.a.weight) is fb.nn.Parameter


def test_containers():
    s = fb.nn.Sequential(fb.nn.Linear(1, 2), fb.nn.ReLU(), fb.nn.Linear(2, 3))
    assert len(s[:2]) == 2 and s[-1].out_features == 3
    s.append(fb.nn.Tanh()).insert(0, fb.nn.Identity())
    del s[1]
    assert [type(m).__name__ for m in s] == ["Identity", "ReLU", "Linear", "Tanh"]
    assert list(s._modules) == ["0", "1", "2", "3"]


def test_initialisation_has_the_right_spread():
    fb.manual_seed(0)
    w = fb.empty(200, 300)
    for fill, low, high in (("kaiming_normal_", 0.075, 0.089), ("xavier_uniform_", 0.058, 0.068)):
        std = getattr(fb.nn.init, fill)(w).numpy().std()
        assert low < std < high
    q = fb.nn.init.orthogonal_(fb.empty(3, 5))
    close(q @ q.t(), torch.eye(3))
    t = fb.nn.init.trunc_normal_(w, std=1.0, a=-0.5, b=1.0).numpy()
    assert t.min() >= -0.5 and t.max() <= 1.0 and t.std() > 0.3
    close(fb.nn.init.dirac_(fb.empty(4, 2, 3), 2), torch.nn.init.dirac_(torch.empty(4, 2, 3), 2))
    assert fb.nn.init.calculate_gain("leaky_relu", 0.2) == torch.nn.init.calculate_gain("leaky_relu", 0.2)
