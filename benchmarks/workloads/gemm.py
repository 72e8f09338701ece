"""Matrix products: squares, transposed operands, skinny ones, batches."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.base import Workload, normal


def _product(
    name: str, m: int, n: int, k: int, left: bool = False, right: bool = False, batch: int = 0
) -> Workload:
    """(m, k) by (k, n); `left` and `right`: that operand lies transposed in memory."""
    lead = (batch,) if batch else ()
    shapes = (*lead, *((k, m) if left else (m, k))), (*lead, *((n, k) if right else (k, n)))

    def setup(_: Any) -> Any:
        return lambda a, b: (a.transpose(-1, -2) if left else a) @ (b.transpose(-1, -2) if right else b)

    count = max(batch, 1)
    return Workload(
        f"gemm.{name}", normal(*shapes), setup, 2 * count * m * n * k, 4 * count * (m * n + m * k + n * k)
    )


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
)
