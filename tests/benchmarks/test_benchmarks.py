"""The benchmarks run, beside every peer that is installed, and notice wrong results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import process, readme, ready, report
from benchmarks.chart import page, svg
from benchmarks.machine import Limits, Machine
from benchmarks.peers import PEERS, absent
from benchmarks.peers.modules import Modules
from benchmarks.process import Peer
from benchmarks.record import Record
from benchmarks.runner import Result, compare, relative_error
from benchmarks.targets import missed
from benchmarks.workloads import WORKLOADS, Readiness, chosen, timed
from flambeau.runtime import threads

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine("any", 512, (Limits(1, 100.0, 20.0), Limits(2, 180.0, 30.0)))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = threads.num_threads()
    yield
    threads.set_num_threads(before)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def result(name: str, seconds: dict[str, list[float]], count: int = 1, **more: object) -> Result:
    """As `compare` gives it."""
    empty: Result = {n: {} for n in ("first", "errors", "failed", "skipped", "wrong", "memory")}
    first = {"flambeau": 0.25}
    return {**empty, "workload": name, "threads": count, "seconds": seconds, "first": first, "run": 0, **more}


def test_from_the_command_line(tmp_path: Path) -> None:
    output, html = tmp_path / "found.json", tmp_path / "found.html"
    options = ["--peer", "none", "--rounds", "3", "--json", str(output), "--html", str(html)]
    assert run("--workload", "gemm.64", *options).returncode == 0
    assert run("--workload", "gemm.64,gemm.127_odd", *options, "--resume").returncode == 0
    found = json.loads(output.read_text())
    assert len(found["runs"]) == 2 and found["runs"][0]["machine"]["limits"][0]["peak_gflops"] > 0
    assert [(r["workload"], r["run"]) for r in found["results"]] == [("gemm.64", 0), ("gemm.127_odd", 1)]
    assert all(len(r["seconds"]["flambeau"]) == 3 for r in found["results"])
    assert "gemm.127_odd" in html.read_text()


def test_bad_choices(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"runs": [')
    for options, said in [
        (["--workload", "nonsense"], "there is no workload 'nonsense'"),
        (["--peer", "abacus"], "there is no peer 'abacus'"),
        (["--json", str(damaged), "--resume"], "is not a record"),
    ]:
        done = run(*options)
        assert done.returncode == 2
        assert said in done.stderr.replace("\n", " ")


def test_choosing() -> None:
    assert chosen("all") == list(WORKLOADS)
    assert [w.name for w in chosen("gemm.64,memory.sum")] == ["gemm.64", "memory.sum"]
    groups = {"gemm", "memory", "conv", "inference", "training", "overhead", "ready"}
    assert {w.group for w in WORKLOADS} == groups
    assert len({w.name for w in WORKLOADS}) == len(WORKLOADS)


SMALL = (
    "gemm.64", "gemm.127_odd", "gemm.512_tt", "gemm.512_int8", "gemm.512_bf16", "conv.3x3_512_7_n1.forward",
    "conv.depthwise_144_56_n1.dgrad", "conv.1d_9_128_1024_n1.wgrad", "conv.transposed_128_64_28_n1.wgrad",
    "inference.mlp_1", "training.mlp_64", "overhead.two_forward_backward",
)  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_same_as_torch(name: str, tmp_path: Path) -> None:
    """One function for both modules gives one result; exactness is the comparison's own check."""
    torch = pytest.importorskip("torch")
    workload = timed(name)
    try:
        runtimes = [Modules(peer, 1) for peer in ("flambeau", "torch")]
        (ours,), (theirs,) = (r.arrays(r.load(workload, tmp_path)()) for r in runtimes)
    finally:
        torch.set_num_threads(2)
        for r in runtimes:
            r.m.set_grad_enabled(True)
    rtol = max(1e-3, workload.tolerance)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol / 10 * float(np.abs(theirs).max()))


