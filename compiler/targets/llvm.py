"""Loop-level functions to the text of one LLVM module: what CPUs and GPUs have in common.

Structured control flow becomes blocks with phis; a memref is a pointer; the body of a parallel loop becomes a function
of its own that gets what it captures in a struct. Text is built line by line, since that is an order of magnitude faster
than LLVM's builder through Python.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.loops import arith, func, gpu, memref, scf, vector
from flambeau.compiler.dialects.loops.base import scalar_of
from flambeau.compiler.ir.core import Block, Operation, Value
from flambeau.compiler.ir.types import (
    ElementType,
    IndexType,
    MemRefType,
    PointerType,
    Type,
    VectorType,
    bf16,
    f16,
    f32,
    f64,
    i1,
)
from flambeau.compiler.targets.scalars import ATOMICS, REDUCTIONS
from flambeau.runtime import abi

_FLOATS = {f64: "double", f32: "float", f16: "half", bf16: "bfloat"}
_TYPES: dict[Type, str] = {}
_SUFFIXES: dict[Type, str] = {}


def llvm_type(type: Type) -> str:
    """The LLVM type of a value in a register."""
    found = _TYPES.get(type)
    if found is None:
        found = _TYPES[type] = _llvm_type(type)
    return found


def _llvm_type(type: Type) -> str:
    if isinstance(type, VectorType):
        return f"<{type.shape[0]} x {llvm_type(type.element)}>"
    if isinstance(type, ElementType):
        return _FLOATS.get(type) or f"i{type.bits}"
    if isinstance(type, IndexType):
        return "i64"
    if isinstance(type, MemRefType | PointerType):
        return "ptr"
    raise CompilationError(f"no LLVM type for {type}")


def suffix(type: Type) -> str:
    """How intrinsics' names spell a type: ``v8f32``."""
    found = _SUFFIXES.get(type)
    if found is None:
        scalar = scalar_of(type)
        if isinstance(scalar, IndexType):
            text = "i64"
        elif isinstance(scalar, ElementType):
            text = scalar.name if scalar.is_float else f"i{scalar.bits}"
        else:
            text = "p0"
        found = _SUFFIXES[type] = f"v{type.shape[0]}{text}" if isinstance(type, VectorType) else text
    return found


def literal(value: float | int, type: Type) -> str:
    """A number in LLVM's spelling; for a vector type, in every lane."""
    if isinstance(type, VectorType):
        inner = literal(value, type.element)
        return f"splat ({llvm_type(type.element)} {inner})"
    if isinstance(type, ElementType) and type.is_float:
        return _float_literal(float(value), type)
    if type is i1:
        return "true" if value else "false"
    return str(int(value))


def _float_literal(value: float, type: ElementType) -> str:
    if type is f64:
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    if type is f32:
        with np.errstate(over="ignore"):
            rounded = float(np.float32(value))
        return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
    if type is f16:
        with np.errstate(over="ignore"):
            return f"0xH{int(np.float16(value).view(np.uint16)):04X}"
    return f"0xR{int(np.asarray(value, ml_dtypes.bfloat16).view(np.uint16)):04X}"


class Module:
    """Collects the text of one module: functions, metadata, declarations.

    `scalars` is the target's table of scalar operations (`targets.scalars`), `attributes` LLVM function attributes for
    all functions, `kernel` a calling convention for the functions that are not internal.
    """

    def __init__(self, scalars: Mapping[str, str], attributes: str, kernel: str = "") -> None:
        self.scalars, self.attributes, self.kernel = scalars, attributes, kernel
        self.texts: list[str] = []
        self.metadata: list[str] = []
        self.defined: set[str] = set()
        self.declared: dict[str, str] = {}
        self.globals: dict[str, str] = {}

    def emit(self, functions: Sequence[Operation], constants: Mapping[str, bytes] | None = None) -> str:
        """The module's text. `constants`: the content of global buffers that this module defines itself."""
        self.defined = {f.definition.sym_name for f in functions}  # type: ignore[attr-defined]
        for name, content in (constants or {}).items():
            data = "".join(f"\\{byte:02X}" for byte in content)
            self.globals[name] = f'@{name} = internal constant [{len(content)} x i8] c"{data}", align 64'
        for function in functions:
            _Body(self, function.definition.sym_name).function(function)  # type: ignore[attr-defined]
        attributes = [
            f"attributes #0 = {{ nounwind {self.attributes} }}",
            f"attributes #1 = {{ nounwind alwaysinline {self.attributes} }}",
        ]
        declarations = [text for name, text in self.declared.items() if name not in self.defined]
        parts = [*self.globals.values(), *declarations, *self.texts, *attributes, *self.metadata]
        return "\n".join(parts) + "\n"

    def node(self, text: str, distinct: bool = False) -> str:
        """A metadata node; ``{self}`` in its text is its own name."""
        name = f"!{len(self.metadata)}"
        self.metadata.append(f"{name} = {'distinct ' if distinct else ''}" + text.replace("{self}", name))
        return name


