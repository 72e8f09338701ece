"""The JSON file of a run: every round of every workload, kept as soon as it is measured, and added to by later runs."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine
from benchmarks.runner import Result

VERSIONS = ("flambeau", "llvmlite", "numpy", "torch", "onnxruntime", "openvino", "jax")


class Record:
    """`results`, each with the number of its run; `runs` tell the day, the versions and the machine's limits.

    ValueError if the file at `path` is not such a record.
    """

    def __init__(self, path: Path | None = None, resume: bool = False) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = []
        self.results: list[Result] = []
        if path is None or not resume or not path.exists():
            return
        try:
            found = json.loads(path.read_text())
            self.runs, self.results = found["runs"], found["results"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a record of benchmarks: {error!r}") from None

    def begin(self, machine: Machine) -> None:
        """What is added from now on belongs to a new run."""
        self.runs.append({"about": about(), "machine": asdict(machine)})

    def machine(self, result: Result) -> Machine:
        return Machine.from_json(self.runs[result["run"]]["machine"])

    def has(self, workload: str, threads: int, peers: list[str]) -> bool:
        """Is this measured already, with us and with all of these peers? What failed of ours is not."""
        for result in self.results:
            if (result["workload"], result["threads"]) == (workload, threads):
                known = {*result["seconds"], *result["skipped"], *result["failed"]}
                return "flambeau" in result["seconds"] and known >= set(peers)
        return False

    def add(self, result: Result) -> None:
        """In place of what is known of the same workload and threads; the file is whole at any time."""
        result["run"] = len(self.runs) - 1
        key = (result["workload"], result["threads"])
        self.results = [r for r in self.results if (r["workload"], r["threads"]) != key] + [result]
        if self.path is not None:
            staged = self.path.with_name(self.path.name + ".new")
            staged.write_text(json.dumps({"runs": self.runs, "results": self.results}, indent=1) + "\n")
            os.replace(staged, self.path)


def about() -> dict[str, Any]:
    """The day, the processor, and the versions of everybody."""
    found = {"date": date.today().isoformat(), "cpu": platform.processor() or platform.machine()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        found["cpu"] = f"{lines[0].partition(': ')[2]}, {len(lines)} cores" if lines else found["cpu"]
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "python": platform.python_version(), "system": platform.system()}
