"""CUDA code: loop-level functions to PTX text, through LLVM's NVPTX back end.

A kernel is an ordinary loop-level function that asks for its position in the grid (`gpu.thread_id`, ...). Its memrefs are
buffers in global memory; `schedule.cuda` has the loops over a grid and the reductions over a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.targets.llvm import new_module
from flambeau.compiler.targets.machine import TargetDescription, cross_target, emit_assembly
from flambeau.compiler.targets.scalars import NVPTX

TRIPLE = "nvptx64-nvidia-cuda"

#: Least PTX version that knows an architecture; others take the newest below them.
_PTX_VERSIONS = {70: 60, 75: 63, 80: 70, 86: 71, 89: 78, 90: 80, 100: 86, 120: 87}


def gpu_target(architecture: str = "sm_80") -> TargetDescription:
    """The target of a compute capability ("sm_80"). CompilationError for those before sm_70."""
    digits = "".join(c for c in architecture.removeprefix("sm_") if c.isdigit())
    if not architecture.startswith("sm_") or not digits or int(digits) < 70:
        raise CompilationError(f"CUDA code needs compute capability sm_70 or newer, got {architecture!r}")
    version = max(v for capability, v in _PTX_VERSIONS.items() if capability <= int(digits))
    return cross_target(TRIPLE, architecture, f"+ptx{version}")


def emit_ir(functions: Sequence[Operation], target: TargetDescription) -> str:
    """The LLVM module of these functions; those that are not internal are kernels."""
    attributes = f'"target-cpu"="{target.cpu}" "target-features"="{target.features}"'
    module = new_module(NVPTX, attributes, "ptx_kernel ")
    head = f'target datalayout = "{target.data_layout}"\ntarget triple = "{target.triple}"\n'
    return head + module.emit(functions)


def compile_functions(functions: Sequence[Operation], target: TargetDescription, opt_level: int = 3) -> str:
    """The PTX text of these functions."""
    return emit_assembly(emit_ir(functions, target), target, opt_level)