class _Body:
    """Emits one LLVM function. A parallel body has a `_Body` of its own, whose parent names what it captures."""

    def __init__(self, module: Module, name: str, parent: _Body | None = None) -> None:
        self.module, self.name_, self.parent = module, name, parent
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.names: dict[Value, str] = {}
        self.label = "entry"
        self.counter = 0
        self.children = 0
        #: Of a parallel body: the parent's name of each captured value -> (our name, LLVM type).
        self.captures: dict[str, tuple[str, str]] = {}
        #: Pointers that are the only way to their memory; and from which of them (or what else) each pointer comes.
        self.unaliased: set[str] = set()
        self.roots: dict[str, str] = {}
        self.private: set[str] = set()
        self.worker = "0"
        self.groups: list[str] = []
        self.group_nodes: dict[tuple[str, ...], str] = {}

    # -- names -----------------------------------------------------------------------------------------------------
    def fresh(self, prefix: str = "v") -> str:
        self.counter += 1
        return f"%{prefix}{self.counter}"

    def new_label(self, stem: str) -> str:
        self.counter += 1
        return f"{stem}{self.counter}"

    def name(self, value: Value) -> str:
        found = self.names.get(value)
        if found is not None:
            return found
        if self.parent is None:
            raise CompilationError(f"{self.name_}: a {value.type} is used before it is defined")
        outer = self.parent.name(value)
        if outer[0] not in "%":  # a literal or a global
            self.names[value] = outer
            return outer
        captured = self.captures.get(outer)
        if captured is None:
            captured = self.captures[outer] = (f"%c{len(self.captures)}", llvm_type(value.type))
        self.names[value] = captured[0]
        return captured[0]

    def root(self, name: str) -> str:
        return self.roots.get(name, name)

    # -- functions ---------------------------------------------------------------------------------------------------
    def function(self, operation: Operation) -> None:
        definition = operation.definition
        assert isinstance(definition, func.Func)
        block = operation.regions[0].block
        parameters = []
        names = definition.arg_names or [f"arg{i}" for i in range(len(block.arguments))]
        noalias = definition.noalias or (False,) * len(names)
        for value, name, alone in zip(block.arguments, names, noalias, strict=True):
            self.names[value] = f"%{name}"
            parameters.append(self._parameter(value.type, f"%{name}", alone, definition))
        self.block(block)
        results = definition.function_type.results
        returned = llvm_type(results[0]) if results else "void"
        linkage = "internal " if definition.internal or definition.inline else self.module.kernel
        attributes = "#1" if definition.inline else "#0"
        self._finish(f"define {linkage}{returned} @{self.name_}({', '.join(parameters)}) {attributes}")

    def _parameter(self, type: Type, name: str, alone: bool, definition: func.Func) -> str:
        if isinstance(type, MemRefType):
            if alone:
                self.unaliased.add(name)
            size = f"align {definition.alignment} " if definition.alignment > 1 else ""
            return f"ptr {'noalias ' if alone else ''}nocapture nonnull {size}{name}"
        return f"{llvm_type(type)} {name}"

    def _finish(self, head: str) -> None:
        self.module.texts.append("\n".join([f"{head} {{", "entry:", *self.allocas, *self.lines, "}"]))

    def block(self, block: Block) -> Operation | None:
        """Emits a block's operations; its terminator, unless that is a return, is the caller's matter and given back."""
        scalars, lines, names = self.module.scalars, self.lines, self.names
        for operation in block.operations:
            definition: Any = operation.definition
            row = scalars.get(definition.name)
            if row is not None:
                result = operation.results[0]
                operand = operation.operands[0] if operation.operands else result
                self.counter += 1
                name = names[result] = f"%v{self.counter}"
                flags = getattr(definition, "fastmath", None) or getattr(definition, "overflow", None)
                type = operand.type
                text = row.format(
                    *[self.name(v) for v in operation.operands],
                    r=name,
                    t=llvm_type(type),
                    to=llvm_type(result.type),
                    s=suffix(type),
                    ts=suffix(result.type),
                    f=" ".join(flags) + " " if flags else "",
                    p=getattr(definition, "predicate", "") or getattr(definition, "dimension", ""),
                    zero="zeroinitializer" if isinstance(type, VectorType) else "0",
                    mask=llvm_type(arith.mask_type(type)),
                )
                lines.append("  " + text)
                continue
            if definition.is_terminator and not isinstance(definition, func.Return):
                return operation
            handler = _HANDLERS.get(definition.__class__)
            if handler is None:
                raise CompilationError(f"no LLVM code for {definition.name}", operation.location)
            handler(self, operation, definition)
        return None

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def define(self, value: Value, text: str) -> str:
        name = self.names[value] = self.fresh()
        self.lines.append(f"  {name} = {text}")
        return name

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.label = label

    # -- memory ------------------------------------------------------------------------------------------------------
    def address(self, buffer: Value, position: Value, inbounds: bool = True) -> str:
        base = self.name(buffer)
        offset = self.name(position)
        if offset == "0":
            return base
        name = self.fresh("p")
        kind = "getelementptr inbounds" if inbounds else "getelementptr"
        element = memory_type(buffer.type.element)  # type: ignore[attr-defined]
        self.lines.append(f"  {name} = {kind} {element}, ptr {base}, {llvm_type(position.type)} {offset}")
        return name

    def access(self, buffer: Value) -> str:
        """The metadata of an access to `buffer`: the independent loops around it."""
        if not self.groups or self.root(self.name(buffer)) in self.private:
            return ""
        key = tuple(self.groups)
        if len(key) == 1:
            return f", !llvm.access.group {key[0]}"
        node = self.group_nodes.get(key)
        if node is None:
            node = self.group_nodes[key] = self.module.node(f"!{{{', '.join(key)}}}")
        return f", !llvm.access.group {node}"

    def from_memory(self, result: Value, load: str) -> None:
        """Defines `result` by `load` (the text of a load of memory types); booleans lose seven bits."""
        if scalar_of(result.type) is not i1:
            self.define(result, load)
            return
        byte = self.fresh("b")
        self.line(f"{byte} = {load}")
        self.define(result, f"trunc {memory_type(result.type)} {byte} to {llvm_type(result.type)}")

    def to_memory(self, value: Value) -> str:
        """The name of `value` as it is in memory."""
        name = self.name(value)
        if scalar_of(value.type) is not i1:
            return name
        byte = self.fresh("b")
        self.line(f"{byte} = zext {llvm_type(value.type)} {name} to {memory_type(value.type)}")
        return byte


