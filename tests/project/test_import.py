"""What `import flambeau` costs: nothing that a program may never need is loaded."""

import json
import subprocess
import sys

import pytest

LATE = [
    "tempfile",
    "statistics",
    "decimal",
    "llvmlite",
    "rich",
    "click",
    "onnx",
    "pycuda",
    "torch",
    "safetensors",
    "mpi4py",
    "flambeau.cli",
]


def loaded_after(statement: str) -> set[str]:
    """The modules loaded in a fresh interpreter once `statement` has run."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(list(sys.modules)))"
    return set(json.loads(subprocess.check_output([sys.executable, "-c", program], text=True)))


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    return loaded_after("import flambeau")


@pytest.mark.parametrize("name", LATE)
def test_import_does_not_load(loaded: set[str], name: str) -> None:
    assert "numpy" in loaded, "flambeau itself was not loaded"
    assert name not in loaded
