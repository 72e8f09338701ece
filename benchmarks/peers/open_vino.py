"""OpenVINO: its own file format, float32 throughout, inputs and outputs shared with the request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from benchmarks.workloads import Workload


class OpenVino:
    def __init__(self, threads: int) -> None:
        self.core = openvino.Core()
        # Without the hint, a processor with bfloat16 instructions computes in bfloat16.
        self.options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def load(self, workload: Workload, folder: Path) -> Callable[[], Any]:
        model = self.core.compile_model(str(folder / "openvino.xml"), "CPU", self.options)
        request = model.create_infer_request()
        arrays = [np.ascontiguousarray(a) for a in workload.arrays()]
        inputs = [openvino.Tensor(array, shared_memory=True) for array in arrays]
        for number, given in enumerate(inputs):
            request.set_input_tensor(number, given)
        outputs = range(len(model.outputs))

        def call(_: Any = arrays) -> Any:  # the request only borrows the arrays
            request.infer()
            return [request.get_output_tensor(number).data for number in outputs]

        return call

    def arrays(self, result: Any) -> list[Any]:
        return list(result)
