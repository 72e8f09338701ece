"""`run`, `workspace_bytes` and `error`."""

from __future__ import annotations

from flambeau.compiler.exporting.library_text import LibraryText, field
from flambeau.compiler.ir.dims import Index, Symbol
from flambeau.compiler.passes.plan import aligned
from flambeau.compiler.signature import ENTRY
from flambeau.compiler.targets.entry import EntryWriter
from flambeau.runtime import abi


def symbols(lib: LibraryText) -> tuple[dict[Symbol, str], str]:
    names = {s: f"%dim{i}" for i, s in enumerate(lib.c.symbols)}
    return names, ", ".join(f"i64 {n}" for n in names.values())


def size_of(lib: LibraryText, expression: Index, prefix: str) -> tuple[list[str], str]:
    names, _ = symbols(lib)
    writer = EntryWriter((), prefix)
    writer.dims = names
    result = writer.number(expression)
    return writer.lines, result


def run(lib: LibraryText) -> str:
    roles, graph = lib.roles, lib.c.graph
    names, dims = symbols(lib)
    inputs = [f"%in{i}" for i in range(len(roles.inputs))]
    outputs = [f"%out{i}" for i in range(len(roles.outputs))]
    pointers = [*inputs, *outputs]
    parameters = ["ptr %handle", *([dims] if dims else []), *(f"ptr {p}" for p in pointers)]
    assert lib.c.simplified is not None and lib.c.memory is not None
    lines = [f"define i32 @{lib.name}_run({', '.join(parameters)}) {{"]
    test = ""
    for number, pointer in enumerate(["%handle", *pointers]):
        lines.append(f"  %null{number} = icmp eq ptr {pointer}, null")
        lines.append(f"  %any{number} = or i1 {test or 'false'}, %null{number}")
        test = f"%any{number}"
    lines += [f"  br i1 {test}, label %invalid, label %given", "given:"]
    lines += [
        f"  %t = {field(0)}",
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
    code, need = size_of(lib, aligned(lib.c.memory.size), "need")
    lines += code
    lines += [
        f"  %ap = {field(2)}",
        f"  %sp = {field(3)}",
        "  %have = load i64, ptr %sp",
        f"  %short = icmp slt i64 %have, {need}",
        "  br i1 %short, label %grow, label %go",
        "grow:",
        "  %old = load ptr, ptr %ap",
        "  call void @fb.free(ptr %old)",
        "  store ptr null, ptr %ap",
        "  store i64 0, ptr %sp",
        f"  %fresh = call ptr @fb.alloc(i64 {need})",
        "  %failed = icmp eq ptr %fresh, null",
        "  br i1 %failed, label %memory, label %grown",
        "grown:",
        "  store ptr %fresh, ptr %ap",
        f"  store i64 {need}, ptr %sp",
        "  br label %go",
        "go:",
        "  %arena = load ptr, ptr %ap",
        f"  %pp = {field(1)}",
        "  %pool = load ptr, ptr %pp",
        f"  %stp = {field(4)}",
        "  %state = load ptr, ptr %stp",
        f"  %rp = {field(6)}",
        "  %read = load ptr, ptr %rp",
        f"  %wp = {field(5)}",
        "  %which = load i64, ptr %wp",
        "  %next = xor i64 %which, 1",
        f"  %current_offset = mul i64 %which, {lib.state_bytes}",
        f"  %next_offset = mul i64 %next, {lib.state_bytes}",
        "  %current = getelementptr i8, ptr %state, i64 %current_offset",
        "  %following = getelementptr i8, ptr %state, i64 %next_offset",
    ]
    total = len(lib.c.simplified.parameters) + len(graph.results)
    lines.append(f"  %args = alloca [{max(total, 1)} x ptr], align 16")
    lines.append(f"  %dims = alloca [{max(len(names), 1)} x i64], align 16")
    for number, name in enumerate(names.values()):
        lines.append(f"  %d{number} = getelementptr i64, ptr %dims, i64 {number}")
        lines.append(f"  store i64 {name}, ptr %d{number}")
    first_state = len(roles.inputs) + len(roles.weights)
    places: list[str] = list(inputs)
    for number in range(len(roles.inputs), len(lib.c.simplified.parameters)):
        if number in lib.read_offsets:
            lines.append(f"  %now{number} = getelementptr i8, ptr %read, i64 {lib.read_offsets[number]}")
            places.append(f"%now{number}")
            continue
        if number in lib.places:
            places.append(lib.places[number])
            continue
        if number < first_state:  # a weight of which the code reads only what was prepared
            places.append("null")
            continue
        lines.append(
            f"  %now{number} = getelementptr i8, ptr %current, i64 {lib.state_offsets[number - first_state]}"
        )
        places.append(f"%now{number}")
    places += outputs
    for number, offset in enumerate(lib.state_offsets):
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
        "  store i64 %next, ptr %wp" if lib.state_bytes else "  ; no state",
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


def workspace(lib: LibraryText) -> str:
    assert lib.c.memory is not None
    _, dims = symbols(lib)
    code, size = size_of(lib, aligned(lib.c.memory.size), "need")
    return "\n".join(
        [f"define i64 @{lib.name}_workspace_bytes({dims}) {{", *code, f"  ret i64 {size}", "}\n"]
    )


def error(lib: LibraryText) -> str:
    cases = " ".join(f"i32 {int(s)}, label %s{int(s)}" for s in abi.Status)
    blocks = [f"s{int(s)}:\n  ret ptr @fb.status{int(s)}" for s in abi.Status]
    default = int(abi.Status.INTERNAL)
    return (
        f"define ptr @{lib.name}_error(i32 %status) {{\n  switch i32 %status, label %s{default} [ {cases} ]\n"
        + "\n".join(blocks)
        + "\n}\n"
    )
