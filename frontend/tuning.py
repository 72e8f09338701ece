"""The autotuner (``FLAMBEAU_TUNE=1``): schedules of contractions are measured on this machine when a kernel is first compiled.

What is found is kept in the persistent cache, by the kernel's structure (operations, shapes, types), the machine, the number of
threads and the compiler's version: later compilations and processes take it from there, so that code and bits stay the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from flambeau.compiler import options
from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.lowering.kernels import lower_kernel
from flambeau.compiler.passes.fuse import Kernel
from flambeau.compiler.pipeline import compile_kernel
from flambeau.compiler.schedule.cpu_contraction import Chooser, ContractionSchedule, choose
from flambeau.compiler.schedule.tuning import FASTER, Request, search
from flambeau.compiler.signature import ENTRY, byte_size, fingerprint, tensor_of
from flambeau.compiler.targets.machine import TargetDescription
from flambeau.runtime import threads
from flambeau.runtime.buffer import address_of, as_numpy
from flambeau.runtime.cache import DiskCache
from flambeau.runtime.engine import default_engine
from flambeau.runtime.executor import Executor

Array = np.ndarray[Any, Any]

#: Schedules of a kernel that are compiled and measured at most, and seconds that a measurement repeats a kernel for.
BUDGET = 60
LEAST = 0.004

#: What this process has found or read, by the key in the persistent cache.
_known: dict[str, ContractionSchedule | None] = {}


class Tuner:
    """Gives the contractions of kernels their schedules (`pipeline.Tuner`). `version`: what else, besides the kernel and the
    number of threads, a schedule depends on: the compiler and the machine. `store` None keeps what is found in this
    process only."""

    def __init__(self, store: DiskCache | None, version: str) -> None:
        self.store, self.version = store, version

    def __call__(self, kernel: Kernel, target: TargetDescription) -> Chooser | None:
        if kernel.family != "contraction":
            return None
        key = f"schedule:{self.version}:{threads.num_threads()}:{kernel.family}:{fingerprint(kernel.graph)}"
        if key not in _known:
            _known[key] = self._stored(key, kernel, target)
        found = _known[key]
        return None if found is None else lambda *_: found

    def _stored(self, key: str, kernel: Kernel, target: TargetDescription) -> ContractionSchedule | None:
        data = None if self.store is None else self.store.get(key)
        if data is not None:
            try:
                fields = json.loads(data)
                return None if fields is None else ContractionSchedule(**fields)
            except (ValueError, TypeError):  # an entry that is none is a miss
                pass
        found = tune(kernel, target)
        if self.store is not None:
            self.store.put(key, json.dumps(None if found is None else asdict(found)).encode())
        return found


def tune(kernel: Kernel, target: TargetDescription) -> ContractionSchedule | None:
    """The fastest schedule that a search finds for the kernel's contraction; None if the analytic model's stays, or if the
    kernel has no such schedule (it does not run through the contraction template, or a size is not known)."""
    asked: list[tuple[Any, ...]] = []

    def chooser(*request: Any) -> ContractionSchedule:
        asked.append(request)
        return choose(*request)

    lower_kernel(kernel, "kernel", target, chooser)
    if len(set(asked)) != 1 or len(asked[0]) != len(Request.__dataclass_fields__):
        return None
    values = (*kernel.graph.parameters, *kernel.graph.results)
    sizes = [extent for v in values for extent in tensor_of(v).shape]
    if any(isinstance(extent, Dim) for extent in (*sizes, *asked[0][:3])) or 0 in sizes:
        return None
    started = time.perf_counter()
    trial = _Trial(kernel, target)
    model = choose(*asked[0])
    best, count = search(Request(*asked[0]), model, trial.seconds, BUDGET)
    before, after = trial.compared(model, best) if best != model else (0.0, 0.0)
    if options.current().debug >= 1:
        took = time.perf_counter() - started
        print(_told(kernel, model, best, before, after, count, took), file=sys.stderr)
    return best if after < FASTER * before else None


def _told(
    kernel: Kernel,
    model: ContractionSchedule,
    best: ContractionSchedule,
    before: float,
    after: float,
    count: int,
    took: float,
) -> str:
    shapes = " ".join("x".join(map(str, tensor_of(p).shape)) for p in kernel.graph.parameters)
    head = f"flambeau: tuned a contraction of {shapes} with {count} schedules in {took:.1f} s: "
    if not after < FASTER * before:
        return head + f"the model's is as fast as any ({model.scheme})"
    return head + f"{before * 1e3:.4f} ms → {after * 1e3:.4f} ms ({model} → {best})"


class _Trial:
    """Runs a kernel on made-up operands, with any schedule."""

    def __init__(self, kernel: Kernel, target: TargetDescription) -> None:
        self.kernel, self.target = kernel, target
        rng = np.random.default_rng(0)
        self.operands = [_operand(rng, tensor_of(p)) for p in kernel.graph.parameters]
        self.pointers = [address_of(a) for a in self.operands]
        self.types = [tensor_of(r) for r in kernel.graph.results]
        self.expected: list[Array] | None = None
        self.runs: dict[ContractionSchedule, Callable[[], Sequence[Any]]] = {}

    def seconds(self, schedule: ContractionSchedule) -> float:
        """Of one run; infinite for a schedule that does not compile, or does not give what the first one gave."""
        try:
            run = self._compiled(schedule)
        except CompilationError:
            return float("inf")
        results = [
            as_numpy(b, t.element.numpy, t.shape).copy() for b, t in zip(run(), self.types, strict=True)
        ]
        if self.expected is None:
            self.expected = results
        if not all(_close(a, b) for a, b in zip(results, self.expected, strict=True)):
            return float("inf")
        return min(_timed(run) for _ in range(3))

    def compared(self, *schedules: ContractionSchedule) -> list[float]:
        """Seconds of these in turns, so that none has the quieter machine."""
        runs = [self._compiled(s) for s in schedules]
        rounds = [[_timed(run) for run in runs] for _ in range(9)]
        return [float(np.median([r[i] for r in rounds])) for i in range(len(runs))]

    def _compiled(self, schedule: ContractionSchedule) -> Callable[[], Sequence[Any]]:
        c = compile_kernel(self.kernel, self.target, lambda *_: schedule, options.current().opt_level)
        assert c.memory is not None and isinstance(c.memory.size, int)
        module = default_engine().add_object(c.object_code, symbols=threads.native_symbols(), exports=[ENTRY])
        sizes = [size for size in map(byte_size, c.graph.results) if isinstance(size, int)]
        executor = Executor(module.address(ENTRY), len(self.pointers), sizes, c.memory.size, keep=module)
        return lambda: executor.run(self.pointers)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    repeat = max(1, int(LEAST / max(time.perf_counter() - started, 1e-7)))
    started = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - started) / repeat


def _operand(rng: np.random.Generator, type: Any) -> Array:
    """Numbers of usual size; whole ones are zeros, since they may be positions, but for bytes."""
    if type.element.kind == "float":
        return rng.standard_normal(type.shape, np.float32).astype(type.element.numpy)
    if type.element.kind != "bool" and type.element.itemsize == 1:
        return rng.integers(0, 100, type.shape).astype(type.element.numpy)
    return np.zeros(type.shape, type.element.numpy)


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind in "iub":
        return bool((a == b).all())
    x, y = a.astype(np.float64), b.astype(np.float64)
    scale = max(float(np.abs(y).max(initial=0, where=np.isfinite(y))), 1e-30)
    precision = 0.05 if a.dtype.itemsize < 4 else 1e-3
    return bool(np.allclose(x, y, rtol=0, atol=precision * scale, equal_nan=True))
