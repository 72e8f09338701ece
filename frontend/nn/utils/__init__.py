"""Helpers for training: gradient clipping, parameters as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from flambeau.autograd import no_grad
from flambeau.creation import tensor
from flambeau.joining import cat, stack
from flambeau.nn.utils import rnn as rnn
from flambeau.tensor import Tensor


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Any]:
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [p.grad for p in listed if p.grad is not None]


def get_total_norm(
    tensors: Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """The norm of all the tensors together, as if they were one vector."""
    listed: list[Any] = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not listed:
        return tensor(0.0)
    norms = stack([t.norm(norm_type) for t in listed])
    total = norms.max() if norm_type == math.inf else norms.norm(norm_type)  # type: ignore[attr-defined]
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    return total  # type: ignore[no-any-return]


def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scale the gradients by max_norm / (total_norm + 1e-6), but never up."""
    with no_grad():
        factor = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)  # type: ignore[operator]
        for gradient in _gradients(parameters):
            gradient.mul_(factor)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:  # fmt: skip
    """Scale the gradients so that their norm together is at most `max_norm`; returns the norm before."""
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    with no_grad():
        total = get_total_norm(_gradients(listed), float(norm_type), error_if_nonfinite)
    clip_grads_with_norm_(listed, float(max_norm), total)
    return total


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Limit each element of the gradients to ±clip_value."""
    with no_grad():
        for gradient in _gradients(parameters):
            gradient.clamp_(min=-float(clip_value), max=float(clip_value))


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements as one vector."""
    return cat([p.reshape(-1) for p in parameters])  # type: ignore[attr-defined]


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """The inverse of `parameters_to_vector`."""
    at = 0
    with no_grad():
        for p in parameters:
            p.copy_(vec[at : at + p.numel()].reshape(p.shape))  # type: ignore[attr-defined, index]
            at += p.numel()


__all__ = [
    "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm", "parameters_to_vector",
    "vector_to_parameters",
]  # fmt: skip