@pytest.fixture(scope="module")
def compared() -> Iterator[dict[str, Result]]:
    """A few workloads by every peer, each in its process."""
    pytest.importorskip("torch")
    names = [n for n in PEERS if n != "torch.compile" and absent(n) is None]
    peers, exact = [Peer(n, 1) for n in ("flambeau", *names)], Peer("exact", 1)
    wanted = "gemm.64,conv.transposed_128_64_28_n1.wgrad,training.mlp_64,overhead.record,inference.mlp_1"
    try:
        found = {name: compare(timed(name), peers, 3, exact) for name in wanted.split(",")}
        found["wrong"] = compare(replace(timed("gemm.64"), tolerance=1e-30), peers[:1], 3, exact)
        found["nothing"] = {"answer": peers[0].ask(load="nonsense", folder="")}
    finally:
        for peer in (*peers, exact):
            peer.close()
    yield found


def test_every_peer_takes_its_turn(compared: dict[str, Result]) -> None:
    found = compared["gemm.64"]
    names = ["flambeau", *[n for n in PEERS if n != "torch.compile" and absent(n) is None]]
    assert {n: len(s) for n, s in found["seconds"].items()} == dict.fromkeys(names, 3)
    assert set(found["errors"]) == set(names) and max(found["errors"].values()) < 1e-5
    assert not found["failed"] and not found["skipped"]


def test_peers_without_gradients_skip_them(compared: dict[str, Result]) -> None:
    for name in ("conv.transposed_128_64_28_n1.wgrad", "training.mlp_64"):
        skipped = compared[name]["skipped"]
        assert set(skipped) <= {"onnxruntime", "openvino"} and set(skipped.values()) <= {"inference only"}
        assert {"flambeau", "torch"} <= set(compared[name]["seconds"])
        assert absent("jax") or "jax" in compared[name]["seconds"]
    assert "not compiled" in " ".join(compared["overhead.record"]["skipped"].values()) or absent("jax")


def test_memory_of_models(compared: dict[str, Result]) -> None:
    weights = 4 * (784 * 512 + 512 * 512 + 512 * 10)
    for name in ("training.mlp_64", "inference.mlp_1"):
        for peer, found in compared[name]["memory"].items():
            assert found["imported"] > 1 << 20, peer
            assert min(found["first"], found["running"]) > weights, peer
    assert not compared["gemm.64"]["memory"]


def test_a_wrong_result_is_reported(compared: dict[str, Result]) -> None:
    found = compared["wrong"]
    assert "flambeau" in found["wrong"] and "wrong by" in found["failed"]["flambeau"]
    assert report.line({**found, "run": 0}, MACHINE, ["torch"])[2] == "wrong"
    assert compared["nothing"]["answer"]["error"].startswith("KeyError")


def test_a_worker_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer("flambeau", 1)
    assert "ended" in peer.ask(repeat=1)["error"]
    monkeypatch.setattr(process, "PATIENCE", 0.0)
    assert "no answer" in peer.start()["error"]
    assert peer.process is None


def test_relative_errors() -> None:
    exact = [np.array([1.0, -4.0]), np.array([0.5])]
    assert relative_error([np.array([1.0, -3.0]), np.array([0.5])], exact) == 0.25
    assert relative_error([np.array([1.0, -4.0])], exact) == float("inf")


def test_share_of_the_limits() -> None:
    product, sums = timed("gemm.512"), timed("memory.row_sum")
    assert report.limit(product, product.work / 50e9, 1, MACHINE) == "50 GF/s 50%"
    assert report.limit(product, product.work / 90e9, 2, MACHINE) == "90 GF/s 50%"
    assert report.limit(sums, sums.traffic / 10e9, 1, MACHINE) == "10.0 GB/s 50%"
    known = Machine("any", 512, (Limits(1, 100.0, 20.0, reading_gbs=16.0),))
    assert report.limit(sums, sums.traffic / 10e9, 1, known) == "10.0 GB/s 62%"
    both = timed("memory.softmax")  # reads half of what it moves
    assert report.limit(both, both.traffic / 10e9, 1, known) == "10.0 GB/s 50%"
    with pytest.raises(KeyError):
        MACHINE.of(3)


