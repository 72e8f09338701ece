"""From a graph and its roles to a library's object code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.exporting import calls, lifecycle, preparing, state
from flambeau.compiler.exporting.data_objects import DataObject
from flambeau.compiler.exporting.library_text import LibraryText
from flambeau.compiler.exporting.roles import Array, ExportRoles, check, signature_of
from flambeau.compiler.exporting.weights_file import WeightsFile
from flambeau.compiler.ir.core import Graph
from flambeau.compiler.pipeline import Compilation, compile_stages
from flambeau.compiler.signature import ENTRY
from flambeau.compiler.targets.machine import TargetDescription, emit_object
from flambeau.runtime import abi

#: Writes an object file to a stream.
ObjectWriter = Callable[[BinaryIO], None]
Prepare = Callable[[Graph, Sequence[Array]], Sequence[Array]]


@dataclass
class LibraryCode:
    """A library before linking: its code and the objects with its tensors, the functions to export, its signature."""

    name: str
    object_code: bytes
    data: tuple[DataObject, ...]
    exports: tuple[str, ...]
    signature: dict[str, Any]
    compilation: Compilation = field(repr=False)

    @property
    def objects(self) -> tuple[bytes | ObjectWriter, ...]:
        """What the linker is given."""
        return (self.object_code, *[d.write for d in self.data])


FUNCTIONS = ("create", "destroy", "run", "workspace_bytes", "error", "signature", "get", "set")


def export_library(
    graph: Graph,
    roles: ExportRoles,
    name: str,
    target: TargetDescription | None = None,
    opt_level: int = 1,
    weights_file: WeightsFile | None = None,
    prepare: Prepare | None = None,
) -> LibraryCode:
    """Compile `graph` into a library called `name` (a C identifier). CompilationError if the roles do not fit.

    `weights_file` has weights and first state, which a handle then reads; None embeds them. What depends on weights alone is
    computed once, except in a training step: from weights in a file when a handle is made, from embedded ones now, by
    `prepare`, which runs a graph on arrays on this machine; its results are embedded in their place.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise CompilationError(f"a library's name must be a C identifier, got {name!r}")
    check(graph, roles)
    first = len(roles.inputs)
    prepares = not roles.state and (prepare is not None or weights_file is not None)
    fixed = range(first, first + len(roles.weights)) if prepares else ()
    compilation = compile_stages(graph, target, stop_after="llvm", opt_level=opt_level, weights=fixed)
    prepared: Sequence[Array] = ()
    preparation: Compilation | None = None
    if compilation.preparation is not None and weights_file is not None:
        preparation = compile_stages(compilation.preparation, target, stop_after="llvm", opt_level=opt_level)
    elif compilation.preparation is not None and prepare is not None:
        prepared = prepare(compilation.preparation, [array for _, array in roles.weights])
    lib = LibraryText(compilation, roles, name, weights_file, prepared, preparation)
    file_name = None if weights_file is None else weights_file.name
    signature = signature_of(compilation, roles, name, file_name, lib.weight_bytes)
    text = compilation.llvm.replace(f"define i32 @{ENTRY}(", f"define internal i32 @{ENTRY}(")
    text += _functions(lib, signature)
    link = [abi.pool_ir(compilation.target.triple)]
    if preparation is not None:
        link.append(preparing.program(preparation, name))
    compilation.object_code = emit_object(text, compilation.target, opt_level, link=link)
    compilation.llvm = text
    exports = tuple(f"{name}_{f}" for f in FUNCTIONS)
    return LibraryCode(
        name, compilation.object_code, tuple(lib.data.objects), exports, signature, compilation
    )


def _functions(lib: LibraryText, signature: dict[str, Any]) -> str:
    """The library's globals and functions."""
    return "\n".join(
        [
            lib.globals(signature),
            *([] if lib.preparation is None else [preparing.prepare(lib)]),
            lifecycle.create(lib),
            lifecycle.destroy(lib),
            calls.run(lib),
            calls.workspace(lib),
            calls.error(lib),
            f"define ptr @{lib.name}_signature() {{\n  ret ptr @fb.signature\n}}\n",
            state.lookup(lib),
            state.access(lib, "get"),
            state.access(lib, "set"),
        ]
    )
