"""`flambeau inspect`: what a library or SOURCE is, and what the compiler makes of it."""

from __future__ import annotations

import json
from typing import Any

import click

from flambeau.cli.source import LIBRARY_SUFFIXES, InputSpec, SourceError, exported, input_specs

_STAGES = ("trace", "autodiff", "simplify", "fuse", "loops", "plan", "llvm", "object")


@click.command("inspect", short_help="Show a library or a source.")
@click.argument("source")
@click.option("-i", "--input", "inputs", multiple=True, callback=input_specs, metavar="SHAPE:DTYPE",
              help="One input of a source, such as 1x8x8:f32 or Nx8:f32. Repeat.")  # fmt: skip
@click.option("--stage", type=click.Choice(_STAGES), help="Print this stage's text instead.")
@click.option("--target", help="Compile for this target triple; this machine by default.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(
    source: str, inputs: list[InputSpec], stage: str | None, target: str | None, as_json: bool
) -> None:
    """Show SOURCE: its signature, and for what is not compiled yet its memory plan and kernels, or a stage's text."""
    if source.endswith(LIBRARY_SUFFIXES):
        if stage is not None:
            raise SourceError(f"{source} is compiled: it keeps its signature, but no stage's text")
        from flambeau.runtime.library import load

        facts: dict[str, Any] = {"signature": load(source).signature}
    else:
        from flambeau.cli.progress import working

        with working(f"compiling {source}"):
            found = exported(source, inputs)
            if stage is not None:
                text = found.text(stage, target)
            else:
                facts = {"signature": found.signature, **_compiled(found.compilation("plan", target))}
        if stage is not None:
            click.echo(json.dumps({"stage": stage, "text": text}) if as_json else text, nl=as_json)
            return
    if as_json:
        click.echo(json.dumps(facts))
        return
    _print(facts)


def _compiled(c: Any) -> dict[str, Any]:
    kernels = []
    for call, name in zip(c.program.calls, c.names, strict=True):
        operations = [o.name.removeprefix("graph.") for o in call.kernel.graph.operations]
        kernels.append({
            "name": name,
            "family": call.kernel.family,
            "operations": operations,
            "reads": [str(v.type) for v in call.operands],
            "writes": [str(v.type) for v in call.results],
        })  # fmt: skip
    places = [{"value": str(v.type), "offset": str(o)} for v, o in c.memory.offsets.items()]
    return {"kernels": kernels, "memory": {"arena_bytes": str(c.memory.size), "values": places}}


def _tensor(entry: dict[str, Any]) -> str:
    return f"{entry['dtype']}[{', '.join(map(str, entry['shape']))}]"


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    signature = facts["signature"]
    console.print(f"{signature['name']}: {signature['kind'].replace('_', ' ')}", highlight=False)
    table = Table("role", "name", "type", box=None, pad_edge=False)
    for role in ("inputs", "outputs", "state", "weights"):
        for entry in signature[role]:
            table.add_row({"state": "state"}.get(role, role[:-1]), entry["name"], _tensor(entry))
    console.print(table, markup=False)
    if signature["symbols"]:
        console.print(f"sizes: {', '.join(signature['symbols'])}", highlight=False)
    for key in ("weight_bytes", "workspace", "kernels"):
        if key in signature:
            console.print(f"{key.replace('_', ' ')}: {signature[key]}", highlight=False)
    if "target" in signature:
        console.print(
            f"target: {signature['target']['triple']}, {signature['target']['cpu']}", highlight=False
        )
    if "kernels" not in facts:
        return
    console.print(f"arena: {facts['memory']['arena_bytes']} bytes", highlight=False)
    for value in facts["memory"]["values"]:
        console.print(f"  +{value['offset']}: {value['value']}", highlight=False, markup=False)
    table = Table("kernel", "family", "operations", "writes", box=None, pad_edge=False)
    for kernel in facts["kernels"]:
        table.add_row(
            kernel["name"], kernel["family"], " ".join(kernel["operations"]), ", ".join(kernel["writes"])
        )
    console.print(table, markup=False)
