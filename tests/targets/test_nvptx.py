"""CUDA kernels: the LLVM IR that we emit against golden files, and what the PTX must contain.

Run with --update-golden to write the golden files anew, and read the difference.
"""

from __future__ import annotations

import re

import pytest

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import f16, f32, f64, i32, i64, memref
from flambeau.compiler.lowering.elements import ElementBuilder
from flambeau.compiler.schedule import cuda
from flambeau.compiler.targets import nvptx

N, M = dim("N"), dim("M")


def gelu() -> LoopBuilder:
    """A pointwise kernel over a grid, f16 to f32."""
    b = LoopBuilder()
    e = ElementBuilder(b, f16_instructions=True)
    with b.function("gelu", [memref((N,), f16), memref((N,), f32)], ["x", "y"], dims=[N]) as f:
        with cuda.grid_stride(b, N) as loop:
            x = e.convert(e.load(f["x"], [loop.index]), f32)
            half = e.mul(x, e.constant(0.5, f32))
            e.store(e.mul(half, e.add(e.constant(1, f32), e.mul(x, x))), f["y"], [loop.index])
    return b


def saxpy() -> LoopBuilder:
    b = LoopBuilder()
    with b.function("saxpy", [f32, memref((N,), f32), memref((N,), f32)], ["a", "x", "y"], dims=[N]) as f:
        with cuda.grid_stride(b, N) as loop:
            x, y = b.load(f["x"], [loop.index]), b.load(f["y"], [loop.index])
            b.store(b.fadd(b.fmul(f["a"], x), y), f["y"], [loop.index])
    return b


def row_sum() -> LoopBuilder:
    """One block a row."""
    b = LoopBuilder()
    with b.function("row_sum", [memref((N, M), f32), memref((N,), f32)], ["x", "y"], dims=[N, M]) as f:
        row, zero = cuda.block(b), b.const(f32, 0.0)
        with cuda.block_stride(b, M, [zero]) as loop:
            loop.yield_(b.fadd(loop.carried[0], b.load(f["x"], [row, loop.index])))
        total = cuda.block_reduce(b, loop.results[0], f32, zero, b.fadd)
        first = b.icmp("eq", b.index(cuda.thread(b)), b.index(0))
        b.if_(first, lambda: b.store(total, f["y"], [row]))
    return b


@pytest.mark.parametrize("kernel", [saxpy, gelu, row_sum], ids=lambda k: k.__name__)
def test_kernels_against_golden_files(kernel, golden):
    target = nvptx.gpu_target("sm_80")
    text = nvptx.emit_ir(kernel().functions, target).split("\n", 2)[2]  # the layout belongs to LLVM
    golden(f"{kernel.__name__}.ll", text)


def test_pointwise_ptx():
    ptx = nvptx.compile_functions(saxpy().functions, nvptx.gpu_target("sm_80"))
    assert ".target sm_80" in ptx and ".visible .entry saxpy(" in ptx
    assert re.search(r"ld\.global\.nc\.[bf]32", ptx)  # memrefs are global memory, and x is only read
    assert "fma.rn.f32" in ptx
    assert "mad.lo" in ptx or "mul.wide.u32" in ptx


def test_reduction_ptx():
    ptx = nvptx.compile_functions(row_sum().functions, nvptx.gpu_target("sm_80"))
    assert ptx.count("shfl.sync.bfly.b32") == 10
    assert ptx.count("bar.sync") == 2
    assert re.search(r"\.shared \.align 16 \.b8 \S+\[128\]", ptx)
    assert "st.shared" in ptx and "ld.shared" in ptx
    assert "fma" not in ptx


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sin", "pow", "erf"])
@pytest.mark.parametrize("element", [f32, f64], ids=repr)
def test_library_functions_need_nothing_on_the_device(name, element):
    b = LoopBuilder()
    e = ElementBuilder(b, f16_instructions=True)
    with b.function("f", [memref((N,), element), memref((N,), element)], ["x", "y"], dims=[N]) as f:
        with cuda.grid_stride(b, N) as loop:
            x = e.load(f["x"], [loop.index])
            e.store(e.math(name, x, x) if name == "pow" else e.math(name, x), f["y"], [loop.index])
    ptx = nvptx.compile_functions(b.functions, nvptx.gpu_target("sm_70"))
    assert "call" not in ptx and ".extern" not in ptx
    assert f"ld.global.nc.b{element.bits}" in ptx


@pytest.mark.parametrize(("element", "shuffles"), [(i32, 5), (i64, 10), (f64, 10)], ids=str)
def test_shuffles_of_words_and_pairs(element, shuffles):
    b = LoopBuilder()
    with b.function("f", [memref((32,), element)], ["x"]) as f:
        position = cuda.thread(b)
        combine = b.fadd if element.is_float else b.iadd
        b.store(cuda.warp_reduce(b, b.load(f["x"], [position]), combine), f["x"], [position])
    ptx = nvptx.compile_functions(b.functions, nvptx.gpu_target("sm_80"))
    assert ptx.count("shfl.sync.bfly.b32") == shuffles


def test_shuffles_of_halves_are_an_error():
    b = LoopBuilder()
    with b.function("f", [memref((32,), f16)], ["x"]) as f:
        b.store(cuda.warp_reduce(b, b.load(f["x"], [0]), b.fadd), f["x"], [0])
    with pytest.raises(CompilationError, match="words of 32 or 64 bits, got f16"):
        nvptx.compile_functions(b.functions, nvptx.gpu_target("sm_80"))


def test_nan_wins_maxima_on_the_device():
    b = LoopBuilder()
    with b.function("f", [memref((N,), f32)], ["x"], dims=[N]) as f, cuda.grid_stride(b, N) as loop:
        b.store(b.fmax(b.load(f["x"], [loop.index]), b.const(f32, 0.0)), f["x"], [loop.index])
    assert "max.NaN.f32" in nvptx.compile_functions(b.functions, nvptx.gpu_target("sm_80"))


@pytest.mark.parametrize("architecture", ["sm_60", "gfx90a", "90", "sm_", "sm_99"])
def test_old_and_unknown_architectures_are_an_error(architecture):
    with pytest.raises(CompilationError, match="from sm_70 on"):
        nvptx.gpu_target(architecture)


@pytest.mark.parametrize(
    ("architecture", "version"), [("sm_75", "6.3"), ("sm_87", "7.4"), ("sm_90a", "8.0"), ("sm_120", "8.7")]
)
def test_the_oldest_ptx_version_that_will_do(architecture, version):
    ptx = nvptx.compile_functions(saxpy().functions, nvptx.gpu_target(architecture))
    assert f".version {version}" in ptx
