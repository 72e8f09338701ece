"""What the commands do when they are used rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flambeau.cli.main import COMMANDS, cli
from flambeau.compiler.ir.parser import parse_graph
from flambeau.runtime.library import load
from tests.cli.sources import SOURCE, TEXT


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    (tmp_path / "twice.mlir").write_text(TEXT)
    return path


def call(*arguments: Any, text: str | None = None) -> Result:
    """Runs a command; fails with its message if the exit code is not 0."""
    result = CliRunner().invoke(cli, [str(a) for a in arguments], input=text)
    assert result.exit_code == 0, result.output
    return result


def test_compile_and_run_function(source: Path, tmp_path: Path) -> None:
    library = tmp_path / "out" / "square.so"
    call("compile", f"{source}:square", "-i", "Nx8:f32", "-o", library)
    assert "int32_t square_run(square_t* handle, int64_t N" in library.with_suffix(".h").read_text()
    assert sorted(p.name for p in library.parent.iterdir()) == ["square.h", "square.so"]
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    call("run", library, "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as outputs:
        np.testing.assert_array_equal(outputs["output0"], x * x)
        np.testing.assert_allclose(outputs["output1"], (x + 1).sum(), rtol=1e-5)


def test_library_is_the_function(source: Path, tmp_path: Path) -> None:
    """The library and the source give the same bits for the same random inputs."""
    library = tmp_path / "net.so"
    call("compile", f"{source}:net", "-o", library)
    from_library = json.loads(call("run", library, "--seed", 3, "--json").stdout)
    from_source = json.loads(call("run", f"{source}:net", "--seed", 3, "--json").stdout)
    assert from_library == from_source
    assert from_library["output"]["shape"] == [2, 3]


def test_factory_and_class(source: Path) -> None:
    facts = json.loads(call("inspect", f"{source}:factory", "--json").stdout)
    assert [w["name"] for w in facts["signature"]["weights"]] == ["weight", "bias"]
    assert facts["signature"]["inputs"][0]["shape"] == [1, 4]
    doubled = json.loads(call("run", f"{source}:Doubling", "--json").stdout)["output"]
    assert doubled["data"] == pytest.approx(2 * np.random.default_rng(0).standard_normal(3), rel=1e-6)


def test_training_step(source: Path, tmp_path: Path) -> None:
    library = tmp_path / "step.so"
    result = call("compile", f"{source}:step", "-o", library, "--json")
    facts = json.loads(result.stdout)
    assert facts["signature"]["kind"] == "training_step"
    assert [s["name"] for s in facts["signature"]["state"]] == ["s"]
    assert facts["bytes"] == library.stat().st_size
    loaded = load(library)
    losses = [float(loaded(np.zeros(4, np.float32))) for _ in range(2)]
    assert losses == pytest.approx([4.0, 4.0 * 0.64])


def test_compile_text(source: Path, tmp_path: Path) -> None:
    call("compile", source.with_name("twice.mlir"), "-o", tmp_path / "twice.so")
    found = load(tmp_path / "twice.so")(np.array([1, -2, 3], np.float32))
    np.testing.assert_array_equal(found, [2, 0, 6])


def test_inspect_library(source: Path, tmp_path: Path) -> None:
    call("compile", f"{source}:net", "-o", tmp_path / "net.so", "--name", "classifier")
    signature = json.loads(call("inspect", tmp_path / "net.so", "--json").stdout)["signature"]
    assert signature["name"] == "classifier"
    assert [w["name"] for w in signature["weights"]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    shown = call("inspect", tmp_path / "net.so").stdout
    assert "float32[2, 8]" in shown and "0.weight" in shown


def test_inspect_source(source: Path) -> None:
    facts = json.loads(call("inspect", f"{source}:net", "--json").stdout)
    operations = [o for k in facts["kernels"] for o in k["operations"]]
    assert operations.count("dot_general") == 2
    assert int(facts["memory"]["arena_bytes"]) >= 2 * 4 * 4  # the hidden layer
    shown = call("inspect", f"{source}:net").stdout
    assert "contraction" in shown and "arena" in shown


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("trace", '"graph.relu"'),
        ("autodiff", '"graph.relu"'),
        ("simplify", '"graph.maximum"'),
        ("fuse", 'sym_name = "kernel0"'),
        ("loops", "scf."),
        ("plan", "arena:"),
        ("llvm", "define "),
        ("object", ".text"),
    ],
)
def test_stages(source: Path, stage: str, expected: str) -> None:
    text = call("inspect", source.with_name("twice.mlir"), "--stage", stage).stdout
    if stage == "simplify":  # a composite is gone, its primitives are there
        assert "graph.relu" not in text
    assert expected in text


def test_opt_is_a_filter() -> None:
    unchanged = call("opt", text=TEXT).stdout
    assert parse_graph(unchanged) == parse_graph(TEXT)
    result = call("opt", "--passes", "decompose,simplify", "--verify", "--timing", text=TEXT)
    assert "graph.relu" not in result.stdout and "graph.maximum" in result.stdout
    assert "decompose" in result.stderr and "simplify" in result.stderr and "ms" in result.stderr
    parse_graph(result.stdout)
    assert "decompose: " in call("opt", "--list").stdout


def test_ops() -> None:
    from flambeau.compiler.ir.opdef import REGISTRY

    entries = json.loads(call("ops", "--json").stdout)
    assert {e["name"] for e in entries} == set(REGISTRY)
    assert all(e["summary"] for e in entries)
    graph = json.loads(call("ops", "--dialect", "graph", "--json").stdout)
    assert graph and all(e["name"].startswith("graph.") for e in graph)
    page = call("ops", "softmax").stdout
    assert "dimension: int" in page and "composite" in page and "derivative: yes" in page
    assert json.loads(call("ops", "graph.add", "--json").stdout)["composite"] is False


def test_targets_and_doctor() -> None:
    targets = json.loads(call("targets", "--json").stdout)
    assert targets[0]["about"] == "this machine" and targets[0]["code"]
    facts = json.loads(call("doctor", "--json").stdout)
    assert facts["compiles"] is True and facts["problems"] == []
    assert facts["threads"]["available"] >= 1
    assert "no problems" in call("doctor").stdout


def test_cache(tmp_path: Path) -> None:
    from flambeau.compiler import options
    from flambeau.runtime.cache import DiskCache

    with options.override(cache_dir=str(tmp_path)):
        DiskCache(tmp_path).put("key", b"data")
        facts = json.loads(call("cache", "info", "--json").stdout)
        assert facts["entries"] == 1 and facts["bytes"] > 4 and facts["path"] == str(tmp_path)
        call("cache", "clear")
        assert DiskCache(tmp_path).get("key") is None
    with options.override(cache_dir="off"):
        assert "off" in call("cache", "info").stdout


@pytest.mark.parametrize("command", ["", *COMMANDS, "cache info", "cache clear"])
def test_help(command: str) -> None:
    shown = call(*command.split(), "--help").stdout
    assert "Usage:" in shown and "--debug" in shown


def test_help_is_quick() -> None:
    """Help imports neither LLVM nor rich, and the module works as a program."""
    code = (
        "import sys; from flambeau.cli.main import cli; cli.main(['--help'], standalone_mode=False); "
        "assert not {'llvmlite', 'rich'} & set(sys.modules), sorted({'llvmlite', 'rich'} & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    shown = subprocess.run(
        [sys.executable, "-m", "flambeau.cli.main", "--version"], check=True, capture_output=True, text=True
    )
    assert shown.stdout.startswith("flambeau, version ")
