"""Loop-level functions to the text of one LLVM module: what CPUs and GPUs have in common.

Text is built line by line: an order of magnitude faster than LLVM's builder through Python.
"""

from __future__ import annotations

from collections.abc import Mapping

from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.targets import llvm_avx512, llvm_control, llvm_masked, llvm_memory
from flambeau.compiler.targets.llvm_body import Body, Handler, Module
from flambeau.compiler.targets.llvm_types import literal, llvm_type, memory_type, suffix

HANDLERS: dict[type[OpDef], Handler] = {
    **llvm_control.HANDLERS,
    **llvm_memory.HANDLERS,
    **llvm_masked.HANDLERS,
    **llvm_avx512.HANDLERS,
}


def new_module(
    scalars: Mapping[str, str], attributes: str, kernel: str = "", register_bits: int = 0
) -> Module:
    """A module for a target: its table of scalar operations, its functions' attributes, its kernels' convention, the width
    of its vector registers."""
    return Module(scalars, HANDLERS, attributes, kernel, register_bits)


__all__ = [
    "HANDLERS",
    "Body",
    "Handler",
    "Module",
    "literal",
    "llvm_type",
    "memory_type",
    "new_module",
    "suffix",
]
