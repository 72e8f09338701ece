"""Package discovery; everything else about the build is in pyproject.toml.

The four source folders install as one package, by the `package-dir` table of pyproject.toml. setuptools' own
discovery looks for packages under one root only and does not compose with such a table, so the folders are walked
here.
"""

import os
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def packages() -> list[str]:
    """Every package of the project, by its import name (`flambeau.compiler.ir`, …), sorted.

    A folder is a package when it has an `__init__.py`. A folder that has modules but no `__init__.py` would work
    from a checkout and be missing from a wheel, so it is an error here.
    """
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = []
    for package, folder in config["tool"]["setuptools"]["package-dir"].items():
        for directory, subdirectories, files in os.walk(ROOT / folder):
            subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]
            if "__init__.py" in files:
                found.append(".".join([package, *Path(directory).relative_to(ROOT / folder).parts]))
                continue
            modules = [name for name in files if name.endswith(".py")]
            if modules:
                raise SystemExit(f"setup.py: {directory} holds {modules[0]} but no __init__.py; add one")
    return sorted(found)


setup(packages=packages())
