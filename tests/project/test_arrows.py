"""The import arrows hold in the code base, and the contracts that say so catch what they must."""

import subprocess
import sys
from pathlib import Path

import pytest
from grimp import ImportGraph

from tests.project.arrows import Acyclic, Arrows, allowed

ROOT = Path(__file__).resolve().parents[2]


def graph(*imports: tuple[str, str]) -> ImportGraph:
    """An import graph with the given (importer, imported) edges, each as line 1 of its importer."""
    result = ImportGraph()
    for importer, imported in imports:
        result.add_import(
            importer=importer, imported=imported, line_number=1, line_contents=f"import {imported}"
        )
    return result


def test_the_code_base_keeps_every_contract() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "project" / "arrows.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("flambeau.cli.main", "flambeau.export"),
        ("flambeau.cli.main", "flambeau.compiler.pipeline"),
        ("flambeau.nn.linear", "flambeau.tensor"),
        ("flambeau.jit", "flambeau.compiler.pipeline"),
        ("flambeau.jit", "flambeau.runtime.executor"),
        ("flambeau.compiler.targets.cpu", "flambeau.runtime.abi"),
        ("flambeau.compiler.targets.cpu", "flambeau.runtime.abi.header"),
        ("flambeau.runtime.engine", "flambeau.runtime.buffer"),
    ],
)
def test_allowed(importer: str, imported: str) -> None:
    assert allowed(importer, imported)
    assert Arrows("arrows", {}, {}).check(graph((importer, imported)), verbose=False).kept


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("flambeau.compiler.ir.core", "flambeau.tensor"),
        ("flambeau.compiler.ir.core", "flambeau"),
        ("flambeau.compiler.pipeline", "flambeau.runtime.executor"),
        ("flambeau.compiler.pipeline", "flambeau.runtime.abi_extras"),
        ("flambeau.compiler.pipeline", "flambeau.runtime"),
        ("flambeau.runtime.engine", "flambeau.compiler.options"),
        ("flambeau.runtime.library", "flambeau.tensor"),
        ("flambeau.runtime.library", "flambeau.cli.main"),
        ("flambeau.tensor", "flambeau.cli.main"),
    ],
)
def test_forbidden(importer: str, imported: str) -> None:
    check = Arrows("arrows", {}, {}).check(graph((importer, imported)), verbose=False)
    assert not check.kept
    (message,) = check.metadata["broken"]
    assert importer in message and imported in message


def test_third_parties_are_nobodys_part() -> None:
    assert Arrows("arrows", {}, {}).check(graph(("flambeau.runtime.engine", "llvmlite")), verbose=False).kept


def test_a_cycle_is_found_and_named() -> None:
    modules = ["flambeau.a", "flambeau.b", "flambeau.c"]
    imports = list(zip(modules, [*modules[1:], modules[0]]))
    check = Acyclic("acyclic", {}, {}).check(graph(*imports), verbose=False)
    assert not check.kept
    assert check.metadata["cycles"] == ["flambeau.a → flambeau.b → flambeau.c → flambeau.a"]
    assert Acyclic("acyclic", {}, {}).check(graph(*imports[:2]), verbose=False).kept
