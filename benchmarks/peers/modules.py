"""Flambeau and PyTorch, eager and compiled: a workload's `setup` takes either module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Skipped
from benchmarks.workloads import Workload
from benchmarks.workloads.base import Gradient, Step, Update


class Modules:
    """`flambeau`, `torch` or `torch.compile`; `exact` is PyTorch in float64."""

    def __init__(self, peer: str, threads: int) -> None:
        self.peer = peer
        if peer == "flambeau":
            import flambeau as module
        else:
            import torch as module
        module.set_num_threads(threads)
        self.m: Any = module

    def load(self, workload: Workload, folder: Path) -> Callable[[], Any]:
        m = self.m
        m.set_grad_enabled(True)
        compiled = self.peer in ("flambeau", "torch.compile") and not workload.eager
        if self.peer == "torch.compile" and workload.eager:
            raise Skipped("the workload is about calls that are not compiled")
        if self.peer == "exact":
            return self._exact(workload)
        return self._call(workload.setup(m), self._inputs(workload), compiled)

    def _inputs(self, workload: Workload) -> list[Any]:
        tensors = [self.m.from_numpy(a) for a in workload.arrays()]
        if not workload.dtype:
            return tensors
        dtype = getattr(self.m, workload.dtype)
        return [t.to(dtype) if t.is_floating_point() else t for t in tensors]

    def _exact(self, workload: Workload) -> Callable[[], Any]:
        """Everything in float64; numbers of a shorter type keep its rounding, and their products do not."""
        m = self.m
        tensors = self._inputs(workload)
        tensors = [t.double() if t.is_floating_point() else t for t in tensors]
        m.set_default_dtype(m.float64)
        try:
            prepared = workload.setup(m)
            net = prepared.net if isinstance(prepared, Step) else prepared
            if isinstance(net, m.nn.Module):
                net.double()
            elif isinstance(prepared, Update):
                for p in prepared.parameters:
                    gradient, p.data = p.grad.double(), p.data.double()
                    p.grad = gradient
            return self._call(prepared, tensors, False)
        finally:
            m.set_default_dtype(m.float32)

    def _call(self, prepared: Any, tensors: list[Any], compiled: bool) -> Callable[[], Any]:
        m = self.m
        special = isinstance(prepared, (Gradient, Step, Update))
        function = prepared.bound(m) if special else prepared
        if compiled:
            function = m.compile(function)
        # For the calls to come, so that they need not each say so.
        m.set_grad_enabled(special)
        return lambda: function(*tensors)

    def arrays(self, result: Any) -> list[Any]:
        results = result if isinstance(result, (tuple, list)) else [result]
        return [_array(t.detach()) for t in results]


def _array(t: Any) -> np.ndarray[Any, Any]:
    short = str(t.dtype) == "torch.bfloat16"
    return np.asarray((t.float() if short else t).numpy())
