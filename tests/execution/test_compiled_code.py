"""The persistent cache: a second process compiles nothing, a damaged entry is a miss, constants survive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flambeau import compiled_code
from flambeau.compiled_code import CompiledCode, compiled, disk_cache
from flambeau.compiler import options
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import f32, tensor
from flambeau.execution import Executable

TABLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def graph(rows: object = 2) -> Graph:
    x = Value(tensor((rows, 3), f32))  # type: ignore[arg-type]
    table = build.constant(TABLE, f32) if rows == 2 else 1.5
    return Graph([x], [build.exp(build.add(x, table))])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def run(code: CompiledCode) -> np.ndarray:
    from flambeau.runtime.buffer import as_numpy, from_numpy

    x = np.ones((2, 3), np.float32)
    (result,) = Executable(graph(), code)([from_numpy(x)])
    return as_numpy(result, np.float32, (2, 3)).copy()


def test_second_time_is_a_hit(folder: Path) -> None:
    with options.override(cache_dir=str(folder)):
        first, compilation = compiled(graph())
        again, nothing = compiled(graph())
    assert compilation is not None and nothing is None
    assert again.object_code == first.object_code
    np.testing.assert_allclose(run(again), np.exp(1 + TABLE), rtol=1e-6)


def test_the_cache_has_a_bound(folder: Path) -> None:
    """Entries that were used before others go first."""
    with options.override(cache_dir=str(folder), cache_mib=1):
        store = disk_cache()
        assert store is not None and store.max_bytes == 1 << 20
        for n in range(8):
            store.put(f"old{n}", bytes(1 << 18))
        compiled(graph())
        assert compiled(graph())[1] is None
        assert store.get("old0") is None
        assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 3 << 19
    with pytest.raises(ValueError, match="cache_mib: expected at least 1"), options.override(cache_mib=0):
        pass


def test_damaged_entries_are_misses(folder: Path) -> None:
    with options.override(cache_dir=str(folder)):
        compiled(graph())
        (entry,) = [p for p in folder.rglob("*") if p.is_file()]
        for damage in (b"", b"{}", entry.read_bytes()[:-7], b"x" + entry.read_bytes()[1:]):
            entry.write_bytes(damage)
            code, compilation = compiled(graph())
            assert compilation is not None
            np.testing.assert_allclose(run(code), np.exp(1 + TABLE), rtol=1e-6)


def test_off_writes_nothing(folder: Path) -> None:
    with options.override(cache_dir="off"):
        assert compiled_code.disk_cache() is None
        _, compilation = compiled(graph())
    assert compilation is not None and not folder.exists()


def test_symbolic_arena_survives() -> None:
    code = CompiledCode(b"object", (TABLE,), dim("N") * 4 + 64)
    again = CompiledCode.from_bytes(code.to_bytes())
    assert again.arena == code.arena and again.object_code == b"object"
    np.testing.assert_array_equal(again.constants[0], TABLE)
    with pytest.raises(ValueError, match="bytes instead of"):
        CompiledCode.from_bytes(code.to_bytes()[:-1])


def test_one_executable_serves_all_sizes(folder: Path) -> None:
    from flambeau.runtime.buffer import as_numpy, from_numpy

    rows = dim("N")
    with options.override(cache_dir=str(folder)):
        executable = Executable(graph(rows), compiled(graph(rows))[0])
    for n in (1, 5, 33):
        x = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
        dims = executable.dims_of([x.shape])
        (result,) = executable([from_numpy(x)], dims)
        np.testing.assert_allclose(as_numpy(result, np.float32, (n, 3)), np.exp(x + 1.5), rtol=1e-6)


def test_dump_and_debug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with options.override(dump=str(tmp_path), debug=2):
        compiled(graph())
    (folder,) = tmp_path.iterdir()
    names = sorted(p.name for p in folder.iterdir())
    assert names[:3] == ["00-trace.mlir", "01-autodiff.mlir", "02-simplify.mlir"]
    assert names[-1] == "07-object.s" and len(names) == 8
    assert "graph.exponential" in (folder / "00-trace.mlir").read_text()
    assert "define" in (folder / "06-llvm.ll").read_text()
    printed = capsys.readouterr().err
    assert "2 operations" in printed or "3 operations" in printed
    assert "kernel0 element:" in printed
