"""CUDA code: loop-level functions to PTX text, through LLVM's NVPTX back end.

A kernel is an ordinary loop-level function that asks for its position in the grid (`gpu.thread_id`, ...). Its memrefs
are buffers in global memory; `schedule.cuda` has the loops over a grid and the reductions over a block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.targets.llvm import new_module
from flambeau.compiler.targets.machine import TargetDescription, cross_target, emit_assembly
from flambeau.compiler.targets.scalars import NVPTX

TRIPLE = "nvptx64-nvidia-cuda"

#: What LLVM knows. It ends the process on combinations that it does not, so nothing else gets there.
_ARCHITECTURES = re.compile(r"sm_(70|72|75|80|86|87|89|90a?|100[af]?|103[af]?|120[af]?|121[af]?)")


def gpu_target(architecture: str = "sm_80") -> TargetDescription:
    """The target of a compute capability ("sm_80"), with the oldest PTX version that knows it.

    CompilationError for those that LLVM does not know and those before sm_70.
    """
    if not _ARCHITECTURES.fullmatch(architecture):
        raise CompilationError(f"CUDA code needs a compute capability from sm_70 on, got {architecture!r}")
    return cross_target(TRIPLE, architecture)


def emit_ir(functions: Sequence[Operation], target: TargetDescription) -> str:
    """The LLVM module of these functions; those that are not internal are kernels."""
    module = new_module(NVPTX, f'"target-cpu"="{target.cpu}"', "ptx_kernel ")
    head = f'target datalayout = "{target.data_layout}"\ntarget triple = "{target.triple}"\n'
    return head + module.emit(functions)


def compile_functions(functions: Sequence[Operation], target: TargetDescription, opt_level: int = 3) -> str:
    """The PTX text of these functions."""
    return emit_assembly(emit_ir(functions, target), target, opt_level)
