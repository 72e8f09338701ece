"""Schedules for CPUs that have less than this machine: run with the option `cpu`, and register tiles in assembly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import flambeau as fb
from flambeau import nn
from flambeau.compiler import options
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.exporting.cpu_features import required_features
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.types import ElementType, bf16, f32, i8, i32, tensor
from flambeau.compiler.pipeline import compile_stages
from flambeau.compiler.targets.machine import (
    CodegenError,
    cross_target,
    emit_assembly,
    host_target,
    process_target,
)

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
RISCV = "riscv64-unknown-linux-gnu"
NEEDS = {"x86-64": "", "haswell": "avx2", "skylake-avx512": "avx512vl"}
NATIVE = {"x86-64": 128, "haswell": 256, "skylake-avx512": 512}


@pytest.fixture(params=NEEDS)
def cpu(request: Any) -> Iterator[str]:
    host, needed = host_target(), NEEDS[request.param]
    if host.architecture != "x86_64" or (needed and not host.has(needed)):
        pytest.skip(f"this machine does not run code for {request.param}")
    with options.override(cpu=request.param):
        yield request.param


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def test_what_the_option_means(cpu: str) -> None:
    target = process_target()
    assert (target.cpu, target.vector_bits) == (cpu, NATIVE[cpu])
    assert target.l1_bytes == host_target().l1_bytes
    x = Value(tensor((4, 4), f32))
    assert f'"target-cpu"="{cpu}"' in compile_stages(Graph([x], [apply(DOT, x, x)])).llvm


def test_a_cpu_that_nobody_makes_is_an_error() -> None:
    for _ in range(2):
        with pytest.raises(CodegenError, match="no CPU of 'x86_64-unknown-linux-gnu' is called 'haswel'"):
            cross_target(X86, "haswel")
    assert cross_target(X86, "haswell").vector_bits == 256


def test_optimisation_levels_end_at_three() -> None:
    with pytest.raises(ValueError, match="opt_level: expected 0 to 3, got 7"), options.override(opt_level=7):
        pass


SIZES = [(1, 70, 300), (5, 33, 65), (100, 1, 40), (127, 97, 260), (64, 65, 2050)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.int8])
def test_products(dtype: Any, cpu: str) -> None:
    scale = 30 if dtype is np.int8 else 1
    multiply = fb._int_mm if dtype is np.int8 else fb.matmul
    unit = {"float32": 1e-6, "float64": 1e-15, "bfloat16": 4e-3, "int8": 0}[np.dtype(dtype).name]
    for m, n, k in SIZES:
        a, b = ((normal(*shape) * scale).astype(dtype) for shape in ((m, k), (n, k)))
        x, w = fb.from_numpy(a), fb.from_numpy(b).clone()
        exact = a.astype(np.float64) @ b.astype(np.float64).T
        given = fb.compile(lambda x, w: multiply(x, w.t()))(x, w)
        prepared = fb.compile(lambda x: multiply(x, w.t()))(x)  # noqa: B023
        for found in (given, prepared):
            np.testing.assert_allclose(
                found.numpy().astype(np.float64), exact, rtol=4 * unit, atol=4 * unit * k**0.5
            )


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3 x 3": ((2, 20, 17, 19), (40, 20, 3, 3), {"padding": 1}),
    "1 x 1": ((1, 33, 14, 14), (70, 33, 1, 1), {}),
    "7 x 7, stride 2": ((1, 3, 40, 40), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((1, 24, 21, 23), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
    "depthwise, stride 2": ((1, 24, 40, 45), (24, 1, 5, 5), {"stride": 2, "padding": 2, "groups": 24}),
    "few features, stride 2": ((1, 3, 31, 64), (20, 3, 3, 3), {"stride": 2, "padding": 1}),
    "grouped, dilated": ((2, 8, 15, 16), (12, 4, 3, 3), {"groups": 2, "dilation": 2}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, cpu: str) -> None:
    shape, kernel, given = CONVOLUTIONS[name]
    x, w = normal(*shape), normal(*kernel)
    weight = fb.from_numpy(w).clone()
    exact = torch.conv2d(torch.from_numpy(x).double(), torch.from_numpy(w).double(), **given).numpy()
    found = fb.compile(lambda x: nn.functional.conv2d(x, weight, **given))(fb.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-4, atol=1e-4)


def test_a_pointwise_and_a_depthwise_convolution(cpu: str) -> None:
    x, first, second = normal(1, 12, 60, 70), normal(24, 12, 1, 1), normal(24, 1, 3, 3)

    def both(m: Any, x: Any, w: Any, v: Any) -> Any:
        y = m.clamp(m.nn.functional.conv2d(x, w), 0, 6)
        return m.nn.functional.conv2d(y, v, stride=2, padding=1, groups=24)

    exact = both(torch, *[torch.from_numpy(a).double() for a in (x, first, second)]).numpy()
    found = fb.compile(lambda *xs: both(fb, *xs))(*[fb.from_numpy(a) for a in (x, first, second)])
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-4, atol=1e-4)


def test_masks_of_several_registers(cpu: str) -> None:
    """Vectors of f64 are wider than a register, and the mask of a part may be known to be empty: LLVM would read it whole."""
    given = {"groups": 2, "dilation": 2, "padding": 1}
    for width in range(9, 22):
        x, w = normal(2, 4, 13, width).astype(np.float64), normal(4, 2, 3, 3).astype(np.float64)
        exact = torch.conv2d(torch.from_numpy(x), torch.from_numpy(w), **given).numpy()
        found = fb.compile(lambda x, w: nn.functional.conv2d(x, w, **given))(
            fb.from_numpy(x), fb.from_numpy(w)
        )
        np.testing.assert_allclose(found.numpy(), exact, rtol=1e-12, atol=1e-12)


ROWS: dict[str, Callable[[Any, Any], Any]] = {
    "softmax": lambda m, x: m.softmax(x, -1),
    "layer norm": lambda m, x: m.nn.functional.layer_norm(x, (x.shape[-1],)),
    "gelu": lambda m, x: m.nn.functional.gelu(x),
    "tanh": lambda m, x: m.tanh(x * 3),
    "transpose": lambda m, x: (x.t() + 1).contiguous(),
    "cumsum": lambda m, x: m.cumsum(x, 1),
    "sort": lambda m, x: m.sort(x, -1)[0],
    "argmax": lambda m, x: m.argmax(x, -1),
    "column sums": lambda m, x: x.sum(0),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, cpu: str) -> None:
    x = normal(37, 301)
    exact = ROWS[name](torch, torch.from_numpy(x).double()).numpy()
    found = fb.compile(lambda x: ROWS[name](fb, x))(fb.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=2e-5)


def test_a_training_step(cpu: str) -> None:
    """Gradients through a convolution, a norm and an attention-like product."""

    def loss(m: Any, x: Any, w: Any, v: Any) -> Any:
        y = m.relu(m.nn.functional.conv2d(x, w, padding=1)).flatten(2)
        return (m.softmax(y @ y.transpose(1, 2) / 8, -1) @ y @ v).square().mean()

    arrays = normal(2, 5, 12, 12), normal(16, 5, 3, 3), normal(144, 9)
    exact = [torch.from_numpy(a).double().requires_grad_() for a in arrays]
    loss(torch, *exact).backward()
    given = [fb.from_numpy(a).requires_grad_() for a in arrays]
    found = fb.compile(lambda *xs: fb.autograd.grad(loss(fb, *xs), xs))(*given)
    for one, other in zip(found, exact, strict=True):
        assert other.grad is not None
        scale = float(other.grad.abs().max())
        np.testing.assert_allclose(one.numpy(), other.grad.numpy(), rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.skipif(host_target().architecture != "x86_64", reason="cpuid is assembled on x86 only")
@pytest.mark.parametrize(
    ("cpu", "features", "checked", "not_checked"),
    [
        ("", "", "", "avx fma avx512f"),
        ("x86-64-v2", "", "", "avx fma avx512f"),
        ("haswell", "", "avx avx2 fma f16c bmi2", "avx512f avx512vnni"),
        ("haswell", "-fma", "avx avx2", "fma"),
        ("skylake-avx512", "", "avx2 avx512f avx512vl", "avx512vnni"),
        ("icelake-server", "", "avx512bw avx512vnni", "avx512bf16"),
        ("znver4", "", "fma avx512f avx512vnni avx512bf16", "avxvnni"),
        ("", "+avx,+avx2,+avxvnni", "avx avx2 avxvnni", "avx512f"),
    ],
)
def test_what_a_library_asks_the_cpu_for(cpu: str, features: str, checked: str, not_checked: str) -> None:
    """`create` refuses a CPU that lacks what the CPU's name implies, too."""
    found = {f[0] for f in required_features(cross_target(X86, cpu, features))}
    assert found >= set(checked.split()) and not found & set(not_checked.split())


