"""The installed layout of the package, as a tree of links into the checkout.

The folders `frontend`, `compiler`, `runtime` and `cli` install as one package, `flambeau`. mypy and import-linter
read source trees and know nothing of that mapping, so they get a tree in which `flambeau` looks as it does when
installed:

    build/tree/flambeau/{__init__.py, tensor.py, nn/, …}  → frontend/*
    build/tree/flambeau/{compiler, runtime, cli}          → compiler, runtime, cli

`python tests/project/layout.py [FOLDER]` lays it out (default `build/tree`) and prints where.
"""

import os
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def package_folders() -> dict[str, Path]:
    """Import name → source folder, parents before children, from pyproject.toml."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table = config["tool"]["setuptools"]["package-dir"]
    return {name: ROOT / table[name] for name in sorted(table)}


def lay_out(tree: Path) -> Path:
    """Makes `tree` hold the installed layout and returns it; what was in it before is removed."""
    if tree.exists():
        shutil.rmtree(tree)
    for name, folder in package_folders().items():
        target = tree.joinpath(*name.split("."))
        if (
            name.count(".") == 0
        ):  # the frontend's entries, one by one: the other folders become their siblings
            target.mkdir(parents=True)
            for entry in sorted(folder.iterdir()):
                if entry.name != "__pycache__":
                    _link(entry, target / entry.name)
        else:
            _link(folder, target)
    return tree


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=source.is_dir())
    except OSError:  # Windows without the privilege to make links
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)


if __name__ == "__main__":
    print(lay_out(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "tree"))
