"""Products of short elements by dot instructions, on this machine and as if it had fewer features, at awkward sizes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiled_code import compiled
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import ElementType, bf16, f32, i8, i32, tensor, u8
from flambeau.compiler.targets.dots import dot_instruction
from flambeau.compiler.targets.machine import cross_target, host_target
from flambeau.execution import Executable, run_graph

PAIRS = [(i8, i8), (u8, i8), (i8, u8), (u8, u8), (bf16, bf16)]
SIZES = st.integers(1, 70)


def numbers(element: ElementType, *shape: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(sum(shape))
    if element is bf16:
        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    low, high = (-128, 128) if element is i8 else (0, 256)
    return rng.integers(low, high, shape).astype(element.numpy)


def check(found: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    """`found` is a @ b: exactly, or as f32 sums of bf16 products are."""
    if a.dtype == ml_dtypes.bfloat16:
        exact = a.astype(np.float64) @ b.astype(np.float64)
        unit = 1e-6 if found.dtype == np.float32 else 4e-3
        np.testing.assert_allclose(
            found.astype(np.float64), exact, rtol=4 * unit, atol=4 * unit * max(1, a.shape[-1]) ** 0.5
        )
        return
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64))


def product(m: Any, n: Any, k: Any, left: bool, right: bool, a: ElementType, b: ElementType) -> Graph:
    x, y = Value(tensor((k, m) if left else (m, k), a)), Value(tensor((n, k) if right else (k, n), b))
    dot = DotGeneral((), (), (0 if left else 1,), (1 if right else 0,), f32 if a is bf16 else i32)
    return Graph([x, y], [apply(dot, x, y)])


@settings(max_examples=20, deadline=None)
@given(
    SIZES, SIZES, st.integers(0, 300), st.booleans(), st.booleans(), st.sampled_from(PAIRS), st.integers(1, 4)
)
def test_any_size_and_layout(
    m: int, n: int, k: int, left: bool, right: bool, pair: tuple[ElementType, ElementType], threads: int
) -> None:
    graph = product(m, n, k, left, right, *pair)
    a, b = numbers(pair[0], *((k, m) if left else (m, k))), numbers(pair[1], *((n, k) if right else (k, n)))
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    (found,) = run_graph(graph, [a, b])
    fb.set_num_threads(before)
    check(found, a.T if left else a, b.T if right else b)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("size", [(130, 70, 9001), (33, 500, 3000), (1, 300, 70), (300, 1, 70)], ids=str)
def test_blocks_and_columns(size: tuple[int, int, int], pair: tuple[ElementType, ElementType]) -> None:
    m, n, k = size
    a, b = numbers(pair[0], m, k), numbers(pair[1], k, n)
    check(run_graph(product(m, n, k, False, False, *pair), [a, b])[0], a, b)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("size", [(1, 70, 63), (3, 300, 64), (16, 33, 1030), (40, 2, 261)], ids=str)
def test_words_where_they_lie(size: tuple[int, int, int], pair: tuple[ElementType, ElementType]) -> None:
    """Both operands lie along K, and one has few rows: the scheme *dot*, with a last word that lacks elements."""
    m, n, k = size
    a, b = numbers(pair[0], m, k), numbers(pair[1], n, k)
    check(run_graph(product(m, n, k, False, True, *pair), [a, b])[0], a, b.T)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("pair", [(bf16, bf16), (u8, i8)], ids=str)
def test_batches(pair: tuple[ElementType, ElementType], right: bool) -> None:
    """A's words as they lie, panels of B on the stack of each task; on two threads."""
    m, n, k = 37, 70, 68
    x = Value(tensor((5, m, k), pair[0]))
    y = Value(tensor((5, n, k) if right else (5, k, n), pair[1]))
    dot = DotGeneral((0,), (0,), (2,), (2 if right else 1,), f32 if pair[0] is bf16 else i32)
    a, b = numbers(pair[0], 5, m, k), numbers(pair[1], 5, *((n, k) if right else (k, n)))
    before = fb.get_num_threads()
    fb.set_num_threads(2)
    (found,) = run_graph(Graph([x, y], [apply(dot, x, y)]), [a, b])
    fb.set_num_threads(before)
    check(found, a, b.swapaxes(1, 2) if right else b)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_symbolic_sizes(pair: tuple[ElementType, ElementType]) -> None:
    graph = product(dim("M"), dim("N"), dim("K"), False, True, *pair)
    for m, n, k in ((1, 1, 1), (13, 33, 66), (64, 20, 1501)):
        a, b = numbers(pair[0], m, k), numbers(pair[1], n, k)
        check(run_graph(graph, [a, b])[0], a, b.T)