def memory_type(type: Type) -> str:
    """The LLVM type of a value in memory: booleans take a byte."""
    if type is i1:
        return "i8"
    if isinstance(type, VectorType) and type.element is i1:
        return f"<{type.shape[0]} x i8>"
    return llvm_type(type)


def alignment(type: Type) -> int:
    """Natural alignment in bytes of an element in memory."""
    scalar = scalar_of(type)
    return scalar.itemsize if isinstance(scalar, ElementType) else 8


Handler = Callable[[_Body, Operation, Any], None]
_HANDLERS: dict[type, Handler] = {}


def _emits(definition: type) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _HANDLERS[definition] = handler
        return handler

    return register


# -- arith, func -------------------------------------------------------------------------------------------------------
@_emits(arith.Constant)
def _constant(body: _Body, operation: Operation, definition: arith.Constant) -> None:
    body.names[operation.results[0]] = literal(definition.value, definition.type)


@_emits(arith.Select)
def _select(body: _Body, operation: Operation, definition: arith.Select) -> None:
    condition, x, y = operation.operands
    text = llvm_type(x.type)
    body.define(
        operation.results[0],
        f"select {llvm_type(condition.type)} {body.name(condition)}, {text} {body.name(x)}, {text} {body.name(y)}",
    )


def _resize(body: _Body, operation: Operation, extend: str) -> None:
    (x,), (result,) = operation.operands, operation.results
    widths = [
        scalar.bits if isinstance(scalar := scalar_of(v.type), ElementType) else 64 for v in (x, result)
    ]
    if widths[0] == widths[1]:
        body.names[result] = body.name(x)
        return
    kind = extend if widths[0] < widths[1] else "trunc"
    body.define(result, f"{kind} {llvm_type(x.type)} {body.name(x)} to {llvm_type(result.type)}")


