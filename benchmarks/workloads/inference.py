"""Networks, forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workloads import models
from benchmarks.workloads.base import Array, Workload, fill, normal


def _forward(name: str, make: Callable[[Any], Any], arrays: Callable[[], list[Array]]) -> Workload:
    def setup(m: Any) -> Any:
        return fill(make(m), m).eval()

    return Workload(f"inference.{name}", arrays, setup)


def _decoding() -> list[Array]:
    """One token, and keys and values of 128 before it, for 12 layers of 12 heads of 64."""
    rng = np.random.default_rng(0)
    past = rng.standard_normal((12, 2, 1, 12, 128, 64)).astype(np.float32)
    return [rng.integers(0, 50257, (1, 1)), past]


def _tokens(*shape: int) -> Callable[[], list[Array]]:
    return lambda: [np.random.default_rng(0).integers(0, 50257, shape)]


IMAGE = normal((1, 3, 224, 224))

INFERENCE = (
    _forward("mlp_1", models.mlp, normal((1, 784))),
    _forward("mlp_256", models.mlp, normal((256, 784))),
    _forward("resnet18", lambda m: models.resnet(m, (2, 2, 2, 2), False), IMAGE),
    _forward("resnet50", lambda m: models.resnet(m, (3, 4, 6, 3), True), IMAGE),
    _forward("mobilenet_v2", models.mobilenet, IMAGE),
    _forward("unet_128", models.unet, normal((1, 3, 128, 128))),
    _forward("gpt2_prefill_128", models.gpt, _tokens(1, 128)),
    _forward("bert_128", lambda m: models.transformer(m, 768, 12, 12, False), normal((1, 128, 768))),
    _forward("gpt2_decode_128", models.gpt_decoder, _decoding),
    _forward("lstm_64_256", models.lstm, normal((16, 100, 64))),
)
