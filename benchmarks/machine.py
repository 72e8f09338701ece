"""What this machine can do at most, measured with our own generated code: fused multiply-adds, and memory traffic."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import f32, index, memref, tensor
from flambeau.compiler.targets.cpu import emit_ir, has_fma
from flambeau.compiler.targets.machine import emit_object, host_target
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads as pools
from flambeau.runtime.engine import default_engine

#: Elements of each of triad's arrays: 64 MiB of f32, more than caches hold.
TRIAD = 1 << 24


@dataclass(frozen=True)
class Limits:
    """Of so many threads together. `peak_gflops`: f32 multiplications and additions in registers only. `triad_gbs`:
    a[i] = b[i] + s * c[i], three arrays of traffic."""

    threads: int
    peak_gflops: float
    triad_gbs: float


@dataclass(frozen=True)
class Machine:
    """What the processor is, and its limits by number of threads."""

    target: str
    vector_bits: int
    limits: tuple[Limits, ...]

    def of(self, threads: int) -> Limits:
        """The limits of this number of threads. KeyError if they were not measured."""
        for limits in self.limits:
            if limits.threads == threads:
                return limits
        raise KeyError(f"limits of {threads} threads were not measured")

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Machine:
        """From what `dataclasses.asdict` makes."""
        return cls(found["target"], found["vector_bits"], tuple(Limits(**given) for given in found["limits"]))


def seconds(run: Callable[[], object], least: float = 0.02, rounds: int = 7) -> float:
    """Median over rounds of the time of one call; a round repeats it for at least `least` seconds."""
    run()
    started = time.perf_counter()
    run()
    repeat = max(1, int(least / max(time.perf_counter() - started, 1e-7)))
    return median(timed(run, repeat) for _ in range(rounds))


def timed(run: Callable[[], object], repeat: int) -> float:
    """Mean seconds of a call over `repeat` calls."""
    started = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - started) / repeat


def fma_peak(threads: int) -> float:
    """GFLOP/s of threads that multiply and add in registers: 16 independent vectors each, enough for any pipeline."""
    target = host_target()
    lanes, vectors = target.vector_bits // 32, 16
    b = LoopBuilder(fma=has_fma(target))
    with b.function("peak", [memref((vectors, lanes), f32), index], ["x", "n"]) as f:
        start = [b.vload(f["x"], [v, 0], lanes) for v in range(vectors)]
        factor, addend = b.broadcast(b.constant(f32, 0.5), lanes), b.broadcast(b.constant(f32, 1.0), lanes)
        with b.for_(0, f["n"], init=start, vectorize=False) as loop:
            loop.yield_(*[b.fma(x, factor, addend) for x in loop.carried])
        for v, total in enumerate(loop.results):
            b.vstore(total, f["x"], [v, 0])
    module = default_engine().add_object(
        emit_object(emit_ir(b.functions, target), target, 3), exports=["peak"]
    )
    peak = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(module.address("peak"))
    memory = [np.zeros(vectors * lanes + 16, np.float32) for _ in range(threads)]
    addresses = [-(-m.ctypes.data // 64) * 64 for m in memory]
    count = 4_000_000
    with ThreadPoolExecutor(threads) as pool:
        # ctypes lets the interpreter's lock go while a function runs.
        once = seconds(lambda: list(pool.map(lambda address: peak(address, count), addresses)))
    for m, address in zip(memory, addresses, strict=True):
        values = m[(address - m.ctypes.data) // 4 :][: vectors * lanes]
        assert np.allclose(values, 2.0), "x = x / 2 + 1 converges to 2"
    return threads * 2 * lanes * vectors * count / once / 1e9


def triad() -> float:
    """GB/s of b + s * c on arrays beyond the caches, with the threads that parallel loops use now."""
    b, c, s = Value(tensor((TRIAD,), f32)), Value(tensor((TRIAD,), f32)), Value(tensor((), f32))
    run = ArrayExecutable(
        Graph([b, c, s], [build.add(b, build.mul(c, build.broadcast_in_dim(s, (TRIAD,), ())))])
    )
    arrays = [np.ones(TRIAD, np.float32), np.full(TRIAD, 2, np.float32), np.array(3, np.float32)]
    assert (run(arrays)[0] == 7).all()
    return 3 * 4 * TRIAD / seconds(lambda: run(arrays), rounds=5) / 1e9


def measure(threads: Iterable[int]) -> Machine:
    """The limits of these numbers of threads. Parallel loops use the number of threads of before again afterwards."""
    target, before, found = host_target(), pools.num_threads(), []
    try:
        for count in threads:
            pools.set_num_threads(count)
            found.append(Limits(count, fma_peak(count), triad()))
    finally:
        pools.set_num_threads(before)
    return Machine(target.cpu, target.vector_bits, tuple(found))
