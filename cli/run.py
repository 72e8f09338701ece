"""`flambeau run`: a library or SOURCE on given or random inputs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from flambeau.cli.source import LIBRARY_SUFFIXES, InputSpec, SourceError, dtype_named, exported, parse_input

Array = np.ndarray[Any, Any]


@click.command("run", short_help="Run a library or a source.")
@click.argument("source")
@click.option("-i", "--input", "inputs", multiple=True, metavar="FILE.npy|SHAPE:DTYPE",
              help="One input: a .npy file, or a shape to fill with random numbers. Repeat.")  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write outputs to this .npy (one) or .npz file."
)
@click.option(
    "--size", "sizes", multiple=True, metavar="NAME=NUMBER", help="A size of random inputs. Repeat."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads that a library may use."
)
@click.option("--json", "as_json", is_flag=True, help="Print outputs as JSON.")
def command(
    source: str,
    inputs: tuple[str, ...],
    output: Path | None,
    sizes: tuple[str, ...],
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Run SOURCE, a compiled library or anything that `compile` takes, and print its outputs.

    Inputs that are not given are random, of the shapes in the signature.
    """
    from flambeau.cli.progress import working

    if output is not None and output.suffix not in (".npy", ".npz"):
        raise click.BadParameter(f"expected a .npy or .npz file, got {output}", param_hint="--output")
    numbers = _numbers(sizes)
    given = [_given(text) for text in inputs]
    if source.endswith(LIBRARY_SUFFIXES):
        from flambeau.runtime.library import load

        function: Any = load(source, threads)
    else:
        with working(f"capturing {source}"):
            function = exported(source, given)
    arrays = _arrays(function.signature, given, numbers, np.random.default_rng(seed))
    with working(f"running {source}"):
        found = function(*arrays)
    results = found if isinstance(found, tuple) else (found,)
    names = [e["name"] for e in function.signature["outputs"]]
    if output is not None:
        _write(output, dict(zip(names, results, strict=True)))
        click.echo(f"{output}", err=True)
    elif as_json:
        click.echo(json.dumps({n: _plain(r) for n, r in zip(names, results, strict=True)}))
    else:
        for name, result in zip(names, results, strict=True):
            click.echo(f"{name}: {result.dtype}{list(result.shape)}\n{result}")


def _given(text: str) -> InputSpec | Array:
    if not text.endswith(".npy"):
        return parse_input(text)
    try:
        return np.asarray(np.load(text, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise SourceError(f"{text}: not a .npy file of numbers: {error}") from None


def _numbers(sizes: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in sizes:
        name, equals, number = text.partition("=")
        if not (equals and name.isidentifier() and number.isdigit() and int(number) > 0):
            raise click.BadParameter(f"expected NAME=NUMBER such as N=4, got {text!r}", param_hint="--size")
        found[name] = int(number)
    return found


def _arrays(
    signature: dict[str, Any],
    given: Sequence[InputSpec | Array],
    sizes: dict[str, int],
    rng: np.random.Generator,
) -> list[Array]:
    expected = signature["inputs"]
    unknown = set(sizes) - set(signature["symbols"])
    if unknown:
        have = ", ".join(signature["symbols"]) or "none"
        raise SourceError(
            f"{signature['name']} has no symbolic size {', '.join(sorted(unknown))}; it has {have}"
        )
    if given and len(given) != len(expected):
        names = ", ".join(e["name"] for e in expected)
        raise SourceError(f"{signature['name']} takes {len(expected)} inputs ({names}), got {len(given)}")
    if not given:
        given = [InputSpec(tuple(e["shape"]), dtype_named(e["dtype"])) for e in expected]
    return [g.random(rng, sizes) if isinstance(g, InputSpec) else g for g in given]


def _plain(array: Array) -> dict[str, Any]:
    data = array.astype(np.float64) if array.dtype.kind == "V" else array
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data.tolist()}


def _write(path: Path, outputs: dict[str, Array]) -> None:
    """The whole file or none."""
    if path.suffix == ".npy" and len(outputs) != 1:
        raise SourceError(f"{path}: there are {len(outputs)} outputs; write them to a .npz file")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            if path.suffix == ".npy":
                np.save(stream, next(iter(outputs.values())))
            else:
                np.savez(stream, **outputs)  # type: ignore[arg-type]
        mask = os.umask(0o022)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