@_emits(arith.IndexCast)
def _index_cast(body: _Body, operation: Operation, definition: arith.IndexCast) -> None:
    _resize(body, operation, "sext")


@_emits(arith.IndexCastUI)
def _index_cast_unsigned(body: _Body, operation: Operation, definition: arith.IndexCastUI) -> None:
    _resize(body, operation, "zext")


@_emits(func.Return)
def _return(body: _Body, operation: Operation, definition: func.Return) -> None:
    if not operation.operands:
        body.line("ret void")
        return
    (value,) = operation.operands
    body.line(f"ret {llvm_type(value.type)} {body.name(value)}")


@_emits(func.Call)
def _call(body: _Body, operation: Operation, definition: func.Call) -> None:
    types = [llvm_type(v.type) for v in operation.operands]
    operands = ", ".join(f"{t} {body.name(v)}" for t, v in zip(types, operation.operands, strict=True))
    returned = llvm_type(operation.results[0].type) if operation.results else "void"
    name = definition.callee
    if name not in body.module.defined:
        known = abi.DECLARATIONS.get(name)
        body.module.declared[name] = known or f"declare {returned} @{name}({', '.join(types)})"
    text = f"call {returned} @{name}({operands})"
    if operation.results:
        body.define(operation.results[0], text)
    else:
        body.line(text)


# -- memref --------------------------------------------------------------------------------------------------------------
@_emits(memref.Alloca)
def _alloca(body: _Body, operation: Operation, definition: memref.Alloca) -> None:
    (result,) = operation.results
    type = result.type
    assert isinstance(type, MemRefType)
    name = body.names[result] = body.fresh("s")
    body.allocas.append(
        f"  {name} = alloca [{type.size} x {memory_type(type.element)}], align {definition.alignment}"
    )
    body.unaliased.add(name)
    body.private.add(name)


@_emits(memref.CollapseShape)
def _collapse(body: _Body, operation: Operation, definition: memref.CollapseShape) -> None:
    body.names[operation.results[0]] = body.name(operation.operands[0])


@_emits(memref.FromPointer)
def _from_pointer(body: _Body, operation: Operation, definition: memref.FromPointer) -> None:
    body.names[operation.results[0]] = body.name(operation.operands[0])


@_emits(memref.View)
def _view(body: _Body, operation: Operation, definition: memref.View) -> None:
    source, position = operation.operands
    address = body.address(source, position)
    if definition.alignment > 1:
        body.line(f'call void @llvm.assume(i1 true) [ "align"(ptr {address}, i64 {definition.alignment}) ]')
    body.names[operation.results[0]] = address
    body.roots[address] = body.root(body.name(source))


@_emits(memref.ReinterpretCast)
def _reinterpret(body: _Body, operation: Operation, definition: memref.ReinterpretCast) -> None:
    source, position = operation.operands
    address = body.address(source, position)
    body.names[operation.results[0]] = address
    body.roots[address] = body.root(body.name(source))


@_emits(memref.GetGlobal)
def _get_global(body: _Body, operation: Operation, definition: memref.GetGlobal) -> None:
    (result,) = operation.results
    type = result.type
    assert isinstance(type, MemRefType)
    name = definition.sym_name
    size = f"[{type.size} x {memory_type(type.element)}]"
    body.module.globals.setdefault(name, f"@{name} = external hidden constant {size}, align 64")
    body.names[result] = f"@{name}"


@_emits(memref.Load)
def _load(body: _Body, operation: Operation, definition: memref.Load) -> None:
    buffer, result = operation.operands[0], operation.results[0]
    address = (
        body.address(buffer, operation.operands[1]) if len(operation.operands) > 1 else body.name(buffer)
    )
    text = (
        f"load {memory_type(result.type)}, ptr {address}, align {alignment(result.type)}{body.access(buffer)}"
    )
    body.from_memory(result, text)


