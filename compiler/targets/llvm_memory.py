"""LLVM text of the `memref` and `vector` operations."""

from __future__ import annotations

from flambeau.compiler.dialects.loops import llvm, memref, vector
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import ElementType, MemRefType
from flambeau.compiler.targets.llvm_body import Body, Handler
from flambeau.compiler.targets.llvm_types import alignment, literal, llvm_type, memory_type, suffix
from flambeau.compiler.targets.scalars import ATOMICS, REDUCTIONS


def _alloca(body: Body, operation: Operation, definition: memref.Alloca) -> None:
    (result,) = operation.results
    type = result.type
    assert isinstance(type, MemRefType)
    if definition.space == "workgroup":
        # The address as a generic one; LLVM finds out again that it is shared.
        shared = f"@{body.name_}.shared{len(body.module.globals)}"
        size = f"[{type.size} x {memory_type(type.element)}]"
        text = f"{shared} = internal addrspace(3) global {size} undef, align {definition.alignment}"
        body.module.globals[shared] = text
        body.names[result] = f"addrspacecast (ptr addrspace(3) {shared} to ptr)"
        return
    name = body.names[result] = body.fresh("s")
    body.allocas.append(
        f"  {name} = alloca [{type.size} x {memory_type(type.element)}], align {definition.alignment}"
    )
    body.unaliased.add(name)
    body.private.add(name)


def _collapse(body: Body, operation: Operation, definition: memref.CollapseShape) -> None:
    body.names[operation.results[0]] = body.name(operation.operands[0])


def _from_pointer(body: Body, operation: Operation, definition: memref.FromPointer) -> None:
    body.names[operation.results[0]] = body.name(operation.operands[0])


def _view(body: Body, operation: Operation, definition: memref.View) -> None:
    source, position = operation.operands
    address = body.address(source, position)
    if definition.alignment > 1:
        body.line(f'call void @llvm.assume(i1 true) [ "align"(ptr {address}, i64 {definition.alignment}) ]')
    body.names[operation.results[0]] = address
    body.roots[address] = body.root(body.name(source))


def _reinterpret(body: Body, operation: Operation, definition: memref.ReinterpretCast) -> None:
    source, position = operation.operands
    address = body.address(source, position)
    body.names[operation.results[0]] = address
    body.roots[address] = body.root(body.name(source))


def _get_global(body: Body, operation: Operation, definition: memref.GetGlobal) -> None:
    (result,) = operation.results
    type = result.type
    assert isinstance(type, MemRefType)
    name = definition.sym_name
    size = f"[{type.size} x {memory_type(type.element)}]"
    body.module.globals.setdefault(name, f"@{name} = external hidden constant {size}, align 64")
    body.names[result] = f"@{name}"


def _address_of(body: Body, operation: Operation, definition: memref.AddressOf) -> None:
    body.define(operation.results[0], f"ptrtoint ptr {body.name(operation.operands[0])} to i64")


def _load(body: Body, operation: Operation, definition: memref.Load) -> None:
    buffer, result = operation.operands[0], operation.results[0]
    address = (
        body.address(buffer, operation.operands[1]) if len(operation.operands) > 1 else body.name(buffer)
    )
    text = (
        f"load {memory_type(result.type)}, ptr {address}, align {alignment(result.type)}{body.access(buffer)}"
    )
    body.from_memory(result, text)


def _store(body: Body, operation: Operation, definition: memref.Store) -> None:
    value, buffer = operation.operands[:2]
    stored = body.to_memory(value)
    address = (
        body.address(buffer, operation.operands[2]) if len(operation.operands) > 2 else body.name(buffer)
    )
    body.line(
        f"store {memory_type(value.type)} {stored}, ptr {address}, align {alignment(value.type)}{body.access(buffer)}"
    )


def _copy(body: Body, operation: Operation, definition: memref.Copy) -> None:
    source, target, count = operation.operands
    size = _bytes(body, source, count)
    body.line(
        f"call void @llvm.memcpy.p0.p0.i64(ptr {body.name(target)}, ptr {body.name(source)}, i64 {size}, i1 false)"
    )


def _zero(body: Body, operation: Operation, definition: memref.Fill) -> None:
    buffer, count = operation.operands
    size = _bytes(body, buffer, count)
    body.line(f"call void @llvm.memset.p0.i64(ptr {body.name(buffer)}, i8 0, i64 {size}, i1 false)")


def _bytes(body: Body, buffer: Value, count: Value) -> str:
    size = body.fresh("n")
    body.line(f"{size} = mul nsw i64 {body.name(count)}, {alignment(buffer.type.element)}")  # type: ignore[attr-defined]
    return size


def _prefetch(body: Body, operation: Operation, definition: memref.Prefetch) -> None:
    buffer, position = operation.operands
    address = body.address(buffer, position, inbounds=False)
    body.line(
        f"call void @llvm.prefetch.p0(ptr {address}, i32 {int(definition.write)}, i32 {definition.locality}, i32 1)"
    )


def _atomic(body: Body, operation: Operation, definition: memref.AtomicRMW) -> None:
    value, buffer, *position = operation.operands
    address = body.address(buffer, position[0]) if position else body.name(buffer)
    kind = ATOMICS[definition.kind]
    body.define(
        operation.results[0],
        f"atomicrmw {kind} ptr {address}, {llvm_type(value.type)} {body.name(value)} monotonic, "
        f"align {alignment(value.type)}",
    )


