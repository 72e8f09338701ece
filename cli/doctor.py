"""`flambeau doctor`: is everything here that compilation needs?"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

PACKAGES = ("numpy", "llvmlite", "click", "rich", "ml_dtypes", "safetensors", "platformdirs", "ziglang")


@click.command("doctor", short_help="Check this installation.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(as_json: bool) -> None:
    """Print versions, the linker, the CPU, threads and the cache, and compile and run a small graph.

    Exits with 1 if something is missing that compilation needs.
    """
    from flambeau.cli.progress import working

    with working("compiling a small graph"):
        facts = examine()
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for key, value in facts.items():
            if key != "problems":
                click.echo(f"{key}: {_text(value)}")
        for problem in facts["problems"]:
            click.echo(f"problem: {problem}", err=True)
        if not facts["problems"]:
            click.echo("no problems")
    if facts["problems"]:
        raise click.exceptions.Exit(1)


def examine() -> dict[str, Any]:
    """Everything that `doctor` tells, and the `problems` found."""
    import flambeau
    from flambeau.runtime import threads
    from flambeau.runtime.linker import LinkerError, driver_for

    problems: list[str] = []
    facts: dict[str, Any] = {
        "flambeau": flambeau.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    facts["cpu"] = _cpu(problems)
    try:
        facts["linker"] = " ".join(driver_for(None))
    except LinkerError as error:
        facts["linker"] = None
        problems.append(str(error))
    facts["threads"] = {"available": threads.available_cpus(), "used": threads.num_threads()}
    facts["cache"] = _cache(problems)
    facts["compiles"] = _compiles(problems)
    facts["problems"] = problems
    return facts


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    return (
        {None: "none", True: "yes", False: "no"}.get(value, str(value))
        if not isinstance(value, str)
        else value
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu(problems: list[str]) -> dict[str, Any] | None:
    try:
        from flambeau.compiler.targets.machine import host_target

        target = host_target()
    except Exception as error:  # llvmlite missing or broken: the point of asking
        problems.append(f"LLVM does not start: {error}")
        return None
    levels = [f for f in ("sse4.2", "avx", "avx2", "fma", "avx512f", "neon", "sve") if target.has(f)]
    return {
        "triple": target.triple,
        "name": target.cpu,
        "features": " ".join(levels) or "none",
        "vector bits": target.vector_bits,
        "l1": target.l1_bytes,
        "l2": target.l2_bytes,
        "l3": target.l3_bytes,
    }


def _cache(problems: list[str]) -> dict[str, Any]:
    from flambeau.cli.cache import folder

    path = folder()
    if path is None:
        return {"path": "off"}
    nearest = path
    while not nearest.exists() and nearest.parent != nearest:
        nearest = nearest.parent
    writable = os.access(nearest, os.W_OK)
    if not writable:
        problems.append(f"the cache folder {path} cannot be written; set FLAMBEAU_CACHE_DIR")
    return {"path": str(path), "writable": writable}


def _compiles(problems: list[str]) -> bool:
    """Compile x * 2 + 1 and compare."""
    import numpy as np

    try:
        from flambeau.compiler.dialects.graph import build
        from flambeau.compiler.ir.core import Graph, Value
        from flambeau.compiler.ir.types import f32, tensor
        from flambeau.execution import run_graph

        x = Value(tensor((5,), f32))
        array = np.arange(5, dtype=np.float32)
        (found,) = run_graph(Graph([x], [build.add(build.mul(x, 2.0), 1.0)]), [array])
        if np.array_equal(found, array * 2 + 1):
            return True
        problems.append(f"a compiled graph computes wrong numbers: expected {array * 2 + 1}, got {found}")
    except Exception as error:  # whatever it is, it is what doctor is asked to find
        problems.append(f"a small graph does not compile: {type(error).__name__}: {error}")
    return False
