"""What a run says: a line for each workload, its memory, means of groups, and why peers are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

from benchmarks.machine import Machine
from benchmarks.record import Record
from benchmarks.runner import Result
from benchmarks.targets import missed, ratios, share
from benchmarks.workloads import WORKLOADS, Readiness, Workload

KNOWN = {w.name: w for w in WORKLOADS}
MEGABYTE = 1 << 20


def peers_of(results: Sequence[Result]) -> list[str]:
    """The peers that have times, in order."""
    return list(dict.fromkeys(n for r in results for n in r["seconds"] if n != "flambeau"))


def limit(workload: Workload, seconds: float, threads: int, machine: Machine) -> str:
    """The rate, and which part of the machine's it is."""
    reached = share(workload, seconds, threads, machine)
    if reached is None:
        return ""
    if workload.work:
        unit = "Gop/s" if workload.arithmetic == "int8" else "GF/s"
        return f"{workload.work / seconds / 1e9:.0f} {unit} {100 * reached:.0f}%"
    return f"{workload.traffic / seconds / 1e9:.1f} GB/s {100 * reached:.0f}%"


HEADINGS = ("workload", "threads", "ms", "of the limit")
LAST = ("best peer", "errors ours torch", "first call, s")


def headings(peers: Sequence[str]) -> list[str]:
    """Of `line`. Peers' columns and the best peer's are times of theirs over ours."""
    return [*HEADINGS, *peers, *LAST]


def line(result: Result, machine: Machine, peers: Sequence[str]) -> list[str]:
    """A line of the table: our median and spread, the share of the limit, ratios, errors, our first call."""
    cells = [result["workload"], str(result["threads"])]
    if "flambeau" not in result["seconds"]:
        status = "wrong" if "flambeau" in result["wrong"] else "failed"
        return [*cells, status, "", *[""] * len(peers), "", _errors(result), ""]
    rounds = result["seconds"]["flambeau"]
    ours = median(rounds)
    low, _, high = quantiles(rounds, n=4) if len(rounds) > 1 else (ours, ours, ours)
    known = KNOWN.get(result["workload"])
    if _is_size(known):
        cells += [f"{ours / MEGABYTE:.2f} MB", ""]
    else:
        cells.append(f"{1e3 * ours:.3f} ±{50 * (high - low) / ours:.0f}%")
        cells.append(limit(known, ours, result["threads"], machine) if isinstance(known, Workload) else "")
    found = ratios(result)
    cells += [f"{found[n]:.2f}" if n in found else _missing(result, n) for n in peers]
    cells.append(f"{min(found.values()):.2f}" if found else "")
    first = result["first"].get("flambeau")
    return [*cells, _errors(result), "" if first is None else f"{first:.2f}"]


def _is_size(workload: object) -> bool:
    return isinstance(workload, Readiness) and workload.unit == "MB"


def _missing(result: Result, peer: str) -> str:
    if peer in result["wrong"]:
        return "wrong"
    return "failed" if peer in result["failed"] else "–"


def _errors(result: Result) -> str:
    errors = result["errors"]
    return " ".join(f"{errors[n]:.0e}" for n in ("flambeau", "torch") if n in errors)


def means(results: Sequence[Result], peers: Sequence[str]) -> list[list[str]]:
    """Geometric means of the ratios of each group and number of threads, over the workloads that a peer runs. Sizes of
    files are left out."""
    lines, results = [], [r for r in results if not _is_size(KNOWN.get(r["workload"]))]
    groups = dict.fromkeys((r["workload"].partition(".")[0], r["threads"]) for r in results)
    for group, threads in groups:
        inside = [
            ratios(r) for r in results if (r["workload"].partition(".")[0], r["threads"]) == (group, threads)
        ]
        inside = [found for found in inside if found]
        cells = [_mean([found[n] for found in inside if n in found]) for n in peers]
        best = [min(found.values()) for found in inside]
        lost = sum(b < 1 for b in best)
        lines.append([group, str(threads), *cells, _mean(best), f"{lost} of {len(best)}" if best else ""])
    return lines


MEANS = ("group", "threads"), ("best peer", "best peer is faster in")


def _mean(values: Sequence[float]) -> str:
    return f"{math.exp(sum(map(math.log, values)) / len(values)):.2f}" if values else ""


def memory(results: Sequence[Result], peers: Sequence[str]) -> list[list[str]]:
    """Of each model, in the first call (loading and compiling included) and in later ones: the most megabytes beyond
    what importing takes, and of the whole process."""
    lines = []
    for r in results:
        found = {n: m for n, m in r["memory"].items() if "running" in m}
        if "flambeau" not in found:
            continue
        for when in ("first", "running"):
            beyond = {n: m[when] - m["imported"] for n, m in found.items()}
            cells = [
                f"{beyond[n] / MEGABYTE:.0f} of {found[n][when] / MEGABYTE:.0f}" if n in found else ""
                for n in ("flambeau", *peers)
            ]
            best = min((b for n, b in beyond.items() if n != "flambeau"), default=None)
            share = f"{best / max(beyond['flambeau'], 1):.2f}" if best is not None else ""
            lines.append([f"{r['workload']}, {when}", str(r["threads"]), *cells, share])
    return lines


def memory_headings(peers: Sequence[str]) -> list[str]:
    return ["MB beyond importing of all", "threads", "flambeau", *peers, "best peer / ours"]


def imports(results: Sequence[Result]) -> dict[str, float]:
    """Megabytes that a process has when it has imported a peer."""
    found: dict[str, list[int]] = {}
    for r in results:
        for name, given in r.get("memory", {}).items():
            found.setdefault(name, []).append(given["imported"])
    return {name: median(values) / MEGABYTE for name, values in found.items()}


def notes(results: Sequence[Result]) -> list[str]:
    """Why peers are missing, each reason once, with what it is about."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for r in results:
        for status in ("skipped", "failed"):
            for peer, why in r[status].items():
                reasons.setdefault((peer, status, why), []).append(r["workload"])
    return [
        f"{peer} {status} ({why}): {_names(workloads)}" for (peer, status, why), workloads in reasons.items()
    ]


def _names(workloads: Sequence[str]) -> str:
    names = list(dict.fromkeys(workloads))
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


TARGETS = ("behind its target", "threads", "wanted", "found")


def behind(record: Record, results: Sequence[Result]) -> list[list[str]]:
    """A line for each target that a workload misses."""
    machines = [record.machine(r) for r in results]
    return [[m.workload, str(m.threads), m.wanted, m.found] for m in missed(results, machines, KNOWN)]


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def markdown(record: Record) -> str:
    """The table with a line for each workload."""
    peers = peers_of(record.results)
    lines = [line(r, record.machine(r), peers) for r in record.results]
    return markdown_table(headings(peers), lines)


def described(run: dict[str, Any]) -> str:
    """A run's day, machine and versions, and the limits that it measured."""
    machine = Machine.from_json(run["machine"])
    limits = "; ".join(
        f"{one.threads} thread{'s' if one.threads > 1 else ''}: {one.peak_gflops:.1f} GFLOP/s f32, "
        + (f"{one.bf16_gflops:.1f} bf16, " if one.bf16_gflops else "")
        + (f"{one.int8_gops:.1f} Gop/s int8, " if one.int8_gops else "")
        + f"triad {one.triad_gbs:.1f} GB/s"
        + (f", reading {one.reading_gbs:.1f}" if one.reading_gbs else "")
        for one in machine.limits
    )
    about = ", ".join(f"{k} {v}" for k, v in run["about"].items())
    return f"{about}\n{machine.target}, {machine.vector_bits}-bit vectors; {limits}"
