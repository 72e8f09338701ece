"""One list of programs for every CPU that we can run code for: smaller ones of this architecture, others in an emulator.

Every schedule is there, at sizes that fit no tile; PyTorch in float64 says what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import flambeau as fb
from tests.targets.emulation.machines import ARM_DOT, MACHINES, Machine

Array = np.ndarray[Any, Any]


@pytest.fixture(params=MACHINES, ids=str)
def machine(request: pytest.FixtureRequest) -> Machine:
    found: Machine = request.param
    found.require()
    return found


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Program:
    """`function(library, *tensors)` gives a tensor or several; the last `weights` arrays are the program's own. Errors are
    relative to a result's largest element; a tuple has another tolerance for each result."""

    function: Callable[..., Any]
    arrays: tuple[Array, ...]
    weights: int = 0
    tolerance: float = 1e-5

    def expected(self) -> list[Array]:
        inputs = [torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a) for a in self.arrays]
        found = self.function(torch, *inputs)
        return [t.detach().numpy() for t in (found if isinstance(found, tuple | list) else (found,))]

    def found(self, machine: Machine) -> list[Array]:
        given = len(self.arrays) - self.weights
        held = [fb.from_numpy(a).clone() for a in self.arrays[given:]]
        return machine.run(lambda *xs: self.function(fb, *xs, *held), self.arrays[:given])


def assert_close(found: list[Array], expected: list[Array], tolerance: float) -> None:
    assert len(found) == len(expected)
    for ours, right in zip(found, expected, strict=True):
        assert ours.shape == right.shape
        scale = float(np.abs(right[np.isfinite(right)]).max(initial=1e-30)) if right.dtype.kind == "f" else 0
        np.testing.assert_allclose(ours.astype(right.dtype), right, rtol=0, atol=tolerance * scale)


# -- products ----------------------------------------------------------------------------------------------------------
SIZES = [(1, 70, 300), (5, 33, 65), (100, 1, 40), (127, 97, 260), (64, 65, 1050), (130, 9, 7)]


def operands(dtype: Any) -> Iterator[tuple[Array, Array]]:
    scale = 30 if dtype is np.int8 else 1
    for m, n, k in SIZES:
        yield (normal(m, k) * scale).astype(dtype), (normal(n, k) * scale).astype(dtype)


@pytest.mark.parametrize("prepared", [False, True], ids=["given", "prepared"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.int8])
def test_products(dtype: Any, prepared: bool, machine: Machine) -> None:
    multiply = fb._int_mm if dtype is np.int8 else fb.matmul
    unit = {"float32": 1e-6, "float64": 1e-15, "bfloat16": 4e-3, "int8": 0}[np.dtype(dtype).name]
    left, right = ([pair[side] for pair in operands(dtype)] for side in (0, 1))
    held = [fb.from_numpy(b).clone() for b in right]

    def products(*xs: Any) -> tuple[Any, ...]:
        ws = held if prepared else xs[len(left) :]
        return tuple(multiply(x, w.t()) for x, w in zip(xs, ws))

    found = machine.run(products, left if prepared else [*left, *right])
    for ours, a, b in zip(found, left, right, strict=True):
        exact = a.astype(np.float64) @ b.astype(np.float64).T
        tolerance = 4 * unit * a.shape[1] ** 0.5
        np.testing.assert_allclose(ours.astype(np.float64), exact, rtol=4 * unit, atol=tolerance)


@pytest.mark.parametrize("prepared", [False, True], ids=["given", "prepared"])
def test_products_by_dot_instructions(prepared: bool) -> None:
    """`sdot`, by lanes of words; others of AArch64's CPUs widen bytes first."""
    ARM_DOT.require()
    test_products(np.int8, prepared, ARM_DOT)


def transposed(m: Any, *xs: Any) -> tuple[Any, ...]:
    """All four ways that operands may lie, and many small products."""
    a, b, c, d, batch, other = xs
    return a @ b, a @ d.t(), c.t() @ b, c.t() @ d.t(), batch @ other, batch @ other.transpose(1, 2)