@_emits(memref.Store)
def _store(body: _Body, operation: Operation, definition: memref.Store) -> None:
    value, buffer = operation.operands[:2]
    stored = body.to_memory(value)
    address = (
        body.address(buffer, operation.operands[2]) if len(operation.operands) > 2 else body.name(buffer)
    )
    body.line(
        f"store {memory_type(value.type)} {stored}, ptr {address}, align {alignment(value.type)}{body.access(buffer)}"
    )


@_emits(memref.Copy)
def _copy(body: _Body, operation: Operation, definition: memref.Copy) -> None:
    source, target, count = operation.operands
    size = _bytes(body, source, count)
    body.line(
        f"call void @llvm.memcpy.p0.p0.i64(ptr {body.name(target)}, ptr {body.name(source)}, i64 {size}, i1 false)"
    )


@_emits(memref.Fill)
def _zero(body: _Body, operation: Operation, definition: memref.Fill) -> None:
    buffer, count = operation.operands
    size = _bytes(body, buffer, count)
    body.line(f"call void @llvm.memset.p0.i64(ptr {body.name(buffer)}, i8 0, i64 {size}, i1 false)")


def _bytes(body: _Body, buffer: Value, count: Value) -> str:
    size = body.fresh("n")
    body.line(f"{size} = mul nsw i64 {body.name(count)}, {alignment(buffer.type.element)}")  # type: ignore[attr-defined]
    return size


@_emits(memref.Prefetch)
def _prefetch(body: _Body, operation: Operation, definition: memref.Prefetch) -> None:
    address = body.address(*operation.operands, inbounds=False)
    body.line(
        f"call void @llvm.prefetch.p0(ptr {address}, i32 {int(definition.write)}, i32 {definition.locality}, i32 1)"
    )


@_emits(memref.AtomicRMW)
def _atomic(body: _Body, operation: Operation, definition: memref.AtomicRMW) -> None:
    value, buffer, *position = operation.operands
    address = body.address(buffer, position[0]) if position else body.name(buffer)
    kind = ATOMICS[definition.kind]
    body.define(
        operation.results[0],
        f"atomicrmw {kind} ptr {address}, {llvm_type(value.type)} {body.name(value)} monotonic, "
        f"align {alignment(value.type)}",
    )


# -- vector ----------------------------------------------------------------------------------------------------------------
@_emits(vector.Load)
def _vector_load(body: _Body, operation: Operation, definition: vector.Load) -> None:
    buffer, position = operation.operands
    (result,) = operation.results
    address = body.address(buffer, position)
    text = (
        f"load {memory_type(result.type)}, ptr {address}, align {alignment(result.type)}{body.access(buffer)}"
    )
    body.from_memory(result, text)


@_emits(vector.Store)
def _vector_store(body: _Body, operation: Operation, definition: vector.Store) -> None:
    value, buffer, position = operation.operands
    stored = body.to_memory(value)
    address = body.address(buffer, position)
    body.line(
        f"store {memory_type(value.type)} {stored}, ptr {address}, align {alignment(value.type)}{body.access(buffer)}"
    )


def _memory_suffix(type: Type) -> str:
    text = suffix(type)
    return text[:-1] + "8" if scalar_of(type) is i1 else text


@_emits(vector.MaskedLoad)
def _masked_load(body: _Body, operation: Operation, definition: vector.MaskedLoad) -> None:
    buffer, position, mask, rest = operation.operands
    (result,) = operation.results
    other = body.to_memory(rest)
    address = body.address(buffer, position, inbounds=False)
    type = memory_type(result.type)
    body.from_memory(
        result,
        f"call {type} @llvm.masked.load.{_memory_suffix(result.type)}.p0(ptr align {alignment(result.type)} {address}, "
        f"{llvm_type(mask.type)} {body.name(mask)}, {type} {other}){body.access(buffer)}",
    )


@_emits(vector.MaskedStore)
def _masked_store(body: _Body, operation: Operation, definition: vector.MaskedStore) -> None:
    buffer, position, mask, value = operation.operands
    stored = body.to_memory(value)
    address = body.address(buffer, position, inbounds=False)
    body.line(
        f"call void @llvm.masked.store.{_memory_suffix(value.type)}.p0({memory_type(value.type)} {stored}, "
        f"ptr align {alignment(value.type)} {address}, {llvm_type(mask.type)} {body.name(mask)}){body.access(buffer)}"
    )


