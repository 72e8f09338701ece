"""Networks, forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workloads import models
from benchmarks.workloads.base import Array, Workload, fill, normal


def _forward(
    name: str,
    make: Callable[[Any], Any],
    arrays: Callable[[], list[Array]],
    gflop: float = 0,
    traffic: float = 0,
) -> Workload:
    """`gflop`: 1e9 multiplications and additions in products and convolutions, as `torch.utils.flop_counter` counts them;
    what it does not count is added: half of attention's products if it is causal, recurrent layers."""

    def setup(m: Any) -> Any:
        return fill(make(m), m).eval()

    return Workload(f"inference.{name}", arrays, setup, work=1e9 * gflop, traffic=traffic, read=traffic)


def _decoding() -> list[Array]:
    """One token, and keys and values of 128 before it, for 12 layers of 12 heads of 64."""
    rng = np.random.default_rng(0)
    past = rng.standard_normal((12, 2, 1, 12, 128, 64)).astype(np.float32)
    return [rng.integers(0, 50257, (1, 1)), past]


def _tokens(*shape: int) -> Callable[[], list[Array]]:
    return lambda: [np.random.default_rng(0).integers(0, 50257, shape)]


#: Weights that a token is multiplied by: 12 layers of 12 x 768 x 768, and the embedding for the next token.
DECODED = 12 * 12 * 768 * 768 + 50257 * 768
IMAGE = normal((1, 3, 224, 224))

INFERENCE = (
    _forward("mlp_1", models.mlp, normal((1, 784))),
    _forward("mlp_256", models.mlp, normal((256, 784)), 0.342),
    _forward("resnet18", lambda m: models.resnet(m, (2, 2, 2, 2), False), IMAGE, 3.628),
    _forward("resnet50", lambda m: models.resnet(m, (3, 4, 6, 3), True), IMAGE, 8.178),
    _forward("mobilenet_v2", models.mobilenet, IMAGE, 0.602),
    _forward("unet_128", models.unet, normal((1, 3, 128, 128)), 3.185),
    _forward("gpt2_prefill_128", models.gpt, _tokens(1, 128), 31.624 + 0.302),
    _forward(
        "bert_128", lambda m: models.transformer(m, 768, 12, 12, False), normal((1, 128, 768)), 21.743 + 0.604
    ),
    _forward("gpt2_decode_128", models.gpt_decoder, _decoding, traffic=4 * (DECODED + 2 * 12 * 128 * 768)),
    _forward("lstm_64_256", models.lstm, normal((16, 100, 64)), 1.049),
)
