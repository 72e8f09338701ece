"""What is timed. Each workload is written once, against PyTorch's interface, and runs on PyTorch and on Flambeau alike."""

from __future__ import annotations

from benchmarks.workloads.base import Workload
from benchmarks.workloads.conv import CONVOLUTIONS
from benchmarks.workloads.gemm import PRODUCTS
from benchmarks.workloads.inference import INFERENCE
from benchmarks.workloads.memory import MEMORY
from benchmarks.workloads.overhead import OVERHEADS
from benchmarks.workloads.ready import READY, Readiness
from benchmarks.workloads.training import TRAINING

#: The widest-ranging first: a run whose time is over has them.
WORKLOADS: tuple[Workload | Readiness, ...] = (
    *INFERENCE,
    *TRAINING,
    *OVERHEADS,
    *READY,
    *MEMORY,
    *PRODUCTS,
    *CONVOLUTIONS,
)


def chosen(names: str) -> list[Workload | Readiness]:
    """Workloads by comma-separated beginnings of names (`gemm` is all of them); all for "all". KeyError if unknown."""
    if names == "all":
        return list(WORKLOADS)
    found: list[Workload | Readiness] = []
    for name in names.split(","):
        matching = [w for w in WORKLOADS if w.name.startswith(name)]
        exact = [w for w in matching if w.name == name]
        if not matching or not name:
            raise KeyError(f"there is no workload {name!r}; --list names them all")
        found += [w for w in exact or matching if w not in found]
    return found


def timed(name: str) -> Workload:
    """The workload of this name that a worker runs. KeyError if there is none."""
    for workload in WORKLOADS:
        if workload.name == name and isinstance(workload, Workload):
            return workload
    raise KeyError(f"there is no workload {name!r} to run")


__all__ = ["WORKLOADS", "Readiness", "Workload", "chosen", "timed"]
