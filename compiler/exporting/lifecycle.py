"""`create` and `destroy`: a handle's memory, its threads, and the weights that it reads from a file."""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.exporting.cpu_features import cpu_check, required_features
from flambeau.compiler.exporting.library_text import HANDLE_BYTES, LibraryText, field
from flambeau.runtime import abi


def create(lib: LibraryText) -> str:
    """`create`: an int32 status; the handle, or null, through `out`."""
    lines = [
        f"define i32 @{lib.name}_create(ptr %out, i32 %threads{', ptr %path' if lib.file else ''}) noinline {{",
        "  %null = icmp eq ptr %out, null",
        "  br i1 %null, label %invalid, label %check",
        "check:",
        "  store ptr null, ptr %out",
        *cpu_check(lib.c.target),
        "supported:",
        f"  %handle = call ptr @fb.alloc(i64 {HANDLE_BYTES})",
        "  %none = icmp eq ptr %handle, null",
        "  br i1 %none, label %memory, label %fill",
        "fill:",
        f"  %tag = {field(0)}",
        "  store ptr @fb.signature, ptr %tag",
        f"  %pool = {field(1)}",
        "  store ptr null, ptr %pool",
        f"  %arena = {field(2)}",
        "  store ptr null, ptr %arena",
        f"  %size = {field(3)}",
        "  store i64 0, ptr %size",
        f"  %state = {field(4)}",
        "  store ptr null, ptr %state",
        f"  %which = {field(5)}",
        "  store i64 0, ptr %which",
    ]
    lines += [f"  %weights = {field(6)}", "  store ptr null, ptr %weights"]
    causes = []  # statuses, with the blocks that they come from
    if lib.state_bytes:
        lines += [
            f"  %memory_ = call ptr @fb.alloc(i64 {2 * lib.state_bytes})",
            "  %missing = icmp eq ptr %memory_, null",
            "  br i1 %missing, label %undo, label %copy",
            "copy:",
            "  store ptr %memory_, ptr %state",
            *([] if lib.file is not None else _copies(lib, lib.state_places)),
        ]
        causes.append(f"[ {int(abi.Status.OUT_OF_MEMORY)}, %fill ]")
    lines += [
        "  %several = icmp sgt i32 %threads, 1",
        "  br i1 %several, label %parallel, label %alone",
        "parallel:",
        "  %made = call ptr @fb_pool_create(i32 %threads)",
        "  store ptr %made, ptr %pool",
        "  br label %alone",
        "alone:",
    ]
    if lib.file is not None:
        lines += [
            "  %read = call i32 @fb.read(ptr %path, ptr %weights)",
            "  %unread = icmp ne i32 %read, 0",
            "  br i1 %unread, label %undo, label %have",
            "have:",
            "  %data = load ptr, ptr %weights",
            *_from_file(lib),
        ]
        causes.append("[ %read, %alone ]")
    if lib.preparation is not None:
        lines += [
            "  %threads_ = load ptr, ptr %pool",
            "  %prepared = call i32 @fb.prepare(ptr %data, ptr %weights, ptr %threads_)",
            "  %unprepared = icmp ne i32 %prepared, 0",
            "  br i1 %unprepared, label %undo, label %ready",
            "ready:",
        ]
        causes.append("[ %prepared, %have ]")
    lines += [
        "  store ptr %handle, ptr %out",
        f"  ret i32 {int(abi.Status.OK)}",
        "invalid:",
        f"  ret i32 {int(abi.Status.INVALID_ARGUMENT)}",
    ]
    if required_features(lib.c.target):
        lines += ["unsupported:", f"  ret i32 {int(abi.Status.CPU_UNSUPPORTED)}"]
    if causes:
        lines += [
            "undo:",
            f"  %cause = phi i32 {', '.join(causes)}",
            f"  call void @{lib.name}_destroy(ptr %handle)",
            "  ret i32 %cause",
        ]
    lines += ["memory:", f"  ret i32 {int(abi.Status.OUT_OF_MEMORY)}", "}\n"]
    text = "\n".join(lines)
    return text if lib.file is None else text + "\n" + _reader(lib)


def _copies(lib: LibraryText, places: Sequence[str]) -> list[str]:
    """Copies the state's tensors from `places` to the first half of the handle's memory for them."""
    lines = []
    described = zip(lib.roles.state, lib.state_offsets, places, strict=True)
    for number, ((_, array), offset, place) in enumerate(described):
        lines += [
            f"  %to{number} = getelementptr i8, ptr %memory_, i64 {offset}",
            f"  call void @llvm.memcpy.p0.p0.i64(ptr %to{number}, ptr {place}, i64 {array.nbytes}, i1 false)",
        ]
    return lines


