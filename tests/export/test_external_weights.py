"""Libraries whose weights lie in a safetensors file beside them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flambeau as fb
from flambeau import nn, optim
from flambeau.runtime.library import LibraryError, load
from tests.export.test_library import ALLOWED

X = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    fb.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 40), nn.ReLU(), nn.Linear(40, 3))


@pytest.fixture
def library(model: nn.Module, tmp_path: Path) -> Path:
    return fb.export(model, (fb.from_numpy(X),)).save(tmp_path / "net.so", weights="external")


def test_the_file_beside_is_found(model: nn.Module, library: Path) -> None:
    expected = model(fb.from_numpy(X)).detach().numpy()
    assert fb.load(library)(X).tobytes() == expected.tobytes()
    assert set(load_file(library.with_suffix(".safetensors"))) == set(model.state_dict())
    embedded = fb.export(model, (fb.from_numpy(X),)).save(library.with_name("whole.so"))
    assert load(embedded).signature["weights_file"] is None
    with pytest.raises(LibraryError, match="embedded"):
        load(embedded, weights=library.with_suffix(".safetensors"))


class Normed(nn.Module):
    """What is prepared: panels of one weight, arithmetic on others (the factors of batch norm), Winograd's transform."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.second, self.out = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 130)
        self.norm.running_var.fill_(0.3)

    def forward(self, x: fb.Tensor) -> fb.Tensor:
        x = self.second(self.norm(self.first(x)).relu())
        return self.out(x.flatten(2).transpose(1, 2).reshape(-1, 32))


