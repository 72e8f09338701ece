"""Writes to parts of tensors: at once where nothing hinders it, and what others see of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import flambeau as fb
from flambeau import indexing
from flambeau.compiler.dialects.graph.shape import Slice
from flambeau.compiler.ir import core, opdef


@pytest.mark.parametrize("start", ["zeros", "data", "computed"])
def test_a_loop_that_writes_compiles_nothing_for_each_place(start: str) -> None:
    results, compiled = [], []
    for m in (fb, torch):
        x = {"zeros": lambda m: m.zeros(40, 3), "data": lambda m: m.tensor([[1.0, 2.0, 3.0]] * 40)}.get(
            start, lambda m: m.ones(40, 3) * 2
        )(m)
        for i in range(1, 40):
            x[i] = x[i - 1] + 1.5
            x[i, 1] = i
            x[i - 1 : i + 1, ::2] *= 0.5
            x[i, 2] += x[i, 0]
            assert x[i, 1].item() == i
            compiled.append(fb.stats().compilations)
        results.append(x.tolist())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert compiled[38] - compiled[3] == 0


@pytest.mark.parametrize("size", [4, 50_000])
def test_what_others_hold_stays_as_it_is(size: int) -> None:
    """Arrays, clones, pending readers and values of histories; views see the write."""
    for m in (fb, torch):
        x = m.arange(float(size))
        x[0] = 5.0
        kept, view, copy = x * 2.0, x[:3], x.clone()
        w = m.tensor([2.0], requires_grad=True)
        loss = (x[:2] * w).sum()
        x[1] = -1.0
        x[2] = 7.0
        assert view.tolist() == [5.0, -1.0, 7.0] and copy[1].item() == 1.0
        assert kept[:3].tolist() == [10.0, 2.0, 4.0]
        if m is fb:  # PyTorch refuses: what backward needs was overwritten
            loss.backward()
            assert w.grad.tolist() == [6.0]
        version = x._version
        x[3] = 1.0
        assert x._version == version + 1
        again = x[1:3]
        again[0] = 3.0
        again[:] = again + 1.0
        assert x[:4].tolist() == [5.0, 4.0, 8.0, 1.0]


def test_an_array_that_the_program_has_is_not_written_over() -> None:
    x = fb.zeros(50_000) + 1.0
    x[0] = 2.0
    seen = x.numpy()
    before = seen.copy()
    x[1] = 3.0
    x[2] = 4.0
    np.testing.assert_array_equal(seen, before)
    assert x[:4].tolist() == [2.0, 3.0, 4.0, 1.0]


def test_large_contents_are_written_over() -> None:
    x = fb.zeros(1 << 18) + 1.0
    x[0] = 2.0
    x[1] = 3.0
    place = x.data_ptr()
    for i in range(20):
        x[i] = float(i)
    assert x.data_ptr() == place and x[:20].tolist() == [float(i) for i in range(20)]


def test_histories_flow_through_writes() -> None:
    for i in range(3):
        found = []
        for m in (fb, torch):
            x, y = m.tensor([1.0, 2.0, 3.0], requires_grad=True), m.tensor([4.0 + i], requires_grad=True)
            z = x * 2.0
            z[1] = y[0].square()
            z[i] = z[i].clone() * z[(i + 1) % 3].clone()
            z.square().sum().backward()
            found.append([x.grad.tolist(), y.grad.tolist()])
        np.testing.assert_allclose(np.concatenate(found[0]), np.concatenate(found[1]), rtol=1e-6)


def test_compiled_functions_see_a_write_to_what_they_captured() -> None:
    weights = fb.zeros(3) + 1.0
    f = fb.compile(lambda x: x * weights)
    for i in range(3):
        weights[i] = 10.0 + i
        assert f(fb.ones(3)).tolist() == [10.0 + k if k <= i else 1.0 for k in range(3)]


@pytest.mark.parametrize(
    "index", [0, -1, slice(1, None), (slice(None), 1), (..., None), None, (0, 1), True, (slice(0, 0),)]
)
def test_values_are_broadcast_and_cast(index: Any) -> None:
    for value in (3, 2.5, [1.0], "tensor", "double"):
        found = []
        for m in (fb, torch):
            x = m.tensor([[1, 2], [3, 4], [5, 6]])
            given = {"tensor": m.tensor([7]), "double": m.tensor([[8.5]])}.get(str(value), value)
            given = m.tensor(given) if isinstance(given, list) else given
            for _ in range(2):
                try:
                    x[index] = given
                except (IndexError, RuntimeError) as error:
                    found.append(type(error))
            found.append(x.tolist())
        assert found[: len(found) // 2] == found[len(found) // 2 :]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Definitions of slices that are not used any more are forgotten, and equal ones are one object all the same."""
    monkeypatch.setattr(opdef, "_REMEMBERED", 300)
    monkeypatch.setattr(core, "_REMEMBERED", 300)
    monkeypatch.setattr(indexing, "_REMEMBERED", 300)
    data, m = fb.arange(4000.0).reshape(-1, 2), fb.ones(2)
    kept = Slice((3, 0), (8, 2), (1, 1))
    (data[3:8] * m).sum().item()
    before = len(opdef._INTERNED)
    for i in range(1500):
        (data[i : i + 5] * m).sum().item()
    assert len(opdef._RAW) <= 300 and len(core._INFERRED) <= 300 and len(indexing._PLACES) <= 300
    assert len(opdef._INTERNED) < before + 1000
    assert Slice((3, 0), (8, 2), (1, 1)) is kept


def test_a_part_of_a_part() -> None:
    """A slice of a slice of another shape, and one of the same shape, which must not write the outer one."""
    for inner in ((slice(None, None, 2), slice(None)), (slice(1, 3), slice(None))):
        a = np.arange(12.0, dtype=np.float32).reshape(3, 4)
        x = fb.tensor(a.tolist())
        part, expected = x.narrow(1, 1, 3), a[:, 1:4]
        part[inner] += 10.0
        expected[inner] += 10.0
        np.testing.assert_array_equal(x.numpy(), a)
