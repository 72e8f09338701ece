"""Views and writes through them: random programs behave as in PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb

STEPS = st.tuples(
    st.sampled_from(
        [
            "t",
            "view",
            "reshape",
            "slice",
            "step",
            "select",
            "unsqueeze",
            "expand",
            "diagonal",
            "narrow",
            "detach",
            "clone",
        ]
        + [
            "add_",
            "mul_",
            "fill_",
            "set_row",
            "set_slice",
            "copy_from",
            "mask",
            "index",
            "zero_",
            "iadd_slice",
        ]
    ),
    st.integers(0, 7),
    st.integers(-3, 3),
)

WRITES = ("add_", "mul_", "set_row", "set_slice", "copy_from", "mask", "index", "iadd_slice")


def _apply(t: Any, tensors: list[Any], step: tuple[str, int, int]) -> None:
    name, which, k = step
    x = tensors[which % len(tensors)]
    rank = x.dim()
    if 0 in x.stride() and name in WRITES:  # see test_writing_to_an_expanded_tensor_is_an_error
        return
    if name == "t" and rank >= 2:
        tensors.append(x.transpose(0, -1))
    elif name == "view" and x.is_contiguous():
        tensors.append(x.view(-1))
    elif name == "reshape":
        tensors.append(x.reshape(-1))
    elif name == "slice" and rank:
        tensors.append(x[abs(k) :])
    elif name == "step" and rank:
        tensors.append(x[..., :: abs(k) + 1])
    elif name == "select" and rank and x.shape[0]:
        tensors.append(x[k % x.shape[0]])
    elif name == "unsqueeze":
        tensors.append(x.unsqueeze(0))
    elif name == "expand" and rank and rank < 4:
        tensors.append(x.expand(2, *x.shape))
    elif name == "diagonal" and rank >= 2 and x.is_contiguous():  # strides are exact for these alone
        tensors.append(x.diagonal(k))
    elif name == "narrow" and rank and x.shape[-1] > 1:
        tensors.append(x.narrow(-1, 1, x.shape[-1] - 1))
    elif name == "detach":
        tensors.append(x.detach())
    elif name == "clone":
        tensors.append(x.clone())
    elif name == "add_":
        x.add_(k)
    elif name == "mul_":
        x.mul_(k + 0.5)
    elif name == "fill_":
        x.fill_(k)
    elif name == "zero_":
        x.zero_()
    elif name == "set_row" and rank and x.shape[0]:
        x[k % x.shape[0]] = 7.0 + k
    elif name == "set_slice" and rank:
        x[abs(k) :] = k
    elif name == "iadd_slice" and rank:
        x[:: abs(k) + 1] += k
    elif name == "copy_from":
        other = tensors[(which + 1) % len(tensors)]
        if other.shape == x.shape:
            x.copy_(other.clone())
    elif name == "mask":
        x[x > k] = -1.0
    elif name == "index" and rank and x.shape[0]:
        x[t.tensor([k % x.shape[0]])] = 3.0


def _run(t: Any, steps: list[tuple[str, int, int]]) -> tuple[list[Any], list[str]]:
    tensors = [t.arange(12.0).reshape(3, 4).clone(), t.arange(24.0).reshape(2, 3, 4).clone()]
    raised = []
    for i, step in enumerate(steps):
        try:
            _apply(t, tensors, step)
        except (RuntimeError, IndexError) as error:
            raised.append(f"{i} {type(error).__name__}")
    return tensors, raised


@settings(max_examples=120)
@given(st.lists(STEPS, min_size=1, max_size=12))
def test_programs_of_views_and_writes(steps: list[tuple[str, int, int]]) -> None:
    theirs, their_errors = _run(torch, steps)
    with fb_interpreted():
        mine, my_errors = _run(fb, steps)
        assert my_errors == their_errors
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)
            assert (
                tuple(a.stride()) == tuple(b.stride())
                or b.numel() <= 1
                or not b.is_contiguous()
                or a.is_contiguous()
            )


def fb_interpreted() -> Any:
    """Every example is another graph: the interpreter answers at once, compiling would take a second each."""
    from flambeau.compiler import options

    return options.override(interpret=True)


@settings(max_examples=30)
@given(st.lists(STEPS, min_size=1, max_size=8))
def test_gradients_through_views_and_writes(steps: list[tuple[str, int, int]]) -> None:
    found = []
    for t in (torch, fb):
        with fb_interpreted():
            w = t.ones(3, 4, requires_grad=True)
            tensors = [w * t.arange(12.0).reshape(3, 4)]
            try:
                for step in steps:
                    if step[0] not in ("detach", "expand", "mask"):
                        _apply(t, tensors, step)
                tensors[0].square().sum().backward()
                found.append(np.array(w.grad.numpy()))
            except RuntimeError:
                found.append(None)
    if found[0] is not None:
        assert found[1] is not None
        np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_an_empty_part_of_an_expanded_tensor_may_be_filled() -> None:
    x = fb.ones(3, 4)
    x.expand(2, 3, 4)[2:].fill_(5)
    assert x.tolist() == [[1.0] * 4] * 3


def test_a_part_of_an_expanded_tensor_may_be_filled() -> None:
    for part in (
        lambda x: x.expand(2, 3)[1:],
        lambda x: x.expand(2, 3)[:, 1:],
        lambda x: x.expand(4, 3).t()[0],
    ):
        both = []
        for t in (torch, fb):
            x = t.zeros(3)
            part(x).fill_(5)
            both.append(x.tolist())
        assert both[0] == both[1] != [0.0] * 3


def test_numpy_shares_memory() -> None:
    a = np.arange(4.0)
    t = fb.from_numpy(a)
    a[1] = 9
    assert t.tolist() == [0, 9, 2, 3]
    assert np.shares_memory(t.numpy(), a)


def test_a_clone_does_not_share_memory() -> None:
    a = np.arange(4.0)
    t = fb.from_numpy(a).clone()
    fb.sync()
    a[1] = 9
    assert t.tolist() == [0, 1, 2, 3]


def test_dlpack_both_ways() -> None:
    mine = fb.arange(6.0).reshape(2, 3)
    assert torch.from_dlpack(mine).tolist() == mine.tolist()
    assert fb.from_dlpack(torch.arange(3.0)).tolist() == [0, 1, 2]
    assert np.from_dlpack(mine).tolist() == mine.tolist()


def test_writing_to_an_expanded_tensor_is_an_error() -> None:
    for t in (torch, fb):
        x = t.zeros(1, 3).expand(2, 3)
        try:
            x.add_(1)
        except RuntimeError as error:
            assert "more than one element of the written-to tensor" in str(error)
        else:
            raise AssertionError("no error")


def test_a_copy_is_made_at_once() -> None:
    """`copy_` of known content is neither late, so that the source need not be kept, nor an alias of the source."""
    source = fb.ones(100, 100) * 3
    source.numpy()
    target, parameter = fb.zeros(100, 100), fb.nn.Parameter(fb.zeros(100, 100))
    with fb.no_grad():
        target.copy_(source)
        parameter.copy_(source)
    for tensor in (target, parameter):
        assert tensor._cell.value.data is not None
    source.numpy()[:] = 7
    assert (target.numpy() == 3).all() and (parameter.detach().numpy() == 3).all()
    assert parameter.requires_grad and parameter.is_leaf


def test_a_copy_keeps_the_source_history() -> None:
    leaf, target = fb.ones(3, requires_grad=True), fb.zeros(3)
    target.copy_(leaf)
    (target * 2).sum().backward()
    assert leaf.grad.tolist() == [2, 2, 2]


def _same_memory(m: Any, x: Any) -> list[Any]:
    return [x.detach(), x.data, x.t(), x[...], x.expand(3), x.view(3)]


@pytest.mark.parametrize("number", range(6))
def test_an_alias_that_requires_grad_leaves_the_tensor_as_it_is(number: int) -> None:
    for m in (fb, torch):
        x = m.tensor([1.0, 2.0, 3.0])
        y = _same_memory(m, x)[number].requires_grad_()
        assert y.requires_grad and y.is_leaf and not x.requires_grad
        (y * x).sum().backward()
        assert x.grad is None and y.grad.tolist() == [1, 2, 3]
        x.mul_(2)
        assert y.tolist() == [2, 4, 6] and y.requires_grad and not x.requires_grad
