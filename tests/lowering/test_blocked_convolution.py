"""Convolutions with blocked kernels, against the interpreter: awkward sizes, element types, threads, epilogues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.blocked_convolution import BlockedConvolution
from flambeau.compiler.dialects.graph.blocked_convolution import blocked as in_blocks
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import Symbol, of_symbol
from flambeau.compiler.ir.types import ElementType, bf16, f16, f32, f64, tensor
from flambeau.compiler.passes.block_convolutions import block_convolutions
from flambeau.compiler.schedule.cpu_contraction import CpuShape, cpu_shape
from flambeau.compiler.schedule.cpu_convolution import ConvolutionSize, WindowAxis, choose_tile
from flambeau.compiler.targets.machine import host_target
from flambeau.execution import run_graph
from flambeau.runtime import threads

Shape = tuple[int, ...]
TOLERANCE = {f32: 2e-5, f64: 1e-13, f16: 5e-3, bf16: 4e-2}
#: Operation, input, kernel.
CASES: dict[str, tuple[Convolution, Shape, Shape]] = {
    "padded rows of many columns": (convolution_of(2, 1, 1), (2, 19, 9, 61), (32, 19, 3, 3)),
    "rows shorter than a tile": (convolution_of(2, 1, 1), (1, 20, 7, 7), (48, 20, 3, 3)),
    "images shorter than a tile": (convolution_of(2, 1, 1), (5, 33, 2, 2), (40, 33, 3, 3)),
    "sums in parts": (convolution_of(2, 1, 1), (1, 70, 6, 14), (32, 70, 3, 3)),
    "a wide window, strided": (convolution_of(2, 2, 3), (1, 4, 45, 30), (24, 4, 7, 7)),
    "read where it lies": (convolution_of(2), (2, 9, 12, 19), (16, 9, 3, 2)),
    "strides and dilations": (convolution_of(2, (2, 3), (2, 1), (3, 2)), (2, 6, 19, 40), (18, 6, 3, 3)),
    "a large result": (convolution_of(2, 2, 1), (2, 40, 59, 61), (72, 40, 3, 3)),
    "rows of several tiles": (convolution_of(2, 1, 1), (1, 50, 5, 28), (32, 50, 3, 3)),
    "one tap, strided": (convolution_of(2, (2, 3)), (1, 20, 9, 31), (32, 20, 1, 1)),
    "rows in strips": (convolution_of(2, 1, 1), (1, 18, 3, 211), (64, 18, 3, 3)),
    "one dimension": (convolution_of(1, 1, 4), (2, 34, 100), (16, 34, 9)),
    "one column": (convolution_of(2, 1, (1, 0)), (3, 8, 13, 3), (16, 8, 3, 3)),
    "three dimensions": (convolution_of(3, (1, 2, 1), 1), (2, 3, 5, 6, 9), (20, 3, 3, 2, 3)),
    "patches": (convolution_of(2, (15, 16)), (2, 3, 47, 64), (24, 3, 15, 16)),
    "taps in padding left out": (convolution_of(2, 1, 12, 12), (2, 20, 17, 30), (24, 20, 3, 3)),
    "taps of planes left out": (convolution_of(3, 1, 1), (1, 12, 3, 4, 16), (32, 12, 3, 3, 3)),
    "pixels without any input": (convolution_of(2, 1, (7, 2)), (1, 9, 5, 33), (16, 9, 3, 5)),
    "a part of a large window": (convolution_of(2, 4, 5), (1, 3, 40, 52), (24, 3, 11, 11)),
    "cut by negative padding": (
        replace(convolution_of(2), padding=((-2, 3), (2, -3))), (1, 4, 9, 21), (16, 4, 3, 3),
    ),
    "more padding than window": (convolution_of(2, 1, 4), (1, 3, 3, 5), (8, 3, 3, 3)),
    "input's gradient": (
        replace(
            convolution_of(2, 1, 1), window_reversal=(True, True), kernel_input_feature=0, kernel_output_feature=1
        ),
        (1, 12, 8, 17), (12, 40, 3, 3),
    ),
}  # fmt: skip


@pytest.fixture(params=[1, 2, 3, 4], autouse=False)
def thread_count(request: pytest.FixtureRequest) -> Iterator[int]:
    before = threads.num_threads()
    threads.set_num_threads(request.param)
    yield request.param
    threads.set_num_threads(before)


def check(
    op: Convolution, x_shape: Shape, w_shape: Shape, element: ElementType = f32, *, block: int | None = None
) -> None:
    """A convolution between elementwise operations, as compiled and as interpreted; in blocks of `block` features
    whatever the schedule says, if that is given."""
    x, w = Value(tensor(x_shape, element)), Value(tensor(w_shape, element))
    made = apply(op, build.mul(x, 2), w) if block is None else in_blocks(op, build.mul(x, 2), w, block)
    bias = Value(tensor((w_shape[op.kernel_output_feature],), element))
    shifted = build.add(made, build.broadcast_along(bias, build.shape_of(made), op.output_feature))
    graph = Graph((x, w, bias), [build.maximum(shifted, build.full_like(shifted, 0))])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(build.shape_of(p)).astype(element.numpy) for p in graph.parameters]  # type: ignore[arg-type]
    (expected,) = interpreter.evaluate(graph, arrays)
    (actual,) = run_graph(blocked(graph), arrays)
    scale = float(np.abs(expected.astype(np.float64)).max()) or 1.0
    np.testing.assert_allclose(
        actual.astype(np.float64), expected.astype(np.float64), rtol=0, atol=TOLERANCE[element] * scale
    )


def blocked(graph: Graph) -> Graph:
    """With blocked kernels as for weights, which have them whatever the images' size."""
    return block_convolutions(graph, cpu_shape(host_target()), [graph.parameters[1]])


