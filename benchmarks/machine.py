"""What this machine can do at most, measured with our own generated code: multiply-adds, and memory traffic."""

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
from flambeau.compiler.dialects.graph.contraction import accumulator_of
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.types import ElementType, VectorType, bf16, f32, i8, i32, index, memref, tensor
from flambeau.compiler.lowering.words import multiply_add
from flambeau.compiler.targets.cpu import emit_ir, has_fma
from flambeau.compiler.targets.dots import dot_instruction
from flambeau.compiler.targets.machine import emit_object, process_target
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads as pools
from flambeau.runtime.buffer import new_array
from flambeau.runtime.engine import default_engine

#: Elements of each of triad's arrays: 64 MiB of f32, more than caches hold.
TRIAD = 1 << 24


@dataclass(frozen=True)
class Limits:
    """Of so many threads together. `peak_gflops`: f32 multiplications and additions in registers only. `triad_gbs`:
    a[i] = b[i] + s * c[i] past the caches, three arrays of traffic, aligned to lines. `reading_gbs`: an array that is only
    read, which is slower than reading and writing at the same time; 0 if it was not measured. `bf16_gflops` and `int8_gops`:
    products of bf16 and of signed bytes by dot instructions, and their sums; 0 if the processor has none."""

    threads: int
    peak_gflops: float
    triad_gbs: float
    bf16_gflops: float = 0.0
    int8_gops: float = 0.0
    reading_gbs: float = 0.0

    def moving(self, traffic: float, read: float) -> float:
        """Seconds in which so many bytes may move at best, of which so many are read."""
        reading = read / self.reading_gbs if self.reading_gbs else 0.0
        return max(traffic / self.triad_gbs, reading) / 1e9

    def peak(self, arithmetic: str) -> float:
        """Billions of operations a second on "f32", "bf16" or "int8"; f32's where there is no instruction."""
        return {"bf16": self.bf16_gflops, "int8": self.int8_gops}.get(arithmetic) or self.peak_gflops


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


#: Independent sums at most: enough for any pipeline.
SUMS = 16
#: Multiplications of each; below 2^24 / 4, so that sums of ones are exact in f32.
REPEATS = 4_000_000


def fma_peak(threads: int) -> float:
    """GFLOP/s of threads that multiply and add f32 in registers."""
    b = LoopBuilder(fma=has_fma(process_target()))

    def product(x: Value, half: Value) -> Value:  # x / 2 + 1 converges to 2
        return b.fma(x, half, b.constant(half.type, 1.0))

    return _peak(threads, b, f32, product, np.float32(0.5).tobytes(), 2.0, 2)


def dot_peak(threads: int, element: ElementType) -> float:
    """Billions of operations a second of threads that multiply words of `element` in registers; 0 without an instruction."""
    target = process_target()
    dot = dot_instruction(element, element, target)
    if dot is None:
        return 0.0
    b = LoopBuilder(fma=has_fma(target))
    accumulator = accumulator_of(element, f32 if element.is_float else i32)
    # A product apart from its sum would be made once, before the loop, unless it is one of what the loop makes: of zeros.
    expected = dot.group * REPEATS if dot.accumulates else 0

    def product(x: Value, ones: Value) -> Value:
        return multiply_add(b, ones, ones if dot.accumulates else x, x, dot, accumulator)

    ones = np.ones(dot.group, dot.piece.numpy).tobytes()
    return _peak(threads, b, accumulator, product, ones, expected, 2 * dot.group)


