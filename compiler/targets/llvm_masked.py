"""LLVM text of masked accesses: loads, stores, gathers and scatters of the lanes that a mask chooses.

A vector wider than the target's registers is accessed register by register. LLVM 22 takes such a vector apart as well, but
without AVX-512 it then accesses a whole register where its part of the mask is known to be empty.
"""

from __future__ import annotations

from flambeau.compiler.dialects.loops import vector
from flambeau.compiler.dialects.loops.base import scalar_of
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import Type, VectorType
from flambeau.compiler.targets.llvm_body import Body, Handler
from flambeau.compiler.targets.llvm_types import alignment, memory_type, suffix


def _memory_suffix(type: Type, lanes: int) -> str:
    scalar = scalar_of(type)
    name = memory_type(scalar)
    return f"v{lanes}{name if name.startswith('i') else suffix(scalar)}"


def _lanes(type: Type) -> int:
    assert isinstance(type, VectorType)
    (lanes,) = type.shape
    assert isinstance(lanes, int)
    return lanes


def _width(body: Body, type: Type) -> int:
    """How many of a vector's lanes are accessed at once: those of a register, or all."""
    lanes, width = _lanes(type), body.module.register_bits // (8 * alignment(type))
    whole = width == 0 or lanes <= width or lanes % width or (lanes // width) & (lanes // width - 1)
    return lanes if whole else width


def _part(body: Body, scalar: str, lanes: int, name: str, start: int, width: int) -> str:
    """The name of `width` lanes of a vector."""
    if width == lanes:
        return name
    taken = ", ".join(f"i32 {start + i}" for i in range(width))
    part, whole = body.fresh(), f"<{lanes} x {scalar}>"
    body.line(f"{part} = shufflevector {whole} {name}, {whole} poison, <{width} x i32> <{taken}>")
    return part


def _joined(body: Body, scalar: str, width: int, parts: list[str]) -> str:
    """The name of the vector of all parts, of which there are 1, 2, 4, ..."""
    while len(parts) > 1:
        taken, type = ", ".join(f"i32 {i}" for i in range(2 * width)), f"<{width} x {scalar}>"
        pairs = []
        for low, high in zip(parts[::2], parts[1::2], strict=True):
            pairs.append(body.fresh())
            body.line(
                f"{pairs[-1]} = shufflevector {type} {low}, {type} {high}, <{2 * width} x i32> <{taken}>"
            )
        parts, width = pairs, 2 * width
    return parts[0]


def _places(body: Body, buffer: Value, position: Value, lanes: int, start: int, width: int) -> str:
    """The operand that says where `width` lanes from lane `start` on are: an address, or one for each lane."""
    element = buffer.type.element  # type: ignore[attr-defined]
    address, aligned = body.address(buffer, position, inbounds=False), alignment(element)
    if isinstance(position.type, VectorType):
        return f"<{width} x ptr> align {aligned} {_part(body, 'ptr', lanes, address, start, width)}"
    if start:
        first, address = address, body.fresh("p")
        body.line(f"{address} = getelementptr {memory_type(element)}, ptr {first}, i64 {start}")
    return f"ptr align {aligned} {address}"


def _load(body: Body, operation: Operation, intrinsic: str) -> None:
    buffer, position, mask, rest = operation.operands
    (result,) = operation.results
    lanes, width = _lanes(result.type), _width(body, result.type)
    scalar, addresses = memory_type(scalar_of(result.type)), ".p0"
    if isinstance(position.type, VectorType):
        addresses = f".v{width}p0"
    other, chosen, parts = body.to_memory(rest), body.name(mask), []
    for start in range(0, lanes, width):
        at = _places(body, buffer, position, lanes, start, width)
        where = _part(body, "i1", lanes, chosen, start, width)
        otherwise = _part(body, scalar, lanes, other, start, width)
        text = (
            f"call <{width} x {scalar}> @llvm.masked.{intrinsic}.{_memory_suffix(result.type, width)}{addresses}({at}, "
            f"<{width} x i1> {where}, <{width} x {scalar}> {otherwise}){body.access(buffer)}"
        )
        if width == lanes:
            body.from_memory(result, text)
            return
        parts.append(body.fresh())
        body.line(f"{parts[-1]} = {text}")
    type = f"<{lanes} x {scalar}>"
    body.from_memory(result, f"bitcast {type} {_joined(body, scalar, width, parts)} to {type}")


def _store(body: Body, operation: Operation, intrinsic: str) -> None:
    buffer, position, mask, value = operation.operands
    lanes, width = _lanes(value.type), _width(body, value.type)
    scalar, addresses = memory_type(scalar_of(value.type)), ".p0"
    if isinstance(position.type, VectorType):
        addresses = f".v{width}p0"
    stored, chosen = body.to_memory(value), body.name(mask)
    for start in range(0, lanes, width):
        part = _part(body, scalar, lanes, stored, start, width)
        at = _places(body, buffer, position, lanes, start, width)
        where = _part(body, "i1", lanes, chosen, start, width)
        body.line(
            f"call void @llvm.masked.{intrinsic}.{_memory_suffix(value.type, width)}{addresses}(<{width} x {scalar}> {part}, "
            f"{at}, <{width} x i1> {where}){body.access(buffer)}"
        )


def _masked_load(body: Body, operation: Operation, definition: vector.MaskedLoad) -> None:
    _load(body, operation, "load")


def _masked_store(body: Body, operation: Operation, definition: vector.MaskedStore) -> None:
    _store(body, operation, "store")


def _gather(body: Body, operation: Operation, definition: vector.Gather) -> None:
    _load(body, operation, "gather")


def _scatter(body: Body, operation: Operation, definition: vector.Scatter) -> None:
    _store(body, operation, "scatter")


HANDLERS: dict[type[OpDef], Handler] = {
    vector.MaskedLoad: _masked_load,
    vector.MaskedStore: _masked_store,
    vector.Gather: _gather,
    vector.Scatter: _scatter,
}
