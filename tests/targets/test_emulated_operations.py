"""Every operation and every family of awkward sizes as code for AArch64, in the emulator.

The operations' samples go together, many in one library. By default a part of all this runs; `make conformance` runs it all, and
for RISC-V too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import flambeau as fb
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph
from tests.execution import test_awkward_sizes as awkward
from tests.ops.test_every_op import CASES, GRADIENT_CASES, assert_close, derivative, numbers
from tests.targets.emulation.machines import ARM, ARM_DOT, RISCV, Machine, emulate_graph

Array = np.ndarray[Any, Any]
BATCH = 80
conformance = pytest.mark.conformance


@dataclass(frozen=True)
class Job:
    """A graph, what it is called with, and how far the results may be from the interpreter's."""

    name: str
    graph: Graph
    arrays: Sequence[Array]
    tolerance: float


FORWARD = [Job(c.id, c.values[0].graph(), c.values[0].operands, c.values[0].sample.tolerance) for c in CASES]


def backward() -> list[Job]:
    jobs = []
    for case in (c.values[0] for c in GRADIENT_CASES):
        gradient = derivative(case.graph(), case.differentiable)
        if gradient is not None:
            cotangents = numbers([p.type for p in gradient.parameters[len(case.operands) :]], 3)
            jobs.append(Job(gradient.name, gradient, [*case.operands, *cotangents], case.sample.tolerance))
    return jobs


def check(jobs: Sequence[Job], machine: Machine) -> None:
    """All of them as one library."""
    machine.require()
    parameters = [p for job in jobs for p in job.graph.parameters]
    results = [r for job in jobs for r in job.graph.results]
    arrays = [np.asarray(a) for job in jobs for a in job.arrays]
    found = emulate_graph(Graph(parameters, results), machine.target, arrays)
    for job in jobs:
        expected = interpreter.evaluate(job.graph, job.arrays)
        mine, found = found[: len(expected)], found[len(expected) :]
        for ours, right in zip(mine, expected, strict=True):
            try:
                assert_close(ours, right, job.tolerance)
            except AssertionError as error:
                raise AssertionError(f"{job.name} on {machine}") from error


PARTS = range(0, len(FORWARD), BATCH)


@pytest.mark.parametrize(
    "part", [pytest.param(p, marks=conformance if p % (4 * BATCH) else ()) for p in PARTS]
)
def test_operations(part: int) -> None:
    check(FORWARD[part : part + BATCH], ARM)


@conformance
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("machine", [ARM_DOT, RISCV], ids=str)
def test_operations_on_other_machines(part: int, machine: Machine) -> None:
    check(FORWARD[part : part + BATCH], machine)


@conformance
@pytest.mark.parametrize("machine", [ARM, RISCV], ids=str)
def test_gradients(machine: Machine) -> None:
    jobs = backward()
    for start in range(0, len(jobs), BATCH):
        check(jobs[start : start + BATCH], machine)


@conformance
@pytest.mark.parametrize("family", awkward.FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("machine", [ARM, RISCV], ids=str)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_awkward_sizes(machine: Machine, family: Any, data: st.DataObject) -> None:
    """Values and gradients, against PyTorch in float64."""
    machine.require()
    case = family(data.draw)
    exact = [torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a.copy()) for a in case.arrays]
    single = [torch.from_numpy(a.copy()) for a in case.arrays]
    wanted, theirs = (awkward.results(torch, case, bound(case, torch), xs) for xs in (exact, single))

    def all_of_it(*xs: Any) -> tuple[Any, ...]:
        return tuple(awkward.tensors(fb, case, bound(case, fb), [x.detach() for x in xs]))

    awkward.assert_close(machine.run(all_of_it, case.arrays), wanted, theirs, case.tolerance)


def bound(case: awkward.Case, library: Any) -> awkward.Program:
    return lambda *xs: case.program(library, *xs)
