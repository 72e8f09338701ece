"""`flambeau targets`: what libraries can be made for from here."""

from __future__ import annotations

import json
from typing import Any

import click

#: Targets whose libraries link where LLVM and a linker for them are there; any other triple may be tried.
KNOWN = (
    ("x86_64-linux-gnu", "Linux on Intel and AMD"),
    ("x86_64-linux-musl", "Linux on Intel and AMD, static C library"),
    ("aarch64-linux-gnu", "Linux on 64-bit ARM"),
    ("riscv64-linux-gnu", "Linux on RISC-V"),
    ("x86_64-macos", "macOS on Intel"),
    ("aarch64-macos", "macOS on Apple silicon"),
    ("wasm32-wasi", "WebAssembly"),
)


@click.command("targets", short_help="List what libraries can be made for.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(as_json: bool) -> None:
    """List this machine and the targets of `compile --target`, with whether code and a linker for each are there."""
    from flambeau.compiler.targets.machine import host_target

    host = host_target()
    found = [{"triple": host.triple, "cpu": host.cpu, "about": "this machine", **_state(None)}]
    found += [{"triple": t, "cpu": "", "about": about, **_state(t)} for t, about in KNOWN]
    if as_json:
        click.echo(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "about", "code", "linker", box=None, pad_edge=False)
    for entry in found:
        label = f"{entry['triple']} ({entry['cpu']})" if entry["cpu"] else entry["triple"]
        table.add_row(label, entry["about"], *("yes" if entry[k] else "no" for k in ("code", "linker")))
    Console().print(table, markup=False)


def _state(triple: str | None) -> dict[str, Any]:
    """Does LLVM make code for it, and is there a linker?"""
    from flambeau.compiler.diagnostics import CompilationError
    from flambeau.compiler.targets.machine import cross_target
    from flambeau.runtime.linker import LinkerError, driver_for

    code = linker = True
    if triple is not None:
        try:
            cross_target(triple)
        except CompilationError:
            code = False
    try:
        driver_for(triple)
    except LinkerError:
        linker = False
    return {"code": code, "linker": linker}
