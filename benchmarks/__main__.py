"""``python -m benchmarks --workload gemm,memory.softmax --peer torch,torch.compile --threads 1,2``.

Every peer runs in a process of its own; rounds go from one to the next, so that a machine that slows down slows all. Each
result is compared with PyTorch's in float64 first. The table has medians; `--json FILE` keeps every round and, with
`--resume`, what it has already.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import Machine, measure
from benchmarks.workloads import WORKLOADS, Workload, chosen
from flambeau.runtime import threads as pools

PEERS = ("torch", "torch.compile")
#: Seconds that a round of one peer should take at least.
LEAST = 0.05
#: Seconds after which threads that wait in a loop for their next work have gone to sleep, in every library we know.
PAUSE = 0.3


class Peer:
    """A worker process."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.worker", name, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """The worker's answer; an error among others, if it died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(
                self.process.stdout.readline() or '{"error": "the process ended"}'
            )
        except BrokenPipeError:
            answer = {"error": "the process ended"}
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(
    workload: Workload, peers: list[Peer], threads: int, rounds: int, exact: Peer | None
) -> dict[str, Any]:
    """Seconds of one call by round, of each peer; errors relative to the largest exact element.

    ClickException if ours is wrong by more than the workload's tolerance.
    """
    result: dict[str, Any] = {
        "workload": workload.name,
        "threads": threads,
        "first": {},
        "errors": {},
        "failed": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        if exact is not None:
            path = f"{folder}/exact.npy"
            answer = exact.ask(load=workload.name, result=path)
            reference = None if "error" in answer else np.load(path)
        ready = []
        for peer in peers:
            path = f"{folder}/{peer.name}.npy"
            answer = peer.ask(load=workload.name, result=path)
            if "error" in answer:
                result["failed"][peer.name] = answer["error"]
                continue
            result["first"][peer.name] = answer["first"]
            if reference is not None:
                result["errors"][peer.name] = relative_error(np.load(path), reference)
            ready.append(peer)
    error = result["errors"].get("flambeau", 0.0)
    if not error <= workload.tolerance:
        raise click.ClickException(
            f"{workload.name}: wrong by {error:.1e}, allowed are {workload.tolerance:.0e}"
        )
    repeats = {p.name: max(1, int(LEAST / max(p.ask(repeat=1)["seconds"], 1e-7))) for p in ready}
    result["seconds"] = {p.name: [] for p in ready}
    for _ in range(rounds):
        for peer in ready:
            if threads > 1:  # the last peer's threads may still spin, and this one's sleep
                time.sleep(PAUSE)
                peer.ask(repeat=1)
            result["seconds"][peer.name].append(peer.ask(repeat=repeats[peer.name])["seconds"])
    return result


def relative_error(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    """The largest difference, relative to the largest exact element."""
    return float(np.abs(found - exact).max() / max(float(np.abs(exact).max()), 1e-30))


def row(workload: Workload, result: dict[str, Any], machine: Machine, names: list[str]) -> list[str]:
    """A line of the table."""
    cells = [workload.name, str(result["threads"])]
    if "flambeau" not in result["seconds"]:
        return [*cells, "failed", result["failed"]["flambeau"][:40], *[""] * len(names), ""]
    rounds = result["seconds"]["flambeau"]
    ours = median(rounds)
    low, _, high = quantiles(rounds, n=4) if len(rounds) > 1 else (ours, ours, ours)
    cells += [
        f"{1e3 * ours:.3f} ±{50 * (high - low) / ours:.0f}%",
        limit(workload, ours, result["threads"], machine),
    ]
    for name in names:
        seconds = result["seconds"].get(name)
        cells.append(f"{median(seconds) / ours:.2f}" if seconds else "failed")
    errors = result["errors"]
    return [*cells, " ".join(f"{errors[n]:.0e}" for n in ("flambeau", "torch") if n in errors)]


def limit(workload: Workload, seconds: float, threads: int, machine: Machine) -> str:
    """The rate, and which part of the machine's it is."""
    if workload.work:
        rate = workload.work / seconds / 1e9
        return f"{rate:.0f} GF/s {100 * rate / machine.peak_gflops / threads:.0f}%"
    if workload.traffic:
        rate = workload.traffic / seconds / 1e9
        return f"{rate:.1f} GB/s {100 * rate / machine.triad_gbs:.0f}%"
    return ""


@click.command()
@click.option("--workload", default="all", show_default=True, help="Comma-separated beginnings of names.")
@click.option(
    "--peer", default="torch", show_default=True, help=f"Comma-separated: {', '.join(PEERS)}; or none."
)
@click.option("--threads", default="1", show_default=True, help="Comma-separated numbers of threads.")
@click.option("--rounds", default=7, show_default=True)
@click.option(
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Keep every round here."
)
@click.option("--resume", is_flag=True, help="Leave out what the JSON file has already, and add to it.")
@click.option("--list", "listing", is_flag=True, help="Name the workloads.")
def main(
    workload: str, peer: str, threads: str, rounds: int, output: Path | None, resume: bool, listing: bool
) -> None:
    """Time Flambeau beside its peers."""
    if listing:
        for item in WORKLOADS:
            click.echo(item.name)
        return
    try:
        workloads, counts = chosen(workload), [int(n) for n in threads.split(",")]
    except (KeyError, ValueError) as error:
        raise click.UsageError(str(error.args[0])) from None
    names = [] if peer == "none" else peer.split(",")
    for name in names:
        if name not in PEERS:
            raise click.UsageError(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
    if names and not has_torch():
        click.echo("PyTorch is not installed: no peers (pip install 'flambeau[torch]')", err=True)
        names = []
    done = (
        json.loads(output.read_text())["results"] if resume and output is not None and output.exists() else []
    )
    known = {(r["workload"], r["threads"]) for r in done}
    pools.set_num_threads(max(counts))
    machine = measure()
    console = Console(width=max(Console().width, 120))
    console.print(
        f"{machine.target}, {machine.vector_bits}-bit vectors: {machine.peak_gflops:.1f} GFLOP/s f32 of one thread, "
        f"triad {machine.triad_gbs:.1f} GB/s with {max(counts)}"
    )
    table = Table()
    for heading in ["workload", "threads", "ms", "of the limit", *[f"{n}/ours" for n in names], "errors"]:
        table.add_column(heading, no_wrap=True)
    exact = Peer("exact", 2) if names else None
    for count in counts:
        peers = [Peer(name, count) for name in ("flambeau", *names)]
        try:
            for item in workloads:
                if (item.name, count) in known:
                    continue
                done.append(compare(item, peers, count, rounds, exact))
                table.add_row(*row(item, done[-1], machine, names))
                if output is not None:
                    output.write_text(
                        json.dumps({"about": about(), "machine": asdict(machine), "results": done}, indent=1)
                        + "\n"
                    )
        finally:
            for worker in peers:
                worker.close()
    if exact is not None:
        exact.close()
    console.print(table)


def about() -> dict[str, Any]:
    """The day, the processor, and the versions of everybody."""
    found = {"date": date.today().isoformat(), "cpu": platform.processor() or platform.machine()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        found["cpu"] = f"{lines[0].partition(': ')[2]}, {len(lines)} cores" if lines else found["cpu"]
    for name in ("flambeau", "llvmlite", "numpy", "torch"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "python": platform.python_version(), "system": platform.system()}


def has_torch() -> bool:
    """Is there a peer at all?"""
    from importlib.util import find_spec

    return find_spec("torch") is not None


if __name__ == "__main__":
    main()
