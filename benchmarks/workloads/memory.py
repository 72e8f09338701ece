"""What memory limits: pointwise chains, rows, reductions, rearrangements, and an optimizer's update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workloads.base import Array, Update, Workload, normal

M = 1 << 20


def _moving(
    name: str,
    call: Callable[..., Any],
    shapes: tuple[tuple[int, ...], ...],
    elements: float,
    tolerance: float = 1e-5,
    read: float | None = None,
) -> Workload:
    """`elements` of 4 bytes move at least, of which `read` are read: half, if it is not given."""
    return Workload(
        f"memory.{name}",
        normal(*shapes),
        lambda m: lambda *t: call(m, *t),
        0,
        4 * elements,
        tolerance=tolerance,
        read=4 * (elements / 2 if read is None else read),
    )


SQUARE = ((4096, 4096),)


def _tables() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((50257, 768)).astype(np.float32), rng.integers(0, 50257, 8192)]


def _adam(m: Any) -> Update:
    rng = np.random.default_rng(0)
    parameters = []
    for size in rng.integers(100, 200_000, 100):
        p = m.nn.Parameter(m.from_numpy(rng.standard_normal(int(size)).astype(np.float32)))
        p.grad = m.from_numpy(rng.standard_normal(int(size)).astype(np.float32)).to(p.dtype)
        parameters.append(p)
    return Update(parameters, m.optim.Adam(parameters, lr=1e-3))


MEMORY = (
    _moving(
        "gelu_chain", lambda m, x, a, b: m.nn.functional.gelu(x * a + b), ((16 * M,), (1,), (1,)), 32 * M
    ),
    _moving("softmax", lambda m, x: m.softmax(x, 1), SQUARE, 32 * M),
    _moving("log_softmax", lambda m, x: m.log_softmax(x, 1), SQUARE, 32 * M),
    _moving(
        "layer_norm",
        lambda m, x, w, b: m.nn.functional.layer_norm(x, (1024,), w, b),
        ((8192, 1024), (1024,), (1024,)),
        16 * M,
    ),
    _moving("sum", lambda m, x: x.sum(), ((64 * M,),), 64 * M, 1e-3, 64 * M),
    _moving("row_sum", lambda m, x: x.sum(1), ((8192, 2048),), 16 * M, read=16 * M),
    _moving("column_sum", lambda m, x: x.sum(0), ((8192, 2048),), 16 * M, read=16 * M),
    _moving("transpose", lambda m, x: x.t().contiguous(), SQUARE, 32 * M),
    _moving("cumsum", lambda m, x: x.cumsum(1), SQUARE, 32 * M),
    _moving("argmax", lambda m, x: x.argmax(1), SQUARE, 16 * M, read=16 * M),
    # Many passes over the numbers, so no share of the limit.
    Workload("memory.sort", normal((M,)), lambda m: lambda x: x.sort()[0], tolerance=1e-5),
    Workload(
        "memory.embedding",
        _tables,
        lambda m: lambda table, index: m.nn.functional.embedding(index, table),
        traffic=8 * 8192 * 768,
        read=4 * 8192 * 768,
    ),
    Workload(
        "memory.adam_100",
        list,
        _adam,
        traffic=4 * 7 * 10_190_354,
        tolerance=1e-5,
        read=4 * 4 * 10_190_354,
    ),
)
