"""CPUs by name: the option `cpu`, what a library asks a CPU for, and register tiles in assembly.

`test_programs.py` runs code for them.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from flambeau.compiler import options
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.exporting.cpu_features import required_features
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import ElementType, bf16, f32, i8, i32, tensor
from flambeau.compiler.pipeline import compile_stages
from flambeau.compiler.targets.machine import (
    CodegenError,
    cross_target,
    emit_assembly,
    host_target,
    process_target,
)
from tests.targets.emulation.machines import NATIVE, Machine

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
RISCV = "riscv64-unknown-linux-gnu"


@pytest.mark.parametrize("machine", NATIVE, ids=str)
def test_what_the_option_means(machine: Machine) -> None:
    machine.require()
    with options.override(cpu=machine.cpu):
        target = process_target()
        x = Value(tensor((4, 4), f32))
        text = compile_stages(Graph([x], [apply(DOT, x, x)])).llvm
    bits = {"x86-64": 128, "haswell": 256, "skylake-avx512": 512}
    assert (target.cpu, target.vector_bits) == (machine.cpu, bits[machine.cpu])
    assert target.l1_bytes == host_target().l1_bytes
    assert f'"target-cpu"="{machine.cpu}"' in text


def test_a_cpu_that_nobody_makes_is_an_error() -> None:
    for _ in range(2):
        with pytest.raises(CodegenError, match="no CPU of 'x86_64-unknown-linux-gnu' is called 'haswel'"):
            cross_target(X86, "haswel")
    assert cross_target(X86, "haswell").vector_bits == 256


def test_optimisation_levels_end_at_three() -> None:
    with pytest.raises(ValueError, match="opt_level: expected 0 to 3, got 7"), options.override(opt_level=7):
        pass


@pytest.mark.skipif(host_target().architecture != "x86_64", reason="cpuid is assembled on x86 only")
@pytest.mark.parametrize(
    ("cpu", "features", "checked", "not_checked"),
    [
        ("", "", "", "avx fma avx512f"),
        ("x86-64-v2", "", "", "avx fma avx512f"),
        ("haswell", "", "avx avx2 fma f16c bmi2", "avx512f avx512vnni"),
        ("haswell", "-fma", "avx avx2", "fma"),
        ("skylake-avx512", "", "avx2 avx512f avx512vl", "avx512vnni"),
        ("icelake-server", "", "avx512bw avx512vnni", "avx512bf16"),
        ("znver4", "", "fma avx512f avx512vnni avx512bf16", "avxvnni"),
        ("", "+avx,+avx2,+avxvnni", "avx avx2 avxvnni", "avx512f"),
    ],
)
def test_what_a_library_asks_the_cpu_for(cpu: str, features: str, checked: str, not_checked: str) -> None:
    """`create` refuses a CPU that lacks what the CPU's name implies, too."""
    found = {f[0] for f in required_features(cross_target(X86, cpu, features))}
    assert found >= set(checked.split()) and not found & set(not_checked.split())


DOT = DotGeneral((), (), (1,), (0,))


def innermost(target: Any, element: ElementType, weight: bool, instruction: str) -> list[str]:
    """The instructions of the basic block that has the most of `instruction`, in a product of 504 x 512 x 512."""
    dot = DotGeneral((), (), (1,), (0,), i32) if element is i8 else DOT
    x, w = Value(tensor((504, 512), element)), Value(tensor((512, 512), element))
    made = compile_stages(
        Graph([x, w], [apply(dot, x, w)]), target, stop_after="llvm", weights=(1,) if weight else ()
    )
    blocks: list[list[str]] = [[]]
    for line in emit_assembly(made.llvm, target, 1).splitlines():
        if re.match(r"\S+:", line):
            blocks.append([])
        elif line.startswith("\t") and not line.startswith("\t."):
            blocks[-1].append(line.strip())
    return max(blocks, key=lambda block: sum(instruction in line for line in block))


@pytest.mark.parametrize("weight", [False, True], ids=["", "weight"])
@pytest.mark.parametrize(
    ("triple", "cpu", "features", "element", "instruction", "others"),
    [
        (X86, "haswell", "", f32, "vfmadd", 1.3),
        (X86, "znver4", "", f32, "vfmadd", 1.1),
        (X86, "haswell", "", i8, "vpmaddwd", 3.5),
        (X86, "skylake-avx512", "", i8, "vpmaddwd", 2.5),
        (X86, "", "+avx,+avx2,+fma,+avxvnni", i8, "vpdpbusd", 1.3),
        (X86, "znver4", "", i8, "vpdpbusd", 1),
        (X86, "znver4", "", bf16, "vdpbf16ps", 1),
        (ARM, "", "", f32, "fmla", 0.6),
        (ARM, "apple-m1", "", f32, "fmla", 0.6),
        (ARM, "neoverse-v1", "", f32, "fmla", 0.6),
        (ARM, "neoverse-n1", "", i8, "sdot", 0.5),
        (ARM, "", "+neon,+bf16", bf16, "bfdot", 1.7),
        (RISCV, "", "+m,+a,+f,+d,+c,+v", f32, "vfma", 1.4),
    ],
)
def test_register_tiles(
    triple: str, cpu: str, features: str, element: ElementType, instruction: str, others: float, weight: bool
) -> None:
    """The innermost loop multiplies most of the time and keeps everything in registers."""
    block = innermost(cross_target(triple, cpu, features), element, weight, instruction)
    multiplying = [line for line in block if instruction in line]
    assert len(multiplying) >= 12
    assert not [line for line in block if re.search(r"%rsp|\[sp|\bv[sl]\dr", line)]
    assert len(block) - len(multiplying) <= others * len(multiplying)
    if instruction == "fmla":  # by element: no register is filled with a single number first
        assert sum(bool(re.search(r"\.s\[\d\]", line)) for line in multiplying) > 0.9 * len(multiplying)
