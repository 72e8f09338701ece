"""Whole training steps: forward, loss, backward, optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workloads import models
from benchmarks.workloads.base import Array, Step, Workload, fill


def _step(
    name: str,
    make: Callable[[Any], Any],
    optimizer: Callable[[Any, Any], Any],
    arrays: Callable[[], list[Array]],
    gflop: float,
) -> Workload:
    """`gflop`: as for inference, and the gradients' products."""

    def setup(m: Any) -> Step:
        def loss(net: Any, x: Any, y: Any) -> Any:
            out = net(x)
            return m.nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))

        net = fill(make(m), m)
        return Step(net, loss, optimizer(m, net.parameters()))

    return Workload(f"training.{name}", arrays, setup, work=1e9 * gflop, tolerance=1e-3)


def _images(shape: tuple[int, ...], classes: int) -> Callable[[], list[Array]]:
    def make() -> list[Array]:
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape).astype(np.float32), rng.integers(0, classes, shape[0])]

    return make


def _text() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4096, (4, 256)), rng.integers(0, 4096, (4, 256))]


TRAINING = (
    _step("mlp_64", models.mlp, lambda m, p: m.optim.Adam(p), _images((64, 784), 10), 0.205),
    _step(
        "resnet18_8x64",
        lambda m: models.resnet(m, (2, 2, 2, 2), False, 10),
        lambda m, p: m.optim.SGD(p, lr=0.01, momentum=0.9),
        _images((8, 3, 64, 64), 10),
        6.952,
    ),
    _step(
        "gpt_384",
        lambda m: models.gpt(m, 4096, 256, 384, 6, 6),
        lambda m, p: m.optim.AdamW(p, lr=1e-4),
        _text,
        74.893 + 3.624,
    ),
    _step(
        "lstm_64_256",
        models.lstm_classifier,
        lambda m, p: m.optim.Adam(p),
        _images((16, 100, 64), 10),
        3 * 1.049 - 0.210,  # no gradient of the input
    ),
)
