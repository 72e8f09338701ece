"""Weights of which a compiled function keeps another layout: their own memory is given back, and nobody notices."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau import nn
from flambeau.evaluation import is_released
from flambeau.runtime.buffer import allocator

#: Of fewer rows, products read these weights as they lie.
ROWS = 129


class Tied(nn.Module):
    """A table of embeddings that is the head's matrix too, and layers between."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1200, 160)
        self.first, self.second = nn.Linear(160, 330), nn.Linear(330, 160)

    def forward(self, tokens: fb.Tensor) -> fb.Tensor:
        x = self.table(tokens)
        return self.second(self.first(x).relu()) @ self.table.weight.t()


def weights(m: nn.Module) -> list[nn.Parameter]:
    return [p for p in m.parameters() if p.ndim == 2]


def released(m: nn.Module) -> int:
    return sum(is_released(p._cell.value) for p in weights(m))


def tokens(rows: int = ROWS) -> fb.Tensor:
    return fb.from_numpy(np.random.default_rng(rows).integers(0, 1000, (rows,)))


@pytest.fixture
def case() -> tuple[Tied, Any, dict[str, np.ndarray[Any, Any]]]:
    """A model whose weights have just been released, the compiled model, and what the weights were."""
    fb.manual_seed(0)
    m = Tied()
    before = {n: p.detach().numpy().copy() for n, p in m.named_parameters()}
    gc.collect()
    compiled = fb.compile(m)
    with fb.no_grad():
        compiled(tokens())
    assert released(m) == 3
    return m, compiled, before


def agrees(m: Tied, compiled: Any, rows: int = ROWS) -> None:
    """The compiled model computes what the model does: with weights that are read from a copy."""
    w = {
        n: p.numpy().astype(np.float64) for n, p in copy.deepcopy(m).requires_grad_(False).named_parameters()
    }
    x = w["table.weight"][tokens(rows).numpy()]
    x = np.maximum(x @ w["first.weight"].T + w["first.bias"], 0) @ w["second.weight"].T + w["second.bias"]
    expected = x @ w["table.weight"].T
    with fb.no_grad():
        np.testing.assert_allclose(
            compiled(tokens(rows)).numpy(), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
        )


def test_released_and_right(case: Any) -> None:
    m, compiled, _ = case
    agrees(m, compiled)
    assert released(m) == 3  # a copy does not bring them back


READS: dict[str, Callable[[Any], Any]] = {
    "detached": lambda p: p.detach().numpy(),
    "data": lambda p: p.data.numpy(),
    "forced": lambda p: p.numpy(force=True),
    "list": lambda p: p.tolist(),
    "copy": lambda p: copy.deepcopy(p).detach().numpy(),
    "pickle": lambda p: pickle.loads(pickle.dumps(p)).detach().numpy(),
    "operation": lambda p: (p * 1).detach().numpy(),
    "clone": lambda p: p.clone().detach().numpy(),
    "transposed": lambda p: p.t().detach().numpy().T,
    "rows": lambda p: fb.stack(list(p.detach()[:5])).numpy(),
    "items": lambda p: [[p.detach()[i, j].item() for j in range(160)] for i in range(2)],
    "dlpack": lambda p: np.from_dlpack(p.detach()),
}


@pytest.mark.parametrize("name", READS)
def test_reading_gives_the_same_bits(case: Any, name: str) -> None:
    m, compiled, before = case
    for key, p in m.named_parameters():
        if p.ndim == 2:
            got = np.asarray(READS[name](p), np.float32)
            np.testing.assert_array_equal(got, before[key][: len(got), : got.shape[1]])
    agrees(m, compiled)


def test_state_dict_saving_and_loading(case: Any) -> None:
    m, compiled, before = case
    file = io.BytesIO()
    fb.save(m.state_dict(), file)
    assert released(m) == 3
    file.seek(0)
    loaded = fb.load(file)
    for key, array in before.items():
        np.testing.assert_array_equal(loaded[key].numpy(), array)
    m.load_state_dict({k: v * 2 for k, v in loaded.items()})
    agrees(m, compiled)
    np.testing.assert_array_equal(m.first.weight.detach().numpy(), 2 * before["first.weight"])
    m.load_state_dict(loaded)
    agrees(m, compiled)


