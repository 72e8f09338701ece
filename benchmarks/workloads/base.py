"""The shape of a workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Workload:
    """`setup(m)` gives the function that is timed, for the module `m` (torch or flambeau); it takes tensors of `arrays()`.

    `work` counts operations of arithmetic, `traffic` bytes that must move at least; the larger share of the machine's
    limits is reported. `trains`: the function is a training step and returns its loss. `tolerance`: of the result,
    relative to the largest exact element.
    """

    name: str
    arrays: Callable[[], list[Array]]
    setup: Callable[[Any], Callable[..., Any]]
    work: float = 0
    traffic: float = 0
    trains: bool = False
    tolerance: float = 1e-4


def normal(*shapes: tuple[int, ...]) -> Callable[[], list[Array]]:
    """Arrays of standard normal numbers, the same at every call."""

    def make() -> list[Array]:
        rng = np.random.default_rng(0)
        return [rng.standard_normal(s).astype(np.float32) for s in shapes]

    return make


def fill(module: Any, m: Any) -> Any:
    """The same weights in every process: normal, with a deviation of 1 / sqrt(inputs); offsets are zero, scales one."""
    rng = np.random.default_rng(1)
    with m.no_grad():
        for name, p in module.named_parameters():
            shape = tuple(p.shape)
            if len(shape) < 2:
                values = np.full(shape, 0.0 if name.endswith("bias") else 1.0)
            else:
                values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            p.copy_(m.from_numpy(values.astype(np.float32)))
    return module
