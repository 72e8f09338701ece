"""Convolutions: forward, and the gradients of the input and of the weight."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.base import Gradient, Workload, normal


def _convolution(
    name: str, batch: int, channels: int, size: int, features: int, window: int, kind: str, **options: Any
) -> Workload:
    """A square image of `size`; `flat`: one axis only; `transposed`: without overlap, as networks that upsample do."""
    groups, stride = options.get("groups", 1), options.get("stride", 1)
    flat, transposed = options.get("flat"), options.get("transposed")
    axes = 1 if flat else 2
    out = size * window if transposed else size // stride
    x = (batch, channels, *[size] * axes)
    w = (channels, features) if transposed else (features, channels // groups)
    w += (window,) * axes
    y = (batch, features, *[out] * axes)
    given = {"stride": window} if transposed else {"stride": stride, "padding": window // 2, "groups": groups}

    def setup(m: Any) -> Any:
        F = m.nn.functional
        function = F.conv_transpose2d if transposed else F.conv1d if flat else F.conv2d

        def forward(x: Any, w: Any) -> Any:
            return function(x, w, **given)

        return forward if kind == "forward" else Gradient(forward, 0 if kind == "dgrad" else 1)

    shapes = (x, w) if kind == "forward" else (x, w, y)
    taps = 1 if transposed else window**axes
    work = 2 * batch * features * out**axes * (channels // groups) * taps
    return Workload(f"conv.{name}_n{batch}.{kind}", normal(*shapes), setup, work)


SHAPES: tuple[tuple[str, tuple[int, int, int, int], dict[str, Any]], ...] = (
    ("7x7s2_3_64_224", (3, 224, 64, 7), {"stride": 2}),
    ("3x3_64_56", (64, 56, 64, 3), {}),
    ("3x3_128_28", (128, 28, 128, 3), {}),
    ("3x3_256_14", (256, 14, 256, 3), {}),
    ("3x3_512_7", (512, 7, 512, 3), {}),
    ("1x1_256_64_56", (256, 56, 64, 1), {}),
    ("depthwise_144_56", (144, 56, 144, 3), {"groups": 144}),
    ("transposed_128_64_28", (128, 28, 64, 2), {"transposed": True}),
    ("1d_9_128_1024", (128, 1024, 128, 9), {"flat": True}),
)

CONVOLUTIONS = tuple(
    _convolution(name, batch, *shape, kind, **options)
    for name, shape, options in SHAPES
    for batch in (1, 8)
    for kind in ("forward", "dgrad", "wgrad")
)
