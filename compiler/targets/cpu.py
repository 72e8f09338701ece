"""CPU code: loop-level functions to LLVM IR and to an object file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flambeau.compiler.ir.core import Operation
from flambeau.compiler.targets.llvm import new_module
from flambeau.compiler.targets.machine import TargetDescription, emit_object
from flambeau.compiler.targets.scalars import CPU


def has_fma(target: TargetDescription) -> bool:
    """Does the target multiply and add with one rounding, in one instruction?"""
    if target.architecture in ("aarch64", "arm64", "riscv64", "powerpc64le"):
        return True
    return target.has("fma") or target.has("avx512f")


def has_f16_conversion(target: TargetDescription) -> bool:
    """Does the target convert between f16 and f32 in one instruction?"""
    return target.architecture in ("aarch64", "arm64") or target.has("f16c") or target.has("avx512f")


def emit_ir(
    functions: Sequence[Operation], target: TargetDescription, constants: Mapping[str, bytes] | None = None
) -> str:
    """The LLVM module of these functions. `constants`: the contents of its global buffers."""
    attributes = [f'"prefer-vector-width"="{target.vector_bits}"']
    if target.cpu:
        attributes.append(f'"target-cpu"="{target.cpu}"')
    if target.features:
        attributes.append(f'"target-features"="{target.features}"')
    module = new_module(CPU, " ".join(attributes))
    head = f'target datalayout = "{target.data_layout}"\ntarget triple = "{target.triple}"\n'
    return head + module.emit(functions, constants)


def compile_functions(
    functions: Sequence[Operation],
    target: TargetDescription,
    opt_level: int = 3,
    constants: Mapping[str, bytes] | None = None,
    link: Sequence[str] = (),
) -> bytes:
    """The object file of these functions; `link` gives LLVM modules to merge in."""
    return emit_object(emit_ir(functions, target, constants), target, opt_level, link=link)
