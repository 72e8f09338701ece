"""What is timed: a graph of ours, the same in PyTorch, and the exact result in f64 with which both are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import f32, tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Workload:
    """`make(*values)` gives our result; `torch(torch, *tensors)` PyTorch's, in any dtype. `work` counts operations of
    arithmetic (0: memory matters), `traffic` bytes that must move at least."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    make: Callable[..., Value]
    torch: Callable[..., Any]
    work: int = 0
    traffic: int = 0
    tolerance: float = 1e-5

    def graph(self) -> Graph:
        parameters = [Value(tensor(s, f32)) for s in self.shapes]
        return Graph(parameters, [self.make(*parameters)])

    def arrays(self) -> list[Array]:
        rng = np.random.default_rng(0)
        return [rng.standard_normal(s).astype(np.float32) for s in self.shapes]


def composite(name: str, **attributes: Any) -> Callable[..., Value]:
    """An operation of the graph level by name."""
    return lambda *values: build.make(build.op(name, **attributes), *values)


def _gemm(size: int) -> Workload:
    shape = (size, size)
    return Workload(
        f"gemm{size}", (shape, shape), build.matmul, lambda t, a, b: a @ b, 2 * size**3, 12 * size**2, 1e-4
    )


ROWS = (2048, 1024)
MOVED = 2 * 4 * ROWS[0] * ROWS[1]


def _layer_norm(x: Value, w: Value, b: Value) -> Value:
    return build.make(build.op("layer_norm", rank=1, eps=1e-5), x, w, b)


WORKLOADS: tuple[Workload, ...] = (
    _gemm(128),
    _gemm(512),
    _gemm(1024),
    Workload("softmax", (ROWS,), composite("softmax", dimension=1), lambda t, x: t.softmax(x, 1), 0, MOVED),
    Workload(
        "layernorm",
        (ROWS, ROWS[1:], ROWS[1:]),
        _layer_norm,
        lambda t, x, w, b: t.nn.functional.layer_norm(x, ROWS[1:], w, b),
        0,
        MOVED,
    ),
    Workload("gelu", (ROWS,), composite("gelu"), lambda t, x: t.nn.functional.gelu(x), 0, MOVED),
    Workload("sum", (ROWS,), lambda x: build.reduce_sum(x, 1), lambda t, x: x.sum(1), 0, MOVED // 2),
    Workload(
        "pointwise",
        (ROWS, ROWS),
        lambda x, y: build.maximum(build.add(build.mul(x, y), x), 0.0),
        lambda t, x, y: t.relu(x * y + x),
        0,
        MOVED * 3 // 2,
    ),
)


def chosen(names: str) -> list[Workload]:
    """Workloads by comma-separated beginnings of names (`gemm` is all of them); all for "all". KeyError if unknown."""
    if names == "all":
        return list(WORKLOADS)
    found: list[Workload] = []
    for name in names.split(","):
        matching = [w for w in WORKLOADS if w.name.startswith(name)]
        if not matching or not name:
            raise KeyError(f"there is no workload {name!r}; there are {', '.join(w.name for w in WORKLOADS)}")
        found += [w for w in matching if w not in found]
    return found
