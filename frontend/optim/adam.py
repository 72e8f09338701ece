"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

from flambeau import dtypes
from flambeau.arithmetic import maximum
from flambeau.optim.optimizer import Optimizer, check, gradient_of
from flambeau.tensor import Tensor


class Adam(Optimizer):
    """D. Kingma and J. Ba, "Adam", 2015; `amsgrad` after S. Reddi et al., 2018. Weight decay is added to the gradient.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;  w -= lr / (1 - b1^t) · m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    """

    decoupled = False

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:  # fmt: skip
        check(isinstance(lr, Tensor) or lr >= 0.0, "learning rate", lr)
        check(eps >= 0.0, "epsilon value", eps)
        check(0.0 <= betas[0] < 1.0, "beta parameter at index 0", betas[0])
        check(0.0 <= betas[1] < 1.0, "beta parameter at index 1", betas[1])
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "foreach": foreach, "capturable": capturable, "differentiable": differentiable,
            "fused": fused, "decoupled_weight_decay": decoupled_weight_decay or self.decoupled,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _begin(self, p: Tensor, state: dict[str, Any]) -> None:
        state["exp_avg"], state["exp_avg_sq"] = self._zeros(p), self._zeros(p)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr = self._option(group, "lr")
        b1, b2 = group["betas"]
        decay, eps = group["weight_decay"], group["eps"]
        corrections: dict[int, tuple[Any, Any]] = {}
        for p, state, step in self._counted(params):
            if id(step) not in corrections:
                t = step.to(dtypes.float64)  # PyTorch computes these in Python's double precision
                root = (1 - b2**t).sqrt()
                corrections[id(step)] = lr / (1 - b1**t) * root, eps * root
            step_size, floor = corrections[id(step)]
            g = gradient_of(p, group["maximize"])
            if decay != 0:
                if group["decoupled_weight_decay"]:
                    p.mul_(1 - lr * decay)
                else:
                    g = g + p * decay
            m, v = state["exp_avg"], state["exp_avg_sq"]
            m.add_((g - m) * (1 - b1))
            v.mul_(b2).add_(g * g * (1 - b2))
            second = v
            if group["amsgrad"]:
                if "max_exp_avg_sq" not in state:
                    state["max_exp_avg_sq"] = self._zeros(p)
                second = state["max_exp_avg_sq"]
                second.copy_(maximum(second, v))
            # The formula's fraction, both sides times the root: one division an element less.
            p.sub_(m * step_size / (second.sqrt() + floor))


class AdamW(Adam):
    """Adam with decoupled weight decay, w -= lr · decay · w: I. Loshchilov and F. Hutter, 2019."""

    decoupled = True

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        capturable: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
