"""LLVM text: linkage, globals, attributes, hints; and objects for other machines."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.loops import gpu
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import VectorType, bf16, f16, f32, f64, i1, i8, i64, memref, pointer
from flambeau.compiler.lowering.elements import ElementBuilder
from flambeau.compiler.targets.cpu import compile_functions, emit_ir, has_f16_conversion, has_fma
from flambeau.compiler.targets.llvm import literal, llvm_type, suffix
from flambeau.compiler.targets.machine import cross_target, emit_assembly, host_target, optimize
from tests.loops.jit import aligned, compiled

N = dim("N")
TRIPLES = {
    "x86_64-unknown-linux-gnu": b"\x7fELF",
    "aarch64-unknown-linux-gnu": b"\x7fELF",
    "arm64-apple-macosx": b"\xcf\xfa\xed\xfe",
    "x86_64-pc-windows-msvc": b"\x64\x86",
    "wasm32-unknown-unknown": b"\x00asm",
    "riscv64-unknown-linux-gnu": b"\x7fELF",
}


def softplus(fma: bool, f16_instructions: bool) -> LoopBuilder:
    """A parallel kernel with library functions and conversions."""
    b = LoopBuilder(fma)
    e = ElementBuilder(b, f16_instructions)
    arguments = [pointer, memref((N, 64), f16), memref((N, 64), bf16)]
    with (
        b.function("softplus", arguments, ["pool", "x", "y"], dims=[N], pool="pool") as f,
        b.parallel(N) as row,
    ):
        with b.for_(0, 64, independent=True) as column:
            x = e.convert(e.load(f["x"], [row.index, column.index]), f32)
            y = e.math("log1p", e.math("exp", x))
            e.store(e.convert(y, bf16), f["y"], [row.index, column.index])
    return b


@pytest.mark.parametrize("triple", TRIPLES)
def test_every_architecture_gets_an_object(triple):
    target = cross_target(triple)
    b = softplus(has_fma(target), has_f16_conversion(target))
    assert compile_functions(b.functions, target).startswith(TRIPLES[triple])


@pytest.mark.parametrize("triple", ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"])
def test_elements_call_no_library(triple):
    """On the base line, too: no libm, no conversion functions of the compiler's run time."""
    target = cross_target(triple)
    b = softplus(has_fma(target), has_f16_conversion(target))
    assembly = emit_assembly(emit_ir(b.functions, target), target)
    calls = [
        line.split()[-1]
        for line in assembly.splitlines()
        if line.split()[:1] in (["callq"], ["call"], ["bl"])
    ]
    assert {c.split("@")[0] for c in calls} <= {"fb_parallel_for", "softplus.parallel1.body"}


def test_vectorised_on_this_machine():
    target = host_target()
    b = softplus(has_fma(target), has_f16_conversion(target))
    lanes = target.vector_bits // 32
    assert f"<{lanes} x float>" in optimize(emit_ir(b.functions, target), target)


def test_only_the_entry_is_visible():
    target = host_target()
    text = emit_ir(softplus(True, True).functions, target)
    heads = [line for line in text.splitlines() if line.startswith("define")]
    assert [h.split("@")[1].split("(")[0] for h in heads if not h.startswith("define internal")] == [
        "softplus"
    ]
    assert len(heads) == 5  # two library functions, the body, its unpacking, the entry


def test_hints_become_loop_metadata():
    b = LoopBuilder()
    with b.function("f", [memref((N,), f32)], ["x"], dims=[N]) as f:
        with b.for_(0, N, independent=True, unroll=4) as loop:
            b.store(b.const(f32, 1.0), f["x"], [loop.index])
        with b.for_(0, N, unroll=1, vectorize=False) as loop:
            b.store(b.const(f32, 1.0), f["x"], [loop.index])
    text = emit_ir(b.functions, host_target())
    for hint in ("vectorize.enable", "unroll.count", "parallel_accesses", "unroll.disable"):
        assert text.count(f"llvm.loop.{hint}") == 1
    assert text.count("!llvm.access.group") == 1


def test_accesses_to_private_buffers_are_not_called_independent():
    """A buffer on the stack is one for all iterations."""
    b = LoopBuilder()
    with b.function("f", [memref((N,), f32)], ["x"], dims=[N]) as f:
        with b.for_(0, N, independent=True) as loop:
            local = b.alloca((4,), f32)
            b.store(b.load(f["x"], [loop.index]), local, [0])
            b.store(b.load(local, [0]), f["x"], [loop.index])
    lines = [line for line in emit_ir(b.functions, host_target()).splitlines() if "align 4" in line]
    assert ["access.group" in line for line in lines if " load " in line or " store " in line] == [
        True,
        False,
        False,
        True,
    ]


