"""From a graph and its roles to a library's object code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.exporting import calls, lifecycle, state
from flambeau.compiler.exporting.library_text import LibraryText
from flambeau.compiler.exporting.roles import Array, ExportRoles, check, signature_of
from flambeau.compiler.exporting.weights_file import WeightsFile
from flambeau.compiler.ir.core import Graph
from flambeau.compiler.pipeline import Compilation, compile_stages
from flambeau.compiler.signature import ENTRY
from flambeau.compiler.targets.machine import TargetDescription, emit_object
from flambeau.runtime import abi

Prepare = Callable[[Graph, Sequence[Array]], Sequence[Array]]


@dataclass
class LibraryCode:
    """A library before linking: its object file, the functions to export, its signature, and the content of its weights
    file, if its weights are not embedded."""

    name: str
    object_code: bytes
    exports: tuple[str, ...]
    signature: dict[str, Any]
    weights: bytes | None
    compilation: Compilation = field(repr=False)


FUNCTIONS = ("create", "destroy", "run", "workspace_bytes", "error", "signature", "get", "set")


def export_library(
    graph: Graph,
    roles: ExportRoles,
    name: str,
    target: TargetDescription | None = None,
    opt_level: int = 1,
    weights_file: str | None = None,
    prepare: Prepare | None = None,
) -> LibraryCode:
    """Compile `graph` into a library called `name` (a C identifier). CompilationError if the roles do not fit.

    `weights_file`: the name of a file for weights and first state, which a handle then reads; None embeds them.
    `prepare` runs a graph on arrays, on this machine: what depends on embedded weights alone is then computed now, and its
    results are embedded in their place. (Not in a training step, nor for weights in a file, which may be replaced.)
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise CompilationError(f"a library's name must be a C identifier, got {name!r}")
    check(graph, roles)
    first = len(roles.inputs)
    embedded = prepare is not None and weights_file is None and not roles.state
    fixed = range(first, first + len(roles.weights)) if embedded else ()
    compilation = compile_stages(graph, target, stop_after="llvm", opt_level=opt_level, weights=fixed)
    prepared: Sequence[Array] = ()
    if prepare is not None and compilation.preparation is not None:
        prepared = prepare(compilation.preparation, [array for _, array in roles.weights])
    signature = signature_of(compilation, roles, name, weights_file, prepared)
    kept = dict([*roles.weights, *roles.state])
    file = WeightsFile(kept) if weights_file is not None and kept else None
    lib = LibraryText(compilation, roles, name, signature, file, prepared)
    text = compilation.llvm.replace(f"define i32 @{ENTRY}(", f"define internal i32 @{ENTRY}(") + _functions(
        lib
    )
    pool = abi.pool_ir(compilation.target.triple)
    compilation.object_code = emit_object(text, compilation.target, opt_level, link=[pool])
    compilation.llvm = text
    exports = tuple(f"{name}_{f}" for f in FUNCTIONS)
    content = None if file is None else file.content
    return LibraryCode(name, compilation.object_code, exports, signature, content, compilation)


def _functions(lib: LibraryText) -> str:
    """The library's globals and functions."""
    return "\n".join(
        [
            lib.globals(),
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
