"""Peers in processes of their own, rounds that go from one to the next, and what they found."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import CONVERTED, absent
from benchmarks.process import Peer
from benchmarks.workloads import Workload

#: Seconds that a round of one peer should take at least, and that all rounds of a workload should take at most.
LEAST, MOST = 0.03, 5.0
#: Rounds that are made however long they take.
FEWEST = 3
Result = dict[str, Any]


def empty(workload: str, threads: int) -> Result:
    """Nothing found yet."""
    found: Result = {"workload": workload, "threads": threads, "seconds": {}, "first": {}, "errors": {}}
    return {**found, "failed": {}, "skipped": {}, "wrong": {}, "memory": {}}


def compare(workload: Workload, peers: list[Peer], rounds: int, exact: Peer | None) -> Result:
    """Seconds of one call by round, of each peer; errors relative to the largest exact element.

    A peer that does not take part is under `skipped`, one that fails or is wrong by more than the workload's tolerance
    under `failed`, both with the reason; what is wrong is under `wrong` too, with the error.
    """
    began = time.monotonic()
    result = empty(workload.name, peers[0].threads)
    with tempfile.TemporaryDirectory() as name:
        ready = _loaded(workload, peers, Path(name), exact, result)
    _time(ready, rounds, result)
    if workload.is_model:
        for peer in ready:
            answer = peer.ask(peak=2)
            if "peak" in answer:
                result["memory"][peer.name]["running"] = answer["peak"]
    result["took"] = time.monotonic() - began
    return result


def _loaded(
    workload: Workload, peers: list[Peer], folder: Path, exact: Peer | None, result: Result
) -> list[Peer]:
    """Those that gave a right result."""
    reference = None
    skipped, failed = result["skipped"], result["failed"]
    converted = [p.name for p in peers if p.name in CONVERTED]
    if exact is not None:
        answer = exact.ask(load=workload.name, folder=str(folder))
        reference = _arrays(folder / "exact.npz") if "error" not in answer else None
        if converted:
            answer = exact.ask(convert=workload.name, folder=str(folder), peers=converted)
            skipped |= answer.get("skipped", dict.fromkeys(converted, answer.get("error")))
    ready = []
    for peer in peers:
        if peer.name in skipped:
            continue
        if workload.is_model:
            peer.start()
        answer = peer.ask(load=workload.name, folder=str(folder))
        if "skipped" in answer:
            skipped[peer.name] = answer["skipped"]
            continue
        if "error" in answer:
            failed[peer.name] = answer["error"][:300]
            continue
        result["first"][peer.name] = answer["first"]
        if workload.is_model:
            result["memory"][peer.name] = {"imported": peer.imported, "first": answer["peak"]}
        if reference is not None:
            error = relative_error(_arrays(folder / f"{peer.name}.npz"), reference)
            result["errors"][peer.name] = error
            if not error <= workload.tolerance:
                result["wrong"][peer.name] = error
                failed[peer.name] = f"wrong by {error:.1e}, allowed are {workload.tolerance:.0e}"
                continue
        ready.append(peer)
    return ready


def _time(ready: list[Peer], rounds: int, result: Result) -> None:
    repeats, total = {}, 0.0
    for peer in list(ready):
        answer = peer.ask(repeat=1, before=1)
        if "error" in answer:
            result["failed"][peer.name] = answer["error"]
            ready.remove(peer)
            continue
        repeats[peer.name] = max(1, int(LEAST / max(answer["seconds"], 1e-7)))
        result["seconds"][peer.name] = []
        total += answer["seconds"] * (repeats[peer.name] + 1)
    for _ in range(max(FEWEST, min(rounds, int(MOST / max(total, 1e-6))))):
        for peer in list(ready):
            # One call more warms the caches that the last peer has filled, unless a call is long itself.
            repeat = repeats[peer.name]
            answer = peer.ask(repeat=repeat, before=1 if repeat > 1 else 0)
            if "error" in answer:
                result["failed"][peer.name] = answer["error"]
                del result["seconds"][peer.name]
                ready.remove(peer)
                continue
            result["seconds"][peer.name].append(answer["seconds"])


def _arrays(path: Path) -> list[np.ndarray[Any, Any]]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


def relative_error(found: list[np.ndarray[Any, Any]], exact: list[np.ndarray[Any, Any]]) -> float:
    """The largest difference, relative to the largest exact element of that result; infinite where shapes differ."""
    if [a.shape for a in found] != [a.shape for a in exact]:
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(found, exact, strict=True):
        scale = max(float(np.abs(theirs).max(initial=0)), 1e-30)
        worst = max(worst, float(np.abs(ours.astype(np.float64) - theirs).max(initial=0)) / scale)
    return worst


def available(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """The peers that are installed, and why the others are not there."""
    missing = {name: why for name in names if (why := absent(name))}
    return [name for name in names if name not in missing], missing
