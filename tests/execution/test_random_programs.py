"""Random programs: fusion, in-place plans and derivatives must not care how operations are put together.

A program is drawn as a list of steps, each an operation on tensors that exist already. It runs as evaluated operations
(with gradients) and compiled; PyTorch in float64 says what is right.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import flambeau as fb

#: One step: which operation, on which of the tensors so far, with which numbers.
Step = tuple[str, tuple[int, ...], tuple[Any, ...]]
Shape = tuple[int, ...]

UNARY: dict[str, Callable[[Any, Any], Any]] = {
    "tanh": lambda t, x: t.tanh(x),
    "relu": lambda t, x: t.relu(x),
    "sigmoid": lambda t, x: t.sigmoid(x),
    "square": lambda t, x: x * x * 0.5,
    "gelu": lambda t, x: t.nn.functional.gelu(x),
    "softplus": lambda t, x: t.nn.functional.softplus(x),
    "half": lambda t, x: x / 2 + 1,
    "clamp": lambda t, x: x.clamp(-0.5, 0.75),
    "positive": lambda t, x: t.where(x > 0, x, x * 0.1),
    "contiguous": lambda t, x: x.contiguous(),
}
BINARY: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda t, x, y: x + y,
    "sub": lambda t, x, y: x - y,
    "mul": lambda t, x, y: x * y * 0.7,
    "maximum": lambda t, x, y: t.maximum(x, y),
    "div": lambda t, x, y: x / (1 + y * y),
    "select": lambda t, x, y: t.where(x > y, x * 0.5, y),
}
AXIS: dict[str, Callable[[Any, Any, int], Any]] = {
    "softmax": lambda t, x, d: t.nn.functional.softmax(x, d),
    "log_softmax": lambda t, x, d: t.nn.functional.log_softmax(x, d) * 0.3,
    "sum": lambda t, x, d: x.sum(d) * 0.2,
    "mean_kept": lambda t, x, d: x.mean(d, keepdim=True),
    "amax": lambda t, x, d: x.amax(d, keepdim=True),
    "cumsum": lambda t, x, d: x.cumsum(d) * 0.2,
    "flip": lambda t, x, d: t.flip(x, (d,)),
    "roll": lambda t, x, d: t.roll(x, 1, d),
    "twice": lambda t, x, d: t.cat([x, x * 0.5], d),
    "first_half": lambda t, x, d: x.narrow(d, 0, (x.shape[d] + 1) // 2),
    "other": lambda t, x, d: x.movedim(d, 0)[::2].movedim(0, d),
    "std": lambda t, x, d: (x.var(d, correction=0, keepdim=True) + 1).sqrt(),
    "normal": lambda t, x, d: (
        (x - x.mean(d, keepdim=True)) / (x.var(d, correction=0, keepdim=True) + 0.1).sqrt()
    ),
    "swap": lambda t, x, d: x.transpose(d, -1),
    "flat": lambda t, x, d: x.reshape(*x.shape[:d], -1),
    "new_axis": lambda t, x, d: x.unsqueeze(d),
    "pad": lambda t, x, d: t.nn.functional.pad(x, (1, 2) if d % 2 else (2, 0)),
    "write": lambda t, x, d: _written(x * 1, d),
}


def _written(x: Any, axis: int) -> Any:
    """A write into a slice of `x`."""
    x.select(axis, 0).mul_(0.5)
    return x


def broadcastable(a: Shape, b: Shape) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b)))


def drawn(seed: int) -> tuple[list[np.ndarray[Any, Any]], list[Step], tuple[int, ...]]:
    """Inputs, steps and the numbers of the results of program `seed`."""
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    extents = [1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33]
    base = [rng.choice(extents) for _ in range(rng.randint(1, 3))]
    shapes = [tuple(d if rng.random() < 0.8 else 1 for d in base) for _ in range(rng.randint(1, 3))]
    inputs = [numbers.standard_normal(s).astype(np.float32) for s in shapes]
    values: list[Any] = [torch.from_numpy(x.astype(np.float64)) for x in inputs]
    steps: list[Step] = []
    while len(steps) < rng.randint(3, 14):
        step = _step(rng, values)
        if step is None:
            continue
        made = run(torch, step, values)
        if made.numel() > 20000 or made.numel() == 0 or made.dim() > 5:
            continue
        steps.append(step)
        values.append(made)
    results = {len(values) - 1, *(rng.randrange(len(inputs), len(values)) for _ in range(rng.randint(0, 2)))}
    return inputs, steps, tuple(sorted(results))


def _step(rng: random.Random, values: list[Any]) -> Step | None:
    # Later values more often, so that programs are deep.
    pick = lambda: max(rng.randrange(len(values)), rng.randrange(len(values)))  # noqa: E731
    kind, x = rng.random(), pick()
    if kind < 0.3:
        return rng.choice(list(UNARY)), (x,), ()
    if kind < 0.6:
        partners = [i for i, v in enumerate(values) if broadcastable(values[x].shape, v.shape)]
        return rng.choice(list(BINARY)), (x, rng.choice(partners)), ()
    if kind < 0.7:
        if values[x].dim() < 2:
            return None
        partners = [i for i, v in enumerate(values) if v.dim() == 2 and v.shape[0] == values[x].shape[-1]]
        transposed = [i for i, v in enumerate(values) if v.dim() == 2 and v.shape[1] == values[x].shape[-1]]
        if partners and rng.random() < 0.5:
            return "matmul", (x, rng.choice(partners)), (False,)
        return ("matmul", (x, rng.choice(transposed)), (True,)) if transposed else None
    if values[x].dim() == 0:
        return None
    return rng.choice(list(AXIS)), (x,), (rng.randrange(values[x].dim()),)


def run(t: Any, step: Step, values: list[Any]) -> Any:
    name, places, extra = step
    operands = [values[i] for i in places]
    if name == "matmul":
        x, y = operands
        return x @ (y.T if extra[0] else y) * 0.3
    return ({**UNARY, **BINARY, **AXIS})[name](t, *operands, *extra)


def program(t: Any, steps: list[Step], results: tuple[int, ...], *inputs: Any) -> list[Any]:
    values = list(inputs)
    for step in steps:
        values.append(run(t, step, values))
    return [values[i] for i in results]


def outcome(
    t: Any, steps: list[Step], results: tuple[int, ...], inputs: list[Any]
) -> list[np.ndarray[Any, Any]]:
    """Results and gradients of all inputs."""
    leaves = [x.requires_grad_() for x in inputs]
    made = program(t, steps, results, *leaves)
    weights = [np.cos(np.arange(y.numel()) + n).reshape(tuple(y.shape)) for n, y in enumerate(made)]
    total = sum(
        (y * t.from_numpy(w.astype(y.detach().numpy().dtype))).sum()
        for y, w in zip(made, weights, strict=True)
    )
    gradients = t.autograd.grad(total, leaves, allow_unused=True)
    return [x.detach().numpy() for x in (*made, *(g for g in gradients if g is not None))]


def assert_close(seed: int, found: list[np.ndarray[Any, Any]], wanted: list[np.ndarray[Any, Any]]) -> None:
    assert len(found) == len(wanted)
    for number, (ours, right) in enumerate(zip(found, wanted, strict=True)):
        assert ours.shape == right.shape
        largest = max(float(np.abs(right).max(initial=0)), 1.0)
        np.testing.assert_allclose(
            ours, right, rtol=0, atol=3e-5 * largest, err_msg=f"program {seed}, result {number}"
        )


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_programs(first: int) -> None:
    for seed in range(first, first + 10):
        check(seed)


def check(seed: int) -> None:
    inputs, steps, results = drawn(seed)
    wanted = outcome(torch, steps, results, [torch.from_numpy(x.astype(np.float64)) for x in inputs])
    found = outcome(fb, steps, results, [fb.from_numpy(x.copy()) for x in inputs])
    assert_close(seed, found, wanted)
    compiled = fb.compile(lambda *xs: program(fb, steps, results, *xs))
    for _ in range(2):
        values = [y.numpy() for y in compiled(*[fb.from_numpy(x.copy()) for x in inputs])]
        assert_close(seed, values, wanted[: len(values)])
