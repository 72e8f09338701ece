"""One LLVM function under construction: names, lines, captures; and the module that it belongs to.

The operations' own text is in `llvm_memory` and `llvm_control`; scalar arithmetic comes from the target's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.loops import arith, func
from flambeau.compiler.dialects.loops.base import scalar_of
from flambeau.compiler.ir.core import Block, Operation, Value
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import MemRefType, Type, VectorType, i1
from flambeau.compiler.targets.llvm_types import llvm_type, memory_type, suffix


class Module:
    """Collects the text of one module: functions, metadata, declarations.

    `scalars` is the target's table of scalar operations (`targets.scalars`), `handlers` emit the others, `attributes`
    are LLVM function attributes for all functions, `kernel` is a calling convention for those that are not internal.
    `register_bits`: how wide a vector may be at most in a masked access (0: as wide as it likes).
    """

    def __init__(
        self,
        scalars: Mapping[str, str],
        handlers: Mapping[type[OpDef], Handler],
        attributes: str,
        kernel: str = "",
        register_bits: int = 0,
    ) -> None:
        self.register_bits = register_bits
        self.scalars, self.attributes, self.kernel, self.handlers = scalars, attributes, kernel, handlers
        self.texts: list[str] = []
        self.metadata: list[str] = []
        self.defined: set[str] = set()
        self.declared: dict[str, str] = {}
        self.globals: dict[str, str] = {}
        self._nontemporal: str | None = None

    def emit(self, functions: Sequence[Operation], constants: Mapping[str, bytes] | None = None) -> str:
        """The module's text. `constants`: the content of global buffers that this module defines itself."""
        self.defined = {f.definition.sym_name for f in functions}  # type: ignore[attr-defined]
        for name, content in (constants or {}).items():
            data = "".join(f"\\{byte:02X}" for byte in content)
            self.globals[name] = f'@{name} = internal constant [{len(content)} x i8] c"{data}", align 64'
        emitted: set[str] = set()
        for function in functions:
            definition: Any = function.definition
            if definition.sym_name in emitted:
                # Library functions are the same whichever kernel brought them.
                if definition.inline:
                    continue
                raise CompilationError(f"two functions of a module are called {definition.sym_name}")
            emitted.add(definition.sym_name)
            Body(self, function.definition.sym_name).function(function)  # type: ignore[attr-defined]
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

    def nontemporal(self) -> str:
        """The node that marks stores past the caches."""
        if self._nontemporal is None:
            self._nontemporal = self.node("!{i32 1}")
        return self._nontemporal


class Body:
    """Emits one LLVM function. A parallel body has a `Body` of its own, whose parent names what it captures."""

    def __init__(self, module: Module, name: str, parent: Body | None = None) -> None:
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
        self.finish(f"define {linkage}{returned} @{self.name_}({', '.join(parameters)}) {attributes}")

    def _parameter(self, type: Type, name: str, alone: bool, definition: func.Func) -> str:
        if isinstance(type, MemRefType):
            if alone:
                self.unaliased.add(name)
            size = f"align {definition.alignment} " if definition.alignment > 1 else ""
            return f"ptr {'noalias ' if alone else ''}nocapture nonnull {size}{name}"
        return f"{llvm_type(type)} {name}"

    def finish(self, head: str) -> None:
        self.module.texts.append("\n".join([f"{head} {{", "entry:", *self.allocas, *self.lines, "}"]))

    def block(self, block: Block) -> Operation | None:
        """Emits a block's operations; gives back the terminator, unless that is a return."""
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
            handler = self.module.handlers.get(definition.__class__)
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
        register, memory = llvm_type(result.type), memory_type(result.type)
        if register == memory:
            self.define(result, load)
            return
        loaded = self.fresh("b")
        self.line(f"{loaded} = {load}")
        cast = "trunc" if scalar_of(result.type) is i1 else "bitcast"
        self.define(result, f"{cast} {memory} {loaded} to {register}")

    def to_memory(self, value: Value) -> str:
        """The name of `value` as it is in memory."""
        name, register, memory = self.name(value), llvm_type(value.type), memory_type(value.type)
        if register == memory:
            return name
        stored = self.fresh("b")
        cast = "zext" if scalar_of(value.type) is i1 else "bitcast"
        self.line(f"{stored} = {cast} {register} {name} to {memory}")
        return stored


Handler = Callable[[Body, Operation, Any], None]
