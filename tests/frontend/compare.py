"""Running the same program under Flambeau and PyTorch and comparing what comes out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import flambeau as fb


def plain(x: Any) -> Any:
    """Tensors of either library as (dtype name, array); containers alike."""
    if isinstance(x, (fb.Tensor, torch.Tensor)):
        name = str(x.dtype).removeprefix("torch.")
        detached = x.detach()
        array = (
            detached.to(fb.float32 if isinstance(x, fb.Tensor) else torch.float32)
            if name == "bfloat16"
            else detached
        )
        return name, np.array(array.numpy())
    if isinstance(x, (tuple, list)):
        return [plain(y) for y in x]
    return x


def assert_same(mine: Any, theirs: Any, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    """Equal in structure, dtype, shape, and close in content."""
    if isinstance(theirs, tuple) and len(theirs) == 2 and isinstance(theirs[1], np.ndarray):
        assert mine[0] == theirs[0], (mine, theirs)
        assert mine[1].shape == theirs[1].shape, (mine, theirs)
        if theirs[0] in ("float16", "bfloat16"):
            rtol = atol = 2e-2
        np.testing.assert_allclose(mine[1], theirs[1], rtol=rtol, atol=atol)
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            assert_same(a, b, rtol, atol)
    else:
        assert mine == theirs


def both(program: Callable[..., Any], *args: Any) -> None:
    """`program(library, *args)` gives the same under both libraries, or raises the same class of error."""
    try:
        expected = plain(program(torch, *args))
    except Exception as error:
        try:
            program(fb, *args)
        except Exception as mine:
            kinds = (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError)
            kind = next((k for k in kinds if isinstance(error, k)), type(error))
            assert isinstance(mine, kind), f"torch raised {error!r}, flambeau {mine!r}"
            return
        raise AssertionError(f"torch raised {error!r}, flambeau nothing") from None
    assert_same(plain(program(fb, *args)), expected)