class Wide(Normed):
    """Most of its weights are read as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(130, 3000)

    def forward(self, x: fb.Tensor) -> fb.Tensor:
        return self.last(super().forward(x)[:100])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", [Normed, Wide])
def test_weights_are_prepared_by_the_handle(tmp_path: Path, kind: type[nn.Module], threads: int) -> None:
    """The same bits as with embedded weights, which are prepared when the library is made; also after a replacement."""
    x = np.random.default_rng(1).standard_normal((2, 3, 28, 28)).astype(np.float32)
    paths = {}
    for seed in (0, 1):
        fb.manual_seed(seed)
        exported = fb.export(kind().eval(), (fb.from_numpy(x),))
        assert exported.library().compilation.preparation is not None
        paths[seed] = [
            exported.save(tmp_path / f"net{seed}_{kind}.so", weights=kind)
            for kind in ("embedded", "external")
        ]
    for seed, (embedded, external) in paths.items():
        expected = load(embedded, threads=threads)(x)
        np.testing.assert_array_equal(load(external, threads=threads)(x), expected)
        other = paths[1 - seed][1]
        replaced = load(other, threads=threads, weights=external.with_suffix(".safetensors"))
        np.testing.assert_array_equal(replaced(x), expected)


def test_weights_are_replaced_without_compiling(library: Path) -> None:
    tensors = load_file(library.with_suffix(".safetensors"))
    tensors["2.weight"][:] = 0
    tensors["2.bias"][:] = [1, 2, 3]
    other = library.with_name("other.safetensors")
    save_file(tensors, other)
    np.testing.assert_array_equal(load(library, weights=other)(X), np.tile(np.float32([1, 2, 3]), (5, 1)))


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "long", "header", "shape", "folder"])
def test_a_file_that_does_not_fit_gives_no_handle(library: Path, damage: str) -> None:
    file = library.with_suffix(".safetensors")
    content = file.read_bytes()
    if damage in ("missing", "folder"):
        file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "shape":
        tensors = load_file(library.with_suffix(".safetensors"))
        save_file({**tensors, "0.bias": np.zeros(41, np.float32)}, file)
    elif damage != "missing":
        changed = {
            "empty": b"",
            "short": content[:-1],
            "long": content + b"\0",
            "header": b"\1" + content[1:],
        }
        file.write_bytes(changed[damage])
    with pytest.raises(LibraryError, match=r"net\.safetensors: missing, damaged, or of another library"):
        load(library)


def test_a_training_step_starts_from_the_file(tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, optim.Optimizer]:
        fb.manual_seed(1)
        net = nn.Linear(7, 1)
        return net, optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def stepper(net: nn.Module, optimizer: optim.Optimizer):  # type: ignore[no-untyped-def]
        def step(x: fb.Tensor) -> fb.Tensor:
            optimizer.zero_grad()
            loss = (net(x) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    step = stepper(*fresh())
    step(fb.from_numpy(X))  # the momentum exists from here on
    path = fb.export(step, (fb.from_numpy(X),)).save(tmp_path / "step.so", weights="external")
    trained, again = load(path), load(path)
    found = [trained(X).item() for _ in range(4)]
    assert found == [step(fb.from_numpy(X)).item() for _ in range(4)]
    assert again(X).item() == found[0]


def test_bad_choice(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 'embedded' or 'external', got 'none'"):
        fb.export(model, (fb.from_numpy(X),)).save(tmp_path / "net.so", weights="none")
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_the_c_library_only(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listing = subprocess.run(["nm", "-D", str(library)], check=True, capture_output=True, text=True).stdout
    needed = {line.split()[-1].split("@")[0] for line in listing.splitlines() if line.split()[-2] == "U"}
    more = {"fopen", "fread", "fgetc", "fclose", "memcmp", "bcmp"}
    assert {n for n in needed if not n.startswith("pthread_")} <= ALLOWED | more


def test_nothing_is_left_where_linking_fails(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("flambeau.runtime.linker.link_shared", fail)
    with pytest.raises(OSError, match="disk is full"):
        fb.export(model, (fb.from_numpy(X),)).save(tmp_path / "net.so", weights="external")
    assert list(tmp_path.iterdir()) == []


MAIN = """
#include <stdio.h>
#include "net.h"
int main(int argc, char** argv) {
    static float x[35], y[15];
    net_t* net = (net_t*)1;
    int32_t status = net_create(&net, 1, argc > 1 ? argv[1] : 0);
    if (status != NET_OK) { printf("%s %d\\n", net_error(status), net == 0); return (int)status; }
    for (int i = 0; i < 35; i++) x[i] = 1;
    status = net_run(net, x, y);
    for (int i = 0; i < 3; i++) printf("%.6f\\n", y[i]);
    net_destroy(net);
    return (int)status;
}
"""


def test_from_c(library: Path, model: nn.Module) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = library.parent
    (folder / "main.c").write_text(MAIN)
    program = folder / "main"
    command = [compiler, "-Wall", "-Werror", "main.c", "net.so", f"-Wl,-rpath,{folder}", "-o", str(program)]
    subprocess.run(command, cwd=folder, check=True)
    said = subprocess.run([program, folder / "net.safetensors"], check=True, capture_output=True, text=True)
    expected = model(fb.ones(5, 7)).detach().numpy()[0]
    np.testing.assert_allclose([float(line) for line in said.stdout.split()], expected, atol=1e-5)
    for arguments in ([], ["nowhere"]):
        said = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert (said.returncode, said.stdout) == (6, "the weights file is missing or damaged 1\n")


@pytest.mark.parametrize(
    ("triple", "weights"),
    [
        ("x86_64-windows-gnu", "embedded"),
        ("x86_64-windows-gnu", "external"),
        ("aarch64-linux-gnu", "external"),
        ("aarch64-macos", "embedded"),
        ("aarch64-macos", "external"),
    ],
)
def test_other_systems_link(model: nn.Module, tmp_path: Path, triple: str, weights: str) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the ziglang wheel is not installed")
    suffix = {"windows": ".dll", "linux": ".so", "macos": ".dylib"}[triple.split("-")[1]]
    path = fb.export(model, (fb.from_numpy(X),)).save(tmp_path / f"net{suffix}", triple, weights=weights)
    magic = path.read_bytes()[:4]
    assert magic[:2] == b"MZ" or magic in (b"\x7fELF", b"\xcf\xfa\xed\xfe")
