"""Who is timed. A peer is imported in its own process only, and only there; one that is not installed is left out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from benchmarks.workloads import Workload

#: By the name on the command line: the distribution, and the import that shows whether it is there.
PEERS = {
    "torch": "torch",
    "torch.compile": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "jax": "jax",
}
#: These run files that PyTorch's process writes for them.
CONVERTED = ("onnxruntime", "openvino", "jax")
#: These have no gradients.
INFERENCE_ONLY = ("onnxruntime", "openvino")


class Skipped(Exception):
    """A peer that does not run a workload; says why."""


class Runtime(Protocol):
    """A peer in its process."""

    def load(self, workload: Workload, folder: Path) -> Any:
        """A call of the workload, without arguments. `folder` has the files of `CONVERTED` peers. May raise Skipped."""

    def arrays(self, result: Any) -> list[Any]:
        """The results of a call, as NumPy arrays."""


def absent(peer: str) -> str | None:
    """Why a peer cannot run here; None if it can."""
    needed = [
        PEERS[peer],
        *(["torch"] if peer in CONVERTED else []),
        *(["onnx"] if peer == "onnxruntime" else []),
    ]
    missing = [name for name in needed if find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


def runtime(peer: str, threads: int) -> Runtime:
    """Imports a peer into this process and gives it a number of threads."""
    if peer == "onnxruntime":
        from benchmarks.peers.onnx_runtime import OnnxRuntime

        return OnnxRuntime(threads)
    if peer == "openvino":
        from benchmarks.peers.open_vino import OpenVino

        return OpenVino(threads)
    if peer == "jax":
        from benchmarks.peers.xla import Jax

        return Jax(threads)
    from benchmarks.peers.modules import Modules

    return Modules(peer, threads)
