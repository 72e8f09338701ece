"""LLVM text of the `x86vector` operations: intrinsics of one register, to which vectors of other lengths are cut or filled."""

from __future__ import annotations

from collections.abc import Callable

from flambeau.compiler.dialects.loops import x86vector
from flambeau.compiler.dialects.loops.base import scalar_of
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import VectorType, f32
from flambeau.compiler.targets.llvm_body import Body, Handler
from flambeau.compiler.targets.llvm_types import literal, llvm_type

#: The rounding mode that the control register says.
_CURRENT = 4


#: Of vrangeps: the less of two magnitudes with the first operand's sign; and without a sign.
_LESS_MAGNITUDE = {False: 0b0010, True: 0b1010}


def _scale(body: Body, operation: Operation, definition: x86vector.Scale) -> None:
    (result,) = operation.results
    kind, lanes, mask, type = _register(result)

    def one(parts: list[str]) -> str:
        operands = ", ".join(f"{type} {part}" for part in parts)
        return (
            f"call {type} @llvm.x86.avx512.mask.scalef.{kind}.512({operands}, {type} zeroinitializer, {mask}, "
            f"i32 {_CURRENT})"
        )

    _by_registers(body, operation.operands, result, lanes, one)


def _range(body: Body, operation: Operation, definition: x86vector.Range) -> None:
    (result,) = operation.results
    kind, lanes, mask, type = _register(result)
    element = scalar_of(result.type)
    entries = ", ".join([f"{llvm_type(element)} {literal(definition.limit, element)}"] * lanes)

    def one(parts: list[str]) -> str:
        return (
            f"call {type} @llvm.x86.avx512.mask.range.{kind}.512({type} {parts[0]}, {type} <{entries}>, "
            f"i32 {_LESS_MAGNITUDE[definition.unsigned]}, {type} zeroinitializer, {mask}, i32 {_CURRENT})"
        )

    _by_registers(body, operation.operands, result, lanes, one)


def _register(value: Value) -> tuple[str, int, str, str]:
    """Of a register of such floats: the instructions' ending, its lanes, a mask of all of them, its type."""
    if scalar_of(value.type) is f32:
        return "ps", 16, "i16 -1", "<16 x float>"
    return "pd", 8, "i8 -1", "<8 x double>"


def _table(body: Body, operation: Operation, definition: x86vector.Table) -> None:
    entries = ", ".join(f"float {literal(value, f32)}" for value in definition.entries)

    def one(parts: list[str]) -> str:
        return f"call <16 x float> @llvm.x86.avx512.permvar.sf.512(<16 x float> <{entries}>, <16 x i32> {parts[0]})"

    _by_registers(body, operation.operands, operation.results[0], x86vector.TABLE, one)


def _by_registers(
    body: Body, operands: tuple[Value, ...], result: Value, width: int, one: Callable[[list[str]], str]
) -> None:
    """`one` gives the text for operands of `width` lanes."""
    type = result.type
    if not isinstance(type, VectorType):
        parts = []
        for operand in operands:
            scalar = llvm_type(operand.type)
            filled = body.fresh()
            body.line(
                f"{filled} = insertelement <{width} x {scalar}> zeroinitializer, {scalar} {body.name(operand)}, i64 0"
            )
            parts.append(filled)
        made = body.fresh()
        body.line(f"{made} = {one(parts)}")
        body.define(result, f"extractelement <{width} x {llvm_type(type)}> {made}, i64 0")
        return
    (lanes,) = type.shape
    assert isinstance(lanes, int)
    if lanes == width:
        body.define(result, one([body.name(operand) for operand in operands]))
        return
    pieces = []
    for start in range(0, lanes, width):
        parts = []
        for operand in operands:
            whole = llvm_type(operand.type)
            # Lanes behind the end repeat the last one.
            taken = ", ".join(f"i32 {min(start + i, lanes - 1)}" for i in range(width))
            part = body.fresh()
            body.line(
                f"{part} = shufflevector {whole} {body.name(operand)}, {whole} poison, <{width} x i32> <{taken}>"
            )
            parts.append(part)
        made = body.fresh()
        body.line(f"{made} = {one(parts)}")
        pieces.append(made)
    scalar, size = llvm_type(type.element), width
    while len(pieces) > 1:
        joined = []
        for left, right in zip(pieces[::2], pieces[1::2], strict=True):
            both = body.fresh()
            order = ", ".join(f"i32 {i}" for i in range(2 * size))
            body.line(
                f"{both} = shufflevector <{size} x {scalar}> {left}, <{size} x {scalar}> {right}, "
                f"<{2 * size} x i32> <{order}>"
            )
            joined.append(both)
        pieces, size = joined, 2 * size
    order = ", ".join(f"i32 {i}" for i in range(lanes))
    body.define(
        result,
        f"shufflevector <{size} x {scalar}> {pieces[0]}, <{size} x {scalar}> poison, <{lanes} x i32> <{order}>",
    )


HANDLERS: dict[type[OpDef], Handler] = {
    x86vector.Scale: _scale,
    x86vector.Table: _table,
    x86vector.Range: _range,
}
