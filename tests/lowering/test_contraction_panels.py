"""Products whose right side lies in panels (`graph.pack_panels`), at awkward sizes, widths and numbers of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.packing import PackPanels, UnpackPanels
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import ElementType, f32, f64, tensor
from flambeau.compiler.schedule.cpu_contraction import CpuShape, OperandFacts, choose, panel_width
from flambeau.execution import ArrayExecutable, run_graph

SIZES = st.integers(1, 70)


def product(
    definition: DotGeneral, x: Value, shape: tuple[int, ...], element: ElementType, width: int
) -> tuple[Value, Graph]:
    """x times a weight of `shape`: the weight, and the graph that packs it and multiplies."""
    w = Value(tensor(shape, element))
    assert isinstance(x.type, type(w.type))
    axes = definition.contraction(x.type, w.type).rhs_axes  # type: ignore[arg-type]
    assert axes is not None
    packed = apply(PackPanels(*axes, width), w)
    unpacked = apply(UnpackPanels(*axes, width, shape), packed)
    return w, Graph([x, w], [build.add(apply(definition, x, unpacked), 1.0)])


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


@settings(max_examples=25, deadline=None)
@given(SIZES, SIZES, SIZES, st.sampled_from([16, 32, 48, 64, 5]), st.booleans(), st.integers(1, 4))
def test_any_size_and_width(m: int, n: int, k: int, width: int, transposed: bool, threads: int) -> None:
    definition = DotGeneral((), (), (1,), (1 if transposed else 0,))
    x = Value(tensor((m, k), f32))
    shape = (n, k) if transposed else (k, n)
    _, graph = product(definition, x, shape, f32, width)
    a, b = numbers(m, k).astype(np.float32), numbers(*shape).astype(np.float32)
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    (found,) = run_graph(graph, [a, b])
    fb.set_num_threads(before)
    exact = a.astype(np.float64) @ (b.T if transposed else b) + 1
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5 * k**0.5)


@pytest.mark.parametrize(("m", "n", "k"), [(300, 100, 40), (17, 65, 9000), (9, 48, 70_000), (1000, 33, 513)])
def test_sizes_beyond_the_caches(m: int, n: int, k: int) -> None:
    """Several tasks of rows; blocks of K."""
    x = Value(tensor((m, k), f32))
    _, graph = product(DotGeneral((), (), (1,), (0,)), x, (k, n), f32, 48)
    a, b = numbers(m, k).astype(np.float32), numbers(k, n).astype(np.float32)
    (found,) = run_graph(graph, [a, b])
    np.testing.assert_allclose(found, a.astype(np.float64) @ b + 1, rtol=1e-5, atol=1e-5 * k**0.5)


def test_an_operand_that_is_computed() -> None:
    """A is no memory: it is packed through its element function."""
    x, w = Value(tensor((33, 50), f64)), Value(tensor((50, 40), f64))
    packed = apply(PackPanels((), (1,), (0,), 16), w)
    unpacked = apply(UnpackPanels((), (1,), (0,), 16, (50, 40)), packed)
    graph = Graph([x, w], [build.matmul(build.neg(x), unpacked)])
    a, b = numbers(33, 50), numbers(50, 40)
    np.testing.assert_allclose(run_graph(graph, [a, b])[0], -a @ b, rtol=1e-12, atol=1e-12)


def test_batches_and_several_axes() -> None:
    definition = DotGeneral((0,), (2,), (3, 1), (0, 3))
    x = Value(tensor((3, 6, 20, 5), f32))
    _, graph = product(definition, x, (5, 18, 3, 6, 2), f32, 32)
    a, b = numbers(3, 6, 20, 5).astype(np.float32), numbers(5, 18, 3, 6, 2).astype(np.float32)
    (found,) = ArrayExecutable(graph)([a, b])
    np.testing.assert_allclose(found, np.einsum("bkmj,jnbkl->bmnl", a, b) + 1, rtol=1e-4, atol=1e-4)


def test_symbolic_rows() -> None:
    x = Value(tensor((dim("M"), 40), f32))
    _, graph = product(DotGeneral((), (), (1,), (0,)), x, (40, 50), f32, 32)
    b = numbers(40, 50).astype(np.float32)
    for m in (1, 2, 8, 9, 100):
        a = numbers(m, 40).astype(np.float32)
        np.testing.assert_allclose(run_graph(graph, [a, b])[0], a @ b + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cpu", [CpuShape(512, 32), CpuShape(256, 16), CpuShape(128, 32), CpuShape(128, 16)])
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_tiles_fit_the_registers(cpu: CpuShape, m: int, n: int, k: int) -> None:
    width = panel_width(m, n, k, f32, cpu)
    lanes = cpu.vector_bits // 32
    assert width % lanes == 0
    if width:
        plain = OperandFacts(True, False, True)
        s = choose(m, n, k, f32, plain, OperandFacts(False, False, False, width), cpu)
        assert s.columns == width and 1 <= s.rows <= max(m, 1)
        assert s.rows * s.vectors + s.vectors + 1 <= cpu.registers
        assert s.task_rows % s.rows == 0 and s.task_columns % s.columns == 0
