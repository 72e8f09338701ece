"""`llvm`: what a target has as an instruction and no other dialect names."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import LoopOp


class CallIntrinsic(LoopOp):
    """LLVM's intrinsic `intrin` of the operands, without effects; the result type is given."""

    name = "llvm.call_intrinsic"
    explicit_results = True
    pure = True
    intrin: str
