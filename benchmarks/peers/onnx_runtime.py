"""ONNX Runtime: an ONNX file, with inputs and outputs bound to memory once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from benchmarks.workloads import Workload


class OnnxRuntime:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def load(self, workload: Workload, folder: Path) -> Callable[[], Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            str(folder / "onnxruntime.onnx"), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        arrays = workload.arrays()
        for given, array in zip(session.get_inputs(), arrays, strict=True):
            binding.bind_cpu_input(given.name, array)
        results = session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})
        for output, array in zip(session.get_outputs(), results, strict=True):
            binding.bind_output(
                output.name, "cpu", 0, array.dtype, array.shape, array.__array_interface__["data"][0]
            )

        def call(_: Any = arrays) -> Any:  # the binding only borrows the arrays
            session.run_with_iobinding(binding)
            return results

        return call

    def arrays(self, result: Any) -> list[Any]:
        return list(result)