def blocked_in(graph: Graph) -> bool:
    return any(isinstance(o.definition, BlockedConvolution) for o in blocked(graph).operations)


@pytest.mark.parametrize("element", [f32, f64, f16, bf16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, element: ElementType) -> None:
    op, x_shape, w_shape = CASES[name]
    x, w = Value(tensor(x_shape, element)), Value(tensor(w_shape, element))
    assert blocked_in(Graph((x, w), [apply(op, x, w)])), "the case must reach the code under test"
    check(op, x_shape, w_shape, element)


#: Input and kernel of windows with one element.
POINTWISE: dict[str, tuple[Shape, Shape]] = {
    "strips": ((1, 300, 7, 31), (40, 300, 1, 1)),
    "few pixels": ((2, 200, 5, 9), (32, 200, 1, 1)),
    "one pixel": ((3, 40, 1, 1), (40, 40, 1, 1)),
    "several images a tile": ((7, 150, 3), (50, 150, 1)),
    "three dimensions": ((2, 260, 3, 2, 5), (33, 260, 1, 1, 1)),
    "large kernel": ((1, 320, 4, 4), (850, 320, 1, 1)),
    "large image and result": ((1, 200, 29, 31), (80, 200, 1, 1)),
}


@pytest.mark.parametrize("element", [f32, f64, bf16], ids=str)
@pytest.mark.parametrize("block", [16, 24, 48])
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(name: str, block: int, element: ElementType) -> None:
    """The pixels of an image are one row."""
    x_shape, w_shape = POINTWISE[name]
    check(convolution_of(len(x_shape) - 2), x_shape, w_shape, element, block=block)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Convolution, Shape, Shape]:
    rank = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    window, stride, dilation = each(1, 4), each(1, 3), each(1, 2)
    padding = tuple(zip(each(-1, 3), each(-1, 3), strict=True))
    space = each(1, 40 if rank == 1 else 20 if rank == 2 else 6)
    channels, features = draw(st.integers(1, 40)), draw(st.integers(8, 70))
    op = replace(convolution_of(rank, stride, 0, dilation), padding=padding)
    for size, side, k, d in zip(space, padding, window, dilation, strict=True):
        assume(size + sum(side) >= (k - 1) * d + 1)
    return op, (draw(st.integers(1, 3)), channels, *space), (features, channels, *window)


