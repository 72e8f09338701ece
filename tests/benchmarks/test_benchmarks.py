"""The benchmarks run, and notice wrong results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

import flambeau as fb
from benchmarks import overhead
from benchmarks.__main__ import Peer, compare, limit, row
from benchmarks.chart import markdown, svg
from benchmarks.machine import Machine
from benchmarks.worker import module_of, prepared
from benchmarks.workloads import WORKLOADS, chosen
from flambeau.runtime import threads

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = threads.num_threads()
    yield
    threads.set_num_threads(before)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_from_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    options = ["--peer", "none", "--rounds", "2", "--json", str(output)]
    assert run("--workload", "gemm.64", *options).returncode == 0
    assert run("--workload", "gemm.64,gemm.127_odd", *options, "--resume").returncode == 0
    found = json.loads(output.read_text())
    assert found["machine"]["peak_gflops"] > 0
    assert [r["workload"] for r in found["results"]] == ["gemm.64", "gemm.127_odd"]
    assert all(len(r["seconds"]["flambeau"]) == 2 for r in found["results"])


def test_bad_choices() -> None:
    for option, value, said in [
        ("--workload", "nonsense", "there is no workload 'nonsense'"),
        ("--peer", "abacus", "there is no peer 'abacus'"),
    ]:
        done = run(option, value)
        assert done.returncode == 2
        assert said in done.stderr


def test_choosing() -> None:
    assert chosen("all") == list(WORKLOADS)
    assert [w.name for w in chosen("gemm.64,memory.sum")] == ["gemm.64", "memory.sum"]
    assert {w.name.split(".")[0] for w in WORKLOADS} == {"gemm", "memory", "conv", "inference", "training"}
    assert len({w.name for w in WORKLOADS}) == len(WORKLOADS)


SMALL = (
    "gemm.64", "gemm.127_odd", "gemm.512_tt", "conv.3x3_512_7_n1.forward", "conv.depthwise_144_56_n1.dgrad",
    "conv.1d_9_128_1024_n1.wgrad", "inference.mlp_1", "training.mlp_64",
)  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_same_as_torch(name: str) -> None:
    """One function for both modules gives one result; exactness is the comparison's own check."""
    torch = pytest.importorskip("torch")
    (workload,) = chosen(name)
    found = [prepared(workload, peer, module_of(peer, 1))() for peer in ("flambeau", "torch")]
    ours, theirs = (np.asarray(t.detach().numpy()) for t in found)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(np.abs(theirs).max()))
    torch.set_num_threads(2)


def test_rounds_alternate_and_errors_are_kept() -> None:
    pytest.importorskip("torch")
    (workload,) = chosen("gemm.64")
    peers = [Peer("flambeau", 1), Peer("torch", 1)]
    exact = Peer("exact", 1)
    try:
        result = compare(workload, peers, 1, 2, exact)
        with pytest.raises(click.ClickException, match="wrong by"):
            compare(replace(workload, tolerance=0.0), peers, 1, 1, exact)
        assert peers[0].ask(load="nonsense", result="")["error"].startswith("KeyError")
    finally:
        for peer in (*peers, exact):
            peer.close()
    assert {n: len(s) for n, s in result["seconds"].items()} == {"flambeau": 2, "torch": 2}
    assert set(result["errors"]) == {"flambeau", "torch"} and not result["failed"]
    cells = row(workload, result, Machine("any", 512, 100.0, 20.0), ["torch"])
    assert cells[0] == "gemm.64" and "GF/s" in cells[3]


def test_a_worker_that_ends_is_an_error() -> None:
    peer = Peer("flambeau", 1)
    peer.close()
    assert "ended" in peer.ask(repeat=1)["error"]


def test_share_of_the_limits() -> None:
    machine = Machine("any", 512, 100.0, 20.0)
    (product,), (sums,) = chosen("gemm.512"), chosen("memory.row_sum")
    assert limit(product, product.work / 50e9, 1, machine) == "50 GF/s 50%"
    assert limit(product, product.work / 100e9, 2, machine) == "100 GF/s 50%"
    assert limit(sums, sums.traffic / 10e9, 1, machine) == "10.0 GB/s 50%"


def test_the_recorded_run_is_shown() -> None:
    found = json.loads((ROOT / "docs" / "performance.json").read_text())
    text, picture = markdown(found["results"], Machine(**found["machine"])), svg(found["results"])
    assert text.count("\n") > 10 and "gemm.512 |" in text
    assert picture.startswith("<svg") and picture.count("<rect") >= len(found["results"]) / 2


def test_overhead() -> None:
    a, b = fb.tensor([1.0, 2.0]), fb.tensor([3.0, 4.0])
    for measured in (overhead.record(a, b), overhead.evaluate(a, b), overhead.compiled_call(a, b)):
        assert 0 < measured < 1e5  # microseconds