# -- convolutions ------------------------------------------------------------------------------------------------------
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3 x 3": ((2, 20, 17, 19), (40, 20, 3, 3), {"padding": 1}),
    "1 x 1": ((1, 33, 14, 14), (70, 33, 1, 1), {}),
    "7 x 7, stride 2": ((1, 3, 40, 40), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "small image": ((2, 24, 5, 5), (36, 24, 3, 3), {"padding": 1}),
    "depthwise": ((1, 24, 21, 23), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
    "depthwise, stride 2": ((1, 24, 40, 45), (24, 1, 5, 5), {"stride": 2, "padding": 2, "groups": 24}),
    "few features, stride 2": ((1, 3, 31, 64), (20, 3, 3, 3), {"stride": 2, "padding": 1}),
    "grouped, dilated": ((2, 8, 15, 16), (12, 4, 3, 3), {"groups": 2, "dilation": 2}),
}


def convolution(name: str, gradients: bool) -> Program:
    shape, kernel, given = CONVOLUTIONS[name]

    def run(m: Any, x: Any, w: Any) -> Any:
        y = m.nn.functional.conv2d(x, w, **given)
        if not gradients:
            return y
        return m.autograd.grad((y * m.cos(y.detach())).sum(), (x, w))

    def with_gradients(m: Any, x: Any, w: Any) -> Any:
        return run(m, x.detach().requires_grad_(), w.detach().requires_grad_())

    arrays = normal(*shape), normal(*kernel)
    return Program(with_gradients, arrays) if gradients else Program(run, arrays, weights=1)


def separable(m: Any, x: Any, w: Any, v: Any) -> Any:
    """A pointwise convolution that only a depthwise one reads."""
    y = m.clamp(m.nn.functional.conv2d(x, w), 0, 6)
    return m.nn.functional.conv2d(y, v, stride=2, padding=1, groups=24)


def masks(m: Any, *xs: Any) -> tuple[Any, ...]:
    """Vectors of f64 may be wider than a register, and the mask of a part known to be empty: LLVM has read it whole."""
    *images, w = xs
    return tuple(
        m.nn.functional.conv2d(x.double(), w.double(), groups=2, dilation=2, padding=1) for x in images
    )


# -- the rest ----------------------------------------------------------------------------------------------------------
def rows(m: Any, x: Any) -> tuple[Any, ...]:
    f = m.nn.functional
    return (
        m.softmax(x, -1),
        m.log_softmax(x, 0),
        f.layer_norm(x, (x.shape[-1],)),
        x.sum(0),
        x.mean(1),
        x.var(1),
        x.sum(),
        m.cumsum(x, 1),
        m.cumsum(x, 0),
        x.amax(1),
        x.prod(1),
    )


def functions(m: Any, x: Any) -> tuple[Any, ...]:
    f, positive = m.nn.functional, x.abs()
    return (
        m.exp(x), m.log(positive), m.sin(x * 9), m.cos(x * 9), m.tan(x), m.tanh(x), m.erf(x), m.sigmoid(x),
        m.expm1(x), m.log1p(positive), m.atan(x), m.asin(x / 5), m.sinh(x), m.sqrt(positive), m.rsqrt(positive),
        m.floor(x), m.ceil(x), m.round(x), m.trunc(x), x % 0.7, m.atan2(x, positive), positive**x,
        f.gelu(x), f.silu(x), f.softplus(x), f.elu(x), f.hardswish(x),
    )  # fmt: skip


def moves(m: Any, x: Any) -> tuple[Any, ...]:
    f, cube = m.nn.functional, x[:35, :300].reshape(5, 7, 300)
    return (
        (x.t() + 1).contiguous(),
        cube.permute(2, 0, 1) * 2,
        m.cat([x[:, :3], x, x[:, 7:11]], 1),
        f.pad(cube, (1, 2, 3, 0)),
        m.flip(x, (1,)),
        x[::3, 1::2] * 1,
        m.where(x > 0.3, x, -x),
        f.max_pool2d(cube[None], 3, 2, 1),
        f.avg_pool2d(cube[None], 2, 2),
    )


def orders(m: Any, x: Any, equal: Any, i: Any) -> tuple[Any, ...]:
    values, places = m.sort(equal, dim=-1, stable=True)
    return (
        values,
        places,
        m.sort(x, 0, descending=True)[0],
        m.topk(x, 5, -1)[0],
        m.argmax(x, -1),
        m.argmin(x, 0),
        x[i],
        m.nn.functional.embedding(i, x) * 2,
        m.gather(x, 1, i[:, None] + i),
    )


def whole_numbers(m: Any, i: Any, j: Any) -> tuple[Any, ...]:
    return (
        i + j, i * j, i // j, i % j, m.bitwise_xor(i, j), i << 3, i >> 2, m.maximum(i, j), i.sum(1), i.cumsum(1),
        (i * 7).to(m.int8), (i % 128).to(m.uint8), i.to(m.float32) / 3, m.sort(i, 1)[0], i.abs(), (i < j),
    )  # fmt: skip


def conversions(m: Any, x: Any) -> tuple[Any, ...]:
    """Rounding to 16 bits, overflow, subnormal numbers and NaN included, and the way back."""
    return tuple(
        y.to(m.float32)
        for y in (
            x.to(m.float16),
            x.to(m.bfloat16),
            x.to(m.float16) * 2,
            x.to(m.bfloat16) + 1,
            x.to(m.float16).exp(),
        )
    )


def special() -> Array:
    x = normal(7, 61) * 10.0 ** np.linspace(-10, 10, 61, dtype=np.float32)
    x[0, :8] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 65519, 65520, 6e-8]
    return x.astype(np.float32)