def test_globals_inside_the_module():
    weights = aligned(np.arange(6, dtype=np.float32))
    b = LoopBuilder()
    with b.function("f", [memref((6,), f32)], ["y"]) as f:
        w = b.get_global("weights", (2, 3), f32)
        with b.for_(0, 2) as i, b.for_(0, 3) as j:
            b.store(b.load(w, [i.index, j.index]), f["y"], [i.index * 3 + j.index])
    assert "@weights = external hidden constant [6 x float]" in emit_ir(b.functions, host_target())
    text = emit_ir(b.functions, host_target(), {"weights": weights.tobytes()})
    assert "@weights = internal constant [24 x i8]" in text
    optimize(text, host_target())


def test_memory_overlap_is_the_callers_word():
    b = LoopBuilder()
    with b.function("f", [memref((4,), f32)] * 2, ["x", "y"], noalias=[True, False], dims=[N]):
        pass
    head = next(
        line for line in emit_ir(b.functions, host_target()).splitlines() if line.startswith("define")
    )
    assert "ptr noalias nocapture nonnull align 64 %x, ptr nocapture nonnull align 64 %y" in head


def test_captured_buffers_stay_unaliased_unless_they_share_memory():
    b = LoopBuilder()
    with b.function(
        "f", [pointer, memref((8,), f32), memref((8,), f32)], ["pool", "x", "y"], pool="pool"
    ) as f:
        half = b.subview(f["y"], 4, (4,))
        with b.parallel(4) as p:
            b.store(b.load(f["x"], [p.index]), f["y"], [p.index])
            b.store(b.load(f["x"], [p.index]), half, [p.index])
    head = next(
        t for t in emit_ir(b.functions, host_target()).splitlines() if ".body(" in t and "define" in t
    )
    assert head.count("noalias") == 1 and head.count("ptr ") == 3


def test_operations_of_another_target_are_an_error():
    b = LoopBuilder()
    with b.function("f", []):
        b.emit(gpu.ThreadId("x"))
    with pytest.raises(CompilationError, match=r"no LLVM code for gpu\.thread_id"):
        emit_ir(b.functions, host_target())


@pytest.mark.parametrize(
    ("value", "type", "text"),
    [(1.0, f32, "0x3FF0000000000000"), (0.1, f32, "0x3FB99999A0000000"), (0.1, f64, "0x3FB999999999999A"),
     (1.5, f16, "0xH3E00"), (1.0, bf16, "0xR3F80"), (True, i1, "true"), (-3, i8, "-3"),
     (2, VectorType.get((4,), i64), "splat (i64 2)"), (float("inf"), f32, "0x7FF0000000000000")],
)  # fmt: skip
def test_literals(value, type, text):
    assert literal(value, type) == text


def test_types():
    assert llvm_type(VectorType.get((8,), f16)) == "<8 x half>"
    assert (suffix(VectorType.get((8,), f16)), suffix(i1)) == ("v8f16", "i1")


def test_an_external_function_is_declared_and_called():
    seen = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int64)(seen.append)
    b = LoopBuilder()
    with b.function("f", []), b.for_(0, 3) as loop:
        b.call("observe", [b.index_cast(b.index(loop.index * 5), i64)])
    compiled(b, "f", symbols={"observe": ctypes.cast(callback, ctypes.c_void_p).value})()
    assert seen == [0, 5, 10]


def test_kernels_made_apart_share_library_functions():
    """Each kernel brings the functions it needs; a module has them once."""
    functions = []
    for name in ("a", "b"):
        b = LoopBuilder()
        e = ElementBuilder(b)
        with b.function(name, [memref((4,), f32)], ["x"]) as f:
            e.store(e.math("exp", e.load(f["x"], [0])), f["x"], [1])
        functions += b.functions
    assert emit_ir(functions, host_target()).count("define internal") == 1
    with pytest.raises(CompilationError, match="two functions of a module are called a"):
        emit_ir([functions[1], functions[1]], host_target())


def test_nan_constants_are_one():
    b, other = LoopBuilder(), LoopBuilder()
    with b.function("f", []), other.function("f", []):
        values = [c.constant(f32, float("nan")) for c in (b, other)]
    assert values[0].owner.definition is values[1].owner.definition


def test_alignment_of_parameters():
    b = LoopBuilder()
    with b.function("f", [memref((4,), f32)], ["x"], alignment=4):
        pass
    assert "ptr noalias nocapture nonnull align 4 %x" in emit_ir(b.functions, host_target())


def test_parts_of_masked_accesses_lie_where_their_elements_do():
    b = LoopBuilder()
    e = ElementBuilder(b)
    with b.function("f", [memref((8,), f32)], ["x"]) as f, b.lanes_of(8, 5) as lane:
        e.store(e.load(f["x"], [lane]), f["x"], [lane])
    text = emit_ir(b.functions, cross_target("x86_64-unknown-linux-gnu"))
    assert text.count("call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 ") == 2
    assert len(re.findall(r"= getelementptr float, ptr %\w+, i64 4\n", text)) == 2  # the second half of each
