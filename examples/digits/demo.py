"""``make demo``: train on handwritten digits, export the model and its training step, and use both from C.

1. A small convolutional network learns scikit-learn's digits (1,797 real images of 8 x 8) with AdamW; the whole training
   step is one compiled function. 360 test images are set aside before anything else. Network, rate and number of epochs
   were chosen on validation images drawn from the rest (98.4 % over eight draws), never on the test images.
2. The model and the training step become shared libraries with C headers.
3. A C program (`digits.c`) answers the test set from a file and then goes on training. Without a C compiler the same is
   done through ctypes.
4. What C found is compared with Python, bit for bit.

Ends with a table, and exit code 0 only if every check holds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import flambeau as fb
from flambeau import nn, optim

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "digits"

BATCH = 64
EPOCHS = 15
RATE = 1e-2  # at the start; it falls to zero along a cosine
C_RATE = 1e-3
C_EPOCHS = 6
TEST_IMAGES = 360
VALIDATION_IMAGES = 180
MOST_BYTES = 1 << 20

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Dataset:
    """Images (N, 1, 8, 8) in f32 from 0 to 1, labels (N) in i64."""

    images: Array
    labels: Array

    def batch(self, positions: Array) -> tuple[fb.Tensor, fb.Tensor]:
        return fb.from_numpy(self.images[positions]), fb.from_numpy(self.labels[positions])

    def bytes(self) -> bytes:
        """As `digits.c` reads it."""
        head = np.array([len(self.labels), self.images[0].size], np.int64)
        return head.tobytes() + self.images.tobytes() + self.labels.tobytes()


def load() -> tuple[Dataset, Dataset, Dataset]:
    """(training, validation, test): disjoint, drawn with a fixed seed."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(2026).permutation(len(labels))
    test, validation, training = np.split(order, [TEST_IMAGES, TEST_IMAGES + VALIDATION_IMAGES])
    training, validation, test = (Dataset(images[i], labels[i]) for i in (training, validation, test))
    return training, validation, test


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Trainer:
    """The model, its optimizer, and one step of training."""

    def __init__(self) -> None:
        fb.manual_seed(0)
        self.model = network()
        self.optimizer = optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=5e-2)

    def step(self, images: fb.Tensor, labels: fb.Tensor) -> fb.Tensor:
        """Forward, loss, backward, update; returns the loss."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def train(self, data: Dataset) -> tuple[list[float], float, float]:
        """Mean loss of each epoch, seconds until the second step was done (compilation), seconds of the rest."""
        step = fb.compile(self.step)
        schedule = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, EPOCHS * (len(data.labels) // BATCH))
        rng = np.random.default_rng(1)
        losses, steps, started = [], 0, time.perf_counter()
        compiled = started
        for _ in range(EPOCHS):
            order = rng.permutation(len(data.labels))
            total = []
            for at in range(0, len(order) - BATCH + 1, BATCH):
                total.append(step(*data.batch(order[at : at + BATCH])).item())
                schedule.step()
                steps += 1
                if steps == 2:
                    compiled = time.perf_counter()
            losses.append(float(np.mean(total)))
        return losses, compiled - started, time.perf_counter() - compiled

    def outputs(self, images: Array) -> Array:
        self.model.eval()
        with fb.no_grad():
            return self.model(fb.from_numpy(images)).numpy()


def accuracy(outputs: Array, labels: Array) -> float:
    return float((outputs.argmax(1) == labels).mean())


def export(trainer: Trainer, data: Dataset) -> tuple[Any, Any]:
    """The model for any number of images, and the training step on batches of `BATCH`; saved, with headers."""
    images, labels = data.batch(np.arange(BATCH))
    trainer.model.eval()
    model = fb.export(trainer.model, (images,), dynamic_shapes={0: {0: "N"}}, name="digits_model")
    trainer.model.train()
    trainer.optimizer.param_groups[0]["lr"] = C_RATE
    step = fb.export(trainer.step, (images, labels), name="digits_step")
    for exported in (model, step):
        exported.save(BUILD / f"{exported.name}.so")
    return model, step


def in_c(compiler: str) -> tuple[Array, Array, str]:
    """Outputs for the test set, losses of the steps, and what the C program said."""
    program = BUILD / "digits"
    libraries = [str(BUILD / "digits_model.so"), str(BUILD / "digits_step.so")]
    include = [f"-I{BUILD}", "-O2", "-Wall", "-Werror"]
    subprocess.run(
        [compiler, *include, str(HERE / "digits.c"), *libraries, f"-Wl,-rpath,{BUILD}", "-o", str(program)],
        check=True,
    )
    answers = BUILD / "answers.bin"
    command = [str(program), str(BUILD / "data.bin"), str(answers), str(C_EPOCHS)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = np.fromfile(answers, np.float32)
    split = TEST_IMAGES * 10
    return found[:split].reshape(TEST_IMAGES, 10), found[split:], said


def through_ctypes(training: Dataset, test: Dataset) -> tuple[Array, Array, str]:
    """What `in_c` does, where there is no C compiler."""
    from flambeau.runtime.library import load as load_library

    model, step = load_library(BUILD / "digits_model.so"), load_library(BUILD / "digits_step.so")
    losses = [
        step(training.images[at : at + BATCH], training.labels[at : at + BATCH])
        for _ in range(C_EPOCHS)
        for at in range(0, len(training.labels) - BATCH + 1, BATCH)
    ]
    return model(test.images), np.array(losses, np.float32), "no C compiler was found: through ctypes\n"


def main() -> int:
    console = Console()
    BUILD.mkdir(parents=True, exist_ok=True)
    training, validation, test = load()
    (BUILD / "data.bin").write_bytes(test.bytes() + training.bytes())

    console.print(f"training on {len(training.labels)} images, {EPOCHS} epochs of batches of {BATCH}")
    trainer = Trainer()
    losses, compile_seconds, train_seconds = trainer.train(training)
    validated = accuracy(trainer.outputs(validation.images), validation.labels)
    outputs = trainer.outputs(test.images)
    reached = accuracy(outputs, test.labels)
    console.print(f"loss {losses[0]:.4f} → {losses[-1]:.4f}, validation accuracy {validated:.2%}")

    started = time.perf_counter()
    model, step = export(trainer, training)
    export_seconds = time.perf_counter() - started
    sizes = [(BUILD / f"{e.name}.so").stat().st_size for e in (model, step)]

    compiler = shutil.which("cc")
    started = time.perf_counter()
    c_outputs, c_losses, said = in_c(compiler) if compiler else through_ctypes(training, test)
    c_seconds = time.perf_counter() - started
    console.print(said.rstrip())

    # The same two libraries' graphs, run in this process on the same data in the same order.
    own_outputs = model.run(test.images)
    own_losses = np.array(
        [
            step.run(training.images[at : at + BATCH], training.labels[at : at + BATCH])
            for _ in range(C_EPOCHS)
            for at in range(0, len(training.labels) - BATCH + 1, BATCH)
        ],
        np.float32,
    )
    epochs = c_losses.reshape(C_EPOCHS, -1).mean(1)
    checks = {
        "held-out accuracy is at least 97 %": reached >= 0.97,
        "training took less than a minute": train_seconds < 60,
        "C's outputs are Python's, bit for bit": c_outputs.tobytes() == own_outputs.tobytes(),
        "C's predictions are the trained model's": bool((c_outputs.argmax(1) == outputs.argmax(1)).all()),
        "C's losses are Python's, bit for bit": c_losses.tobytes() == own_losses.tobytes(),
        "training in C improved the loss": bool(epochs[-1] < epochs[0]),
        "each library is smaller than 1 MB": max(sizes) < MOST_BYTES,
    }

    table = Table(title="digits", show_header=False)
    for what, value in {
        "validation accuracy, Python": f"{validated:.2%}",
        "held-out accuracy, Python": f"{reached:.2%}",
        "held-out accuracy, C": f"{accuracy(c_outputs, test.labels):.2%}",
        "training loss, Python": f"{losses[0]:.4f} → {losses[-1]:.4f}",
        "training loss, C": f"{epochs[0]:.5f} → {epochs[-1]:.5f}",
        "compiling the training step": f"{compile_seconds:.1f} s",
        f"training, {EPOCHS} epochs": f"{train_seconds:.1f} s",
        "exporting both libraries": f"{export_seconds:.1f} s",
        "compiling and running C": f"{c_seconds:.1f} s",
        "digits_model.so": f"{sizes[0] / 1024:.0f} KiB",
        "digits_step.so": f"{sizes[1] / 1024:.0f} KiB",
    }.items():
        table.add_row(what, value)
    table.add_section()
    for what, holds in checks.items():
        table.add_row(what, "[green]yes[/]" if holds else "[red]NO[/]")
    console.print(table)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
