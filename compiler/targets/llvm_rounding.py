"""LLVM text of the rounding operations for CPUs without an instruction for them.

That is x86 before SSE4.1, where LLVM would call libm. Adding and taking away 2 ** (mantissa bits) rounds to nearest
even; the others correct that by one.
"""

from __future__ import annotations

from typing import Any

from flambeau.compiler.dialects.loops import math
from flambeau.compiler.dialects.loops.arith import mask_type
from flambeau.compiler.dialects.loops.base import scalar_of
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import f64
from flambeau.compiler.targets.llvm_body import Body, Handler
from flambeau.compiler.targets.llvm_types import literal, llvm_type, suffix


def _rounding(body: Body, operation: Operation, definition: Any) -> None:
    (x,), (result,) = operation.operands, operation.results
    type, mask, value = llvm_type(x.type), llvm_type(mask_type(x.type)), body.name(x)
    big = literal(2.0**52 if scalar_of(x.type) is f64 else 2.0**23, x.type)
    one = literal(1.0, x.type)

    def step(text: str) -> str:
        name = body.fresh()
        body.line(f"{name} = {text}")
        return name

    size = step(f"call {type} @llvm.fabs.{suffix(x.type)}({type} {value})")
    raised = step(f"fadd {type} {size}, {big}")
    nearest = step(f"fsub {type} {raised}, {big}")
    # Large numbers are whole, and NaN stays what it is.
    small = step(f"fcmp olt {type} {size}, {big}")
    whole = step(f"select {mask} {small}, {type} {nearest}, {type} {size}")
    if not isinstance(definition, math.RoundEven | math.Trunc):
        whole = step(f"call {type} @llvm.copysign.{suffix(x.type)}({type} {whole}, {type} {value})")
    if not isinstance(definition, math.RoundEven):
        # Which side the whole number must not be on, of the number (of its size, for trunc).
        predicate, change = ("olt", "fadd") if isinstance(definition, math.Ceil) else ("ogt", "fsub")
        wrong = step(
            f"fcmp {predicate} {type} {whole}, {size if isinstance(definition, math.Trunc) else value}"
        )
        moved = step(f"{change} {type} {whole}, {one}")
        whole = step(f"select {mask} {wrong}, {type} {moved}, {type} {whole}")
    body.define(result, f"call {type} @llvm.copysign.{suffix(x.type)}({type} {whole}, {type} {value})")


HANDLERS: dict[type[OpDef], Handler] = {
    math.Floor: _rounding,
    math.Ceil: _rounding,
    math.Trunc: _rounding,
    math.RoundEven: _rounding,
}
