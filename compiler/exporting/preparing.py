"""Weights that come from a file are prepared when a handle is made, as embedded ones are when the library is.

The program that prepares them is compiled into the library. A handle keeps what was prepared, and of a file's tensors those
that the code itself reads; all of them, where that is most.
"""

from __future__ import annotations

from flambeau.compiler.exporting.library_text import LibraryText
from flambeau.compiler.pipeline import Compilation
from flambeau.compiler.signature import ENTRY
from flambeau.runtime import abi


def program(c: Compilation, name: str) -> str:
    """The module that prepares the weights of library `name`."""
    return c.llvm.replace(f"define i32 @{ENTRY}(", f'define hidden i32 @"{name}.prepare"(')


def prepare(lib: LibraryText) -> str:
    """`fb.prepare(data, out, pool)`: a status; prepares the file's tensors at `data`. What is made goes behind them, or with
    what else is needed of them to new memory, which is then given through `out`, and theirs back."""
    c = lib.preparation
    assert c is not None and c.memory is not None and lib.file is not None
    assert isinstance(c.memory.size, int), "weights have known sizes"
    arguments = [_at("%data", lib.file.offsets[label]) for label, _ in lib.roles.weights]
    arguments += lib.preparation_constants
    arguments += [_at("%kept", offset) for offset in lib.prepared_offsets]
    arena = [
        f"  %arena = call ptr @fb.alloc(i64 {max(c.memory.size, 1)})",
        "  %short = icmp eq ptr %arena, null",
    ]
    lines = [
        f'declare i32 @"{lib.name}.prepare"(ptr, ptr, ptr, ptr)',
        "define internal i32 @fb.prepare(ptr %data, ptr %out, ptr %pool) {",
    ]
    if lib.keeps_file:
        lines += [
            "  %kept = getelementptr i8, ptr %data, i64 0",
            *arena,
            "  br i1 %short, label %memory, label %go",
        ]
    else:
        lines += [
            f"  %kept = call ptr @fb.alloc(i64 {lib.kept_bytes})",
            "  %none = icmp eq ptr %kept, null",
            "  br i1 %none, label %memory, label %room",
            "room:",
            *arena,
            "  br i1 %short, label %drop, label %go",
        ]
    lines += ["go:", f"  %args = alloca [{len(arguments)} x ptr], align 16"]
    for number, place in enumerate(arguments):
        lines += [f"  %a{number} = getelementptr ptr, ptr %args, i64 {number}"]
        if place.startswith("getelementptr i8"):  # of a register: an instruction, not a constant
            lines += [f"  %p{number} = {place}", f"  store ptr %p{number}, ptr %a{number}"]
        else:
            lines += [f"  store ptr {place}, ptr %a{number}"]
    lines += [
        f'  %status = call i32 @"{lib.name}.prepare"(ptr %args, ptr null, ptr %arena, ptr %pool)',
        "  call void @fb.free(ptr %arena)",
    ]
    if lib.keeps_file:
        lines += ["  ret i32 %status"]
    else:
        lines += [
            "  %failed = icmp ne i32 %status, 0",
            "  br i1 %failed, label %undo, label %keep",
            "keep:",
            *_moved(lib),
            "  call void @fb.free(ptr %data)",
            "  store ptr %kept, ptr %out",
            f"  ret i32 {int(abi.Status.OK)}",
            "undo:",
            "  call void @fb.free(ptr %kept)",
            "  ret i32 %status",
            "drop:",
            "  call void @fb.free(ptr %kept)",
            "  br label %memory",
        ]
    lines += ["memory:", f"  ret i32 {int(abi.Status.OUT_OF_MEMORY)}", "}\n"]
    return "\n".join(lines)


def _moved(lib: LibraryText) -> list[str]:
    """Copies the tensors that the code itself reads."""
    assert lib.file is not None
    lines = []
    for number, array in lib.used.items():
        label = lib.roles.weights[number - len(lib.roles.inputs)][0]
        lines += [
            f"  %from{number} = {_at('%data', lib.file.offsets[label])}",
            f"  %to{number} = {_at('%kept', lib.read_offsets[number])}",
            f"  call void @llvm.memcpy.p0.p0.i64(ptr %to{number}, ptr %from{number}, i64 {array.nbytes}, i1 false)",
        ]
    return lines


def _at(base: str, offset: int) -> str:
    return f"getelementptr i8, ptr {base}, i64 {offset}"
