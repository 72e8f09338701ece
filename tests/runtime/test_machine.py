"""Target descriptions and the LLVM pipeline."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from flambeau.compiler.targets.machine import (
    CodegenError,
    cross_target,
    emit_assembly,
    emit_object,
    host_target,
    normalize_triple,
    optimize,
)
from flambeau.runtime import abi
from flambeau.runtime.engine import default_engine

# out[i] = a[i] + b[i] for i < 4096
ADD = """
define void @add(ptr noalias %out, ptr noalias %a, ptr noalias %b) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %pa = getelementptr inbounds float, ptr %a, i64 %i
  %pb = getelementptr inbounds float, ptr %b, i64 %i
  %po = getelementptr inbounds float, ptr %out, i64 %i
  %x = load float, ptr %pa
  %y = load float, ptr %pb
  %z = fadd float %x, %y
  store float %z, ptr %po
  %next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %next, 4096
  br i1 %more, label %loop, label %exit
exit:
  ret void
}
"""


@pytest.mark.parametrize(
    ("triple", "cpu", "caches"),
    [
        ("aarch64-linux-gnu", "neoverse-n1", (64, 1024, 32768)),
        ("aarch64-macos", "apple-m1", (128, 3072, 8192)),
        ("aarch64-linux-gnu", "cortex-a72", (32, 256, 1024)),
        ("x86_64-linux-gnu", "skylake-avx512", (32, 1024, 24576)),
        ("aarch64-linux-gnu", "", (32, 512, 8192)),
    ],
)
def test_caches_of_cpus_by_name(triple: str, cpu: str, caches: tuple[int, int, int]) -> None:
    target = cross_target(triple, cpu)
    assert (target.l1_bytes, target.l2_bytes, target.l3_bytes) == tuple(size << 10 for size in caches)


def test_host_target_describes_this_machine() -> None:
    host = host_target()
    assert host is host_target()
    assert host.vector_bits in (64, 128, 256, 512) and host.vector_registers >= 8
    assert 8 << 10 <= host.l1_bytes <= host.l2_bytes <= host.l3_bytes or host.l3_bytes == 8 << 20
    assert host.pointer_bits == 64 and host.data_layout


@pytest.mark.parametrize(
    ("triple", "cpu", "features", "bits", "registers", "pointer"),
    [
        ("x86_64-linux-gnu", "", "", 128, 16, 64),
        ("x86_64-linux-gnu", "x86-64-v3", "", 256, 16, 64),
        ("x86_64-linux-gnu", "skylake-avx512", "", 512, 32, 64),
        ("x86_64-linux-gnu", "", "+avx2,+fma", 256, 16, 64),
        ("aarch64-linux-gnu", "", "", 128, 32, 64),
        ("aarch64-macos", "apple-m1", "", 128, 32, 64),
        ("wasm32-unknown-unknown", "", "+simd128", 128, 16, 32),
        ("wasm32-unknown-unknown", "", "", 64, 16, 32),
        ("riscv64-linux-gnu", "", "", 64, 16, 64),
    ],
)
def test_cross_targets_vectors(
    triple: str, cpu: str, features: str, bits: int, registers: int, pointer: int
) -> None:
    target = cross_target(triple, cpu, features)
    assert (target.vector_bits, target.vector_registers, target.pointer_bits) == (bits, registers, pointer)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x86_64-windows-gnu", "x86_64-pc-windows-gnu"),
        ("aarch64-linux-musl", "aarch64-unknown-linux-musl"),
        ("aarch64-macos", "arm64-apple-macosx11.0"),
        ("x86_64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"),
        ("arm64-apple-darwin23", "arm64-apple-darwin23"),
        ("nvptx64-nvidia-cuda", "nvptx64-nvidia-cuda"),
    ],
)
def test_normalize_triple(given: str, expected: str) -> None:
    assert normalize_triple(given) == expected


@pytest.mark.parametrize(
    ("triple", "magic"),
    [
        ("x86_64-linux-gnu", b"\x7fELF"),
        ("x86_64-windows-gnu", b"\x64\x86"),
        ("aarch64-macos", b"\xcf\xfa\xed\xfe"),
        ("wasm32-unknown-unknown", b"\0asm"),
    ],
)
def test_object_format_is_the_targets(triple: str, magic: bytes) -> None:
    assert emit_object(ADD, cross_target(triple)).startswith(magic)


def test_loops_are_vectorised_from_level_2_on() -> None:
    target = cross_target("x86_64-linux-gnu", "x86-64-v3")
    assert "<8 x float>" in optimize(ADD, target, 2)
    assert "<8 x float>" in optimize(ADD, target, 3)
    assert "x float>" not in optimize(ADD, target, 1)
    assert "ymm" in emit_assembly(ADD, target)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_makes_code_that_runs(level: int) -> None:
    module = default_engine().add_object(emit_object(ADD, host_target(), level))
    a, b, out = np.arange(4096, dtype=np.float32), np.ones(4096, np.float32), np.zeros(4096, np.float32)
    types = [ctypes.c_void_p] * 3
    ctypes.CFUNCTYPE(None, *types)(module.address("add"))(out.ctypes.data, a.ctypes.data, b.ctypes.data)
    np.testing.assert_array_equal(out, a + 1)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_unused_native_functions_are_dropped(level: int) -> None:
    code = emit_object(ADD, host_target(), level, link=[abi.pool_ir(host_target().triple)])
    assert b"fb_pool" not in code


def test_level_1_cleans_up() -> None:
    text = """
define i32 @f(i32 %x) {
  %slot = alloca i32
  store i32 %x, ptr %slot
  %y = load i32, ptr %slot
  %z = add i32 %y, 0
  ret i32 %z
}
"""
    assert "ret i32 %x" in optimize(text, host_target(), 1)
    assert "alloca" in optimize(text, host_target(), 0)


def test_linked_modules_are_inlined() -> None:
    text = (
        "declare i32 @helper(i32)\ndefine i32 @f(i32 %x) {\n  %r = call i32 @helper(i32 %x)\n  ret i32 %r\n}"
    )
    helper = "define linkonce_odr hidden i32 @helper(i32 %x) {\n  %r = add i32 %x, 41\n  ret i32 %r\n}"
    result = optimize(text, host_target(), link=[helper])
    assert "add i32 %x, 41" in result and "@helper" not in result


def test_same_input_same_bytes() -> None:
    assert emit_object(ADD, host_target()) == emit_object(ADD, host_target())


def test_errors_show_the_line() -> None:
    with pytest.raises(CodegenError, match=r"line 2 of the module: ret i64 1"):
        emit_object("define i32 @f() {\n  ret i64 1\n}", host_target())
    with pytest.raises(CodegenError, match="no code generator for target 'nonsense'"):
        cross_target("nonsense")
