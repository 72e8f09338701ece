"""Matrix products: squares, transposed operands, skinny ones, batches, and short types."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workloads.base import Array, Workload, normal


def _product(
    name: str,
    m: int,
    n: int,
    k: int,
    left: bool = False,
    right: bool = False,
    batch: int = 0,
    dtype: str = "",
) -> Workload:
    """(m, k) by (k, n); `left` and `right`: that operand lies transposed in memory."""
    lead = (batch,) if batch else ()
    shapes = (*lead, *((k, m) if left else (m, k))), (*lead, *((n, k) if right else (k, n)))

    def setup(_: Any) -> Any:
        return lambda a, b: (a.transpose(-1, -2) if left else a) @ (b.transpose(-1, -2) if right else b)

    count = max(batch, 1)
    return Workload(
        f"gemm.{name}",
        normal(*shapes),
        setup,
        2 * count * m * n * k,
        (2 if dtype else 4) * count * (m * n + m * k + n * k),
        2e-2 if dtype else 1e-4,
        dtype,
        arithmetic="bf16" if dtype else "f32",
    )


def _bytes(s: int) -> Workload:
    """int8 x int8 -> int32, exact."""

    def arrays() -> list[Array]:
        rng = np.random.default_rng(0)
        return [rng.integers(-127, 128, (s, s)).astype(np.int8) for _ in range(2)]

    def setup(m: Any) -> Any:
        return lambda a, b: m._int_mm(a, b)  # PyTorch's name of this product

    return Workload(f"gemm.{s}_int8", arrays, setup, 2 * s**3, 6 * s * s, 0.0, arithmetic="int8")


PRODUCTS = (
    *[_product(str(s), s, s, s) for s in (64, 128, 256, 512, 1024, 2048)],
    *[_product(f"{s}_odd", s, s, s) for s in (127, 1000, 1023)],
    *[
        _product(f"{s}_{'t' if left else 'n'}{'t' if right else 'n'}", s, s, s, left, right)
        for s in (512, 1024)
        for left, right in ((False, True), (True, False), (True, True))
    ],
    _product("1x4096x4096", 1, 4096, 4096),
    _product("1x4096x4096_nt", 1, 4096, 4096, right=True),
    _product("32x4096x4096", 32, 4096, 4096),
    _product("32x4096x4096_nt", 32, 4096, 4096, right=True),
    _product("96x128x128x64", 128, 128, 64, batch=96),
    _product("96x128x128x64_nt", 128, 128, 64, right=True, batch=96),
    _product("96x128x64x128", 128, 64, 128, batch=96),
    *[_product(f"{s}_bf16", s, s, s, dtype="bfloat16") for s in (512, 1024)],
    *[_bytes(s) for s in (512, 1024)],
)
