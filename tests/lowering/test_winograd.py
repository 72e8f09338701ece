"""Winograd convolutions: values at awkward sizes, epilogues, threads, vector widths, and how exact they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiled_code import CompiledCode
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import convolution_of
from flambeau.compiler.dialects.graph.winograd import WinogradConvolution, WinogradKernel
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import Symbol, of_symbol
from flambeau.compiler.ir.types import f32, f64, from_numpy, tensor
from flambeau.compiler.passes.winograd import winograd
from flambeau.compiler.pipeline import compile_stages
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.compiler.schedule.cpu_winograd import panel, vectors_of
from flambeau.compiler.targets.machine import host_target
from flambeau.execution import Executable, run_graph
from flambeau.runtime.buffer import as_numpy
from flambeau.runtime.buffer import from_numpy as buffer_of

torch = pytest.importorskip("torch")
Array = np.ndarray[Any, Any]


def numbers(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def exact(x: Array, w: Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    image = torch.nn.functional.pad(torch.from_numpy(x).double(), (*padding[1], *padding[0]))
    return np.asarray(torch.nn.functional.conv2d(image, torch.from_numpy(w).double()).numpy())


def tiled(
    x: Array, features: int, columns: int, padding: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[Graph, Value, Value]:
    """A graph that computes the convolution by both operations, whether or not it pays."""
    image = Value(tensor(x.shape, from_numpy(x.dtype)))
    kernel = Value(tensor((features, x.shape[1], 3, 3), from_numpy(x.dtype)))
    made = apply(WinogradConvolution(features, padding), image, apply(WinogradKernel(columns), kernel))
    return Graph([image, kernel], [made]), image, made


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    channels=st.integers(1, 70),
    features=st.integers(1, 70),
    size=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    sides=st.tuples(*[st.integers(1, 2)] * 4),
    columns=st.sampled_from([4, 8, 16, 32, 64]),
    double=st.booleans(),
    threads=st.integers(1, 4),
)
@example(1, 64, 64, (14, 14), (1, 1, 1, 1), 32, False, 2)
@example(2, 33, 32, (28, 3), (1, 1, 1, 1), 32, False, 1)
@example(1, 16, 16, (1, 1), (1, 1, 1, 1), 16, False, 1)
@example(1, 140, 64, (9, 11), (1, 1, 1, 1), 16, False, 2)
@example(1, 140, 64, (9, 27), (1, 1, 1, 1), 32, False, 1)
def test_values(
    images: int,
    channels: int,
    features: int,
    size: tuple[int, int],
    sides: tuple[int, int, int, int],
    columns: int,
    double: bool,
    threads: int,
) -> None:
    dtype = np.float64 if double else np.float32
    x, w = numbers(images, channels, *size, dtype=dtype), numbers(features, channels, 3, 3, dtype=dtype)
    padding = (sides[:2], sides[2:])
    graph, _, _ = tiled(x, features, columns, padding)
    before = fb.get_num_threads()
    fb.set_num_threads(threads)
    try:
        (found,) = run_graph(graph, [x, w])
    finally:
        fb.set_num_threads(before)
    expected = exact(x, w, padding)
    assert np.abs(found - expected).max() <= (1e-12 if double else 2e-6) * np.abs(expected).max()


@pytest.mark.parametrize("bits, registers", [(128, 16), (128, 32), (256, 16), (512, 32)])
def test_other_vector_widths(bits: int, registers: int) -> None:
    """Code for narrower registers, run here."""
    target = replace(host_target(), vector_bits=bits, vector_registers=registers)
    x, w = numbers(1, 24, 18, 22), numbers(40, 24, 3, 3)
    image, kernel = Value(tensor(x.shape, f32)), Value(tensor(w.shape, f32))
    graph = Graph([image, kernel], [apply(convolution_of(2, 1, 1), image, kernel)])
    compilation = compile_stages(graph, target)
    assert compilation.simplified is not None
    assert "graph.winograd_convolution" in {o.name for o in compilation.simplified.operations}
    executable = Executable(graph, CompiledCode.of(compilation))
    (result,) = executable([buffer_of(x), buffer_of(w)])
    expected = exact(x, w, ((1, 1), (1, 1)))
    found = as_numpy(result, np.dtype(np.float32), (1, 40, 18, 22))
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


def test_prologue_and_epilogue() -> None:
    """What computes the input, and what is computed from the result, is in the kernel or beside it, and right."""
    x, w = numbers(2, 32, 13, 15), numbers(32, 32, 3, 3)
    bias, other = numbers(1, 32, 1, 1), numbers(2, 32, 13, 15)
    graph, _, made = tiled(x, 32, 32, ((1, 1), (1, 1)))
    source, offset, rest = (Value(tensor(a.shape, f32)) for a in (x, bias, other))
    convolved = apply(made.owner.definition, build.neg(source), made.owner.operands[1])  # type: ignore[union-attr]
    shifted = build.add(convolved, build.broadcast_in_dim(offset, other.shape, (0, 1, 2, 3)))
    result = build.maximum(build.add(shifted, rest), 0.0)
    (found,) = run_graph(Graph([source, graph.parameters[1], offset, rest], [result]), [x, w, bias, other])
    expected = np.maximum(exact(-x, w, ((1, 1), (1, 1))) + bias + other, 0)
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


def test_symbolic_batch() -> None:
    batch = of_symbol(Symbol("N"))
    x, w = numbers(5, 32, 12, 12), numbers(32, 32, 3, 3)
    image, kernel = Value(tensor((batch, 32, 12, 12), f32)), Value(tensor(w.shape, f32))
    graph = winograd(Graph([image, kernel], [apply(convolution_of(2, 1, 1), image, kernel)]), host_target())
    assert any(isinstance(o.definition, WinogradConvolution) for o in graph.operations)
    (found,) = run_graph(graph, [x, w])
    expected = exact(x, w, ((1, 1), (1, 1)))
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


def test_input_gradients_are_tiled_too() -> None:
    """The kernel's features are exchanged and it is turned around."""
    x, w = fb.randn(2, 48, 16, 16, requires_grad=True), fb.randn(32, 48, 3, 3)
    ct = fb.randn(2, 32, 16, 16)
    fb.nn.functional.conv2d(x, w, padding=1).backward(ct)
    leaf = torch.from_numpy(x.detach().numpy()).double().requires_grad_()
    kernel, cotangent = (torch.from_numpy(t.numpy()).double() for t in (w, ct))
    torch.nn.functional.conv2d(leaf, kernel, padding=1).backward(cotangent)
    np.testing.assert_allclose(x.grad.numpy(), leaf.grad.numpy(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"window_strides": (2, 1)},
        {"rhs_dilation": (1, 2)},
        {"lhs_dilation": (2, 2)},
        {"padding": ((-1, 1), (1, 1))},
        {"feature_group_count": 2},
    ],
)
def test_other_convolutions_stay(change: dict[str, Any]) -> None:
    image, kernel = Value(tensor((1, 64, 28, 28), f32)), Value(tensor((64, 64, 3, 3), f32))
    if "feature_group_count" in change:
        kernel = Value(tensor((64, 32, 3, 3), f32))
    graph = Graph([image, kernel], [apply(replace(convolution_of(2, 1, 1), **change), image, kernel)])
    assert winograd(graph, host_target()).key() == graph.key()


