"""Exported libraries: called from Python and from C, under load, and looked at from outside."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.exporting import ExportRoles, LibraryCode, export_library
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import f32, tensor
from flambeau.execution import run_graph
from flambeau.runtime.header import header
from flambeau.runtime.library import Library, LibraryError, load
from flambeau.runtime.linker import link_shared

N = dim("N")
WEIGHT = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
BIAS = np.random.default_rng(1).standard_normal(3).astype(np.float32)

#: What a library may need from outside: the C library, and nothing else.
ALLOWED = {
    "strcmp",
    "aligned_alloc",
    "clock_gettime",
    "free",
    "getpid",
    "memset",
    "memcpy",
    "memmove",
    "posix_memalign",
    "sched_getcpu",
    "sched_yield",
    "sigfillset",
}


def linear(rows: object) -> Graph:
    """exp(x @ w + b), rows x 8 → rows x 3."""
    x, w, b = Value(tensor((rows, 8), f32)), Value(tensor((8, 3), f32)), Value(tensor((3,), f32))  # type: ignore[arg-type]
    product = create(DotGeneral((), (), (1,), (0,)), x, w).result
    y = build.exp(build.add(product, build.broadcast_in_dim(b, (rows, 3), (1,))))
    return Graph([x, w, b], [y])


def descent() -> Graph:
    """One step of gradient descent on sum(s * s): loss, and the new s."""
    rate, s = Value(tensor((), f32)), Value(tensor((4,), f32))
    step = build.mul(build.broadcast_in_dim(rate, (4,), ()), build.mul(2.0, s))
    return Graph([rate, s], [build.reduce_sum(build.mul(s, s), (0,)), build.sub(s, step)])


INFERENCE = ExportRoles(("x",), ("y",), (("weight", WEIGHT), ("bias", BIAS)))
TRAINING = ExportRoles(("rate",), ("loss",), (), (("s", np.arange(4, dtype=np.float32)),))


def save(code: LibraryCode, folder: Path) -> Path:
    path = link_shared(code.objects, folder / f"{code.name}.so", exports=code.exports)
    (folder / f"{code.name}.h").write_text(header(code.signature))
    return path


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(export_library(linear(N), INFERENCE, "linear"), tmp_path_factory.mktemp("inference"))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(export_library(descent(), TRAINING, "descent"), tmp_path_factory.mktemp("training"))


def test_any_batch_size(inference: Path) -> None:
    library = load(inference)
    for rows in (1, 2, 17, 300):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        np.testing.assert_allclose(library(x), np.exp(x @ WEIGHT + BIAS), rtol=2e-5)


def test_same_bits_as_in_process(tmp_path: Path) -> None:
    library = load(save(export_library(linear(33), INFERENCE, "fixed"), tmp_path))
    x = np.random.default_rng(5).standard_normal((33, 8)).astype(np.float32)
    (expected,) = run_graph(linear(33), [x, WEIGHT, BIAS])
    assert library(x).tobytes() == expected.tobytes()


def test_signature(inference: Path) -> None:
    signature = load(inference).signature
    assert signature["kind"] == "inference"
    assert signature["symbols"] == ["N"]
    assert signature["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 8]}]
    assert signature["outputs"] == [{"name": "y", "dtype": "float32", "shape": ["N", 3]}]


def test_renamed_file(inference: Path, tmp_path: Path) -> None:
    copy = shutil.copy(inference, tmp_path / "other-name.so")
    assert load(copy).name == "linear"


def test_training_step(training: Path) -> None:
    library = load(training)
    expected = np.arange(4, dtype=np.float32)
    for _ in range(5):
        loss = library(np.float32(0.1))
        np.testing.assert_allclose(loss, (expected**2).sum(), rtol=1e-6)
        expected = expected - np.float32(0.1) * (2 * expected)
        np.testing.assert_allclose(library.get("s"), expected, rtol=1e-6)
    library.set("s", np.full(4, 3, np.float32))
    assert library(np.float32(0)) == 36
    with pytest.raises(KeyError, match="there is s"):
        library.get("t")


def test_wrong_inputs(inference: Path, tmp_path: Path) -> None:
    library = load(inference)
    with pytest.raises(TypeError, match="input x: expected float32, got float64"):
        library(np.zeros((2, 8)))
    with pytest.raises(ValueError, match="expected shape"):
        library(np.zeros((2, 9), np.float32))
    with pytest.raises(TypeError, match="takes 1 inputs"):
        library()
    with pytest.raises(LibraryError, match="no such file"):
        load(tmp_path / "absent.so")
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(LibraryError, match="not a loadable library"):
        load(tmp_path / "text.so")


def test_needs_only_the_c_library(inference: Path, training: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    for path in (inference, training):
        listing = subprocess.run(["nm", "-D", str(path)], check=True, capture_output=True, text=True).stdout
        needed, defined = set(), set()
        for line in listing.splitlines():
            kind, name = line.split()[-2:]
            name = name.split("@")[0]
            if kind == "U":
                needed.add(name)
            elif kind == "T":
                defined.add(name)
        assert {n for n in needed if not n.startswith("pthread_")} <= ALLOWED
        assert all(name.startswith(("linear_", "descent_")) for name in defined)


def test_two_threads_two_handles(inference: Path) -> None:
    """Each thread runs its own handle, one of them with a pool; every answer is compared."""
    rng = np.random.default_rng(9)
    inputs = [rng.standard_normal((rows, 8)).astype(np.float32) for rows in rng.integers(1, 200, 40)]
    expected = [load(inference)(x) for x in inputs]
    failures: list[str] = []

    def work(threads: int) -> None:
        library = Library(inference, threads)
        for turn in range(25):
            for number, x in enumerate(inputs):
                if library(x).tobytes() != expected[number].tobytes():
                    failures.append(f"{threads} threads, turn {turn}, input {number}")

    workers = [threading.Thread(target=work, args=(n,)) for n in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


MAIN = """
#include <stdio.h>
#include "linear.h"
#include "descent.h"

