"""What Python pays: recording an operation, evaluating a known graph, calling a compiled function, importing.

``python benchmarks/overhead.py [--json FILE]``; PyTorch's eager mode stands beside it where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import flambeau as fb

#: Medians are over this many rounds.
ROUNDS = 9


def per_call(run: Callable[[], object], repeat: int) -> float:
    """Median over rounds of the microseconds of one call."""
    for _ in range(repeat):
        run()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(repeat):
            run()
        rounds.append((time.perf_counter() - started) / repeat)
    return 1e6 * median(rounds)


def record(a: Any, b: Any) -> float:
    """One operation recorded (in PyTorch: done). Nothing is evaluated: the results are dropped."""
    return per_call(lambda: a + b, 2000)


def evaluate(a: Any, b: Any) -> float:
    """A graph of two operations whose structure is known, from recorded to computed."""
    times = []
    for _ in range(2000):
        y = a * b + a
        started = time.perf_counter()
        fb.sync()
        times.append(time.perf_counter() - started)
        del y
    return 1e6 * median(times[200:])


def compiled_call(a: Any, b: Any) -> float:
    """A compiled function of two operations, called."""
    function = fb.compile(lambda x, y: x * y + x)
    assert function(a, b).tolist() == (a * b + a).tolist()
    return per_call(lambda: function(a, b), 2000)


def import_time(module: str) -> float:
    """Milliseconds that importing takes in a fresh process; the median of several."""
    program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", program]
    # As users have it: with compiled bytecode, which the first run may have to write.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return 1e3 * median(
        float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
        for _ in range(ROUNDS)
    )


def measure() -> dict[str, float]:
    """Microseconds by what was measured; imports in milliseconds."""
    a, b = fb.tensor([1.0, 2.0, 3.0, 4.0]), fb.tensor([4.0, 3.0, 2.0, 1.0])
    found = {
        "record an operation, µs": record(a, b),
        "evaluate a known graph of 2, µs": evaluate(a, b),
        "call a compiled function of 2, µs": compiled_call(a, b),
    }
    numpy, ours = import_time("numpy"), import_time("flambeau")
    found |= {"import numpy, ms": numpy, "import flambeau, ms": ours, "beyond numpy, ms": ours - numpy}
    try:
        import torch
    except ImportError:
        return found
    torch.set_num_threads(1)
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    found["torch: an operation, µs"] = record(x, y)
    found["torch: two operations, µs"] = per_call(lambda: x * y + x, 2000)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    found = measure()
    for what, value in found.items():
        print(f"{what:36}{value:9.2f}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
