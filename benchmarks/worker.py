"""``python -m benchmarks.worker PEER THREADS``: one peer in a process of its own, so that its threads disturb nobody else.

Reads commands in JSON from standard input, a line each, and answers each with a line; the first line says that the peer
is imported. ``{"load": NAME, "folder": FOLDER}`` prepares a workload and calls it; the result goes to FOLDER/PEER.npz,
unless `keep` is false;
``{"convert": NAME, "folder": FOLDER, "peers": [...]}`` writes files for peers that need them, in PyTorch's process;
``{"repeat": N, "before": M}`` times N calls after M others; ``{"peak": N}`` measures the memory of N calls.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import memory
from benchmarks.peers import Runtime, Skipped, runtime
from benchmarks.workloads import Workload
from benchmarks.workloads import timed as workload_of


class Worker:
    def __init__(self, peer: str, threads: int) -> None:
        self.peer = peer
        self.runtime: Runtime = runtime(peer, threads)
        self.call: Callable[[], Any] | None = None
        memory.reset_peak()

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        if "load" in command:
            workload = workload_of(command["load"])
            return self.load(workload, Path(command["folder"]), command.get("keep", True))
        if "convert" in command:
            from benchmarks.peers.conversion import convert

            workload = workload_of(command["convert"])
            return {"skipped": convert(workload, Path(command["folder"]), command["peers"])}
        assert self.call is not None
        if "peak" in command:
            gc.collect()
            memory.reset_peak()
            timed(self.call, command["peak"])
            return {"peak": memory.peak()}
        timed(self.call, command.get("before", 0))
        return {"seconds": timed(self.call, command["repeat"])}

    def load(self, workload: Workload, folder: Path, keep: bool) -> dict[str, Any]:
        self.call = None  # frees the last workload first
        gc.collect()
        started = time.perf_counter()
        call = self.runtime.load(workload, folder)
        result = call()
        first = time.perf_counter() - started
        peak = memory.peak()
        if keep:
            np.savez(folder / f"{self.peer}.npz", *self.runtime.arrays(result))
        self.call = call
        return {"first": first, "peak": peak}


def timed(call: Callable[[], Any], repeat: int) -> float:
    """Mean seconds of a call."""
    started = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - started) / max(repeat, 1)


def die_with_parent() -> None:
    """A runner that is killed cannot end a worker that it has stopped; Linux can (`man 2 PR_SET_PDEATHSIG`)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    die_with_parent()
    # What a library prints, in Python or below, is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    worker = Worker(sys.argv[1], int(sys.argv[2]))
    say({"imported": memory.resident()})
    for line in sys.stdin:
        try:
            say(worker.answer(json.loads(line)))
        except Skipped as reason:
            say({"skipped": str(reason)})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
