"""Libraries: C functions around a compiled graph, as object code that needs nothing but the C library.

A library holds one function. Its parameters have roles: what the caller passes, weights that are part of the library, and
state that the handle keeps (a training step reads it and writes its successor). The functions are LLVM IR like the
rest; all they keep is in the handle, so any number of threads may use any number of handles.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import Index, Symbol
from flambeau.compiler.lowering.context import tensor_of
from flambeau.compiler.passes.plan import aligned
from flambeau.compiler.pipeline import ENTRY, Compilation, compile_stages
from flambeau.compiler.targets.entry import EntryWriter
from flambeau.compiler.targets.machine import TargetDescription, emit_object, host_target
from flambeau.runtime import abi

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ExportRoles:
    """What each of a graph's parameters and results is, in their order.

    Parameters come as inputs, then weights, then state; results as outputs, then the state's successors. `inputs` and
    `outputs` are their names; `weights` and `state` names and contents (the state's are what a new handle starts from).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[tuple[str, Array], ...] = ()
    state: tuple[tuple[str, Array], ...] = ()


@dataclass
class LibraryCode:
    """A library before linking: its object file, the functions to export, and its signature."""

    name: str
    object_code: bytes
    exports: tuple[str, ...]
    signature: dict[str, Any]
    compilation: Compilation = field(repr=False)


FUNCTIONS = ("create", "destroy", "run", "workspace_bytes", "error", "signature", "get", "set")


def export_library(
    graph: Graph, roles: ExportRoles, name: str, target: TargetDescription | None = None, opt_level: int = 1
) -> LibraryCode:
    """Compile `graph` into a library called `name` (a C identifier). CompilationError if the roles do not fit."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise CompilationError(f"a library's name must be a C identifier, got {name!r}")
    _check(graph, roles)
    compilation = compile_stages(graph, target, stop_after="llvm", opt_level=opt_level)
    signature = _signature(compilation, roles, name)
    writer = _LibraryWriter(compilation, roles, name, signature)
    text = compilation.llvm.replace(f"define i32 @{ENTRY}(", f"define internal i32 @{ENTRY}(") + writer.text()
    pool = abi.pool_ir(compilation.target.triple)
    compilation.object_code = emit_object(text, compilation.target, opt_level, link=[pool])
    compilation.llvm = text
    exports = tuple(f"{name}_{f}" for f in FUNCTIONS)
    return LibraryCode(name, compilation.object_code, exports, signature, compilation)


def _check(graph: Graph, roles: ExportRoles) -> None:
    expected = len(roles.inputs) + len(roles.weights) + len(roles.state)
    if len(graph.parameters) != expected:
        raise CompilationError(f"the graph has {len(graph.parameters)} parameters, the roles name {expected}")
    if len(graph.results) != len(roles.outputs) + len(roles.state):
        raise CompilationError(
            f"the graph has {len(graph.results)} results, the roles name {len(roles.outputs) + len(roles.state)}"
        )
    kept = [*roles.weights, *roles.state]
    for (label, array), parameter in zip(kept, graph.parameters[len(roles.inputs) :], strict=True):
        type = tensor_of(parameter)
        if array.shape != type.shape or array.dtype != type.element.numpy:
            raise CompilationError(
                f"{label}: the parameter is {type}, its content {array.dtype}{list(array.shape)}"
            )
    for (label, _), before, after in zip(
        roles.state,
        graph.parameters[len(roles.inputs) + len(roles.weights) :],
        graph.results[len(roles.outputs) :],
        strict=True,
    ):
        if before.type is not after.type:
            raise CompilationError(
                f"the state {label} is {before.type} before a step and {after.type} after it"
            )


def _described(label: str, value: Value) -> dict[str, Any]:
    type = tensor_of(value)
    shape = [d if isinstance(d, int) else str(d) for d in type.shape]
    return {"name": label, "dtype": type.element.numpy.name, "shape": shape}


def _signature(c: Compilation, roles: ExportRoles, name: str) -> dict[str, Any]:
    graph = c.graph
    first_state = len(roles.inputs) + len(roles.weights)
    assert c.memory is not None
    return {
        "abi": abi.VERSION,
        "name": name,
        "kind": "training_step" if roles.state else "inference",
        "symbols": [s.name for s in c.symbols],
        "inputs": [_described(n, v) for n, v in zip(roles.inputs, graph.parameters, strict=False)],
        "outputs": [_described(n, v) for n, v in zip(roles.outputs, graph.results, strict=False)],
        "state": [
            _described(n, v) for (n, _), v in zip(roles.state, graph.parameters[first_state:], strict=True)
        ],
        "weights": [
            _described(n, v)
            for (n, _), v in zip(roles.weights, graph.parameters[len(roles.inputs) :], strict=False)
        ],
        "weight_bytes": sum(a.nbytes for _, a in roles.weights) + sum(a.nbytes for a in c.constants),
        "workspace": str(c.memory.size),
        "kernels": len(c.kernels),
        "target": {
            "triple": c.target.triple,
            "cpu": c.target.cpu,
            "requires": [n for n, *_ in required_features(c.target)],
        },
    }


#: (name, cpuid leaf, register, bit): what is tested at `create` where the code was built with the feature.
X86_FEATURES = (
    ("fma", 1, "c", 12),
    ("avx", 1, "c", 28),
    ("f16c", 1, "c", 29),
    ("avx2", 7, "b", 5),
    ("bmi2", 7, "b", 8),
    ("avx512f", 7, "b", 16),
    ("avx512dq", 7, "b", 17),
    ("avx512bw", 7, "b", 30),
    ("avx512vl", 7, "b", 31),
    ("avx512vnni", 7, "c", 11),
)


def required_features(target: TargetDescription) -> list[tuple[str, int, str, int]]:
    """The x86 features that code for `target` needs a check for; none on other architectures.

    `cpuid` has to be assembled, and LLVM as llvmlite packs it assembles for the host's architecture only.
    """
    if target.architecture != "x86_64" or host_target().architecture != "x86_64":
        return []
    return [f for f in X86_FEATURES if target.has(f[0])]


def _bytes_literal(data: bytes) -> str:
    return "".join([_ESCAPED[b] for b in data])


_ESCAPED = [chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:02X}" for b in range(256)]

# Fields of the handle: a tag (the address of the library's own signature, so that handles of others are told apart), the
# pool, the arena and its size, the state's memory, and which half of it is current.
_HANDLE = "{ ptr, ptr, ptr, i64, ptr, i64 }"
_HANDLE_BYTES = 64


class _LibraryWriter:
    def __init__(self, c: Compilation, roles: ExportRoles, name: str, signature: dict[str, Any]) -> None:
        self.c, self.roles, self.name, self.signature = c, roles, name, signature
        self.offsets: dict[int, int] = {}
        blob = bytearray()
        constants = list(enumerate(c.constants, len(c.graph.parameters)))
        weights = list(enumerate([a for _, a in roles.weights], len(roles.inputs)))
        for number, array in [*weights, *constants]:
            self.offsets[number] = self._append(blob, array)
        self.state_offsets: list[int] = []
        state = bytearray()
        for _, array in roles.state:
            self.state_offsets.append(self._append(state, array))
        self.state_bytes = int(aligned(len(state)))  # type: ignore[arg-type]
        self.blob, self.state = bytes(blob), bytes(state).ljust(self.state_bytes, b"\0")

    @staticmethod
    def _append(blob: bytearray, array: Array) -> int:
        blob.extend(b"\0" * (-len(blob) % 64))
        offset = len(blob)
        blob.extend(np.ascontiguousarray(array).tobytes())
        return offset

    def text(self) -> str:
        """The library's globals and functions."""
        return "\n".join(
            [
                self._globals(),
                self._create(),
                self._destroy(),
                self._run(),
                self._workspace(),
                self._error(),
                f"define ptr @{self.name}_signature() {{\n  ret ptr @fb.signature\n}}\n",
                self._lookup(),
                self._access("get"),
                self._access("set"),
            ]
        )

    def _constant(self, label: str, data: bytes, align: int = 1) -> str:
        return f'@{label} = internal constant [{len(data)} x i8] c"{_bytes_literal(data)}", align {align}'

    def _globals(self) -> str:
        lines = [
            self._constant("fb.signature", json.dumps(self.signature).encode() + b"\0"),
            self._constant("fb.weights", self.blob or b"\0", 64),
            self._constant("fb.state", self.state or b"\0", 64),
        ]
        for status in abi.Status:
            lines.append(self._constant(f"fb.status{int(status)}", status.message.encode() + b"\0"))
        for number, (label, _) in enumerate(self.roles.state):
            lines.append(self._constant(f"fb.name{number}", label.encode() + b"\0"))
        lines += [
            "declare ptr @aligned_alloc(i64, i64)",
            "declare void @free(ptr)",
            "declare i32 @strcmp(ptr, ptr)",
        ]
        if "@llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)" not in self.c.llvm:
            lines.append("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        for function in (abi.POOL_CREATE, abi.POOL_DESTROY):
            if f"@{function}(" not in self.c.llvm:
                lines.append(abi.DECLARATIONS[function])
        return "\n".join(lines) + "\n"

    def _field(self, number: int) -> str:
        return f"getelementptr inbounds {_HANDLE}, ptr %handle, i32 0, i32 {number}"

    def _cpu_check(self) -> list[str]:
        features = required_features(self.c.target)
        if not features:
            return ["  br label %supported"]
        lines = []
        registers = {}
        for leaf in sorted({leaf for _, leaf, *_ in features} | {1}):
            lines.append(
                f'  %id{leaf} = call {{ i32, i32, i32, i32 }} asm sideeffect "cpuid", '
                f'"={{ax}},={{bx}},={{cx}},={{dx}},{{ax}},{{cx}}"(i32 {leaf}, i32 0)'
            )
            for position, register in enumerate("abcd"):
                if register in "bc":
                    registers[leaf, register] = f"%id{leaf}{register}"
                    lines.append(
                        f"  %id{leaf}{register} = extractvalue {{ i32, i32, i32, i32 }} %id{leaf}, {position}"
                    )
        masks: dict[tuple[int, str], int] = {(1, "c"): 1 << 27}  # OSXSAVE: xgetbv may be asked
        for _, leaf, register, bit in features:
            masks[leaf, register] = masks.get((leaf, register), 0) | 1 << bit
        ok = ""
        for number, ((leaf, register), mask) in enumerate(masks.items()):
            signed = mask - (1 << 32) if mask >> 31 else mask
            lines.append(f"  %bits{number} = and i32 {registers[leaf, register]}, {signed}")
            lines.append(f"  %has{number} = icmp eq i32 %bits{number}, {signed}")
            if ok:
                lines.append(f"  %all{number} = and i1 {ok}, %has{number}")
            ok = f"%all{number}" if ok else f"%has{number}"
        wide = any(f[0].startswith("avx512") for f in features)
        lines += [
            f"  br i1 {ok}, label %system, label %unsupported",
            "system:",
            '  %xcr = call { i32, i32 } asm sideeffect "xgetbv", "={ax},={dx},{cx}"(i32 0)',
            "  %xcr0 = extractvalue { i32, i32 } %xcr, 0",
            f"  %saved = and i32 %xcr0, {0xE6 if wide else 6}",
            f"  %kept = icmp eq i32 %saved, {0xE6 if wide else 6}",
            "  br i1 %kept, label %supported, label %unsupported",
        ]
        return lines

    def _create(self) -> str:
        lines = [
            f"define i32 @{self.name}_create(ptr %out, i32 %threads) noinline {{",
            "  %null = icmp eq ptr %out, null",
            "  br i1 %null, label %invalid, label %check",
            "check:",
            "  store ptr null, ptr %out",
            *self._cpu_check(),
            "supported:",
            f"  %handle = call ptr @aligned_alloc(i64 64, i64 {_HANDLE_BYTES})",
            "  %none = icmp eq ptr %handle, null",
            "  br i1 %none, label %memory, label %fill",
            "fill:",
            f"  %tag = {self._field(0)}",
            "  store ptr @fb.signature, ptr %tag",
            f"  %pool = {self._field(1)}",
            "  store ptr null, ptr %pool",
            f"  %arena = {self._field(2)}",
            "  store ptr null, ptr %arena",
            f"  %size = {self._field(3)}",
            "  store i64 0, ptr %size",
            f"  %state = {self._field(4)}",
            "  store ptr null, ptr %state",
            f"  %which = {self._field(5)}",
            "  store i64 0, ptr %which",
        ]
        if self.state_bytes:
            lines += [
                f"  %memory_ = call ptr @aligned_alloc(i64 64, i64 {2 * self.state_bytes})",
                "  %missing = icmp eq ptr %memory_, null",
                "  br i1 %missing, label %undo, label %copy",
                "undo:",
                "  call void @free(ptr %handle)",
                "  br label %memory",
                "copy:",
                f"  call void @llvm.memcpy.p0.p0.i64(ptr %memory_, ptr @fb.state, i64 {self.state_bytes}, i1 false)",
                "  store ptr %memory_, ptr %state",
            ]
        lines += [
            "  %several = icmp sgt i32 %threads, 1",
            "  br i1 %several, label %parallel, label %done",
            "parallel:",
            "  %made = call ptr @fb_pool_create(i32 %threads)",
            "  store ptr %made, ptr %pool",
            "  br label %done",
            "done:",
            "  store ptr %handle, ptr %out",
            f"  ret i32 {int(abi.Status.OK)}",
            "invalid:",
            f"  ret i32 {int(abi.Status.INVALID_ARGUMENT)}",
        ]
        if required_features(self.c.target):
            lines += ["unsupported:", f"  ret i32 {int(abi.Status.CPU_UNSUPPORTED)}"]
        lines += ["memory:", f"  ret i32 {int(abi.Status.OUT_OF_MEMORY)}", "}\n"]
        return "\n".join(lines)

    def _destroy(self) -> str:
        return "\n".join(
            [
                f"define void @{self.name}_destroy(ptr %handle) {{",
                "  %null = icmp eq ptr %handle, null",
                "  br i1 %null, label %done, label %free",
                "free:",
                f"  %p = {self._field(1)}",
                "  %pool = load ptr, ptr %p",
                "  %alone = icmp eq ptr %pool, null",
                "  br i1 %alone, label %rest, label %stop",
                "stop:",
                "  call void @fb_pool_destroy(ptr %pool)",
                "  br label %rest",
                "rest:",
                f"  %a = {self._field(2)}",
                "  %arena = load ptr, ptr %a",
                "  call void @free(ptr %arena)",
                f"  %s = {self._field(4)}",
                "  %state = load ptr, ptr %s",
                "  call void @free(ptr %state)",
                "  call void @free(ptr %handle)",
                "  br label %done",
                "done:",
                "  ret void",
                "}\n",
            ]
        )

    def _symbols(self) -> tuple[dict[Symbol, str], str]:
        names = {s: f"%dim{i}" for i, s in enumerate(self.c.symbols)}
        return names, ", ".join(f"i64 {n}" for n in names.values())

    def _size(self, expression: Index, prefix: str) -> tuple[list[str], str]:
        names, _ = self._symbols()
        writer = EntryWriter((), prefix)
        writer.dims = names
        result = writer.number(expression)
        return writer.lines, result

    def _run(self) -> str:
        roles, graph = self.roles, self.c.graph
        names, dims = self._symbols()
        inputs = [f"%in{i}" for i in range(len(roles.inputs))]
        outputs = [f"%out{i}" for i in range(len(roles.outputs))]
        pointers = [*inputs, *outputs]
        parameters = ["ptr %handle", *([dims] if dims else []), *(f"ptr {p}" for p in pointers)]
        assert self.c.simplified is not None and self.c.memory is not None
        lines = [f"define i32 @{self.name}_run({', '.join(parameters)}) {{"]
        test = ""
        for number, pointer in enumerate(["%handle", *pointers]):
            lines.append(f"  %null{number} = icmp eq ptr {pointer}, null")
            lines.append(f"  %any{number} = or i1 {test or 'false'}, %null{number}")
            test = f"%any{number}"
        lines += [f"  br i1 {test}, label %invalid, label %given", "given:"]
        lines += [
            f"  %t = {self._field(0)}",
            "  %tag = load ptr, ptr %t",
            "  %ours = icmp eq ptr %tag, @fb.signature",
            "  br i1 %ours, label %shapes, label %invalid",
            "shapes:",
        ]
        test = ""
        for number, name in enumerate(names.values()):
            lines.append(f"  %low{number} = icmp slt i64 {name}, 1")
            lines.append(f"  %bad{number} = or i1 {test or 'false'}, %low{number}")
            test = f"%bad{number}"
        lines.append(f"  br i1 {test}, label %shape, label %room" if test else "  br label %room")
        lines.append("room:")
        code, need = self._size(aligned(self.c.memory.size), "need")
        lines += code
        lines += [
            f"  %ap = {self._field(2)}",
            f"  %sp = {self._field(3)}",
            "  %have = load i64, ptr %sp",
            f"  %short = icmp slt i64 %have, {need}",
            "  br i1 %short, label %grow, label %go",
            "grow:",
            "  %old = load ptr, ptr %ap",
            "  call void @free(ptr %old)",
            "  store ptr null, ptr %ap",
            "  store i64 0, ptr %sp",
            f"  %fresh = call ptr @aligned_alloc(i64 64, i64 {need})",
            "  %failed = icmp eq ptr %fresh, null",
            "  br i1 %failed, label %memory, label %grown",
            "grown:",
            "  store ptr %fresh, ptr %ap",
            f"  store i64 {need}, ptr %sp",
            "  br label %go",
            "go:",
            "  %arena = load ptr, ptr %ap",
            f"  %pp = {self._field(1)}",
            "  %pool = load ptr, ptr %pp",
            f"  %stp = {self._field(4)}",
            "  %state = load ptr, ptr %stp",
            f"  %wp = {self._field(5)}",
            "  %which = load i64, ptr %wp",
            "  %next = xor i64 %which, 1",
            f"  %current_offset = mul i64 %which, {self.state_bytes}",
            f"  %next_offset = mul i64 %next, {self.state_bytes}",
            "  %current = getelementptr i8, ptr %state, i64 %current_offset",
            "  %following = getelementptr i8, ptr %state, i64 %next_offset",
        ]
        total = len(self.c.simplified.parameters) + len(graph.results)
        lines.append(f"  %args = alloca [{max(total, 1)} x ptr], align 16")
        lines.append(f"  %dims = alloca [{max(len(names), 1)} x i64], align 16")
        for number, name in enumerate(names.values()):
            lines.append(f"  %d{number} = getelementptr i64, ptr %dims, i64 {number}")
            lines.append(f"  store i64 {name}, ptr %d{number}")
        first_state = len(roles.inputs) + len(roles.weights)
        places: list[str] = list(inputs)
        for number in range(len(roles.inputs), len(self.c.simplified.parameters)):
            if number in self.offsets:
                places.append(f"getelementptr (i8, ptr @fb.weights, i64 {self.offsets[number]})")
                continue
            lines.append(
                f"  %now{number} = getelementptr i8, ptr %current, i64 {self.state_offsets[number - first_state]}"
            )
            places.append(f"%now{number}")
        places += outputs
        for number, offset in enumerate(self.state_offsets):
            lines.append(f"  %then{number} = getelementptr i8, ptr %following, i64 {offset}")
            places.append(f"%then{number}")
        for number, place in enumerate(places):
            lines.append(f"  %a{number} = getelementptr ptr, ptr %args, i64 {number}")
            lines.append(f"  store ptr {place}, ptr %a{number}")
        lines += [
            f"  %status = call i32 @{ENTRY}(ptr %args, ptr %dims, ptr %arena, ptr %pool)",
            "  %ok = icmp eq i32 %status, 0",
            "  br i1 %ok, label %turn, label %out",
            "turn:",
            "  store i64 %next, ptr %wp" if self.state_bytes else "  ; no state",
            "  br label %out",
            "out:",
            "  ret i32 %status",
            "invalid:",
            f"  ret i32 {int(abi.Status.INVALID_ARGUMENT)}",
            *(["shape:", f"  ret i32 {int(abi.Status.BAD_SHAPE)}"] if names else []),
            "memory:",
            f"  ret i32 {int(abi.Status.OUT_OF_MEMORY)}",
            "}\n",
        ]
        return "\n".join(lines)

    def _workspace(self) -> str:
        assert self.c.memory is not None
        _, dims = self._symbols()
        code, size = self._size(aligned(self.c.memory.size), "need")
        return "\n".join(
            [f"define i64 @{self.name}_workspace_bytes({dims}) {{", *code, f"  ret i64 {size}", "}\n"]
        )

    def _error(self) -> str:
        cases = " ".join(f"i32 {int(s)}, label %s{int(s)}" for s in abi.Status)
        blocks = [f"s{int(s)}:\n  ret ptr @fb.status{int(s)}" for s in abi.Status]
        default = int(abi.Status.INTERNAL)
        return (
            f"define ptr @{self.name}_error(i32 %status) {{\n  switch i32 %status, label %s{default} [ {cases} ]\n"
            + "\n".join(blocks)
            + "\n}\n"
        )

    def _lookup(self) -> str:
        """Finds a state by name and size; null if there is none."""
        lines = ["define internal ptr @fb.find(ptr %handle, ptr %name, i64 %bytes) {", "  br label %try0"]
        state = self.roles.state
        for number, (_, array) in enumerate(state):
            lines += [
                f"try{number}:",
                f"  %c{number} = call i32 @strcmp(ptr %name, ptr @fb.name{number})",
                f"  %e{number} = icmp eq i32 %c{number}, 0",
                f"  br i1 %e{number}, label %found{number}, label %try{number + 1}",
                f"found{number}:",
                f"  %fits{number} = icmp eq i64 %bytes, {array.nbytes}",
                f"  br i1 %fits{number}, label %yes, label %try{len(state)}",
            ]
        lines += [f"try{len(state)}:", "  ret ptr null"]
        if state:
            choices = ", ".join(f"[ {self.state_offsets[n]}, %found{n} ]" for n in range(len(state)))
            lines += [
                "yes:",
                f"  %offset = phi i64 {choices}",
                f"  %sp = {self._field(4)}",
                "  %state = load ptr, ptr %sp",
                f"  %wp = {self._field(5)}",
                "  %which = load i64, ptr %wp",
                f"  %half = mul i64 %which, {self.state_bytes}",
                "  %at = add i64 %half, %offset",
                "  %place = getelementptr i8, ptr %state, i64 %at",
                "  ret ptr %place",
            ]
        return "\n".join([*lines, "}\n"])

    def _access(self, what: str) -> str:
        source, target = ("%place", "%data") if what == "get" else ("%data", "%place")
        return "\n".join(
            [
                f"define i32 @{self.name}_{what}(ptr %handle, ptr %name, ptr %data, i64 %bytes) {{",
                "  %n0 = icmp eq ptr %handle, null",
                "  %n1 = icmp eq ptr %name, null",
                "  %n2 = icmp eq ptr %data, null",
                "  %n3 = or i1 %n0, %n1",
                "  %n4 = or i1 %n2, %n3",
                "  br i1 %n4, label %invalid, label %given",
                "given:",
                f"  %t = {self._field(0)}",
                "  %tag = load ptr, ptr %t",
                "  %ours = icmp eq ptr %tag, @fb.signature",
                "  br i1 %ours, label %look, label %invalid",
                "look:",
                "  %place = call ptr @fb.find(ptr %handle, ptr %name, i64 %bytes)",
                "  %none = icmp eq ptr %place, null",
                "  br i1 %none, label %invalid, label %copy",
                "copy:",
                f"  call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 %bytes, i1 false)",
                f"  ret i32 {int(abi.Status.OK)}",
                "invalid:",
                f"  ret i32 {int(abi.Status.INVALID_ARGUMENT)}",
                "}\n",
            ]
        )


def names_of(prefix: str, count: int) -> tuple[str, ...]:
    """``prefix0``, ``prefix1``, …; just ``prefix`` for one."""
    return (prefix,) if count == 1 else tuple(f"{prefix}{i}" for i in range(count))
