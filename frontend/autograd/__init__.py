"""Automatic differentiation: modes, gradients, custom functions."""

from flambeau.autograd import functional
from flambeau.autograd.engine import backward, grad
from flambeau.autograd.function import Function, FunctionContext
from flambeau.autograd.modes import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)

__all__ = [
    "Function",
    "FunctionContext",
    "backward",
    "enable_grad",
    "functional",
    "grad",
    "inference_mode",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "no_grad",
    "set_grad_enabled",
]
