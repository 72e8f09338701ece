"""`flambeau compile`: SOURCE → shared library and C header."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from flambeau.cli.source import InputSpec, exported, input_specs


@click.command("compile", short_help="Compile a source into a shared library.")
@click.argument("source")
@click.option("-o", "--output", default="build/model.so", show_default=True, type=click.Path(path_type=Path),
              help="The library.")  # fmt: skip
@click.option("-i", "--input", "inputs", multiple=True, callback=input_specs, metavar="SHAPE:DTYPE",
              help="One input, such as 1x8x8:f32; Nx8:f32 has a size that each run gives. Repeat.")  # fmt: skip
@click.option("--name", help="Prefix of the C functions; the output's name by default.")
@click.option("--target", help="A target triple; this machine by default (see `flambeau targets`).")
@click.option("-O", "--opt-level", type=click.IntRange(0, 3), default=3, show_default=True,
              help="LLVM's optimisation level.")  # fmt: skip
@click.option("--weights", type=click.Choice(["embedded", "external"]), default="embedded", show_default=True,
              help="Where the weights go: into the library, or into a .safetensors file beside it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the signature and sizes as JSON.")
def command(
    source: str,
    output: Path,
    inputs: list[InputSpec],
    name: str | None,
    target: str | None,
    opt_level: int,
    weights: str,
    as_json: bool,
) -> None:
    """Compile SOURCE into the shared library OUTPUT, with its C header beside it.

    SOURCE is file.py:name, where name is a module, a function, or a factory of either, or a file of IR text. Inputs
    come from --input or from the attribute example_inputs of what is named.
    """
    from flambeau.cli.progress import bytes_text, working

    started = time.perf_counter()
    if name is not None and not name.isidentifier():
        raise click.BadParameter(f"expected a C identifier, got {name!r}", param_hint="--name")
    with working(f"capturing {source}"):
        found = exported(source, inputs, name)
    with working(f"compiling {source}"):
        found.save(output, target, opt_level=opt_level, weights=weights)
    seconds = time.perf_counter() - started
    size = output.stat().st_size
    header = output.with_suffix(".h")
    if as_json:
        facts = {"library": str(output), "header": str(header), "bytes": size, "seconds": round(seconds, 3)}
        click.echo(json.dumps({**facts, "signature": found.signature}))
        return
    click.echo(f"{output} ({bytes_text(size)}) and {header} in {seconds:.1f} s", err=True)
