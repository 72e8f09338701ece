"""CPU code: loop-level functions to LLVM IR and to an object file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from flambeau.compiler.ir.core import Operation
from flambeau.compiler.targets import llvm_rounding
from flambeau.compiler.targets.dots import BF16_NAMES, VNNI_NAMES
from flambeau.compiler.targets.llvm import new_module
from flambeau.compiler.targets.machine import TargetDescription, emit_object
from flambeau.compiler.targets.scalars import CPU

#: x86 CPUs by name that have FMA, F16C and AVX2; features that only a name implies are not in the description.
_X86_LEVEL_3 = re.compile(
    r"x86-64-v[34]|haswell|broadwell|skylake.*|cascadelake|icelake.*|alderlake|znver\d|core-avx2"
)


#: x86 CPUs by name that have AVX-512, beside those of `targets.dots`.
_X86_LEVEL_4 = re.compile(r"x86-64-v4|skylake-avx512|cannonlake")
_LEVEL_3 = ("fma", "avx", "f16c", "avx2", "bmi2")
_LEVEL_4 = ("avx512f", "avx512dq", "avx512bw", "avx512vl")


def uses(target: TargetDescription, feature: str) -> bool:
    """May code for this x86 CPU use a feature, because the description or its name says so?"""
    cpu = target.cpu
    if target.has(feature):
        return True
    if not _is_x86(target) or f"-{feature}" in target.features.split(","):
        return False
    wide = _X86_LEVEL_4.fullmatch(cpu) or VNNI_NAMES.fullmatch(cpu)
    if feature in _LEVEL_3:
        return bool(wide or _X86_LEVEL_3.fullmatch(cpu))
    if feature in _LEVEL_4:
        return bool(wide)
    names = {"avx512vnni": VNNI_NAMES, "avx512bf16": BF16_NAMES}.get(feature)
    return names is not None and names.fullmatch(cpu) is not None


def _is_x86(target: TargetDescription) -> bool:
    return target.architecture in ("x86_64", "i386", "i586", "i686")


def _level_3(target: TargetDescription) -> bool:
    return _is_x86(target) and (target.vector_bits >= 512 or _X86_LEVEL_3.fullmatch(target.cpu) is not None)


def has_fma(target: TargetDescription) -> bool:
    """Does the target multiply and add with one rounding, in one instruction?"""
    if target.architecture in ("aarch64", "arm64", "riscv64", "powerpc64le"):
        return True
    return target.has("fma") or _level_3(target)


def has_avx512(target: TargetDescription) -> bool:
    """Does the target have AVX-512's foundation and DQ, as all do but Xeon Phi, and are its registers worth it?"""
    wide = target.architecture == "x86_64" and target.vector_bits >= 512
    return wide and target.has("avx512f") and target.has("avx512dq")


def has_f16_conversion(target: TargetDescription) -> bool:
    """Does the target convert between f16 and f32 in one instruction?"""
    return target.architecture in ("aarch64", "arm64") or target.has("f16c") or _level_3(target)


def has_rounding(target: TargetDescription) -> bool:
    """Does the target round to whole floats (floor, ceil, ...) in one instruction?"""
    return (
        not _is_x86(target) or target.has("sse4.1") or target.vector_bits >= 256 or target.cpu == "x86-64-v2"
    )


def emit_ir(
    functions: Sequence[Operation], target: TargetDescription, constants: Mapping[str, bytes] | None = None
) -> str:
    """The LLVM module of these functions. `constants`: the contents of its global buffers."""
    attributes = [f'"prefer-vector-width"="{target.vector_bits}"']
    if target.cpu:
        attributes.append(f'"target-cpu"="{target.cpu}"')
    if target.features:
        attributes.append(f'"target-features"="{target.features}"')
    module = new_module(CPU, " ".join(attributes), register_bits=target.vector_bits)
    if not has_rounding(target):
        module.handlers = {**module.handlers, **llvm_rounding.HANDLERS}
        module.scalars = {k: v for k, v in CPU.items() if k not in {c.name for c in llvm_rounding.HANDLERS}}
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