@settings(max_examples=25, deadline=None)
@given(convolutions())
def test_any_shape(case: tuple[Convolution, Shape, Shape]) -> None:
    check(*case)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3).flatmap(lambda rank: st.tuples(*[st.integers(1, (60, 15, 5)[rank - 1])] * rank)),
    st.integers(100, 400),
    st.integers(8, 100),
    st.integers(1, 3),
)
def test_any_pointwise_shape(space: Shape, channels: int, features: int, images: int) -> None:
    op = convolution_of(len(space))
    check(op, (images, channels, *space), (features, channels, *[1] * len(space)), block=32)


def test_small_images_are_blocked_if_the_kernel_is_prepared() -> None:
    """Whole vectors of 49 pixels would be 64; large images of few channels are a matrix product."""

    def of(channels: int, size: int, features: int, *, ready: bool) -> bool:
        x = Value(tensor((1, channels, size, size), f32))
        w = Value(tensor((features, channels, 1, 1), f32))
        graph = Graph((x, w), [apply(convolution_of(2), x, w)])
        found = block_convolutions(graph, CpuShape(), [w] if ready else [])
        return any(isinstance(o.definition, BlockedConvolution) for o in found.operations)

    assert of(160, 7, 960, ready=True) and of(64, 14, 384, ready=True)
    assert not of(24, 56, 144, ready=True) and not of(24, 56, 144, ready=False)
    assert of(512, 7, 2048, ready=True) and of(512, 7, 2048, ready=False)


@pytest.mark.parametrize(
    "name",
    [
        "images shorter than a tile",
        "read where it lies",
        "one dimension",
        "rows of several tiles",
    ],
)
def test_threads(name: str, thread_count: int) -> None:
    check(*CASES[name])


def test_pointwise_threads(thread_count: int) -> None:
    x_shape, w_shape = POINTWISE["strips"]
    check(convolution_of(2), x_shape, w_shape, block=32)


@pytest.mark.parametrize("images", [1, 3, 8])
def test_symbolic_batch(images: int) -> None:
    n = of_symbol(Symbol("n"))
    x, w = Value(tensor((n, 6, 10, 18), f32)), Value(tensor((24, 6, 3, 3), f32))
    graph = Graph((x, w), [apply(convolution_of(2, 1, 1), x, w)])
    assert blocked_in(graph)
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal((images, 6, 10, 18), np.float32),
        rng.standard_normal((24, 6, 3, 3), np.float32),
    ]
    (expected,) = interpreter.evaluate(graph, arrays)
    (actual,) = run_graph(graph, arrays)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_errors_of_small_sums_are_small() -> None:
    """2 x 2 windows of 64 features: 256 products (PyTorch's error is 2.3e-7)."""
    op = convolution_of(2, 2)
    x, w = (Value(tensor(s, f32)) for s in ((8, 64, 56, 56), (128, 64, 2, 2)))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape, np.float32) for v in (x, w)]  # type: ignore[attr-defined]
    exact = op.reference(*[a.astype(np.float64) for a in arrays])
    (found,) = run_graph(Graph((x, w), [apply(op, x, w)]), arrays)
    assert np.abs(found - exact).max() <= 2.8e-7 * np.abs(exact).max()


def test_blocks_of_half_vectors_where_they_cost_half() -> None:
    """24 features are three halves; where halves cost as much as whole vectors, they are two wholes."""
    size = ConvolutionSize(1, (56 * 56,), 24, 144)
    halves, wholes = (choose_tile(size, f32, CpuShape(halved=h), ready=True) for h in (True, False))
    assert (halves.lanes, halves.block) == (8, 24) and wholes.lanes == 16
    again = choose_tile(size, f32, CpuShape(halved=True), halves.block, ready=True)
    assert again == halves, "the lowering sees the block only"


