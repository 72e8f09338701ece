"""Contractions compiled for this machine, at awkward sizes, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flambeau.compiler.ir import dims
from flambeau.compiler.ir import types as T
from flambeau.compiler.lowering.microkernel import CHAIN, chain_length
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from tests.lowering.contraction_harness import Case, Kernel

SIZES = [
    (1, 1, 1),
    (3, 3, 0),
    (2, 33, 1),
    (17, 19, 23),
    (13, 47, 130),
    (127, 10, 784),
    (1, 100, 64),
    (100, 1, 64),
]


@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_layouts(size: tuple[int, int, int], transposed: str) -> None:
    Kernel(Case((), *size, transposed=transposed)).check()


@pytest.mark.parametrize("transposed", ["", "a", "b"])
@pytest.mark.parametrize("plain", ["", "a", "b"])
def test_element_functions(plain: str, transposed: str) -> None:
    Kernel(Case((), 29, 65, 70, transposed=transposed, plain=plain, bias=True)).check()


@pytest.mark.parametrize(
    ("case", "scheme"),
    [
        (Case((), 127, 127, 127), "direct"),
        (Case((3, 2), 20, 33, 40), "direct"),
        (Case((), 128, 40, 70, transposed="b"), "panel"),
        (Case((5,), 40, 40, 20, transposed="b"), "panel"),
        (Case((), 12, 1500, 300), "direct"),
        (Case((), 5, 1500, 300), "direct"),
        (Case((), 3, 200, 300, transposed="b"), "dot"),
        (Case((), 700, 1, 300), "dot"),
        (Case((), 150, 260, 1300), "direct"),
        (Case((), 150, 260, 1300, transposed="a"), "direct"),
        (Case((), 150, 256, 2100), "packed"),
        (Case((), 300, 70, 900, transposed="b", threads=2), "panel"),
        (Case((), 200, 1024, 701, threads=2), "panel"),
        (Case((), 20, 1024, 500), "packed"),
        (Case((), 30, 1024, 500), "few"),
        (Case((), 30, 1100, 500), "direct"),
        (Case((), 37, 2048, 330, threads=2), "few"),
        (Case((), 100, 700, 500, transposed="b", threads=2), "few"),
        (Case((), 13, 70, 165, transposed="ab"), "few"),
        (Case((), 33, 333, 2100, bias=True, threads=2), "packed"),
        (Case((2,), 30, 70, 900, plain=""), "packed"),
    ],
    ids=str,
)
def test_schemes(case: Case, scheme: str) -> None:
    for bias in (False, True):
        kernel = Kernel(replace(case, bias=bias, cpu=CpuShape()))
        assert kernel.schedule.scheme == scheme
        kernel.check()


@pytest.mark.parametrize("transposed", ["", "b"])
@pytest.mark.parametrize("rows", [23, 24, 38, 40])
def test_rows_that_fit_vectors_of_half_the_width(rows: int, transposed: str) -> None:
    for columns, threads in [(2048, 2), (1007, 1)]:
        kernel = Kernel(
            Case(
                (),
                rows,
                columns,
                600,
                transposed=transposed,
                cpu=replace(CpuShape(), halved=True, l2=1 << 18),
                threads=threads,
                bias=True,
            )
        )
        s = kernel.schedule
        assert (s.scheme, s.lanes, s.vectors) in [("few", 8, 3), ("few", 8, 5)]
        kernel.check()


@pytest.mark.parametrize("size", [(64, 96, 128), (65, 97, 129), (8, 32, 4), (7, 31, 3)], ids=str)
@pytest.mark.parametrize("symbolic", ["M", "MN", "MNK"])
def test_whole_tiles_of_unknown_numbers(size: tuple[int, int, int], symbolic: str) -> None:
    for transposed in ("", "b"):
        Kernel(Case((), *size, transposed=transposed, symbolic=symbolic, threads=2)).check()


@pytest.mark.parametrize("symbolic", ["M", "N", "K", "MNK"])
@pytest.mark.parametrize("transposed", ["", "b"])
@pytest.mark.parametrize("plain", ["ab", ""])
def test_symbolic_extents(plain: str, transposed: str, symbolic: str) -> None:
    kernel = Kernel(Case((), 45, 71, 500, plain=plain, transposed=transposed, symbolic=symbolic, bias=True))
    kernel.check()


@pytest.mark.parametrize("transposed", ["", "b"])
@pytest.mark.parametrize(
    ("element", "accumulator", "result"),
    [
        (T.f64, T.f64, T.f64),
        (T.bf16, T.f32, T.bf16),
        (T.f16, T.f32, T.f16),
        (T.f16, T.f32, T.f32),
        (T.i32, T.i32, T.i32),
        (T.i64, T.i64, T.i64),
        (T.i8, T.i32, T.i32),
        (T.u8, T.i32, T.i32),
    ],
    ids=str,
)
def test_element_types(
    element: T.ElementType, accumulator: T.ElementType, result: T.ElementType, transposed: str
) -> None:
    for size in [(17, 40, 33), (1, 40, 70), (40, 1, 70), (37, 50, 600)]:
        Kernel(Case((), *size, transposed, "ab", element, accumulator, result)).check()


@pytest.mark.parametrize("bits", [32, 128, 256, 512])
@pytest.mark.parametrize("registers", [16, 32])
def test_other_vector_widths(bits: int, registers: int) -> None:
    cpu = CpuShape(bits, registers, 4096, 65536)
    for transposed, plain in [("", "ab"), ("b", "ab"), ("a", "")]:
        Kernel(Case((), 31, 45, 300, transposed, plain, cpu=cpu)).check()


def test_scalar_epilogue() -> None:
    Kernel(Case((), 31, 45, 30, bias=True, vector_store=False)).check()
    Kernel(Case((), 131, 145, 900, bias=True, vector_store=False)).check()


@pytest.mark.parametrize(
    "case",
    [
        Case((3,), 45, 70, 40),
        Case((), 127, 300, 127, "b"),
        Case((), 4, 3000, 300, bias=True),
        Case((), 3, 500, 300, "b"),
        Case((2,), 300, 260, 1000, plain=""),
        Case((), 300, 260, 1000, "b", symbolic="MNK", bias=True),
    ],
    ids=str,
)
def test_threads(case: Case) -> None:
    Kernel(replace(case, threads=2)).check()


@pytest.mark.parametrize("size", [(40, 50, 2048), (200, 300, 4096), (30, 1500, 1000)], ids=str)
def test_long_sums_are_summed_in_parts(size: tuple[int, int, int]) -> None:
    """One chain of k additions has an error of about 0.2 k eps; parts of c have one of about 0.2 sqrt(c k) eps."""
    kernel = Kernel(Case((), *size))
    kernel.check()
    arguments, expected = kernel.arguments()
    kernel.call(*arguments)
    error = kernel.c[:-64].reshape(expected.shape).astype(np.float64) - expected
    k = size[2]
    assert np.sqrt(np.mean(error**2)) < 0.3 * np.sqrt(128 * k) * np.finfo(np.float32).eps
    assert 0.3 * np.sqrt(128 * k) < 0.15 * k


def test_chains_divide_the_depth_where_they_can() -> None:
    assert [chain_length(k, 4) for k in (256, 512, 768, 784, 4096)] == [128, 128, 128, 112, 128]
    assert chain_length(1009, 4) == CHAIN and chain_length(dims.dim("K"), 4) == CHAIN
