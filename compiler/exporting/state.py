"""`get` and `set`: the state by name."""

from __future__ import annotations

from flambeau.compiler.exporting.library_text import LibraryText, field
from flambeau.runtime import abi


def lookup(lib: LibraryText) -> str:
    """Finds a state by name and size; null if there is none."""
    lines = ["define internal ptr @fb.find(ptr %handle, ptr %name, i64 %bytes) {", "  br label %try0"]
    state = lib.roles.state
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
        choices = ", ".join(f"[ {lib.state_offsets[n]}, %found{n} ]" for n in range(len(state)))
        lines += [
            "yes:",
            f"  %offset = phi i64 {choices}",
            f"  %sp = {field(4)}",
            "  %state = load ptr, ptr %sp",
            f"  %wp = {field(5)}",
            "  %which = load i64, ptr %wp",
            f"  %half = mul i64 %which, {lib.state_bytes}",
            "  %at = add i64 %half, %offset",
            "  %place = getelementptr i8, ptr %state, i64 %at",
            "  ret ptr %place",
        ]
    return "\n".join([*lines, "}\n"])


def access(lib: LibraryText, what: str) -> str:
    source, target = ("%place", "%data") if what == "get" else ("%data", "%place")
    return "\n".join(
        [
            f"define i32 @{lib.name}_{what}(ptr %handle, ptr %name, ptr %data, i64 %bytes) {{",
            "  %n0 = icmp eq ptr %handle, null",
            "  %n1 = icmp eq ptr %name, null",
            "  %n2 = icmp eq ptr %data, null",
            "  %n3 = or i1 %n0, %n1",
            "  %n4 = or i1 %n2, %n3",
            "  br i1 %n4, label %invalid, label %given",
            "given:",
            f"  %t = {field(0)}",
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
