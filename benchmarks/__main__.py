"""``python -m benchmarks --workload gemm,memory.softmax --peer torch,jax --threads 1,2``.

Every peer runs in a process of its own; rounds go from one to the next, so that a machine that slows down slows all. Each
result is compared with PyTorch's in float64 first. The table has medians; `--json FILE` keeps every round and, with
`--resume`, what it has already. Exit status 1: a result of ours is wrong, or a workload of ours failed.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.chart import page
from benchmarks.machine import measure
from benchmarks.peers import PEERS
from benchmarks.process import Peer
from benchmarks.ready import Measures
from benchmarks.record import Record
from benchmarks.runner import available, compare
from benchmarks.workloads import WORKLOADS, Readiness, Workload, chosen


@click.command()
@click.option("--workload", default="all", show_default=True, help="Comma-separated beginnings of names.")
@click.option(
    "--peer",
    default="all",
    show_default=True,
    help=f"Comma-separated: {', '.join(PEERS)}; or all that are installed; or none.",
)
@click.option("--threads", default="1", show_default=True, help="Comma-separated numbers of threads.")
@click.option("--rounds", default=7, show_default=True, help="At most; slow workloads have fewer.")
@click.option("--minutes", default=0.0, help="Begin no workload after so many; --resume goes on later.")
@click.option(
    "--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Keep every round here."
)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write tables and a chart here."
)
@click.option("--resume", is_flag=True, help="Leave out what the JSON file has already, and add to it.")
@click.option("--list", "listing", is_flag=True, help="Name the workloads.")
def main(
    workload: str,
    peer: str,
    threads: str,
    rounds: int,
    minutes: float,
    output: Path | None,
    html: Path | None,
    resume: bool,
    listing: bool,
) -> None:
    """Time Flambeau beside its peers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the peers on the way
    if listing:
        for item in WORKLOADS:
            click.echo(item.name)
        return
    try:
        workloads, counts = chosen(workload), [int(n) for n in threads.split(",")]
        record = Record(output, resume)
    except (KeyError, ValueError) as error:
        raise click.UsageError(str(error.args[0])) from None
    names = [] if peer == "none" else list(PEERS) if peer == "all" else peer.split(",")
    for name in names:
        if name not in PEERS:
            raise click.UsageError(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
    names, missing = available(names)
    for name, why in missing.items():
        click.echo(f"{name} is left out: {why} (pip install 'flambeau[bench]')", err=True)
    record.begin(measure(counts))
    console = Console(width=max(Console().width, 190))
    console.print(report.described(record.runs[-1]), highlight=False)
    wanted = [(w, n) for n in counts for w in workloads]
    pending = [(w, n) for w, n in wanted if not record.has(w.name, n, names)]
    left = run(pending, names, rounds, minutes, record)
    keys = {(w.name, n) for w, n in wanted}
    show(console, [r for r in record.results if (r["workload"], r["threads"]) in keys], record)
    if html is not None:
        html.write_text(page(record), encoding="utf-8")
    if left:
        console.print(f"{left} workloads are left out, the time is over: --resume goes on")
    if any("flambeau" in r["failed"] for r in record.results if (r["workload"], r["threads"]) in keys):
        raise SystemExit(1)


def run(
    pending: list[tuple[Workload | Readiness, int]],
    names: list[str],
    rounds: int,
    minutes: float,
    record: Record,
) -> int:
    """Measures what is pending, and says so; gives how many workloads the time was too short for."""
    exact = Peer("exact", max((n for _, n in pending), default=1)) if available(["torch"])[0] else None
    began, done, measures = time.monotonic(), 0, Measures()
    peers: list[Peer] = []
    try:
        for item, count in pending:
            if minutes and time.monotonic() - began > 60 * minutes:
                break
            if not peers or peers[0].threads != count:
                for old in peers:
                    old.close()
                peers = [Peer(name, count) for name in ("flambeau", *names)]
            if isinstance(item, Readiness):
                result = measures.compare(item, names, count, exact)
            else:
                result = compare(item, peers, rounds, exact)
            record.add(result)
            done += 1
            cells = report.line(result, record.machine(result), names)
            click.echo(f"[{done}/{len(pending)}, {result['took']:.1f} s] {'  '.join(cells)}", err=True)
    finally:
        measures.close()
        for old in (*peers, *([exact] if exact else [])):
            old.close()
    return len(pending) - done


def show(console: Console, results: list[report.Result], record: Record) -> None:
    """All tables."""
    peers = report.peers_of(results)
    lines = [report.line(r, record.machine(r), peers) for r in results]
    console.print(table(report.headings(peers), lines))
    (before, after), means = report.MEANS, report.means(results, peers)
    if peers:
        console.print("Times of peers over ours, geometric means:")
        console.print(table([*before, *peers, *after], means))
    behind = report.behind(record, results)
    if behind:
        console.print("Behind their targets (benchmarks/targets.py):")
        console.print(table([*report.TARGETS], behind))
    memory = report.memory(results, peers)
    if memory:
        console.print("Peak memory, in the first call with loading and compiling, and in later ones:")
        console.print(table(report.memory_headings(peers), memory))
        taken = ", ".join(f"{name} {size:.0f}" for name, size in report.imports(results).items())
        console.print(f"Importing takes, MB: {taken}", highlight=False)
    for note in report.notes(results):
        console.print(note, highlight=False, markup=False)


def table(headings: list[str], lines: list[list[str]]) -> Table:
    made = Table()
    for number, heading in enumerate(headings):
        made.add_column(heading, no_wrap=True, justify="left" if number == 0 else "right")
    for cells in lines:
        made.add_row(*cells)
    return made


if __name__ == "__main__":
    main()