def _from_file(lib: LibraryText) -> list[str]:
    """Copies the state's tensors from what was read; if there is nothing but state, gives that back."""
    assert lib.file is not None
    state = lib.roles.state
    lines = [
        f"  %from{number} = getelementptr i8, ptr %data, i64 {lib.file.offsets[label]}"
        for number, (label, _) in enumerate(state)
    ]
    lines += _copies(lib, [f"%from{number}" for number in range(len(state))])
    if not lib.roles.weights:
        lines += ["  call void @fb.free(ptr %data)", "  store ptr null, ptr %weights"]
    return lines


def _reader(lib: LibraryText) -> str:
    """`fb.read(path, out)`: the tensors' bytes of a weights file in new memory; a status. Nothing is kept if it fails."""
    assert lib.file is not None
    head, data = len(lib.file.header), lib.file.data_bytes
    room = max(head, lib.kept_bytes if lib.keeps_file else data)
    unreadable, memory = int(abi.Status.WEIGHTS_UNREADABLE), int(abi.Status.OUT_OF_MEMORY)
    return "\n".join(
        [
            "define internal i32 @fb.read(ptr %path, ptr %out) {",
            "  %none = icmp eq ptr %path, null",
            "  br i1 %none, label %refuse, label %open",
            "open:",
            "  %file = call ptr @fopen(ptr %path, ptr @fb.mode)",
            "  %closed = icmp eq ptr %file, null",
            "  br i1 %closed, label %refuse, label %room",
            "room:",
            f"  %memory = call ptr @fb.alloc(i64 {room})",
            "  %full = icmp eq ptr %memory, null",
            "  br i1 %full, label %close, label %head",
            "head:",
            f"  %got = call i64 @fread(ptr %memory, i64 1, i64 {head}, ptr %file)",
            f"  %whole = icmp eq i64 %got, {head}",
            "  br i1 %whole, label %compare, label %drop",
            "compare:",
            f"  %order = call i32 @memcmp(ptr %memory, ptr @fb.file, i64 {head})",
            "  %same = icmp eq i32 %order, 0",
            "  br i1 %same, label %body, label %drop",
            "body:",
            f"  %more = call i64 @fread(ptr %memory, i64 1, i64 {data}, ptr %file)",
            f"  %all = icmp eq i64 %more, {data}",
            "  br i1 %all, label %end, label %drop",
            "end:",
            "  %next = call i32 @fgetc(ptr %file)",
            "  %over = icmp slt i32 %next, 0",
            "  br i1 %over, label %good, label %drop",
            "good:",
            "  %c0 = call i32 @fclose(ptr %file)",
            "  store ptr %memory, ptr %out",
            "  ret i32 0",
            "drop:",
            "  call void @fb.free(ptr %memory)",
            "  %c1 = call i32 @fclose(ptr %file)",
            f"  ret i32 {unreadable}",
            "close:",
            "  %c2 = call i32 @fclose(ptr %file)",
            f"  ret i32 {memory}",
            "refuse:",
            f"  ret i32 {unreadable}",
            "}\n",
        ]
    )


def destroy(lib: LibraryText) -> str:
    """`destroy`: frees what the handle has; null is allowed."""
    return "\n".join(
        [
            f"define void @{lib.name}_destroy(ptr %handle) {{",
            "  %null = icmp eq ptr %handle, null",
            "  br i1 %null, label %done, label %free",
            "free:",
            f"  %p = {field(1)}",
            "  %pool = load ptr, ptr %p",
            "  %alone = icmp eq ptr %pool, null",
            "  br i1 %alone, label %rest, label %stop",
            "stop:",
            "  call void @fb_pool_destroy(ptr %pool)",
            "  br label %rest",
            "rest:",
            f"  %a = {field(2)}",
            "  %arena = load ptr, ptr %a",
            "  call void @fb.free(ptr %arena)",
            f"  %w = {field(6)}",
            "  %weights = load ptr, ptr %w",
            "  call void @fb.free(ptr %weights)",
            f"  %s = {field(4)}",
            "  %state = load ptr, ptr %s",
            "  call void @fb.free(ptr %state)",
            "  call void @fb.free(ptr %handle)",
            "  br label %done",
            "done:",
            "  ret void",
            "}\n",
        ]
    )
