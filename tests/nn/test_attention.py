"""Attention's kernels against torch in float64: results, gradients, second derivatives, at awkward sizes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.dialects.graph.attention import ScaledDotProductAttention
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.pipeline import compile_stages

torch = pytest.importorskip("torch")

Array = np.ndarray[Any, Any]
F, theirs = fb.nn.functional, torch.nn.functional


def attention_and_gradients(
    m: Any, arrays: Sequence[Array], mask: Array | None, ct: Array, causal: bool, dtype: Any
) -> list[Array]:
    """The result and the gradients of q, k and v (and of a floating mask), with the module `m`."""
    leaves = [m.from_numpy(a.copy()).to(dtype).requires_grad_() for a in arrays]
    given = None if mask is None else m.from_numpy(mask.copy())
    if mask is not None and mask.dtype != np.bool_:
        given = given.to(dtype).requires_grad_()
        leaves.append(given)
    out = m.nn.functional.scaled_dot_product_attention(*leaves[:3], given, is_causal=causal)
    out.backward(m.from_numpy(ct.copy()).to(dtype))
    return [out.detach().to(m.float64).numpy(), *[x.grad.to(m.float64).numpy() for x in leaves]]


def arrays_of(batch: Sequence[int], length: int, keys: int, e: int, v: int) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((*batch, *s)) for s in ((length, e), (keys, e), (keys, v), (length, v))]


def check(arrays: list[Array], mask: Array | None, causal: bool, dtype: str = "float32") -> None:
    *operands, ct = arrays
    expected = attention_and_gradients(torch, operands, mask, ct, causal, torch.float64)
    actual = attention_and_gradients(fb, operands, mask, ct, causal, getattr(fb, dtype))
    tolerance = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    # Relative to the largest of them all: a gradient may be a difference of two equal sums (of one key, say).
    largest = max(1.0, *[float(np.abs(other).max()) for other in expected])
    for ours, other in zip(actual, expected, strict=True):
        assert np.abs(ours - other).max() <= tolerance * largest


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    length, keys = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    e, v = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return {
        "shape": (batch, length, keys, e, v),
        "kind": draw(st.sampled_from(["none", "causal", "bool", "added", "keys"])),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "threads": draw(st.integers(1, 4)),
    }


@given(problems())
@example({"shape": ((2, 3), 128, 128, 64, 64), "kind": "causal", "dtype": "float32", "threads": 2})
@example({"shape": ((2,), 65, 63, 17, 33), "kind": "bool", "dtype": "float32", "threads": 3})
@example({"shape": ((), 72, 1, 1, 37), "kind": "none", "dtype": "float32", "threads": 1})
@example({"shape": ((), 200, 7, 8, 8), "kind": "causal", "dtype": "float64", "threads": 1})
@settings(max_examples=12, deadline=None)
def test_agrees_with_torch(problem: dict[str, Any]) -> None:
    batch, length, keys, e, v = problem["shape"]
    rng = np.random.default_rng(1)
    mask = None
    if problem["kind"] == "bool":
        mask = rng.integers(0, 3, (length, keys)) > 0
        mask[:, 0] = True  # torch's gradient of a closed row is NaN
    elif problem["kind"] == "added":
        mask = rng.standard_normal((*batch, length, keys))
    elif problem["kind"] == "keys":
        mask = np.where(rng.integers(0, 2, (1, keys)) == 0, 0.0, -1e9)
        mask[:, 0] = 0
    before = fb.get_num_threads()
    fb.set_num_threads(problem["threads"])
    try:
        check(arrays_of(batch, length, keys, e, v), mask, problem["kind"] == "causal", problem["dtype"])
    finally:
        fb.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves(dtype: str) -> None:
    check(arrays_of((2,), 70, 70, 16, 24), None, True, dtype)


def test_views_are_read_where_they_lie() -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((2, 70, 3 * 4 * 16)).astype(np.float32)

    def run(m: Any) -> tuple[Any, Any]:
        x = m.from_numpy(data.copy()).requires_grad_()
        q, k, v = (x + 1).view(2, 70, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
        y = m.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(2, 70, 64)
        (y * y).sum().backward()
        return y.detach().numpy(), x.grad.numpy()

    for ours, other in zip(run(fb), run(torch), strict=True):
        np.testing.assert_allclose(ours, other, rtol=2e-4, atol=2e-5)


def test_closed_rows_are_zero_and_pass_no_gradient() -> None:
    q, k, v, _ = arrays_of((), 20, 20, 8, 8)
    mask = np.ones((20, 20), np.bool_)
    mask[5] = False
    leaves = [fb.from_numpy(a.astype(np.float32)).requires_grad_() for a in (q, k, v)]
    out = F.scaled_dot_product_attention(*leaves, fb.from_numpy(mask))
    out.sum().backward()
    assert not out.detach().numpy()[5].any()
    assert all(np.isfinite(x.grad.numpy()).all() for x in leaves)
    assert not leaves[0].grad.numpy()[5].any()


def test_compiled_at_any_length() -> None:
    step = fb.compile(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    for n in (70, 90, 33, 64, 128, 9):
        q, k, v, _ = (a.astype(np.float32) for a in arrays_of((2,), n, n, 16, 16))
        ours = step(*(fb.from_numpy(a) for a in (q, k, v))).numpy()
        other = theirs.scaled_dot_product_attention(*(torch.from_numpy(a) for a in (q, k, v)), is_causal=True)
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-4, atol=1e-5)


def test_same_bits_with_any_number_of_threads() -> None:
    *operands, ct = arrays_of((3,), 130, 130, 16, 16)
    found = []
    before = fb.get_num_threads()
    for threads in (1, 2, 4, 2):
        fb.set_num_threads(threads)
        found.append(attention_and_gradients(fb, operands, None, ct, True, fb.float32))
    fb.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_second_derivatives() -> None:
    q, k, v, _ = arrays_of((), 12, 13, 4, 4)

    def norm(m: Any) -> Array:
        leaves = [m.from_numpy(a.copy()).requires_grad_() for a in (q, k, v)]
        if m is torch:
            p = (leaves[0] @ leaves[1].T * 0.5).softmax(-1)
            out = p @ leaves[2]
        else:
            out = m.nn.functional.scaled_dot_product_attention(*leaves)
        grads = m.autograd.grad((out**3).sum(), leaves, create_graph=True)
        total = sum((g**2).sum() for g in grads)
        return np.concatenate([g.numpy().ravel() for g in m.autograd.grad(total, leaves)])

    np.testing.assert_allclose(norm(fb), norm(torch), rtol=1e-9, atol=1e-9)


def test_the_scores_are_never_in_memory() -> None:
    q = Value(tensor((1, 2048, 16), f32))
    compilation = compile_stages(
        Graph([q], create(ScaledDotProductAttention(), q, q, q).results), stop_after="plan"
    )
    assert compilation.memory is not None
    assert compilation.memory.size == 0
