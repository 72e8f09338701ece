"""`flambeau opt`: graph passes on IR text."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("opt", short_help="Run graph passes on IR text.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--passes", "pipeline", help="Names with commas between them; options in braces: name{option=value}."
)
@click.option("--verify", is_flag=True, help="Check the graph's rules before, between and after the passes.")
@click.option("--timing", is_flag=True, help="Print what each pass took, on stderr.")
@click.option("--no-locations", is_flag=True, help="Leave places in the source out of the output.")
@click.option("--list", "listing", is_flag=True, help="List the passes instead.")
def command(
    file: Path | None, pipeline: str | None, verify: bool, timing: bool, no_locations: bool, listing: bool
) -> None:
    """Read IR text from FILE or stdin, run passes on each of its graphs, and print the result.

    Without --passes the text is only read, checked and printed.
    """
    from flambeau.compiler.ir.parser import parse_module
    from flambeau.compiler.ir.passes import PassManager, parse_pipeline
    from flambeau.compiler.ir.printer import print_module
    from flambeau.compiler.ir.verifier import verify_functions, verify_graph
    from flambeau.compiler.passes.registry import PASSES

    if listing:
        for cls in PASSES:
            click.echo(f"{cls.name}: {(cls.__doc__ or '').splitlines()[0]}")
        return
    passes = parse_pipeline(pipeline, PASSES) if pipeline is not None else []
    try:
        text = file.read_text(encoding="utf-8") if file is not None else sys.stdin.read()
    except UnicodeDecodeError:
        raise click.ClickException(f"{file or 'stdin'}: not UTF-8 text") from None
    module = parse_module(text, str(file) if file is not None else "<stdin>")
    if verify:
        verify_functions(module.functions)
    graphs = []
    for graph in module.graphs:
        if verify:
            verify_graph(graph)
        manager = PassManager(passes, verify=verify)
        graphs.append(manager.run(graph))
        for name, seconds in manager.seconds if timing else ():
            click.echo(f"{graph.name}: {name}: {seconds * 1e3:.2f} ms", err=True)
    click.echo(print_module([*graphs, *module.functions], not no_locations), nl=False)