def test_lines_means_and_notes() -> None:
    fast = result("gemm.512", {"flambeau": [1.0, 1.0], "torch": [2.0, 2.0], "jax": [0.5, 0.5]})
    fast["errors"] = {"flambeau": 1e-7, "torch": 2e-7}
    slow = result("gemm.1024", {"flambeau": [1.0], "torch": [8.0]})
    slow["skipped"], slow["failed"], slow["wrong"] = (
        {"openvino": "inference only"},
        {"jax": "wrong"},
        {"jax": 1.0},
    )
    assert report.line(fast, MACHINE, ["torch", "jax"]) == [
        "gemm.512", "1", "1000.000 ±0%", "0 GF/s 0%", "2.00", "0.50", "0.50", "1e-07 2e-07", "0.25",
    ]  # fmt: skip
    assert report.line(slow, MACHINE, ["torch", "jax"])[5:7] == ["wrong", "8.00"]
    # Geometric means: torch 4, jax 0.5; the best peer's 0.5 and 8 make 2.
    assert report.means([fast, slow], ["torch", "jax"]) == [["gemm", "1", "4.00", "0.50", "2.00", "1 of 2"]]
    assert report.notes([fast, slow]) == [
        "openvino skipped (inference only): gemm.1024",
        "jax failed (wrong): gemm.1024",
    ]


def test_memory_is_a_table() -> None:
    mega = 1 << 20
    found = result("inference.mlp_1", {"flambeau": [1.0]})
    found["memory"] = {
        "flambeau": {"imported": 10 * mega, "first": 40 * mega, "running": 20 * mega},
        "torch": {"imported": 100 * mega, "first": 115 * mega, "running": 120 * mega},
    }
    assert report.memory([found], ["torch"]) == [
        ["inference.mlp_1, first", "1", "30 of 40", "15 of 115", "0.50"],
        ["inference.mlp_1, running", "1", "10 of 20", "20 of 120", "2.00"],
    ]
    assert report.imports([found]) == {"flambeau": 10.0, "torch": 100.0}


