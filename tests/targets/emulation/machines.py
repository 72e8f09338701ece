"""The machines that tests run programs on: CPUs that have less than this one, natively, and others in the emulator."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau.compiler import options
from flambeau.compiler.ir.core import Graph
from flambeau.compiler.targets.machine import TargetDescription, cross_target, host_target
from flambeau.export import Exported

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Machine:
    """A CPU by LLVM's name. Natively its code runs in this process (option `cpu`), if this machine `needed`s nothing more
    for that; else it is exported and emulated."""

    triple: str
    cpu: str = ""
    features: str = ""
    needed: str = ""

    def __str__(self) -> str:
        return self.cpu or self.triple.split("-")[0]

    @property
    def target(self) -> TargetDescription:
        return cross_target(self.triple, self.cpu, self.features)

    @property
    def emulated(self) -> bool:
        return self.target.architecture != "x86_64"

    def require(self) -> None:
        """Skip the test, with a word, where the machine cannot be had."""
        if self.emulated:
            pytest.importorskip("unicorn", reason="the emulator Unicorn is not installed")
            return
        host = host_target()
        if host.architecture != "x86_64" or (self.needed and not host.has(self.needed)):
            pytest.skip(f"this machine does not run code for {self}")

    def run(self, function: Callable[..., Any], arrays: Sequence[Array]) -> list[Array]:
        """The results of a function of tensors."""
        tensors = [fb.from_numpy(a) for a in arrays]
        if self.emulated:
            return emulate(fb.export(function, tensors), self.target, arrays)
        with options.override(cpu=self.cpu):
            found = fb.compile(function)(*tensors)
        return [t.numpy() for t in (found if isinstance(found, tuple | list) else (found,))]


X86 = "x86_64-unknown-linux-gnu"
NATIVE = (
    Machine(X86, "x86-64"),
    Machine(X86, "haswell", needed="avx2"),
    Machine(X86, "skylake-avx512", needed="avx512vl"),
)
ARM = Machine("aarch64-linux-gnu")
ARM_DOT = Machine("aarch64-linux-gnu", "neoverse-n1")
RISCV = Machine("riscv64-linux-gnu")
#: RISC-V's code is scalar: LLVM takes long for it, and the emulator too.
MACHINES = (*NATIVE, ARM, pytest.param(RISCV, marks=pytest.mark.conformance))


def emulate(exported: Exported, target: TargetDescription, arrays: Sequence[Array]) -> list[Array]:
    """The outputs of an exported function as code for `target`."""
    from tests.targets.emulation.library import EmulatedLibrary

    with tempfile.TemporaryDirectory() as folder:
        path = exported.save(Path(folder) / "program.so", target=target, name="program")
        library = EmulatedLibrary(path, target.architecture)
        try:
            return library(*arrays)
        finally:
            library.close()


def emulate_graph(graph: Graph, target: TargetDescription, arrays: Sequence[Array]) -> list[Array]:
    """The results of a graph as code for `target`."""
    inputs = [f"input{n}" for n in range(len(graph.parameters))]
    outputs = [f"output{n}" for n in range(len(graph.results))]
    return emulate(Exported(graph, inputs, outputs), target, arrays)
