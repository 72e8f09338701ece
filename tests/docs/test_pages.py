"""The documentation: every code cell runs, every stage has its page, and the reference has every operation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.opdef import REGISTRY
from flambeau.compiler.pipeline import STAGES

DOCS = Path(__file__).resolve().parents[2] / "docs"
CELL = re.compile(r"```\{code-cell\}\n(?::tags:[^\n]*\n)?(.*?)```", re.S)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


PAGES = sorted(p for p in DOCS.rglob("*.md") if "_generated" not in p.parts and CELL.search(read(p)))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_cells_run(page: Path) -> None:
    program = "\n".join(CELL.findall(read(page)))
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_each_stage_has_its_page() -> None:
    names = {name for name, _ in STAGES}
    assert {p.stem for p in (DOCS / "stages").glob("*.md")} == names | {"index"}
    index = read(DOCS / "stages" / "index.md")
    assert [line for line in index.splitlines() if line in names] == [name for name, _ in STAGES]


def test_reference_has_every_operation(tmp_path: Path) -> None:
    program = str(DOCS / "generate_operations.py")
    subprocess.run([sys.executable, program, str(tmp_path)], check=True, capture_output=True)
    headings = {m for page in tmp_path.glob("*.md") for m in re.findall(r"^## `(.*)`$", read(page), re.M)}
    named = {
        n for n, c in REGISTRY.items() if issubclass(c, GraphOp) and c.__module__.startswith("flambeau.")
    }
    assert named
    assert named <= headings


def test_example_of_the_readme(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", read(DOCS.parent / "README.md"), re.S)
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "build").iterdir()} == {"classifier.so", "classifier.h"}
