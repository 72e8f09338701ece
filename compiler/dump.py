"""`FLAMBEAU_DUMP=folder`: the text of every stage of every compilation, one folder each."""

from __future__ import annotations

import itertools
from pathlib import Path

from flambeau.compiler.pipeline import STAGES, Compilation
from flambeau.compiler.stage_text import stage_text

_SUFFIX = {"plan": "txt", "llvm": "ll", "object": "s"}
_serial = itertools.count()


def dump(c: Compilation, folder: str | Path) -> Path:
    """Write ``00-trace.mlir``, ``01-autodiff.mlir``, … of a finished compilation; returns the new folder.

    Compilations are numbered in the order in which this process made them. Raises OSError if nothing can be written.
    """
    target = Path(folder) / f"{next(_serial):03}-{c.graph.name or 'graph'}"
    target.mkdir(parents=True, exist_ok=True)
    for number, (stage, _) in enumerate(STAGES):
        (target / f"{number:02}-{stage}.{_SUFFIX.get(stage, 'mlir')}").write_text(
            stage_text(c, stage, locations=True)
        )
    return target


def summary(c: Compilation) -> str:
    """One line about a compilation: where the program is, how large it became, how long it took."""
    place = next((o.location for o in c.graph.operations if o.location is not None), None)
    where = f" at {place}" if place is not None else ""
    total = sum(c.seconds.values()) * 1e3
    counts = f"{len(c.graph.operations)} operations, {len(c.names)} kernels ({len(c.kernels)} different)"
    return f"compiled{where}: {counts}, {total:.0f} ms"


def details(c: Compilation) -> list[str]:
    """A line for each kernel call, and one with the stages' times."""
    assert c.program is not None
    lines = []
    for call, name in zip(c.program.calls, c.names, strict=True):
        names = " ".join(o.name.removeprefix("graph.") for o in call.kernel.graph.operations)
        lines.append(f"  {name} {call.kernel.family}: {names}")
    lines.append("  " + ", ".join(f"{stage} {seconds * 1e3:.1f} ms" for stage, seconds in c.seconds.items()))
    return lines