@_emits(vector.Gather)
def _gather(body: _Body, operation: Operation, definition: vector.Gather) -> None:
    buffer, positions, mask, rest = operation.operands
    (result,) = operation.results
    other = body.to_memory(rest)
    address = body.address(buffer, positions, inbounds=False)
    lanes, type = mask.type.shape[0], memory_type(result.type)  # type: ignore[attr-defined]
    body.from_memory(
        result,
        f"call {type} @llvm.masked.gather.{_memory_suffix(result.type)}.v{lanes}p0(<{lanes} x ptr> "
        f"align {alignment(result.type)} {address}, {llvm_type(mask.type)} {body.name(mask)}, {type} {other})"
        f"{body.access(buffer)}",
    )


@_emits(vector.Scatter)
def _scatter(body: _Body, operation: Operation, definition: vector.Scatter) -> None:
    buffer, positions, mask, value = operation.operands
    stored = body.to_memory(value)
    address = body.address(buffer, positions, inbounds=False)
    lanes = mask.type.shape[0]  # type: ignore[attr-defined]
    body.line(
        f"call void @llvm.masked.scatter.{_memory_suffix(value.type)}.v{lanes}p0({memory_type(value.type)} {stored}, "
        f"<{lanes} x ptr> align {alignment(value.type)} {address}, {llvm_type(mask.type)} {body.name(mask)})"
        f"{body.access(buffer)}"
    )


@_emits(vector.Broadcast)
def _broadcast(body: _Body, operation: Operation, definition: vector.Broadcast) -> None:
    (scalar,), (result,) = operation.operands, operation.results
    type, name = llvm_type(result.type), body.fresh()
    body.line(f"{name} = insertelement {type} poison, {llvm_type(scalar.type)} {body.name(scalar)}, i64 0")
    body.define(
        result, f"shufflevector {type} {name}, {type} poison, <{definition.lanes} x i32> zeroinitializer"
    )


@_emits(vector.Step)
def _step(body: _Body, operation: Operation, definition: vector.Step) -> None:
    body.names[operation.results[0]] = "<" + ", ".join(f"i64 {i}" for i in range(definition.lanes)) + ">"


@_emits(vector.Reduction)
def _reduction(body: _Body, operation: Operation, definition: vector.Reduction) -> None:
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


@_emits(vector.Extract)
def _extract(body: _Body, operation: Operation, definition: vector.Extract) -> None:
    x, *position = operation.operands
    place = body.name(position[0]) if position else str(definition.position)
    body.define(operation.results[0], f"extractelement {llvm_type(x.type)} {body.name(x)}, i64 {place}")


@_emits(vector.Insert)
def _insert(body: _Body, operation: Operation, definition: vector.Insert) -> None:
    scalar, x, *position = operation.operands
    place = body.name(position[0]) if position else str(definition.position)
    body.define(
        operation.results[0],
        f"insertelement {llvm_type(x.type)} {body.name(x)}, {llvm_type(scalar.type)} {body.name(scalar)}, i64 {place}",
    )


@_emits(vector.Shuffle)
def _shuffle(body: _Body, operation: Operation, definition: vector.Shuffle) -> None:
    x, y = operation.operands
    lanes = ", ".join(f"i32 {i}" for i in definition.mask)
    type = llvm_type(x.type)
    body.define(
        operation.results[0],
        f"shufflevector {type} {body.name(x)}, {type} {body.name(y)}, <{len(definition.mask)} x i32> <{lanes}>",
    )


@_emits(vector.CreateMask)
def _create_mask(body: _Body, operation: Operation, definition: vector.CreateMask) -> None:
    (count,), lanes = operation.operands, definition.lanes
    low, both, word = body.fresh(), body.fresh(), body.fresh()
    body.line(f"{low} = call i64 @llvm.smax.i64(i64 {body.name(count)}, i64 0)")
    body.line(f"{both} = call i64 @llvm.umin.i64(i64 {low}, i64 {lanes})")
    body.line(f"{word} = trunc i64 {both} to i32")
    body.define(
        operation.results[0],
        f"call <{lanes} x i1> @llvm.get.active.lane.mask.v{lanes}i1.i32(i32 0, i32 {word})",
    )


