"""Measures of the group `ready`: processes that start, and files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import CONVERTED
from benchmarks.process import Peer
from benchmarks.runner import Result, empty
from benchmarks.workloads.ready import Readiness

#: Fresh processes of a kind; a cold start is measured once.
ROUNDS = {"import": 5, "cold": 1, "warm": 2, "library": 3}
#: Empty, it lets Python keep bytecode, without which every import of a source compiles it anew.
BYTECODE = "PYTHONDONTWRITEBYTECODE"
MODULES = {"torch": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino", "jax": "jax"}
#: What an exported model is, by peer, in the folder that PyTorch's process writes to; code first.
FILES = {"onnxruntime": ("onnxruntime.onnx",), "openvino": ("openvino.xml", "openvino.bin")}


def skip(workload: Readiness, peer: str) -> str | None:
    """Why a peer has no such figure; None if it has."""
    kind = workload.kind
    if kind == "import" and peer == "torch.compile":
        return "imports what torch imports"
    if kind in ("library", "size", "code") and peer not in ("flambeau", *FILES):
        return "no file that runs without it"
    if kind == "code" and peer == "onnxruntime":
        return "one file with the weights"
    return None


class Measures:
    """Keeps caches and exported files for as long as a run lasts, so that a warm start follows the cold one."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="flambeau-ready-")
        self.home = Path(self._home.name)

    def close(self) -> None:
        self._home.cleanup()

    def compare(self, workload: Readiness, peers: list[str], threads: int, exact: Peer | None) -> Result:
        """Seconds or bytes of each peer by round."""
        began = time.monotonic()
        result = empty(workload.name, threads)
        result["skipped"] = {p: why for p in peers if (why := skip(workload, p))}
        files = self.home / f"files-{workload.model.name if workload.model else 'none'}"
        if workload.model is not None and exact is not None and not files.exists():
            files.mkdir()
            wanted = [p for p in peers if p in CONVERTED]
            answer = exact.ask(convert=workload.model.name, folder=str(files), peers=wanted)
            result["failed"] |= answer.get("skipped", {p: answer.get("error") for p in wanted})
        for peer in ("flambeau", *peers):
            if peer in result["skipped"] or peer in result["failed"]:
                continue
            try:
                result["seconds"][peer] = self.measure(workload, peer, threads, files)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                result["failed"][peer] = str(error)[:300]
        result["took"] = time.monotonic() - began
        return result

    def measure(self, workload: Readiness, peer: str, threads: int, files: Path) -> list[float]:
        """Seconds or bytes, by round. `files` has what PyTorch's process wrote. RuntimeError if a process fails."""
        if workload.kind == "import":
            return [import_seconds(MODULES.get(peer, peer)) for _ in range(ROUNDS["import"])]
        assert workload.model is not None
        name = workload.model.name
        if peer == "flambeau" and workload.kind in ("library", "size", "code"):
            return self._library(workload, threads)
        if workload.kind == "size":
            return [float(sum((files / f).stat().st_size for f in FILES[peer]))]
        if workload.kind == "code":
            return [float((files / FILES[peer][0]).stat().st_size)]
        cache = self.home / f"{peer}-{name}-{threads}"
        if workload.kind == "cold":
            cache = Path(tempfile.mkdtemp(dir=self.home)) if cache.exists() else cache
        elif workload.kind == "warm" and not cache.exists():
            first_result(peer, threads, name, files, cache)
        return [first_result(peer, threads, name, files, cache) for _ in range(ROUNDS[workload.kind])]

    def _library(self, workload: Readiness, threads: int) -> list[float]:
        assert workload.model is not None
        folder = self.home / f"library-{workload.model.name}"
        if not folder.exists():
            folder.mkdir()
            until_said([sys.executable, "-m", "benchmarks.exporting", workload.model.name, str(folder)])
        if workload.kind != "library":
            return [float((folder / workload.kind / "model.so").stat().st_size)]
        call = [
            sys.executable,
            str(Path(__file__).with_name("first_call.py")),
            str(folder / "size"),
            str(threads),
        ]
        return [until_said(call) for _ in range(ROUNDS["library"])]


def import_seconds(module: str) -> float:
    """In a fresh process, by its own clock, with bytecode compiled before, beyond what importing NumPy takes."""
    program = f"import numpy, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {BYTECODE: ""}
    )
    return float(done.stdout)


def caches(folder: Path) -> dict[str, str]:
    """Everybody's compiled code goes into this folder, and from nowhere else; Python's bytecode is where it always is."""
    return {
        BYTECODE: "",
        "FLAMBEAU_CACHE_DIR": str(folder / "flambeau"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def first_result(peer: str, threads: int, workload: str, files: Path, cache: Path) -> float:
    """Seconds from the start of a worker to its first result; making weights and inputs is part of it."""
    cache.mkdir(exist_ok=True)
    started, process = time.perf_counter(), Peer(peer, threads, caches(cache))
    try:
        answer = process.ask(load=workload, folder=str(files), keep=False)
        taken = time.perf_counter() - started
    finally:
        process.close()
    if "first" not in answer:
        raise RuntimeError(answer.get("error", answer.get("skipped")))
    return taken


def until_said(command: list[str]) -> float:
    """Seconds from the start of a program until it says something. RuntimeError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert process.stdout is not None
    process.stdout.readline()
    taken = time.perf_counter() - started
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError((said.strip().splitlines() or ["the process failed"])[-1])
    return taken