@given(
    st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(-3, 9), st.integers(1, 9)
)  # fmt: skip
def test_taps_that_are_left_out_have_no_input(
    results: int, taps: int, stride: int, dilation: int, low: int, size: int
) -> None:
    axis = WindowAxis(results, taps, stride, dilation, low, size)
    for count in range(1, results + 1):
        for first in range(results - count + 1):
            start, stop = axis.reached(first, count)
            for tap in range(taps):
                places = [(first + n) * stride + tap * dilation - low for n in range(count)]
                if any(0 <= place < size for place in places):
                    assert start <= tap < stop
            assert 0 <= start <= taps and 0 <= stop <= taps
            if count == 1:
                inside = [0 <= first * stride + tap * dilation - low < size for tap in range(taps)]
                assert max(0, stop - start) == sum(inside), (
                    "one result's taps are exactly those with an input"
                )


def test_what_stays_with_the_template() -> None:
    def of(op: Convolution, x: Shape, w: Shape) -> bool:
        a, b = Value(tensor(x, f32)), Value(tensor(w, f32))
        return blocked_in(Graph((a, b), [apply(op, a, b)]))

    assert of(convolution_of(2, 1, 1), (1, 8, 14, 14), (16, 8, 3, 3))
    assert not of(convolution_of(2), (1, 8, 14, 14), (16, 8, 1, 1))  # a matrix product
    assert of(convolution_of(2, 2), (1, 8, 14, 14), (16, 8, 1, 1))
    assert of(convolution_of(2), (1, 256, 14, 14), (16, 256, 1, 1))
    assert not of(convolution_of(2, 1, 1, 1, 2), (1, 8, 14, 14), (16, 4, 3, 3))  # groups
    assert not of(convolution_of(2), (1, 8, 7, 7), (16, 8, 7, 7))  # one pixel an image: a matrix product
    assert not of(convolution_of(2, 1, 1), (1, 8, 14, 14), (4, 8, 3, 3))  # less than a vector of features


def test_one_vector_of_features_where_a_load_is_part_of_the_multiplication() -> None:
    """Where a whole vector takes two loads' time, pixels cost nothing then; but an image that L2 does not hold would be read
    for each block."""

    def vectors(image: int, *, halved: bool = True) -> int:
        axes = (WindowAxis(28, 1, 2, 1, 0, image),) * 2
        size = ConvolutionSize(1, (28, 28), 128, 256, axes)
        return choose_tile(size, f32, CpuShape(halved=halved, l2=1 << 20), ready=True).vectors

    assert vectors(28) == 1 and vectors(28, halved=False) > 1 and vectors(56) > 1


@pytest.mark.parametrize(
    "cpu",
    [CpuShape(), CpuShape(256, 16), CpuShape(128, 32), CpuShape(halved=True)],
    ids=["512", "256", "128", "halved"],
)
@pytest.mark.parametrize("space", [(112, 112), (7, 7), (13, 5), (1, 3), (1000,), (4, 6, 9)], ids=str)
def test_tiles_fit_the_registers_and_the_image(cpu: CpuShape, space: Shape) -> None:
    tile = choose_tile(ConvolutionSize(4, space, 96, 27), f32, cpu)
    assert tile.pixels * tile.vectors + tile.vectors < cpu.registers
    assert tile.columns <= space[-1]
    assert tile.columns <= tile.strip <= space[-1]
    assert space[-1] % tile.strip == 0 or space[-1] % tile.strip >= tile.columns
    assert tile.rows == 1 or (tile.columns == space[-1] and tile.rows <= space[-2])
    assert tile.down % tile.rows == 0 and (tile.down == 1 or tile.strip == space[-1])
    assert tile.images == 1 or tile.rows * tile.columns == space[-2] * space[-1]
