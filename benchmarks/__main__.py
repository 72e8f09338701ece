"""``python -m benchmarks --workload gemm,softmax --peer torch --threads 1,2``: our kernels beside PyTorch's.

Both results are compared with PyTorch's in float64 first. Then rounds alternate between the two, so that a machine
that slows down slows both. The table has medians; `--json FILE` keeps every round.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import measure, timed
from benchmarks.workloads import Workload, chosen
from flambeau.execution import ArrayExecutable
from flambeau.runtime import threads as pools


def compare(workload: Workload, threads: int, rounds: int, torch: Any) -> dict[str, Any]:
    """Seconds of one call, round by round, ours and the peer's; errors relative to the largest exact element."""
    pools.set_num_threads(threads)
    arrays = workload.arrays()
    started = time.perf_counter()
    executable = ArrayExecutable(workload.graph())
    compile_seconds = time.perf_counter() - started
    runs = {"flambeau": lambda: executable(arrays)}
    result: dict[str, Any] = {
        "workload": workload.name,
        "threads": threads,
        "compile_seconds": compile_seconds,
    }
    if torch is not None:
        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(a) for a in arrays]
        exact = workload.torch(torch, *[t.double() for t in tensors]).numpy()
        runs["torch"] = lambda: workload.torch(torch, *tensors)
        result["errors"] = {
            "flambeau": relative_error(executable(arrays)[0], exact),
            "torch": relative_error(runs["torch"]().numpy(), exact),
        }
        if not result["errors"]["flambeau"] <= workload.tolerance:
            raise click.ClickException(
                f"{workload.name}: wrong by {result['errors']['flambeau']:.1e}, allowed are {workload.tolerance:.0e}"
            )
    repeats = {who: max(1, int(0.02 / max(timed(run, 3), 1e-7))) for who, run in runs.items()}
    result["seconds"] = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            result["seconds"][who].append(timed(run, repeats[who]))
    return result


def relative_error(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    """The largest difference, relative to the largest exact element."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def row(workload: Workload, result: dict[str, Any]) -> list[str]:
    ours = median(result["seconds"]["flambeau"])
    rate = (
        f"{workload.work / ours / 1e9:.1f} GFLOP/s"
        if workload.work
        else f"{workload.traffic / ours / 1e9:.1f} GB/s"
    )
    cells = [workload.name, str(result["threads"]), f"{1e6 * ours:.1f}", rate]
    if "torch" in result["seconds"]:
        peer = median(result["seconds"]["torch"])
        cells += [f"{1e6 * peer:.1f}", f"{peer / ours:.2f}", f"{result['errors']['flambeau']:.1e}"]
    return cells


@click.command()
@click.option("--workload", default="all", show_default=True, help="Comma-separated beginnings of names.")
@click.option("--peer", type=click.Choice(["torch", "none"]), default="torch", show_default=True)
@click.option("--threads", default="1", show_default=True, help="Comma-separated numbers of threads.")
@click.option("--rounds", default=7, show_default=True)
@click.option(
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Keep every round here."
)
def main(workload: str, peer: str, threads: str, rounds: int, output: Path | None) -> None:
    """Time our kernels beside a peer's."""
    try:
        workloads, counts = chosen(workload), [int(n) for n in threads.split(",")]
    except (KeyError, ValueError) as error:
        raise click.UsageError(str(error.args[0])) from None
    torch = import_torch() if peer == "torch" else None
    pools.set_num_threads(max(counts))
    machine = measure()
    console = Console()
    console.print(
        f"{machine.target}, {machine.vector_bits}-bit vectors: {machine.peak_gflops:.1f} GFLOP/s f32 of one thread, "
        f"triad {machine.triad_gbs:.1f} GB/s with {max(counts)}"
    )
    table = Table()
    for heading in [
        "workload",
        "threads",
        "µs",
        "rate",
        *(["torch µs", "torch/ours", "error"] if torch else []),
    ]:
        table.add_column(heading, no_wrap=True)
    results = []
    for count in counts:
        for item in workloads:
            results.append(compare(item, count, rounds, torch))
            table.add_row(*row(item, results[-1]))
    console.print(table)
    if output is not None:
        output.write_text(json.dumps({"machine": asdict(machine), "results": results}, indent=1) + "\n")


def import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise click.ClickException(
            "PyTorch is not installed: pip install 'flambeau[torch]', or --peer none"
        ) from None
    return torch


if __name__ == "__main__":
    main()