# -- scf -------------------------------------------------------------------------------------------------------------------
def _loop_hints(body: _Body, definition: scf.For, group: str | None) -> str:
    """`!llvm.loop` metadata for the hints, or nothing."""
    properties = []
    if definition.vectorize:
        properties.append('!{!"llvm.loop.vectorize.enable", i1 true}')
    if definition.unroll == 1:
        properties.append('!{!"llvm.loop.unroll.disable"}')
    elif definition.unroll > 1:
        properties.append(f'!{{!"llvm.loop.unroll.count", i32 {definition.unroll}}}')
    if group is not None:
        properties.append(f'!{{!"llvm.loop.parallel_accesses", {group}}}')
    if not properties:
        return ""
    node = body.module.node(f"!{{{{self}}, {', '.join(properties)}}}", distinct=True)
    return f", !llvm.loop {node}"


def _counted(
    body: _Body,
    low: str,
    high: str,
    step: str,
    block: Block,
    init: Sequence[Value],
    results: Sequence[Value],
    definition: scf.For,
) -> None:
    """A loop whose block has the counter and the carried values as its arguments."""
    group = body.module.node("!{}", distinct=True) if definition.independent else None
    if group is not None:
        body.groups.append(group)
    head, inside, out = body.new_label("head"), body.new_label("body"), body.new_label("exit")
    before = body.label
    starts = [body.name(v) for v in init]
    body.line(f"br label %{head}")
    body.start(head)
    counter, *carried = block.arguments
    counter_name = body.names[counter] = body.fresh("i")
    place = len(body.lines)
    body.lines.append("")
    for value in carried:
        body.names[value] = body.fresh()
        body.lines.append("")
    test = body.fresh()
    body.line(f"{test} = icmp slt i64 {counter_name}, {high}")
    body.line(f"br i1 {test}, label %{inside}, label %{out}")
    body.start(inside)
    terminator = body.block(block)
    yielded = [body.name(v) for v in terminator.operands] if terminator is not None else []
    following = body.fresh("i")
    body.line(f"{following} = add nsw i64 {counter_name}, {step}")
    body.line(f"br label %{head}{_loop_hints(body, definition, group)}")
    body.lines[place] = f"  {counter_name} = phi i64 [ {low}, %{before} ], [ {following}, %{body.label} ]"
    for i, (value, start, end) in enumerate(zip(carried, starts, yielded, strict=True)):
        type = llvm_type(value.type)
        body.lines[place + 1 + i] = (
            f"  {body.names[value]} = phi {type} [ {start}, %{before} ], [ {end}, %{body.label} ]"
        )
    if group is not None:
        body.groups.pop()
    body.start(out)
    for result, value in zip(results, carried, strict=True):
        body.names[result] = body.names[value]


@_emits(scf.For)
def _for(body: _Body, operation: Operation, definition: scf.For) -> None:
    low, high, step, *init = operation.operands
    block = operation.regions[0].block
    _counted(
        body, body.name(low), body.name(high), body.name(step), block, init, operation.results, definition
    )


@_emits(scf.If)
def _if(body: _Body, operation: Operation, definition: scf.If) -> None:
    (condition,) = operation.operands
    labels = [body.new_label("then"), body.new_label("else")][: len(operation.regions)]
    join = body.new_label("join")
    weights = ""
    if definition.weight:
        pair = (definition.weight, 1) if definition.weight > 0 else (1, -definition.weight)
        weights = ", !prof " + body.module.node(f'!{{!"branch_weights", i32 {pair[0]}, i32 {pair[1]}}}')
    otherwise = labels[1] if len(labels) > 1 else join
    body.line(f"br i1 {body.name(condition)}, label %{labels[0]}, label %{otherwise}{weights}")
    incoming: list[tuple[list[str], str]] = []
    for region, label in zip(operation.regions, labels, strict=True):
        body.start(label)
        terminator = body.block(region.block)
        values = [body.name(v) for v in terminator.operands] if terminator is not None else []
        incoming.append((values, body.label))
        body.line(f"br label %{join}")
    body.start(join)
    for i, result in enumerate(operation.results):
        pairs = ", ".join(f"[ {values[i]}, %{label} ]" for values, label in incoming)
        body.define(result, f"phi {llvm_type(result.type)} {pairs}")


