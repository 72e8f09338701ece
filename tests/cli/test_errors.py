"""What the commands say when they are used wrongly: one message, an exit code, no traceback, no partial file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.sources import SOURCE, TEXT

BROKEN = """
import flambeau as torch


def peeks(x):
    return x if x.sum() > 0 else -x


def returns_text(x):
    return "text"


def fails():
    raise KeyError("factory")


cache = []


def keeps(x):
    cache.append(x * 2)
    return x


def mismatch(x):
    return x @ x


number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("x = 1\nraise RuntimeError('no data')\n")
    (tmp_path / "twice.mlir").write_text(TEXT)
    (tmp_path / "bad.mlir").write_text(TEXT.replace("graph.relu", "graph.nonsense"))
    (tmp_path / "types.mlir").write_text(
        TEXT.replace("(%0, %0) : (tensor<3xf32>,", "(%0, %0) : (tensor<4xf32>,")
    )
    (tmp_path / "bytes.mlir").write_bytes(bytes(range(128, 256)))
    (tmp_path / "text.so").write_text("not a library")
    (tmp_path / "text.npy").write_text("not an array")
    return tmp_path


def program(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a program, in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "flambeau.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("compile absent.py:f", 1, "absent.py: no such file"),
        ("compile absent.mlir", 1, "absent.mlir: no such file"),
        ("compile model.py", 1, "expected file.py:name"),
        ("compile model.py:absent", 1, "has no 'absent'; it has"),
        ("compile model.py:square", 1, "Give --input"),
        ("compile model.py:square -i 2xq", 2, "expected a shape such as"),
        ("compile model.py:square -i 2x2:f31", 2, "there is no dtype 'f31'"),
        ("compile model.py:net -i 2x9", 1, "9"),
        ("compile model.py:square -i 2 --name 3d", 2, "expected a C identifier"),
        ("compile model.py:square -i 2 --target no-such-thing", 1, "no-such-thing"),
        ("compile model.py:net -i 2x8 -i 3", 1, "forward"),
        ("compile broken.py:number", 1, "is a int; expected"),
        ("compile broken.py:fails", 1, "KeyError: 'factory' (line 14)"),
        ("compile broken.py:peeks -i 3", 1, "broken.py:6"),
        ("compile broken.py:returns_text -i 3", 1, "returns tensors"),
        ("compile broken.py:keeps -i 3", 1, "makes 1 tensor that outlive it"),
        ("compile broken.py:mismatch -i 2x3", 1, "(line 26)"),
        ("compile syntax.py:f", 1, "syntax.py:1"),
        ("compile raises.py:f", 1, "RuntimeError: no data (line 2)"),
        ("compile bad.mlir", 1, 'no operation "graph.nonsense"'),
        ("compile types.mlir", 1, "tensor<4xf32>"),
        ("compile bytes.mlir", 1, "not a text file"),
        ("compile text.so", 1, "is a library already"),
        ("compile twice.mlir -o .", 1, "is a folder"),
        ("compile twice.mlir -o twice.mlir/model.so", 1, "twice.mlir"),
        ("compile twice.mlir -O 4", 2, "4"),
        ("run text.so", 1, "not a loadable library"),
        ("run absent.so", 1, "no such file"),
        ("run twice.mlir -i 4", 1, "expected shape [3], got [4]"),
        ("run twice.mlir -i 3:f64", 1, "expected float32, got float64"),
        ("run twice.mlir -i 3 -i 3", 1, "takes 1 inputs (input0), got 2"),
        ("run twice.mlir -i absent.npy", 1, "absent.npy: No such file"),
        ("run twice.mlir -i text.npy", 1, "not a .npy file"),
        ("run twice.mlir --size N=3", 1, "no symbolic size N"),
        ("run twice.mlir --size N", 2, "expected NAME=NUMBER"),
        ("run twice.mlir -o y.txt", 2, "expected a .npy or .npz file"),
        ("run twice.mlir -o absent/y.npy", 1, "No such file or directory"),
        ("run model.py:square -i 2 -o y.npy", 1, "there are 2 outputs"),
        ("inspect text.so --stage llvm", 1, "no stage's text"),
        ("inspect twice.mlir --stage absent", 2, "absent"),
        ("opt --passes absent twice.mlir", 1, "there is no pass 'absent'; there are block_convolutions"),
        ("opt --passes simplify{level=2} twice.mlir", 1, "has no option"),
        ("opt bad.mlir", 1, 'no operation "graph.nonsense"'),
        ("opt bytes.mlir", 1, "not UTF-8 text"),
        ("opt absent.mlir", 1, "absent.mlir: No such file"),
        ("ops softmx", 1, "did you mean graph.softmax"),
        ("ops --dialect absent", 1, "there is no dialect 'absent'"),
        ("frobnicate", 2, "No such command 'frobnicate'"),
        ("compile", 2, "Missing argument 'SOURCE'"),
    ],
)
def test_one_clear_message(folder: Path, arguments: str, code: int, message: str) -> None:
    from click.testing import CliRunner

    from flambeau.cli.main import cli

    before = listing(folder)
    here = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(cli, arguments.split())
    finally:
        os.chdir(here)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.startswith(("error: ", "Error: "))
        assert result.stdout == ""
    assert [f for f in listing(folder) if f not in before and f != "build"] == []


def test_as_a_program(folder: Path) -> None:
    """The exit code and the message get out of the process; --debug brings the traceback."""
    failed = program(folder, "compile", "bad.mlir")
    assert failed.returncode == 1
    assert "bad.mlir:5" in failed.stderr and "^" in failed.stderr
    assert "Traceback" not in failed.stderr
    for arguments in (["--debug", "compile", "bad.mlir"], ["compile", "bad.mlir", "--debug"]):
        failed = program(folder, *arguments)
        assert failed.returncode == 1
        assert "Traceback" in failed.stderr
    assert program(folder, "frobnicate").returncode == 2


NO_ZIG = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ziglang" else find(name, *a)
from flambeau.cli.main import main
main()
"""


def test_no_linker(folder: Path) -> None:
    """Both remedies are named, nothing is written, and what was there stays."""
    (folder / "model.so").write_text("old library")
    (folder / "model.h").write_text("old header")
    before = listing(folder)
    command = [sys.executable, "-c", NO_ZIG, "compile", "twice.mlir", "-o", "model.so"]
    empty = folder.parent / "empty"
    empty.mkdir(exist_ok=True)
    failed = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": str(empty)}
    )
    assert failed.returncode == 1
    assert "no linker found" in failed.stderr
    assert "gcc" in failed.stderr and "pip install flambeau[cross]" in failed.stderr
    assert listing(folder) == before
    assert (folder / "model.so").read_text() == "old library"
    assert (folder / "model.h").read_text() == "old header"
    checked = subprocess.run(
        [*command[:3], "doctor"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": str(empty)},
    )
    assert checked.returncode == 1
    assert "problem: no linker" in checked.stderr


def test_unwritable_folder(folder: Path) -> None:
    if os.name != "posix":
        pytest.skip("permissions of folders are POSIX's")
    locked = folder / "locked"
    locked.mkdir()
    if os.geteuid() == 0:  # nothing is unwritable to root but what is no real folder
        failed = program(folder, "compile", "twice.mlir", "-o", "/proc/model.so")
    else:
        locked.chmod(0o500)
        failed = program(folder, "compile", "twice.mlir", "-o", "locked/model.so")
        locked.chmod(0o700)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert list(locked.iterdir()) == []
