"""Convolutions: forward, and the gradients of the input and of the weight."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.base import Workload, normal


def _convolution(
    name: str, batch: int, channels: int, size: int, features: int, window: int, kind: str, **options: Any
) -> Workload:
    groups, stride = options.get("groups", 1), options.get("stride", 1)
    out = size // stride
    spatial = (size,) if options.get("flat") else (size, size)
    taps = window ** len(spatial)
    x, w = (batch, channels, *spatial), (features, channels // groups, *[window] * len(spatial))
    y = (batch, features, *[out] * len(spatial))
    given = {"stride": stride, "padding": window // 2, "groups": groups}

    def setup(m: Any) -> Any:
        function = m.nn.functional.conv1d if options.get("flat") else m.nn.functional.conv2d
        if kind == "forward":
            return lambda x, w: function(x, w, **given)

        def gradient(x: Any, w: Any, ct: Any) -> Any:
            with m.enable_grad():
                wanted = (x if kind == "dgrad" else w).detach().requires_grad_()
                result = function(wanted, w, **given) if kind == "dgrad" else function(x, wanted, **given)
                return m.autograd.grad(result, wanted, ct)[0]

        return gradient

    shapes = (x, w) if kind == "forward" else (x, w, y)
    work = 2 * batch * features * out ** len(spatial) * (channels // groups) * taps
    return Workload(f"conv.{name}_n{batch}.{kind}", normal(*shapes), setup, work)


SHAPES: tuple[tuple[str, tuple[int, int, int, int], dict[str, Any]], ...] = (
    ("7x7s2_3_64_224", (3, 224, 64, 7), {"stride": 2}),
    ("3x3_64_56", (64, 56, 64, 3), {}),
    ("3x3_128_28", (128, 28, 128, 3), {}),
    ("3x3_256_14", (256, 14, 256, 3), {}),
    ("3x3_512_7", (512, 7, 512, 3), {}),
    ("1x1_256_64_56", (256, 56, 64, 1), {}),
    ("depthwise_144_56", (144, 56, 144, 3), {"groups": 144}),
    ("1d_9_128_1024", (128, 1024, 128, 9), {"flat": True}),
)

CONVOLUTIONS = tuple(
    _convolution(name, batch, *shape, kind, **options)
    for name, shape, options in SHAPES
    for batch in (1, 8)
    for kind in ("forward", "dgrad", "wgrad")
)
