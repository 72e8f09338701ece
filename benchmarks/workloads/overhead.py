"""What Python pays: two elements, one row through a small network, and a long loop of pointwise operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.workloads import models
from benchmarks.workloads.base import Workload, fill, normal


def _now(m: Any) -> Callable[[], Any]:
    """Evaluates what has been recorded; PyTorch has done it already."""
    return getattr(m, "sync", lambda: None)


def _polynomial(x: Any) -> Any:
    return x**2 + 3 * x


def _forward(m: Any) -> Any:
    now = _now(m)

    def call(x: Any) -> Any:
        y = _polynomial(x)
        now()
        return y

    return call


def _backward(m: Any) -> Any:
    now = _now(m)

    def call(x: Any) -> Any:
        with m.enable_grad():
            x = x.detach().requires_grad_()
            _polynomial(x).sum().backward()
        now()
        return x.grad

    return call


def _network(m: Any) -> Any:
    net, now = fill(models.mlp(m), m).eval(), _now(m)

    def call(x: Any) -> Any:
        y = net(x)
        now()
        return y

    return call


def _loop(m: Any) -> Any:
    now = _now(m)

    def call(x: Any) -> Any:
        y = x
        for _ in range(100):
            y = y * 0.5 + x
        now()
        return y

    return call


TWO = normal((2,))

OVERHEADS = (
    Workload("overhead.record", TWO, lambda m: lambda x: x + x, eager=True),
    Workload("overhead.two_forward", TWO, _forward, eager=True),
    Workload("overhead.two_forward_backward", TWO, _backward, eager=True),
    Workload("overhead.two_compiled", TWO, lambda m: _polynomial),
    Workload("overhead.mlp_1", normal((1, 784)), _network, eager=True),
    Workload("overhead.loop_200", normal((1024,)), _loop, eager=True),
)