def _peak(
    threads: int,
    b: LoopBuilder,
    element: ElementType,
    product: Callable[[Value, Value], Value],
    factor: bytes,
    expected: float,
    operations: int,
) -> float:
    """Billions of operations a second, `operations` in each lane of x = product(x, factor), from 0 to `expected`.

    The factor comes from memory, so that LLVM does not know it.
    """
    target = process_target()
    lanes, sums = target.vector_bits // element.bits, min(SUMS, target.vector_registers - 4)
    with b.function("peak", [memref((sums + 1, lanes), element), index], ["x", "n"]) as f:
        start = [b.vload(f["x"], [v, 0], lanes) for v in range(sums)]
        given = b.vload(f["x"], [sums, 0], lanes)
        with b.for_(0, f["n"], init=start, vectorize=False) as loop:
            loop.yield_(*[product(x, given) for x in loop.carried])
        for v, total in enumerate(loop.results):
            b.vstore(total, f["x"], [v, 0])
    module = default_engine().add_object(
        emit_object(emit_ir(b.functions, target), target, 3), exports=["peak"]
    )
    peak = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(module.address("peak"))
    size = (sums + 1) * lanes
    memory = [np.zeros(size + 16, element.numpy) for _ in range(threads)]
    aligned = [m[-m.ctypes.data % 64 // element.itemsize :][:size] for m in memory]
    for values in aligned:
        values[sums * lanes :] = np.frombuffer(factor, element.numpy)
    with ThreadPoolExecutor(threads) as pool:

        def run() -> None:
            for values in aligned:
                values[: sums * lanes] = 0
            # ctypes lets the interpreter's lock go while a function runs.
            list(pool.map(lambda values: peak(values.ctypes.data, REPEATS), aligned))

        once = seconds(run)
    for values in aligned:
        assert np.allclose(values[: sums * lanes], expected), "the loop computed something else"
    return threads * operations * lanes * sums * REPEATS / once / 1e9


def triad() -> float:
    """GB/s of b + s * c on arrays beyond the caches, with the threads that parallel loops use now."""
    b, c, s = Value(tensor((TRIAD,), f32)), Value(tensor((TRIAD,), f32)), Value(tensor((), f32))
    run = ArrayExecutable(
        Graph([b, c, s], [build.add(b, build.mul(c, build.broadcast_in_dim(s, (TRIAD,), ())))])
    )
    arrays = [_aligned(np.full(TRIAD, n, np.float32)) for n in (1, 2)] + [np.array(3, np.float32)]
    assert (run(arrays)[0] == 7).all()
    return 3 * 4 * TRIAD / seconds(lambda: run(arrays), rounds=5) / 1e9


def _aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy in memory as results have it: from a huge page's start on."""
    copy = new_array(array.shape, array.dtype)
    copy[...] = array
    return copy


def reading(threads: int) -> float:
    """GB/s of threads that only read, each an array of its own beyond the caches: half vectors, of which more than full ones
    are on their way at the same time."""
    target, lanes = process_target(), 8
    b = LoopBuilder(fma=has_fma(target))
    with b.function("reading", [memref((TRIAD,), f32), memref((SUMS, lanes), f32)], ["x", "y"]) as f:
        start = [b.constant(VectorType.get((lanes,), f32), 0.0)] * SUMS
        with b.for_(0, TRIAD, SUMS * lanes, init=start, vectorize=False) as loop:
            vectors = [b.vload(f["x"], [loop.index + v * lanes], lanes) for v in range(SUMS)]
            loop.yield_(*[b.fadd(x, y) for x, y in zip(loop.carried, vectors, strict=True)])
        for v, total in enumerate(loop.results):
            b.vstore(total, f["y"], [v, 0])
    module = default_engine().add_object(
        emit_object(emit_ir(b.functions, target), target, 3), exports=["reading"]
    )
    read = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(module.address("reading"))
    arrays = [_aligned(np.ones(TRIAD, np.float32)) for _ in range(threads)]
    sums = [_aligned(np.zeros(SUMS * lanes, np.float32)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        once = seconds(
            lambda: list(pool.map(lambda x, y: read(x.ctypes.data, y.ctypes.data), arrays, sums)), rounds=5
        )
    assert all(s.sum() == TRIAD for s in sums)
    return threads * 4 * TRIAD / once / 1e9


def measure(threads: Iterable[int]) -> Machine:
    """The limits of these numbers of threads. Parallel loops use the number of threads of before again afterwards."""
    target, before, found = process_target(), pools.num_threads(), []
    try:
        for count in threads:
            pools.set_num_threads(count)
            dots = dot_peak(count, bf16), dot_peak(count, i8)
            found.append(Limits(count, fma_peak(count), triad(), *dots, reading(count)))
    finally:
        pools.set_num_threads(before)
    return Machine(target.cpu, target.vector_bits, tuple(found))
