"""Losses and functions without a layer, against PyTorch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as T

import flambeau as fb
from tests.nn.compare import close, ours

F = fb.nn.functional
REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def check(name, *inputs, tol=2e-5, **options):
    z = getattr(T, name)(*inputs, **options)
    given = [ours(x) for x in inputs]
    y = getattr(F, name)(*given, **{k: ours(v) for k, v in options.items()})
    close(y, z, tol)
    if z.requires_grad:
        z.sum().backward()
        y.sum().backward()
        for a, b in zip(given, inputs):
            if isinstance(b, torch.Tensor):
                close(a.grad, b.grad, tol)


def rand(*shape):
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name, options", [
    ("mse_loss", {}), ("l1_loss", {}), ("smooth_l1_loss", {}), ("smooth_l1_loss", {"beta": 0.3}), ("huber_loss", {}),
    ("huber_loss", {"delta": 0.5}),
])  # fmt: skip
def test_distances(name, options, reduction):
    check(name, rand(4, 5), rand(4, 5), reduction=reduction, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction, weighted):
    weight = torch.rand(5) + 0.5 if weighted else None
    target = torch.tensor([1, 0, 4, 4])
    check("cross_entropy", rand(4, 5), target, weight, reduction=reduction)
    check(
        "cross_entropy", rand(4, 5), target, weight, reduction=reduction, ignore_index=4, label_smoothing=0.1
    )
    check("cross_entropy", rand(4, 5, 3), torch.randint(5, (4, 3)), weight, reduction=reduction)
    check("cross_entropy", rand(4, 5), torch.softmax(torch.randn(4, 5), 1), weight, reduction=reduction)
    check(
        "nll_loss", rand(4, 5).log_softmax(1).detach().requires_grad_(), target, weight, reduction=reduction
    )
    check("nll_loss", rand(4, 5, 2), torch.randint(5, (4, 2)), weight, reduction=reduction, ignore_index=2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy(reduction):
    p = torch.rand(4, 5).clamp(0.01, 0.99).requires_grad_()
    check("binary_cross_entropy", p, torch.rand(4, 5), reduction=reduction)
    check("binary_cross_entropy_with_logits", rand(4, 5), torch.rand(4, 5), reduction=reduction)
    options = {"reduction": reduction, "pos_weight": torch.rand(5) + 0.5, "weight": torch.rand(4, 5)}
    check("binary_cross_entropy_with_logits", rand(4, 5), torch.rand(4, 5), **options)


def test_binary_cross_entropy_at_the_ends_is_limited():
    p, t = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    close(
        F.binary_cross_entropy(ours(p), ours(t), reduction="none"),
        T.binary_cross_entropy(p, t, reduction="none"),
    )


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
def test_kl_div(reduction):
    q = torch.softmax(torch.randn(4, 5), 1)
    check("kl_div", rand(4, 5), q, reduction=reduction)
    check("kl_div", rand(4, 5), q.log(), reduction=reduction, log_target=True)


def test_attention():
    q, k, v = rand(2, 3, 4, 8), rand(2, 3, 5, 8), rand(2, 3, 5, 6)
    check("scaled_dot_product_attention", q, k, v)
    q, k, v = rand(2, 3, 4, 8), rand(2, 3, 5, 8), rand(2, 3, 5, 6)
    check("scaled_dot_product_attention", q, k, v, attn_mask=torch.randn(4, 5))
    check(
        "scaled_dot_product_attention", rand(2, 4, 8), rand(2, 4, 8), rand(2, 4, 8), is_causal=True, scale=0.3
    )


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pad(mode):
    check("pad", rand(2, 3, 5, 6), [1, 2, 2, 1], mode=mode)


def test_pad_cuts_with_negative_numbers():
    check("pad", rand(5, 6), [-1, 2, 1, -2], value=3.0)


def test_norms_and_similarity():
    check("normalize", rand(4, 5))
    check("normalize", rand(4, 5), p=1.0, dim=0)
    check("cosine_similarity", rand(4, 5), rand(4, 5))
    check("pairwise_distance", rand(4, 5), rand(4, 5))
    check("instance_norm", rand(2, 3, 4, 5), tol=5e-5)


def test_one_hot():
    index = torch.tensor([[1, 0], [3, 2]])
    close(F.one_hot(ours(index)), T.one_hot(index))
    close(F.one_hot(ours(index), 6), T.one_hot(index, 6))


def test_a_bad_word_for_the_reduction():
    with pytest.raises(ValueError, match="average is not a valid value for reduction"):
        F.mse_loss(fb.ones(2), fb.ones(2), reduction="average")


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
def test_clip_grad_norm(norm_type):
    theirs = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    mine = [fb.nn.Parameter(ours(p)) for p in theirs]
    for a, b in zip(mine, theirs):
        b.grad = torch.randn_like(b)
        a.grad = ours(b.grad)
    found = fb.nn.utils.clip_grad_norm_(mine, 0.7, norm_type)
    close(found, torch.nn.utils.clip_grad_norm_(theirs, 0.7, norm_type))
    for a, b in zip(mine, theirs):
        close(a.grad, b.grad)
    fb.nn.utils.clip_grad_value_(mine, 0.05)
    torch.nn.utils.clip_grad_value_(theirs, 0.05)
    for a, b in zip(mine, theirs):
        close(a.grad, b.grad)


@pytest.mark.parametrize("rows", [31, 63, 100, 1000, 1023, 2000])
def test_the_mean_of_many_rows_is_rounded_once(rows):
    """Half a unit in the last place, and what the rows themselves err by. (Added up in f32, 2000 of them err by a unit; one after
    the other by ten.)"""
    rng = np.random.default_rng(rows)
    x, target = rng.standard_normal((rows, 1000)).astype(np.float32), rng.integers(0, 1000, rows)
    exact = torch.nn.functional.cross_entropy(torch.from_numpy(x).double(), torch.from_numpy(target)).item()
    found = fb.nn.functional.cross_entropy(fb.from_numpy(x), fb.from_numpy(target)).item()
    assert abs(found - exact) <= 0.7 * np.spacing(np.float32(exact))
