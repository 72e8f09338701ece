"""The benchmarks run, and notice wrong results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

import flambeau as fb
from benchmarks import overhead
from benchmarks.__main__ import compare
from benchmarks.workloads import WORKLOADS, Workload, chosen
from flambeau.compiler.dialects.graph import build
from flambeau.runtime import threads

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = threads.num_threads()
    yield
    threads.set_num_threads(before)


def test_from_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    options = ["--workload", "gemm128", "--peer", "none", "--rounds", "2", "--json", str(output)]
    subprocess.run([sys.executable, "-m", "benchmarks", *options], check=True, cwd=ROOT, capture_output=True)
    found = json.loads(output.read_text())
    assert found["machine"]["peak_gflops"] > 0
    (result,) = found["results"]
    assert len(result["seconds"]["flambeau"]) == 2


def test_unknown_workload() -> None:
    command = [sys.executable, "-m", "benchmarks", "--workload", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no workload 'nonsense'" in done.stderr


def test_choosing() -> None:
    assert chosen("all") == list(WORKLOADS)
    assert [w.name for w in chosen("gemm128,sum")] == ["gemm128", "sum"]


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if w.name != "gemm1024"], ids=lambda w: w.name)
def test_same_as_torch(workload: Workload) -> None:
    torch = pytest.importorskip("torch")
    result = compare(workload, 1, 1, torch)
    assert set(result["seconds"]) == {"flambeau", "torch"}


def test_wrong_results_stop_the_comparison() -> None:
    torch = pytest.importorskip("torch")
    wrong = replace(chosen("sum")[0], make=lambda x: build.add(build.reduce_sum(x, 1), 1.0))
    with pytest.raises(click.ClickException, match="wrong by"):
        compare(wrong, 1, 1, torch)


def test_overhead() -> None:
    a, b = fb.tensor([1.0, 2.0]), fb.tensor([3.0, 4.0])
    for measured in (overhead.record(a, b), overhead.evaluate(a, b), overhead.compiled_call(a, b)):
        assert 0 < measured < 1e5  # microseconds
