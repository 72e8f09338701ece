"""What a library's functions share: its constants, where weights and state lie, the fields of a handle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.compiler.exporting.data_objects import DataObjects
from flambeau.compiler.exporting.roles import ExportRoles, used_weights
from flambeau.compiler.exporting.weights_file import WeightsFile
from flambeau.compiler.passes.plan import aligned
from flambeau.compiler.pipeline import Compilation
from flambeau.compiler.signature import byte_size
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
    """One library's contents.

    `data` are objects with embedded tensors; `places`: addresses of embedded parameters by their number, and `state_places`
    of the state's first content. `read_offsets`: where parameters lie in the memory, of `kept_bytes`, that a handle has of
    `file`: the file's tensors; or, where `preparation` is compiled into the library, what it makes, behind the file's tensors
    (`keeps_file`: most of them are `used` themselves) or behind those that are used. `prepared`: what a preparation has made
    already, of embedded weights.
    """

    def __init__(
        self,
        c: Compilation,
        roles: ExportRoles,
        name: str,
        file: WeightsFile | None = None,
        prepared: Sequence[Array] = (),
        preparation: Compilation | None = None,
    ) -> None:
        self.c, self.roles, self.name, self.file = c, roles, name, file
        self.preparation = preparation
        self.data = DataObjects(f"{name}.data", c.target)
        self.used = used_weights(c, roles)
        self.read_offsets: dict[int, int] = {}
        self.places: dict[int, str] = {}
        self.prepared_offsets: list[int] = []
        self.preparation_constants: list[str] = []
        self.kept_bytes, self.keeps_file = 0, True
        #: Bytes of what the code reads of weights and literals.
        self.weight_bytes = sum(a.nbytes for a in (*self.used.values(), *prepared, *c.constants))
        behind = len(c.graph.parameters)
        if preparation is not None:
            self._prepare(preparation)
            behind += len(self.prepared_offsets)
        elif file is not None:
            self._keep_file()
        else:
            self.places = {n: self.data.add(a) for n, a in self.used.items()}
        for number, array in enumerate([*prepared, *c.constants], behind):
            self.places[number] = self.data.add(array)
        self.state_offsets: list[int] = []
        self.state_bytes = 0
        for _, array in roles.state:
            self.state_offsets.append(self.state_bytes)
            self.state_bytes += int(aligned(array.nbytes))  # type: ignore[arg-type]
        self.state_places = [] if file is not None else [self.data.add(a) for _, a in roles.state]

    def _keep_file(self) -> None:
        assert self.file is not None
        self.kept_bytes = self.file.data_bytes
        for number, (label, _) in enumerate(self.roles.weights, len(self.roles.inputs)):
            self.read_offsets[number] = self.file.offsets[label]

    def _prepare(self, preparation: Compilation) -> None:
        """Places for what is kept of a file's tensors and made of them."""
        assert self.file is not None
        self.keeps_file = 2 * sum(a.nbytes for a in self.used.values()) >= self.file.data_bytes
        if self.keeps_file:
            self._keep_file()
            self.kept_bytes = int(aligned(self.kept_bytes))  # type: ignore[arg-type]
        else:
            for number, array in self.used.items():
                self.read_offsets[number] = self._keep(array.nbytes)
        behind = len(self.c.graph.parameters)
        for number, size in enumerate(map(byte_size, preparation.graph.results), behind):
            assert isinstance(size, int), "weights have known sizes"
            self.read_offsets[number] = self._keep(size)
            self.prepared_offsets.append(self.read_offsets[number])
            self.weight_bytes += size
        self.preparation_constants = [self.data.add(a) for a in preparation.constants]

    def _keep(self, nbytes: int) -> int:
        offset = self.kept_bytes
        self.kept_bytes += int(aligned(nbytes))  # type: ignore[arg-type]
        return offset

    def globals(self, signature: dict[str, Any]) -> str:
        """Constants and declarations."""
        lines = [constant("fb.signature", json.dumps(signature).encode() + b"\0")]
        lines += [o.declaration for o in self.data.objects]
        if self.file is not None:
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
