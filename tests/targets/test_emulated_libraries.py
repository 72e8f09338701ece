"""Whole libraries for other CPUs, run in the emulator: models, training steps, symbolic sizes, weights in a file, threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau import nn
from flambeau.export import Exported

pytest.importorskip("unicorn", reason="the emulator Unicorn is not installed")
from tests.targets.emulation.library import EmulatedLibrary

TRIPLES = ["aarch64-linux-gnu", "riscv64-linux-gnu"]
triples = pytest.mark.parametrize("triple", TRIPLES, ids=lambda t: t.split("-")[0])


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def loaded(exported: Exported, folder: Path, triple: str, **given: Any) -> EmulatedLibrary:
    path = exported.save(folder / "model.so", target=triple, **given)
    return EmulatedLibrary(path, triple.split("-")[0])


class Attention(nn.Module):
    """A transformer's block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(24), nn.Linear(24, 72)
        self.out, self.wide, self.narrow = nn.Linear(24, 24), nn.Linear(24, 60), nn.Linear(60, 24)

    def forward(self, x: Any) -> Any:
        q, k, v = [t.reshape(2, 11, 3, 8).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1)]
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(2, 11, 24))
        return x + self.narrow(nn.functional.gelu(self.wide(x)))


def lstm(_: Any = None) -> Any:
    model = nn.LSTM(9, 14, batch_first=True)
    return lambda x: model(x)[0]


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(37, 50), nn.GELU(), nn.Linear(50, 10), nn.Softmax(-1)), (5, 37)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 20, 3, padding=1),
            nn.BatchNorm2d(20),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 33, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(33, 33, 3, groups=33, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(33, 7),
        ).eval(),
        (2, 3, 21, 18),
    ),
    "attention": (Attention, (2, 11, 24)),
    "lstm": (lstm, (3, 7, 9)),
}


@triples
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, triple: str, tmp_path: Path) -> None:
    """What the library computes there is what the same program computes here."""
    make, shape = MODELS[name]
    fb.manual_seed(0)
    exported, x = fb.export(make(), (fb.from_numpy(normal(*shape)),), name="model"), normal(*shape)
    library = loaded(exported, tmp_path, triple)
    (found,) = library(x)
    np.testing.assert_allclose(found, exported.run(x), rtol=0, atol=2e-6)
    assert library(x)[0].tobytes() == found.tobytes()
    library.close()


@triples
def test_a_training_step(triple: str, tmp_path: Path) -> None:
    """Some steps of Adam on a small network, the state kept by the handle."""
    fb.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 9, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9 * 36, 5))
    optimizer = fb.optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    x, y = normal(6, 2, 8, 8), np.array([0, 4, 2, 1, 1, 3])
    exported = fb.export(step, (fb.from_numpy(x), fb.from_numpy(y)), name="model")
    library = loaded(exported, tmp_path, triple)
    losses = [float(library(x, y)[0]) for _ in range(4)]
    np.testing.assert_allclose(losses, [float(exported.run(x, y)) for _ in range(4)], rtol=1e-5)
    assert losses[-1] < losses[0]
    for name, content in exported.state:
        np.testing.assert_allclose(library.get(name), content, rtol=1e-4, atol=1e-5)
    library.close()


@triples
def test_any_batch_size(triple: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(13, 40), nn.ReLU(), nn.Linear(40, 6), nn.LogSoftmax(-1))
    exported = fb.export(model, (fb.from_numpy(normal(4, 13)),), dynamic_shapes={0: {0: "N"}}, name="model")
    library = loaded(exported, tmp_path, triple)
    for rows in (1, 2, 17, 130):
        x = normal(rows, 13)
        np.testing.assert_allclose(library(x)[0], exported.run(x), rtol=0, atol=1e-5)
    library.close()


@triples
def test_weights_in_a_file(triple: str, tmp_path: Path) -> None:
    exported, x = fb.export(nn.Linear(30, 20), (fb.from_numpy(normal(3, 30)),), name="model"), normal(3, 30)
    library = loaded(exported, tmp_path, triple, weights="external")
    np.testing.assert_allclose(library(x)[0], exported.run(x), rtol=0, atol=1e-5)
    library.close()


@triples
def test_threads_that_cannot_be_had(triple: str, tmp_path: Path) -> None:
    """`create` asks for three more threads, gets none, and goes on alone."""
    exported = fb.export(lambda x: x @ x + fb.exp(x), (fb.from_numpy(normal(200, 200)),), name="model")
    path = exported.save(tmp_path / "model.so", target=triple)
    library, x = EmulatedLibrary(path, triple.split("-")[0], threads=4), normal(200, 200)
    assert library.emulator.c.threads_wanted >= 1
    exact = x.astype(np.float64) @ x + np.exp(x.astype(np.float64))
    np.testing.assert_allclose(library(x)[0], exact, rtol=1e-5, atol=1e-4)
    library.close()
