"""Modules of ours and of PyTorch's on the same weights and inputs: results, gradients and buffers must agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import flambeau as fb


def ours(x: Any) -> Any:
    """A torch tensor (or a container of some) as ours."""
    if isinstance(x, torch.Tensor):
        made = fb.tensor(x.detach().numpy())
        return made.requires_grad_() if x.requires_grad else made
    return x


def close(mine: Any, theirs: Any, tol: float = 2e-5) -> None:
    """Equal shape, dtype and, within `tol`, content; None only beside None."""
    if theirs is None or mine is None:
        assert mine is None and theirs is None
        return
    if isinstance(theirs, (tuple, list)):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            close(a, b, tol)
        return
    assert tuple(mine.shape) == tuple(theirs.shape)
    assert repr(mine.dtype) == repr(theirs.dtype)
    np.testing.assert_allclose(mine.detach().numpy(), theirs.detach().numpy(), rtol=tol, atol=tol)


def copy_weights(mine: Any, theirs: Any) -> None:
    """PyTorch's weights into our module, through the state dict."""
    found = mine.load_state_dict({k: fb.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    assert repr(found) == "<All keys matched successfully>"


def check_module(mine: Any, theirs: Any, *inputs: Any, tol: float = 2e-5, **options: Any) -> None:
    """One forward and backward of both; the cotangent is random."""
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    copy_weights(mine, theirs)
    once = {id(x): ours(x) for x in inputs}  # self-attention gives one tensor three times
    given = [once[id(x)] for x in inputs]
    y = mine(*given, **{k: ours(v) for k, v in options.items()})
    z = theirs(*inputs, **options)
    close(y, z, tol)
    first, second = (y[0], z[0]) if isinstance(z, tuple) else (y, z)
    if second.requires_grad:
        weight = torch.randn(second.shape, dtype=second.dtype)
        (second * weight).sum().backward()
        (first * ours(weight)).sum().backward()
    for a, b in zip(given, inputs):
        if isinstance(b, torch.Tensor):
            close(a.grad, b.grad, tol * 5)
    named = dict(theirs.named_parameters())
    for name, p in mine.named_parameters():
        close(p.grad, named[name].grad, tol * 5)
    for (_, a), (_, b) in zip(mine.named_buffers(), theirs.named_buffers()):
        close(a, b, tol)