def _vector_load(body: Body, operation: Operation, definition: vector.Load) -> None:
    buffer, position = operation.operands
    (result,) = operation.results
    address = body.address(buffer, position)
    text = (
        f"load {memory_type(result.type)}, ptr {address}, align {alignment(result.type)}{body.access(buffer)}"
    )
    body.from_memory(result, text)


def _vector_store(body: Body, operation: Operation, definition: vector.Store) -> None:
    value, buffer, position = operation.operands
    stored = body.to_memory(value)
    address = body.address(buffer, position)
    aligned, hint = alignment(value.type), ""
    if definition.nontemporal:
        aligned, hint = definition.alignment, f", !nontemporal {body.module.nontemporal()}"
    body.line(
        f"store {memory_type(value.type)} {stored}, ptr {address}, align {aligned}{hint}{body.access(buffer)}"
    )


def _broadcast(body: Body, operation: Operation, definition: vector.Broadcast) -> None:
    (scalar,), (result,) = operation.operands, operation.results
    type, name = llvm_type(result.type), body.fresh()
    body.line(f"{name} = insertelement {type} poison, {llvm_type(scalar.type)} {body.name(scalar)}, i64 0")
    body.define(
        result, f"shufflevector {type} {name}, {type} poison, <{definition.lanes} x i32> zeroinitializer"
    )


def _step(body: Body, operation: Operation, definition: vector.Step) -> None:
    body.names[operation.results[0]] = "<" + ", ".join(f"i64 {i}" for i in range(definition.lanes)) + ">"


def _reduction(body: Body, operation: Operation, definition: vector.Reduction) -> None:
    (x,), (result,) = operation.operands, operation.results
    kind, start = REDUCTIONS[definition.kind], ""
    scalar = result.type
    flags = " ".join(definition.fastmath) + " " if definition.fastmath else ""
    if kind in ("add", "mul") and isinstance(scalar, ElementType) and scalar.is_float:
        start = f"{llvm_type(scalar)} {literal(-0.0 if kind == 'add' else 1.0, scalar)}, "
        kind = "f" + kind
    body.define(
        result,
        f"call {flags}{llvm_type(scalar)} @llvm.vector.reduce.{kind}.{suffix(x.type)}"
        f"({start}{llvm_type(x.type)} {body.name(x)})",
    )


def _extract(body: Body, operation: Operation, definition: vector.Extract) -> None:
    x, *position = operation.operands
    place = body.name(position[0]) if position else str(definition.position)
    body.define(operation.results[0], f"extractelement {llvm_type(x.type)} {body.name(x)}, i64 {place}")


def _insert(body: Body, operation: Operation, definition: vector.Insert) -> None:
    scalar, x, *position = operation.operands
    place = body.name(position[0]) if position else str(definition.position)
    body.define(
        operation.results[0],
        f"insertelement {llvm_type(x.type)} {body.name(x)}, {llvm_type(scalar.type)} {body.name(scalar)}, i64 {place}",
    )


def _shuffle(body: Body, operation: Operation, definition: vector.Shuffle) -> None:
    x, y = operation.operands
    lanes = ", ".join(f"i32 {i}" for i in definition.mask)
    type = llvm_type(x.type)
    body.define(
        operation.results[0],
        f"shufflevector {type} {body.name(x)}, {type} {body.name(y)}, <{len(definition.mask)} x i32> <{lanes}>",
    )


def _call_intrinsic(body: Body, operation: Operation, definition: llvm.CallIntrinsic) -> None:
    (result,) = operation.results
    given = ", ".join(f"{llvm_type(v.type)} {body.name(v)}" for v in operation.operands)
    body.define(result, f"call {llvm_type(result.type)} @{definition.intrin}({given})")


def _create_mask(body: Body, operation: Operation, definition: vector.CreateMask) -> None:
    (count,), lanes = operation.operands, definition.lanes
    low, both, word = body.fresh(), body.fresh(), body.fresh()
    body.line(f"{low} = call i64 @llvm.smax.i64(i64 {body.name(count)}, i64 0)")
    body.line(f"{both} = call i64 @llvm.umin.i64(i64 {low}, i64 {lanes})")
    body.line(f"{word} = trunc i64 {both} to i32")
    body.define(
        operation.results[0],
        f"call <{lanes} x i1> @llvm.get.active.lane.mask.v{lanes}i1.i32(i32 0, i32 {word})",
    )


HANDLERS: dict[type[OpDef], Handler] = {
    memref.Alloca: _alloca,
    memref.CollapseShape: _collapse,
    memref.FromPointer: _from_pointer,
    memref.View: _view,
    memref.ReinterpretCast: _reinterpret,
    memref.GetGlobal: _get_global,
    memref.AddressOf: _address_of,
    memref.Load: _load,
    memref.Store: _store,
    memref.Copy: _copy,
    memref.Fill: _zero,
    memref.Prefetch: _prefetch,
    memref.AtomicRMW: _atomic,
    vector.Load: _vector_load,
    vector.Store: _vector_store,
    vector.Broadcast: _broadcast,
    vector.Step: _step,
    vector.Reduction: _reduction,
    vector.Extract: _extract,
    vector.Insert: _insert,
    vector.Shuffle: _shuffle,
    vector.CreateMask: _create_mask,
    llvm.CallIntrinsic: _call_intrinsic,
}
