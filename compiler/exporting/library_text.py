"""What a library's functions share: its constants, where weights and state lie, the fields of a handle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.compiler.exporting.roles import ExportRoles, used_weights
from flambeau.compiler.exporting.weights_file import WeightsFile
from flambeau.compiler.passes.plan import aligned
from flambeau.compiler.pipeline import Compilation
from flambeau.runtime import abi

Array = np.ndarray[Any, Any]


def bytes_literal(data: bytes) -> str:
    return "".join([_ESCAPED[b] for b in data])


_ESCAPED = [chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:02X}" for b in range(256)]

# Fields of the handle: a tag (the address of the library's own signature, so that handles of others are told apart), the
# pool, the arena and its size, the state's memory, which half of it is current, and weights that came from a file.
HANDLE = "{ ptr, ptr, ptr, i64, ptr, i64, ptr }"
HANDLE_BYTES = 64


def field(number: int) -> str:
    """The address of a field of the handle."""
    return f"getelementptr inbounds {HANDLE}, ptr %handle, i32 0, i32 {number}"


class LibraryText:
    """One library's contents. `offsets`: where embedded parameters lie in the constant `fb.weights`, by their number;
    `read_offsets`: where others lie in what was read from `file`."""

    def __init__(
        self,
        c: Compilation,
        roles: ExportRoles,
        name: str,
        signature: dict[str, Any],
        file: WeightsFile | None = None,
        prepared: Sequence[Array] = (),
    ) -> None:
        self.c, self.roles, self.name, self.signature, self.file = c, roles, name, signature, file
        self.offsets: dict[int, int] = {}
        self.read_offsets: dict[int, int] = {}
        blob = bytearray()
        if file is not None:
            for number, (label, _) in enumerate(roles.weights, len(roles.inputs)):
                self.read_offsets[number] = file.offsets[label]
        else:
            for number, array in used_weights(c, roles).items():
                self.offsets[number] = self._append(blob, array)
        for number, array in enumerate([*prepared, *c.constants], len(c.graph.parameters)):
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

    def globals(self) -> str:
        """Constants and declarations."""
        lines = [
            constant("fb.signature", json.dumps(self.signature).encode() + b"\0"),
            constant("fb.weights", self.blob or b"\0", 64),
        ]
        if self.file is None:
            lines.append(constant("fb.state", self.state or b"\0", 64))
        else:
            lines += [constant("fb.file", self.file.header), constant("fb.mode", b"rb\0"), *FILE_DECLARATIONS]
        for status in abi.Status:
            lines.append(constant(f"fb.status{int(status)}", status.message.encode() + b"\0"))
        for number, (label, _) in enumerate(self.roles.state):
            lines.append(constant(f"fb.name{number}", label.encode() + b"\0"))
        lines += [*_allocation("windows" in self.c.target.triple), "declare i32 @strcmp(ptr, ptr)"]
        if "@llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)" not in self.c.llvm:
            lines.append("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        for function in (abi.POOL_CREATE, abi.POOL_DESTROY):
            if f"@{function}(" not in self.c.llvm:
                lines.append(abi.DECLARATIONS[function])
        return "\n".join(lines) + "\n"


#: The C library's functions that reading a file needs.
FILE_DECLARATIONS = (
    "declare ptr @fopen(ptr, ptr)",
    "declare i64 @fread(ptr, i64, i64, ptr)",
    "declare i32 @fgetc(ptr)",
    "declare i32 @fclose(ptr)",
    "declare i32 @memcmp(ptr, ptr, i64)",
)


def _allocation(windows: bool) -> list[str]:
    """`fb.alloc`: memory that starts at a cache line, or null. `fb.free` takes it back; null is allowed.

    Windows' C library has no `aligned_alloc`, and its substitute has a `free` of its own.
    """
    if windows:
        take, give = "call ptr @_aligned_malloc(i64 %whole, i64 64)", "_aligned_free"
        declared = "declare ptr @_aligned_malloc(i64, i64)"
    else:
        take, give = "call ptr @aligned_alloc(i64 64, i64 %whole)", "free"
        declared = "declare ptr @aligned_alloc(i64, i64)"
    return [
        declared,
        f"declare void @{give}(ptr)",
        "define internal ptr @fb.alloc(i64 %bytes) {",
        "  %more = add i64 %bytes, 63",
        "  %whole = and i64 %more, -64",
        f"  %p = {take}",
        "  ret ptr %p",
        "}",
        "define internal void @fb.free(ptr %p) {",
        f"  call void @{give}(ptr %p)",
        "  ret void",
        "}",
    ]


def constant(label: str, data: bytes, align: int = 1) -> str:
    """A private constant of the module."""
    return f'@{label} = internal constant [{len(data)} x i8] c"{bytes_literal(data)}", align {align}'
