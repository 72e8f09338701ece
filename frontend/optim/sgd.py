"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from flambeau.optim.optimizer import Optimizer, check, gradient_of
from flambeau.tensor import Tensor


class SGD(Optimizer):
    """w -= lr g, with momentum (buf = momentum buf + (1 - dampening) g), Nesterov's look-ahead and L2 weight decay.

    The first buffer is the gradient itself, as in PyTorch. I. Sutskever et al., 2013.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, momentum: float = 0, dampening: float = 0,
        weight_decay: float = 0, nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        check(isinstance(lr, Tensor) or lr >= 0.0, "learning rate", lr)
        check(momentum >= 0.0, "momentum value", momentum)
        check(weight_decay >= 0.0, "weight_decay value", weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach, "differentiable": differentiable,
            "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], params: list[Any]) -> None:
        lr = self._option(group, "lr")
        momentum, dampening, decay = group["momentum"], group["dampening"], group["weight_decay"]
        for p in params:
            g = gradient_of(p, group["maximize"])
            if decay != 0:
                g = g + p * decay
            if momentum != 0:
                buffer = self.state[p].get("momentum_buffer")
                if buffer is None:
                    buffer = self.state[p]["momentum_buffer"] = self._zeros(p)
                    buffer.copy_(g)
                else:
                    buffer.mul_(momentum).add_(g * (1 - dampening) if dampening else g)
                g = g + buffer * momentum if group["nesterov"] else buffer
            p.sub_(g * lr)