@_emits(scf.While)
def _while(body: _Body, operation: Operation, definition: scf.While) -> None:
    before, after = (region.block for region in operation.regions)
    head, inside, out = body.new_label("head"), body.new_label("body"), body.new_label("exit")
    entry, starts = body.label, [body.name(v) for v in operation.operands]
    body.line(f"br label %{head}")
    body.start(head)
    place = len(body.lines)
    for value in before.arguments:
        body.names[value] = body.fresh()
        body.lines.append("")
    terminator = body.block(before)
    assert terminator is not None
    condition, *passed = [body.name(v) for v in terminator.operands]
    body.line(f"br i1 {condition}, label %{inside}, label %{out}")
    body.start(inside)
    body.names.update(zip(after.arguments, passed, strict=True))
    terminator = body.block(after)
    assert terminator is not None
    ends = [body.name(v) for v in terminator.operands]
    body.line(f"br label %{head}")
    for i, (value, start, end) in enumerate(zip(before.arguments, starts, ends, strict=True)):
        body.lines[place + i] = (
            f"  {body.names[value]} = phi {llvm_type(value.type)} [ {start}, %{entry} ], [ {end}, %{body.label} ]"
        )
    body.start(out)
    body.names.update(zip(operation.results, passed, strict=True))


@_emits(scf.Worker)
def _worker(body: _Body, operation: Operation, definition: scf.Worker) -> None:
    body.names[operation.results[0]] = body.worker


@_emits(scf.Parallel)
def _parallel(body: _Body, operation: Operation, definition: scf.Parallel) -> None:
    low, high, step, *pool = (body.name(v) for v in operation.operands)
    block = operation.regions[0].block
    if not pool:
        _counted(body, low, high, step, block, (), (), scf.For())
        return
    if (low, step) != ("0", "1"):
        raise CompilationError("scf.parallel on a pool must count from 0 by 1", operation.location)
    body.children += 1
    name = f"{body.name_}.parallel{body.children}"
    inner = _Body(body.module, f"{name}.body", body)
    inner.worker = "%worker"
    _counted(inner, "%begin", "%end", "1", block, (), (), scf.For())
    inner.line("ret void")
    captures = [(outer, own, type) for outer, (own, type) in inner.captures.items()]
    roots = [body.root(outer) for outer, _, type in captures if type == "ptr"]
    parameters = []
    for outer, own, type in captures:
        root = body.root(outer)
        alone = type == "ptr" and root in body.unaliased and roots.count(root) == 1
        parameters.append(f"{type} {'noalias ' if alone else ''}{own}")
    parameters += ["i64 %begin", "i64 %end", "i64 %worker"]
    inner._finish(f"define internal void @{name}.body({', '.join(parameters)}) #0")
    _outlined(body, name, captures, operation)


def _outlined(body: _Body, name: str, captures: list[tuple[str, str, str]], operation: Operation) -> None:
    """The function that unpacks the captured values, and the call of the pool on it."""
    type = "{ " + ", ".join(t for _, _, t in captures) + " }" if captures else "{ i8 }"
    lines = [f"define internal void @{name}(ptr %ctx, i64 %begin, i64 %end, i64 %worker) #0 {{", "entry:"]
    context = body.fresh("ctx")
    body.allocas.append(f"  {context} = alloca {type}, align 64")
    for i, (outer, own, kind) in enumerate(captures):
        lines.append(f"  {own}.p = getelementptr inbounds {type}, ptr %ctx, i32 0, i32 {i}")
        lines.append(f"  {own} = load {kind}, ptr {own}.p")
        field = body.fresh("p")
        body.line(f"{field} = getelementptr inbounds {type}, ptr {context}, i32 0, i32 {i}")
        body.line(f"store {kind} {outer}, ptr {field}")
    operands = [f"{kind} {own}" for _, own, kind in captures] + ["i64 %begin", "i64 %end", "i64 %worker"]
    lines += [f"  call void @{name}.body({', '.join(operands)})", "  ret void", "}"]
    body.module.texts.append("\n".join(lines))
    body.module.declared[abi.PARALLEL_FOR] = abi.DECLARATIONS[abi.PARALLEL_FOR]
    count, pool = body.name(operation.operands[1]), body.name(operation.operands[3])
    body.line(f"call void @{abi.PARALLEL_FOR}(ptr {pool}, ptr @{name}, ptr {context}, i64 {count})")


# -- gpu -------------------------------------------------------------------------------------------------------------------
@_emits(gpu.Barrier)
def _barrier(body: _Body, operation: Operation, definition: gpu.Barrier) -> None:
    body.line("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")


__all__ = ["Module", "alignment", "literal", "llvm_type", "memory_type", "suffix"]
