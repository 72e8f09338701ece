"""RMSprop and Adagrad."""

from __future__ import annotations

from typing import Any

import numpy as np

from flambeau.optim.optimizer import Optimizer, check, gradient_of
from flambeau.tensor import Tensor


class RMSprop(Optimizer):
    """w -= lr g / (sqrt(v) + eps) with v = alpha v + (1 - alpha) g²: G. Hinton, lecture 6e, 2012.

    `centered` subtracts the squared mean of the gradients (A. Graves, 2013); momentum sums the steps.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, capturable: bool = False, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check(isinstance(lr, Tensor) or lr >= 0.0, "learning rate", lr)
        check(eps >= 0.0, "epsilon value", eps)
        check(momentum >= 0.0, "momentum value", momentum)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        check(alpha >= 0.0, "alpha value", alpha)
        defaults = {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "capturable": capturable, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr = self._option(group, "lr")
        alpha, decay, momentum = group["alpha"], group["weight_decay"], group["momentum"]
        for p, state, _ in self._counted(params):
            g = gradient_of(p, group["maximize"])
            if decay != 0:
                g = g + p * decay
            v = state["square_avg"]
            v.mul_(alpha).add_(g * g * (1 - alpha))
            second = v
            if group["centered"]:
                if "grad_avg" not in state:
                    state["grad_avg"] = self._zeros(p)
                mean = state["grad_avg"]
                mean.add_((g - mean) * (1 - alpha))
                second = v - mean * mean
            change = g / (second.sqrt() + group["eps"])
            if momentum > 0:
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = self._zeros(p)
                change = state["momentum_buffer"].mul_(momentum).add_(change)
            p.sub_(change * lr)

    def _begin(self, p: Tensor, state: dict[str, Any]) -> None:
        state["square_avg"] = self._zeros(p)


class Adagrad(Optimizer):
    """w -= lr / (1 + (t - 1) lr_decay) · g / (sqrt(sum of g²) + eps): J. Duchi et al., 2011."""

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        check(isinstance(lr, Tensor) or lr >= 0.0, "learning rate", lr)
        check(lr_decay >= 0.0, "lr_decay value", lr_decay)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        check(initial_accumulator_value >= 0.0, "initial_accumulator_value value", initial_accumulator_value)
        check(eps >= 0.0, "epsilon value", eps)
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _begin(self, p: Tensor, state: dict[str, Any]) -> None:
        first = next(
            g["initial_accumulator_value"] for g in self.param_groups if any(p is q for q in g["params"])
        )
        state["sum"] = self._made(np.full(tuple(p.shape), first, p.dtype.numpy), p.dtype.element)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr = self._option(group, "lr")
        for p, state, step in self._counted(params):
            g = gradient_of(p, group["maximize"])
            if group["weight_decay"] != 0:
                g = g + p * group["weight_decay"]
            rate = lr / (1 + (step - 1) * group["lr_decay"]) if group["lr_decay"] else lr
            state["sum"].add_(g * g)
            p.sub_(g * rate / (state["sum"].sqrt() + group["eps"]))
