"""``python -m benchmarks.worker PEER THREADS``: one peer in a process of its own, so that its threads disturb nobody else.

Reads commands in JSON from standard input, a line each, and answers each with a line:
``{"load": NAME, "result": FILE}`` prepares a workload and keeps its result; ``{"repeat": N}`` times N calls of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workloads import Workload, chosen


def module_of(peer: str, threads: int) -> Any:
    """The module that stands for torch in this process."""
    if peer == "flambeau":
        import flambeau

        flambeau.set_num_threads(threads)
        return flambeau
    import torch

    torch.set_num_threads(threads)
    if peer == "exact":
        torch.set_default_dtype(torch.float64)
    return torch


def prepared(workload: Workload, peer: str, m: Any) -> Callable[[], Any]:
    """A call of the workload without arguments."""
    tensors = [m.from_numpy(a) for a in workload.arrays()]
    if peer == "exact":
        tensors = [t.double() if t.is_floating_point() else t for t in tensors]
    function = workload.setup(m)
    if peer == "exact" and hasattr(function, "double"):
        function = function.double()
    if peer in ("flambeau", "torch.compile"):
        function = m.compile(function)
    if workload.trains:
        return lambda: function(*tensors)

    def forward() -> Any:
        with m.no_grad():
            return function(*tensors)

    return forward


def main() -> None:
    peer, threads = sys.argv[1], int(sys.argv[2])
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    m = module_of(peer, threads)
    call: Callable[[], Any] | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "load" in command:
                call = None  # frees the last workload first
                (workload,) = chosen(command["load"])
                started = time.perf_counter()
                call = prepared(workload, peer, m)
                result = call()
                first = time.perf_counter() - started
                np.save(command["result"], np.asarray(result.detach().numpy(), np.float64))
                call()
                answer: dict[str, Any] = {"first": first}
            else:
                assert call is not None
                started = time.perf_counter()
                for _ in range(command["repeat"]):
                    call()
                answer = {"seconds": (time.perf_counter() - started) / command["repeat"]}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
