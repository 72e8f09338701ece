"""How long until something runs: importing, the first result of a fresh process, an exported library and its size."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workloads.base import Workload
from benchmarks.workloads.inference import INFERENCE


@dataclass(frozen=True)
class Readiness:
    """Measured by starting processes. `kind` is one of:

    - ``import``: seconds that `import` takes in a fresh process which has imported NumPy;
    - ``cold``, ``warm``: from the process's start to the first result of `model`, with empty caches of compiled code or
      with what an earlier process left in them;
    - ``library``: from the process's start to the first result of the exported library (ONNX and OpenVINO: their file);
    - ``size``, ``code``: bytes of the exported library with the weights, and without.
    """

    name: str
    kind: str
    model: Workload | None = None

    group = "ready"
    is_model = False
    work = traffic = read = 0.0

    @property
    def unit(self) -> str:
        return "MB" if self.kind in ("size", "code") else "ms"


_MODELS = {
    "resnet50": next(w for w in INFERENCE if w.name == "inference.resnet50"),
    "gpt2": next(w for w in INFERENCE if w.name == "inference.gpt2_prefill_128"),
}

READY = (
    Readiness("ready.import", "import"),
    *[
        Readiness(f"ready.{name}_{kind}", kind, model)
        for name, model in _MODELS.items()
        for kind in ("cold", "warm", "library", "size", "code")
    ],
)