WRITES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda p: p.mul_(2),
    "row": lambda p: p[3].fill_(1),
    "through a view": lambda p: p.t()[5].zero_(),
    "detached": lambda p: p.detach().add_(1),
    "copy_": lambda p: p.copy_(fb.ones(*p.shape)),
    "data": lambda p: setattr(p, "data", fb.ones(*p.shape)),
    "item": lambda p: p.__setitem__((0, 0), 100.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing(case: Any, name: str) -> None:
    m, compiled, before = case
    for key, p in m.named_parameters():
        if p.ndim == 2:
            version = p._version
            expected = fb.nn.Parameter(fb.from_numpy(before[key].copy()))
            with fb.no_grad():
                WRITES[name](p)
                WRITES[name](expected)
            np.testing.assert_array_equal(p.detach().numpy(), expected.detach().numpy())
            assert p._version > version or name == "data"
            assert p.requires_grad and p.is_leaf
            agrees(m, compiled)


def test_writing_to_the_array_is_seen_by_the_tensor(case: Any) -> None:
    m, _, before = case
    m.first.weight.detach().numpy()[2] = 7
    assert (m.first.weight[2].detach().numpy() == 7).all()
    view = m.second.weight.detach()[4:6]
    view.numpy()[:] = 3
    assert (m.second.weight.detach().numpy()[4:6] == 3).all()
    np.testing.assert_array_equal(m.second.weight.detach().numpy()[6:], before["second.weight"][6:])


def test_an_alias_from_before(case: Any) -> None:
    m, compiled, before = case
    alias = m.first.weight.detach()
    with fb.no_grad():
        part = m.first.weight[1:3]
        m.first.weight.mul_(2)
    np.testing.assert_array_equal(alias.numpy(), 2 * before["first.weight"])
    np.testing.assert_array_equal(part.numpy(), 2 * before["first.weight"][1:3])
    agrees(m, compiled)


def test_derivatives(case: Any) -> None:
    m, compiled, before = case
    twin = Tied()
    twin.load_state_dict({k: fb.from_numpy(v) for k, v in before.items()})
    for module in (m, twin):
        module(tokens()).square().mean().backward()
    for p, q in zip(m.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-4, atol=1e-7)
    optimizer = fb.optim.SGD(m.parameters(), lr=0.1)
    optimizer.step()
    agrees(m, compiled)


def test_a_training_step_after_inference(case: Any) -> None:
    m, compiled, _before = case
    optimizer = fb.optim.SGD(m.parameters(), lr=0.01)

    @fb.compile
    def step(x: fb.Tensor) -> fb.Tensor:
        optimizer.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses = [step(tokens()).item() for _ in range(3)]
    assert losses[2] < losses[0]
    agrees(m, compiled)


def test_functions_share_a_layout(case: Any) -> None:
    m, _compiled, before = case
    live = allocator.live_bytes
    other = fb.compile(lambda t: m(t) + 1)
    with fb.no_grad():
        other(tokens())
    assert released(m) == 3
    assert allocator.live_bytes - live < before["table.weight"].nbytes // 2
    agrees(m, lambda t: other(t) - 1)


def test_functions_that_read_different_layouts(case: Any) -> None:
    m, compiled, before = case
    for rows in (1, ROWS, 24, 400, ROWS):  # the weights as they are, panels of this and that width
        agrees(m, fb.compile(lambda t: m(t)), rows)
        agrees(m, compiled, rows)
    for key, p in m.named_parameters():
        np.testing.assert_array_equal(p.detach().numpy(), before[key])


def test_memory_is_given_back() -> None:
    fb.manual_seed(0)
    m = nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)])
    fb.sync()
    gc.collect()
    allocator.trim()
    size = 512 * 512 * 4
    live = allocator.live_bytes
    allocator.reset_peak()
    with fb.no_grad():
        fb.compile(m)(fb.zeros(ROWS, 512))
    assert allocator.live_bytes < live + size
    assert allocator.peak_bytes < live + 2 * size  # one weight at a time


def test_what_somebody_sees_is_not_released() -> None:
    fb.manual_seed(0)
    m = Tied()
    array = m.first.weight.detach().numpy()
    mine = np.ones((160, 330), np.float32)
    m.second.weight.data = fb.from_numpy(mine)
    compiled = fb.compile(m)
    with fb.no_grad():
        compiled(tokens())
    assert [is_released(p._cell.value) for p in weights(m)] == [True, False, False]
    array[0] = 5
    assert (m.first.weight[0].detach().numpy() == 5).all()
    mine[0] = 6
    assert (m.second.weight[0].detach().numpy() == 6).all()


def test_export_of_a_model_whose_weights_are_released(case: Any) -> None:
    m, compiled, before = case
    exported = fb.export(m.eval(), tokens())
    assert released(m) == 3
    with fb.no_grad():
        np.testing.assert_allclose(exported.run(tokens().numpy()), compiled(tokens()).numpy(), rtol=1e-5)
    for key, array in exported.weights:
        if array.ndim == 2:
            assert any(array.shape == b.shape and (array == b).all() for b in before.values()), key


def test_threads_read_while_others_release() -> None:
    fb.manual_seed(0)
    m = Tied()
    before = {n: p.detach().numpy().copy() for n, p in m.named_parameters()}
    failures: list[str] = []
    stop = threading.Event()

    def read() -> None:
        with fb.no_grad():
            while not stop.is_set():
                for key, p in m.named_parameters():
                    if not np.array_equal((p * 1).numpy(), before[key]):
                        failures.append(key)
                if not np.array_equal(m.first.weight[3:5].numpy(), before["first.weight"][3:5]):
                    failures.append("part")

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            compiled = fb.compile(m)
            with fb.no_grad():
                compiled(tokens())
                for p in m.parameters():
                    p.detach().numpy()  # back again
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