def test_extremes() -> None:
    """The largest products, summed until they wrap."""
    k = 140_000
    for pair in PAIRS[:4]:
        low = [-128 if e is i8 else 255 for e in pair]
        a, b = np.full((2, k), low[0], pair[0].numpy), np.full((k, 3), low[1], pair[1].numpy)
        (found,) = run_graph(product(2, 3, k, False, False, *pair), [a, b])
        wrapped = np.int64(low[0]) * low[1] * k
        np.testing.assert_array_equal(found, np.full((2, 3), wrapped).astype(np.int32))


def test_computed_operands_and_an_epilogue() -> None:
    """Both operands pass through element functions, in batches; the result through a scale and a conversion."""
    x, y = Value(tensor((3, 20, 50), f32)), Value(tensor((3, 50, 40), f32))
    whole = [build.convert(v, i8) for v in (x, y)]
    dot = apply(DotGeneral((0,), (0,), (2,), (1,), i32), *whole)
    graph = Graph([x, y], [build.mul(build.convert(dot, f32), 0.5)])
    a, b = (numbers(i8, *shape).astype(np.float32) for shape in ((3, 20, 50), (3, 50, 40)))
    np.testing.assert_array_equal(run_graph(graph, [a, b])[0], (a.astype(np.float64) @ b) * 0.5)


def test_bytes_that_stay_bytes() -> None:
    """Without a wider type the product wraps as PyTorch's does."""
    a, b = numbers(i8, 20, 30), numbers(i8, 30, 40)
    found = (fb.from_numpy(a) @ fb.from_numpy(b)).numpy()
    np.testing.assert_array_equal(found, (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int8))


@settings(max_examples=12, deadline=None)
@given(
    SIZES, st.integers(16, 100), st.integers(2, 200), st.booleans(), st.sampled_from(PAIRS), st.integers(1, 4)
)
def test_weights(
    m: int, n: int, k: int, right: bool, pair: tuple[ElementType, ElementType], threads: int
) -> None:
    """B lies in panels of words, made of a weight once."""
    graph = product(m, n, k, False, right, *pair)
    a, b = numbers(pair[0], m, k), numbers(pair[1], *((n, k) if right else (k, n)))
    made, _ = compiled(graph, (1,))
    assert bool(made.layouts) == (dot_instruction(*pair, host_target()) is not None)
    executable = Executable(graph, made)
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    types = [((m, n), np.dtype(np.float32 if pair[0] is bf16 else np.int32))]
    held = executable.hold([b], [layout.definition.reference(b) for layout in made.layouts])
    (found,) = executable.run_into([a], types, {}, held=held)
    fb.set_num_threads(before)
    check(found, a, b.T if right else b)


def test_deep_weights_and_two_uses() -> None:
    """Several blocks of K; one weight that meets signed and unsigned bytes."""
    w = fb.from_numpy(numbers(i8, 9001, 70)).clone()
    f = fb.compile(lambda x, y: (fb._int_mm(x, w), fb._int_mm(y, w)))
    for m in (1, 5, 40):
        a, b = numbers(i8, m, 9001), numbers(u8, m, 9001)
        for found, x in zip(f(fb.from_numpy(a), fb.from_numpy(b)), (a, b), strict=True):
            check(found.numpy(), x, w.numpy())


X86 = "x86_64-unknown-linux-gnu"
ARM = "aarch64-unknown-linux-gnu"


@pytest.mark.parametrize(
    ("triple", "cpu", "features", "bytes_of", "halves"),
    [
        (X86, "", "", "sse2.pmadd.wd", ""),
        (X86, "haswell", "", "avx2.pmadd.wd", ""),
        (X86, "znver4", "", "vpdpbusd.512", "dpbf16ps.512"),
        (X86, "", "+avx512f,+avx512bw", "pmaddw.d.512", ""),
        (X86, "", "+avx,+avx2,+avxvnni", "vpdpbusd.256", ""),
        (X86, "", "+avx512f,+avx512vnni,+avx512bf16", "vpdpbusd.512", "dpbf16ps.512"),
        (ARM, "", "", "", ""),
        (ARM, "", "+neon,+dotprod", "sdot", ""),
        (ARM, "", "+neon,+dotprod,+i8mm,+bf16", "sdot", "bfdot"),
        (ARM, "neoverse-n1", "", "sdot", ""),
        ("wasm32-wasi", "", "+simd128", "", ""),
    ],
)
def test_which_instruction(triple: str, cpu: str, features: str, bytes_of: str, halves: str) -> None:
    target = cross_target(triple, cpu, features)
    for wanted, element in ((bytes_of, i8), (halves, bf16)):
        found = dot_instruction(element, element, target)
        assert (found is not None) == bool(wanted)
        assert found is None or wanted in found.intrinsic