def attention(m: Any, q: Any, k: Any, v: Any) -> tuple[Any, ...]:
    f = m.nn.functional.scaled_dot_product_attention
    wide = q.double(), k.double(), v.double()
    return f(q, k, v), f(q, k, v, is_causal=True), f(*wide), f(*wide, is_causal=True)


def training(m: Any, *xs: Any) -> Any:
    """Gradients through a convolution, a norm and an attention-like product."""
    x, w, v = [x.detach().requires_grad_() for x in xs]
    y = m.relu(m.nn.functional.conv2d(x, w, padding=1)).flatten(2)
    loss = (m.softmax(y @ y.transpose(1, 2) / 8, -1) @ y @ v).square().mean()
    return m.autograd.grad(loss, (x, w, v))


INTEGERS = (
    np.random.default_rng(0).integers(-1000, 1000, (9, 37)),
    np.random.default_rng(1).integers(1, 9, (9, 37)),
)
PROGRAMS: dict[str, Program] = {
    "transposed products": Program(
        transposed,
        (normal(37, 50), normal(50, 45), normal(50, 37), normal(45, 50), normal(7, 30, 21), normal(7, 21, 21)),
    ),
    **{f"convolution: {name}": convolution(name, False) for name in CONVOLUTIONS},
    **{f"gradients of convolution: {name}": convolution(name, True) for name in CONVOLUTIONS},
    "separable convolution": Program(separable, (normal(1, 12, 60, 70), normal(24, 12, 1, 1), normal(24, 1, 3, 3))),
    "masks of several registers": Program(
        masks, (*(normal(1, 4, 13, width) for width in range(9, 22, 2)), normal(4, 2, 3, 3))
    ),
    "rows": Program(rows, (normal(37, 301) / 4 + 1,), tolerance=2e-5),
    "functions": Program(functions, (normal(5, 61),)),
    "moves": Program(moves, (normal(37, 301),)),
    "orders": Program(orders, (normal(37, 301), normal(37, 300).round(1), np.array([3, 0, 36, 7, 7], np.int64))),
    "whole numbers": Program(whole_numbers, INTEGERS),
    "attention": Program(attention, (normal(2, 2, 37, 20), normal(2, 2, 45, 20), normal(2, 2, 45, 19))),
    "training": Program(training, (normal(2, 5, 12, 12), normal(16, 5, 3, 3), normal(144, 9)), tolerance=2e-5),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, machine: Machine) -> None:
    program = PROGRAMS[name]
    assert_close(program.found(machine), program.expected(), program.tolerance)


def test_conversions(machine: Machine) -> None:
    """Bit for bit: nothing may be rounded twice."""
    x = special()
    found = machine.run(lambda x: conversions(fb, x), [x])
    expected = conversions(torch, torch.from_numpy(x))
    for ours, right in zip(found[:4], expected, strict=False):
        np.testing.assert_array_equal(ours, right.numpy())
    np.testing.assert_allclose(found[4], expected[4].numpy(), rtol=1e-3, atol=1e-7)
