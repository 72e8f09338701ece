"""`torch.nn.functional` for samples, imported when one of its functions is called: only tests call them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


class _Functional:
    """Each attribute is the function of that name in `torch.nn.functional`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module("torch.nn.functional"), name)(*args, **kwargs)

        return call


F = _Functional()


def torch_einsum(equation: str, *operands: Any) -> Any:
    """`torch.einsum`."""
    return importlib.import_module("torch").einsum(equation, *operands)


def torch_stack(tensors: Any) -> Any:
    """`torch.stack` along a new first axis."""
    return importlib.import_module("torch").stack(tensors)