def test_records_are_added_to(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    record = Record(path)
    record.begin(MACHINE)
    record.add(result("gemm.64", {"flambeau": [1.0], "torch": [1.0]}, skipped={"openvino": "no"}))
    record.add(result("gemm.128", {}, failed={"flambeau": "broken"}))
    again = Record(path, resume=True)
    assert again.has("gemm.64", 1, ["torch", "openvino"])
    assert not again.has("gemm.64", 2, ["torch"]) and not again.has("gemm.64", 1, ["jax"])
    assert not again.has("gemm.128", 1, [])  # what failed is tried again
    again.begin(MACHINE)
    again.add(result("gemm.128", {"flambeau": [1.0]}))
    found = Record(path, resume=True)
    assert [(r["workload"], r["run"]) for r in found.results] == [("gemm.64", 0), ("gemm.128", 1)]
    assert found.machine(found.results[1]) == MACHINE
    assert Record(path).results == []


def test_time_to_ready() -> None:
    """An exported library answers a program that has only the C interface; files have sizes."""
    small = timed("inference.mlp_1")
    kinds = {kind: Readiness(f"ready.mlp_{kind}", kind, small) for kind in ("library", "size", "code")}
    measures = ready.Measures()
    try:
        found = {kind: measures.compare(w, ["torch"], 1, None) for kind, w in kinds.items()}
    finally:
        measures.close()
    assert not any(r["failed"] for r in found.values())
    assert all("runs without it" in r["skipped"]["torch"] for r in found.values())
    weights = 4 * (784 * 512 + 512 * 512 + 512 * 10)
    assert 0 < found["code"]["seconds"]["flambeau"][0] < weights < found["size"]["seconds"]["flambeau"][0]
    assert len(found["library"]["seconds"]["flambeau"]) == ready.ROUNDS["library"]
    assert 0 < ready.import_seconds("json") < 60
    with pytest.raises(RuntimeError, match="nonsense"):
        ready.until_said([sys.executable, "-c", "raise SystemExit('nonsense')"])


def test_sizes_are_no_times() -> None:
    found = result("ready.resnet50_size", {"flambeau": [2.0 * (1 << 20)], "openvino": [4.0 * (1 << 20)]})
    assert report.line(found, MACHINE, ["openvino"])[2:5] == ["2.00 MB", "", "2.00"]
    assert report.means([found], ["openvino"]) == []


def test_the_recorded_run_is_shown() -> None:
    record = Record(ROOT / "docs" / "performance.json", resume=True)
    text, picture = report.markdown(record), svg(record.results)
    assert text.count("\n") > 10 and "gemm.512 |" in text
    assert picture.startswith("<svg") and picture.count("<rect") >= len(record.results) / 2
    assert picture in page(record)


def test_targets() -> None:
    """Each kind of target, just met and just missed."""

    def behind(*results: Result) -> list[tuple[str, str]]:
        found = missed(list(results), [MACHINE] * len(results), report.KNOWN)
        return [(m.wanted, m.found) for m in found]

    product, moving = timed("gemm.512").work, timed("memory.softmax").traffic
    assert behind(result("gemm.512", {"flambeau": [product / 91e9], "torch": [product / 90e9]})) == []
    assert behind(result("gemm.512", {"flambeau": [product / 80e9], "torch": [product / 90e9]})) == [
        ("90 % of the limit", "80 %"),
        ("no slower than torch", "0.89"),
    ]
    assert behind(result("memory.softmax", {"flambeau": [moving / 18e9]})) == []
    assert behind(result("memory.softmax", {"flambeau": [moving / 15e9]})) == [("85 % of the limit", "75 %")]
    peers = {"torch": [1.5], "torch.compile": [1.25], "jax": [1.3]}
    assert behind(result("training.mlp_64", {"flambeau": [1.0], **peers})) == [
        ("1.3 × torch.compile", "1.25")
    ]
    assert behind(result("ready.gpt2_warm", {"flambeau": [0.75]})) == [("500 ms", "750 ms")]
    assert behind(result("overhead.record", {"flambeau": [4e-6], "torch": [1e-6]})) == []

    one, two = result("gemm.2048", {"flambeau": [1.8]}), result("gemm.2048", {"flambeau": [1.2]}, 2)
    assert ("1.8 × one thread", "1.50") in behind(one, two)
    assert "1.8 × one thread" not in dict(behind(one, {**two, "seconds": {"flambeau": [1.0]}}))

    sizes = {
        "flambeau": {"first": 3 << 20, "running": 1 << 20},
        "torch": {"first": 2 << 20, "running": 1 << 20},
    }
    costs = {"memory": sizes, "errors": {"flambeau": 3e-7, "torch": 1e-7}}
    assert behind(result("inference.mlp_1", {"flambeau": [1.0]}, **costs)) == [
        ("an error of at most 1e-07", "3e-07"),
        ("at most PyTorch's 2 MB, first call", "3 MB"),
    ]
    assert behind(result("gemm.64", {}, wrong={"flambeau": 1.0})) == [("a right result", "failed")]


def test_the_readme_has_the_recorded_figures() -> None:
    """`python -m benchmarks.readme` mends it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    record = Record(ROOT / "docs" / "performance.json", resume=True)
    assert readme.written(text, record) == text
    with pytest.raises(ValueError, match="figures"):
        readme.written("nothing", record)