DOT = DotGeneral((), (), (1,), (0,))


def innermost(target: Any, element: ElementType, weight: bool, instruction: str) -> list[str]:
    """The instructions of the basic block that has the most of `instruction`, in a product of 504 x 512 x 512."""
    dot = DotGeneral((), (), (1,), (0,), i32) if element is i8 else DOT
    x, w = Value(tensor((504, 512), element)), Value(tensor((512, 512), element))
    made = compile_stages(
        Graph([x, w], [apply(dot, x, w)]), target, stop_after="llvm", weights=(1,) if weight else ()
    )
    blocks: list[list[str]] = [[]]
    for line in emit_assembly(made.llvm, target, 1).splitlines():
        if re.match(r"\S+:", line):
            blocks.append([])
        elif line.startswith("\t") and not line.startswith("\t."):
            blocks[-1].append(line.strip())
    return max(blocks, key=lambda block: sum(instruction in line for line in block))


@pytest.mark.parametrize("weight", [False, True], ids=["", "weight"])
@pytest.mark.parametrize(
    ("triple", "cpu", "features", "element", "instruction", "others"),
    [
        (X86, "haswell", "", f32, "vfmadd", 1.3),
        (X86, "znver4", "", f32, "vfmadd", 1.1),
        (X86, "haswell", "", i8, "vpmaddwd", 3.5),
        (X86, "skylake-avx512", "", i8, "vpmaddwd", 2.5),
        (X86, "", "+avx,+avx2,+fma,+avxvnni", i8, "vpdpbusd", 1.3),
        (X86, "znver4", "", i8, "vpdpbusd", 1),
        (X86, "znver4", "", bf16, "vdpbf16ps", 1),
        (ARM, "", "", f32, "fmla", 1),
        (ARM, "apple-m1", "", f32, "fmla", 1),
        (ARM, "neoverse-v1", "", f32, "fmla", 1),
        (ARM, "neoverse-n1", "", i8, "sdot", 1.7),
        (ARM, "", "+neon,+bf16", bf16, "bfdot", 1.7),
        (RISCV, "", "+m,+a,+f,+d,+c,+v", f32, "vfma", 1.4),
    ],
)
def test_register_tiles(
    triple: str, cpu: str, features: str, element: ElementType, instruction: str, others: float, weight: bool
) -> None:
    """The innermost loop multiplies most of the time and keeps everything in registers."""
    block = innermost(cross_target(triple, cpu, features), element, weight, instruction)
    multiplying = [line for line in block if instruction in line]
    assert len(multiplying) >= 12
    assert not [line for line in block if re.search(r"%rsp|\[sp|\bv[sl]\dr", line)]
    assert len(block) - len(multiplying) <= others * len(multiplying)
    if instruction == "fmla":  # by element: no register is filled with a single number first
        assert sum(bool(re.search(r"\.s\[\d\]", line)) for line in multiplying) > 0.9 * len(multiplying)