int main(void) {
    float x[16], y[6], loss, first = 0;
    for (int i = 0; i < 16; i++) x[i] = (float)i / 8;
    linear_t* model = NULL;
    if (linear_create(&model, 1) != LINEAR_OK) return 1;
    if (linear_run(model, 2, x, y) != LINEAR_OK) return 2;
    if (linear_run(model, 0, x, y) != LINEAR_BAD_SHAPE) return 3;
    if (linear_run(model, 2, NULL, y) != LINEAR_INVALID_ARGUMENT) return 4;
    for (int i = 0; i < 6; i++) printf("%.9g\\n", y[i]);
    descent_t* step = NULL;
    if (descent_create(&step, 2) != DESCENT_OK) return 5;
    if (linear_run((linear_t*)step, 2, x, y) != LINEAR_INVALID_ARGUMENT) return 6;
    float rate = 0.1f, s[4];
    for (int i = 0; i < 10; i++) {
        if (descent_run(step, &rate, &loss) != DESCENT_OK) return 7;
        if (i == 0) first = loss;
    }
    if (!(loss < first)) return 8;
    if (descent_get(step, "s", s, sizeof s) != DESCENT_OK) return 9;
    if (descent_get(step, "s", s, 3) != DESCENT_INVALID_ARGUMENT) return 10;
    linear_destroy(model);
    descent_destroy(step);
    linear_destroy(NULL);
    return 0;
}
"""


@pytest.mark.parametrize("language", ["c", "c++"])
def test_from_c(inference: Path, training: Path, tmp_path: Path, language: str) -> None:
    compiler = shutil.which("cc" if language == "c" else "c++")
    if compiler is None:
        pytest.skip(f"no {language} compiler is installed")
    for path in (inference, training):
        shutil.copy(path, tmp_path)
        shutil.copy(path.with_suffix(".h"), tmp_path)
    source = tmp_path / "main.c"
    source.write_text(MAIN)
    flags = ["-std=c99", "-pedantic", "-Wall", "-Werror"] if language == "c" else ["-x", "c++", "-Wall"]
    libraries = [str(tmp_path / "linear.so"), str(tmp_path / "descent.so")]
    command = [
        compiler,
        *flags,
        str(source),
        "-x",
        "none",
        *libraries,
        f"-Wl,-rpath,{tmp_path}",
        "-o",
        str(tmp_path / "main"),
    ]
    subprocess.run(command, check=True)
    run = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True)
    assert run.returncode == 0
    x = (np.arange(16, dtype=np.float32) / 8).reshape(2, 8)
    got = np.array(run.stdout.split(), np.float32).reshape(2, 3)
    assert got.tobytes() == load(inference)(x).tobytes()