def test_what_does_not_pay_stays() -> None:
    """Few channels; results too small to fill a register tile; a kernel that costs more than it saves."""
    for shape, features in (((1, 3, 64, 64), 64), ((1, 64, 2, 2), 64), ((1, 512, 4, 4), 512)):
        image, kernel = Value(tensor(shape, f32)), Value(tensor((features, shape[1], 3, 3), f32))
        graph = Graph([image, kernel], [apply(convolution_of(2, 1, 1), image, kernel)])
        assert winograd(graph, host_target()).key() == graph.key(), shape


def test_not_less_exact_than_torch() -> None:
    """Root mean square error against f64, over sizes of a residual network."""
    for channels, size in ((64, 24), (128, 16), (256, 14)):
        x, w = numbers(1, channels, size, size), numbers(channels, channels, 3, 3) / np.float32(channels)
        graph, _, _ = tiled(x, channels, 32, ((1, 1), (1, 1)))
        (found,) = run_graph(graph, [x, w])
        expected = exact(x, w, ((1, 1), (1, 1)))
        theirs = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=1).numpy()
        ours, other = (np.sqrt(((y - expected) ** 2).mean()) for y in (found, theirs))
        assert ours <= 1.15 * other, (channels, ours, other)


def test_a_nan_reaches_just_the_windows_that_have_it() -> None:
    x, w = numbers(1, 16, 9, 9), numbers(16, 16, 3, 3)
    x[0, 3, 4, 5] = np.nan
    graph, _, _ = tiled(x, 16, 16, ((1, 1), (1, 1)))
    (found,) = run_graph(graph, [x, w])
    wrong = np.isnan(found[0, 0])
    assert wrong[3:6, 4:7].all() and wrong.sum() == 9


def test_f64_kernel_in_blocks() -> None:
    """The transform alone, through squares and through gathers."""
    for features, channels, columns in ((32, 32, 16), (20, 16, 16), (48, 9, 32)):
        w = numbers(features, channels, 3, 3, dtype=np.float64)
        value = Value(tensor(w.shape, f64))
        definition = WinogradKernel(columns)
        (found,) = run_graph(Graph([value], [apply(definition, value)]), [w])
        np.testing.assert_allclose(found, definition.reference(w), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("reversal", [(False, False), (True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["features outside", "features inside"])
@pytest.mark.parametrize(("features", "channels"), [(32, 32), (64, 5), (19, 18)])
def test_kernels_in_every_order(
    features: int, channels: int, order: tuple[int, int], reversal: tuple[bool, bool]
) -> None:
    op = WinogradKernel(16, order[0], order[1], (2, 3), reversal)
    sizes = [0, 0]
    sizes[order[0]], sizes[order[1]] = features, channels
    w = numbers(*sizes, 3, 3)
    kernel = Value(tensor(w.shape, f32))
    (found,) = run_graph(Graph([kernel], [apply(op, kernel)]), [w])
    np.testing.assert_allclose(found, op.reference(w), rtol=1e-5, atol=1e-6)


def test_panels_have_no_tiles_that_nobody_wants() -> None:
    """Seven rows of seven tiles: panels of one row, all sums of which stay in registers; of two, an eighth would be idle."""
    assert panel(14, 14, 16, CpuShape()) == (1, 7)
    assert panel(7, 7, 16, CpuShape()) == (2, 4)
    assert vectors_of(256, 7, 16, CpuShape(halved=True)) == 1
    assert vectors_of(256, 7, 16, CpuShape()) == 2
