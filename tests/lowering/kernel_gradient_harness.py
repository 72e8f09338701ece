"""What tests of kernels' gradients share: the gradient as autodiff makes it, and what has to hold of it by any schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import Convolution, convolution_of
from flambeau.compiler.ir.core import Graph, Value, apply
from flambeau.compiler.ir.dims import Index, Symbol, of_symbol
from flambeau.compiler.ir.types import ElementType, element_type, f32, tensor
from flambeau.compiler.lowering.contractions import Plan, plan_of
from flambeau.compiler.schedule.cpu_contraction import CpuShape
from flambeau.execution import run_graph
from flambeau.runtime import threads

Options = dict[str, int | tuple[int, ...]]
Shape = tuple[int, ...]
#: The input, the kernel, and the options of the convolution whose kernel's gradient is computed.
Case = tuple[Shape, Shape, Options]


def gradient(
    x: tuple[Index, ...], w: Shape, element: ElementType = f32, **options: int | tuple[int, ...]
) -> tuple[Graph, Convolution]:
    """The gradient of the kernel `w` of a convolution of `x`, as autodiff makes it; its parameters are x and ct."""
    op = convolution_of(len(w) - 2, **options)  # type: ignore[arg-type]
    source, kernel = Value(tensor(x, element)), Value(tensor(w, element))
    ct = Value(apply(op, source, kernel).type)
    made = op.vjp(ct, source, kernel, result=apply(op, source, kernel))[1]
    definition = made.owner.definition  # type: ignore[union-attr]
    assert isinstance(definition, Convolution)
    return Graph([source, ct], [made]), definition


def planned(graph: Graph, op: Convolution, cpu: CpuShape | None = None) -> Plan | None:
    """The schedule of a convolution of the graph's parameters."""
    x, g = (p.type for p in graph.parameters)
    return plan_of(op, x, g, cpu or CpuShape(), 16, True)  # type: ignore[arg-type]


def any_case(data: st.DataObject, windows: Sequence[int], spaces: Sequence[int], **most: int) -> Case:
    """Up to len(windows) spatial dimensions; `windows` are the largest windows of so many, `spaces` the largest sizes of images,
    of which fewer dimensions take the last. `most`: of images, groups, channels of a group and features of a group."""
    rank = data.draw(st.integers(1, len(windows)))
    window = tuple(data.draw(st.integers(1, windows[rank - 1])) for _ in range(rank))
    options: Options = {
        name: tuple(data.draw(st.integers(low, high)) for _ in range(rank))
        for name, low, high in (("stride", 1, 3), ("padding", 0, 2), ("dilation", 1, 2))
    }
    space = tuple(data.draw(st.integers(1, n)) for n in spaces[-rank:])
    for n, k, p, d in zip(space, window, options["padding"], options["dilation"], strict=True):  # type: ignore[arg-type]
        assume(n + 2 * p >= (k - 1) * d + 1)
    images, groups, channels, features = (
        data.draw(st.integers(1, most[name])) for name in ("images", "groups", "channels", "features")
    )
    options["groups"] = groups
    return (images, groups * channels, *space), (groups * features, channels, *window), options


def any_element(data: st.DataObject) -> ElementType:
    return element_type(data.draw(st.sampled_from(["f32", "f32", "f64", "f16"])))


def integers(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Arguments that are small integers: all sums of their products are exact, in any order."""
    rng = np.random.default_rng(seed)
    types = [p.type for p in graph.parameters]
    return [rng.integers(-4, 5, t.shape).astype(t.element.numpy) for t in types]  # type: ignore[attr-defined]


def check_exact(graph: Graph, op: Convolution) -> None:
    arrays = integers(graph)
    (found,) = run_graph(graph, arrays)
    np.testing.assert_array_equal(found, op.reference(*arrays))


def check_optimizer_step(graph: Graph, op: Convolution) -> None:
    """With a step of SGD with momentum as the epilogue, and the gradient itself kept."""
    (made,) = graph.results
    weights, momentum = Value(made.type), Value(made.type)
    moved = build.add(build.mul(momentum, 0.5), made)
    step = [build.sub(weights, build.mul(moved, 0.25)), moved, made]
    whole = Graph([*graph.parameters, weights, momentum], step)
    arrays = integers(whole)
    expected = op.reference(*arrays[:2])
    after, kept, plain = run_graph(whole, arrays)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(kept, arrays[3] * np.float32(0.5) + expected)
    np.testing.assert_array_equal(after, arrays[2] - kept * np.float32(0.25))


def check_any_batch(x: Shape, w: Shape, **options: int | tuple[int, ...]) -> None:
    """One compilation for all numbers of images; `x` is the shape of one."""
    graph, op = gradient((of_symbol(Symbol("N", 1)), *x), w, f32, **options)
    space = [p.type.shape[1:] for p in graph.parameters]  # type: ignore[attr-defined]
    for images in (1, 2, 5):
        rng = np.random.default_rng(images)
        arrays = [rng.integers(-4, 5, (images, *s)).astype(np.float32) for s in space]
        (found,) = run_graph(graph, arrays)
        np.testing.assert_array_equal(found, op.reference(*arrays))


def _normal(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(p.type.shape) for p in graph.parameters]  # type: ignore[attr-defined]


def check_threads(graph: Graph) -> None:
    """The same bits by any number of threads."""
    arrays = [a.astype(np.float32) for a in _normal(graph)]
    before, results = threads.num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            threads.set_num_threads(count)
            results.append(run_graph(graph, arrays)[0])
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def check_error(graph: Graph, op: Convolution, most: float) -> None:
    """Against the sums of the same numbers in float64, in parts of the largest."""
    arrays = [a.astype(np.float32) for a in _normal(graph)]
    exact = op.reference(*[a.astype(np.float64) for a in arrays])
    (found,) = run_graph(graph, arrays)
    assert np.abs(found - exact).max() <= most * np.abs(exact).max()
