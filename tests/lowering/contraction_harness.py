"""Builds one contraction as a kernel for this machine and runs it on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flambeau.compiler.ir import dims
from flambeau.compiler.ir import types as T
from flambeau.compiler.lowering.contraction import emit, workspace_elements
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.contraction_problem import (
    Contraction,
    Operand,
    Plain,
    into_buffer,
    plain_operand,
)
from flambeau.compiler.schedule.cpu_contraction import ContractionSchedule, CpuShape, cpu_shape
from flambeau.compiler.targets.machine import host_target
from flambeau.runtime import threads
from tests.loops.jit import aligned, compiled, new_builder


@dataclass(frozen=True)
class Case:
    """C[batch, m, n] = A @ B (+ bias). `transposed` names the operands stored transposed; `element` through element
    functions (those in `plain` are direct); `symbolic` the extents that the kernel does not know."""

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    transposed: str = ""
    plain: str = "ab"
    element: T.ElementType = T.f32
    accumulator: T.ElementType | None = None
    result: T.ElementType | None = None
    bias: bool = False
    symbolic: str = ""
    vector_store: bool = True
    cpu: CpuShape | None = None
    threads: int = 1

    def shapes(self, m: Any, n: Any, k: Any) -> tuple[Any, Any, Any]:
        """Of A, B and C as stored."""
        a = (*self.batch, k, m) if "a" in self.transposed else (*self.batch, m, k)
        b = (*self.batch, n, k) if "b" in self.transposed else (*self.batch, k, n)
        return a, b, (*self.batch, m, n)


class Kernel:
    """The compiled kernel of a case; `schedule` is what the template chose."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.acc = acc = case.accumulator or case.element
        self.out = case.result or acc
        self.cpu = case.cpu or cpu_shape(host_target())
        self.sizes = {"M": case.m, "N": case.n, "K": case.k}
        self.builder = new_builder()
        extents = [dims.dim(name) if name in case.symbolic else size for name, size in self.sizes.items()]
        m, n, k = extents
        a, b, c = case.shapes(m, n, k)
        types: list[T.Type] = [T.memref(a, case.element), T.memref(b, case.element), T.memref(c, self.out)]
        types += [T.memref((n,), acc), T.memref((1,), acc), T.pointer]
        symbols = [d for d in extents if isinstance(d, dims.Dim)]
        names = ["a", "b", "c", "bias", "workspace", "pool"]
        with self.builder.function("kernel", types, names, dims=symbols, pool="pool") as f:
            problem = self.problem(f, extents)
            self.schedule: ContractionSchedule = emit(
                LoopEmitter(self.builder), problem, self.cpu, f["workspace"]
            )
        self.workspace = dims.evaluate(workspace_elements(problem, self.cpu), self.sizes)
        self.call: Callable[..., None] = compiled(self.builder, "kernel", symbols=threads.native_symbols())

    def problem(self, f: Any, extents: list[Any]) -> Contraction:
        case, acc, emitter = self.case, self.acc, LoopEmitter(self.builder)
        rank = len(case.batch)
        axes = list(range(rank))

        def operand(name: str, shape: Any, swapped: bool) -> Operand:
            order = (axes, rank + 1, rank) if swapped else (axes, rank, rank + 1)
            found = plain_operand(emitter, f[name], case.element, shape, order, acc)
            return found if name in case.plain else replace(found, plain=None)

        result = Plain(f["c"], self.out, lambda at, i, j: (*at, i, j), unit_depth=True)
        write = into_buffer(emitter, result, acc)

        def store(b: Any, at: Any, i: Any, j: Any, value: Any) -> None:
            write(b, at, i, j, emitter.add(value, b.load(f["bias"], (j,)), acc) if case.bias else value)

        a, b, _ = case.shapes(*extents)
        return Contraction(
            case.batch,
            *extents,
            acc,
            operand("a", a, "a" in case.transposed),
            operand("b", b, "b" not in case.transposed),
            store,
            result if self.out is acc else None,
            vector_store=case.vector_store,
        )

    def arguments(self) -> tuple[list[Any], np.ndarray[Any, Any]]:
        """Random arguments, guarded behind the end, and the expected result."""
        case = self.case
        rng = np.random.default_rng(0)

        def numbers(shape: Any, element: T.ElementType) -> Any:
            drawn = rng.standard_normal(shape) if element.is_float else rng.integers(-9, 10, shape)
            return aligned(
                np.abs(drawn).astype(element.numpy) if element.kind == "uint" else drawn.astype(element.numpy)
            )

        a_shape, b_shape, c_shape = case.shapes(case.m, case.n, case.k)
        a, b, bias = numbers(a_shape, case.element), numbers(b_shape, case.element), numbers(case.n, self.acc)
        poison = np.nan if self.acc.is_float else 77
        self.c = aligned(np.full(int(np.prod(c_shape)) + 64, poison, self.out.numpy))
        self.scratch = aligned(np.full(self.workspace + 64, poison, self.acc.numpy))
        wide: Any = np.float64 if self.acc.is_float else np.int64
        left = a.astype(wide).swapaxes(-1, -2) if "a" in case.transposed else a.astype(wide)
        right = b.astype(wide).swapaxes(-1, -2) if "b" in case.transposed else b.astype(wide)
        expected = left @ right + (bias.astype(wide) if case.bias else 0)
        return [
            a,
            b,
            self.c,
            bias,
            self.scratch,
            None,
            *[self.sizes[s] for s in "MNK" if s in case.symbolic],
        ], expected

    def check(self) -> None:
        """Run once; compare with NumPy, and see that nothing was written behind the result or the workspace."""
        arguments, expected = self.arguments()
        pool = threads.create_pool(self.case.threads) if self.case.threads > 1 else None
        arguments[5] = None if pool is None else ctypes.c_void_p(pool)
        self.call(*arguments)
        if pool is not None:
            threads.destroy_pool(pool)
        guard = (lambda x: np.isnan(x).all()) if self.acc.is_float else (lambda x: (x == 77).all())
        assert guard(self.c[-64:].astype(self.acc.numpy)) and guard(self.scratch[self.workspace :])
        actual = self.c[:-64].reshape(expected.shape)
        if not self.acc.is_float:
            np.testing.assert_array_equal(actual, expected.astype(self.out.numpy))
            return
        # A sum of k products of order one: the error grows like the root of k.
        unit = {"f64": 1e-15, "f32": 1e-6, "f16": 1e-2, "bf16": 1e-2}[self.out.name]
        np.testing.assert_allclose(
            actual.astype(np.float64), expected, rtol=4 * unit, atol=4 * unit * (1 + self.case.k) ** 0.5
        )
