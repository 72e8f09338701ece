"""Programs whose data has another size each time: compiled twice for a size, and then once for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.compiler.ir.dims import dim
from flambeau.sizes import FIRST, Pattern

RNG = np.random.default_rng(0)


def data(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


class Recurrent:
    def __init__(self, m: Any) -> None:
        self.cell, self.head = m.nn.LSTM(3, 4, batch_first=True), m.nn.Linear(4, 2)
        self.parts = m.nn.ModuleList([self.cell, self.head])

    def loss(self, m: Any, x: Any) -> Any:
        y = self.cell(x)[0][:, -1]
        return m.nn.functional.cross_entropy(self.head(y), m.arange(x.shape[0]) % 2)


class Attending:
    def __init__(self, m: Any) -> None:
        self.layer = m.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.into = m.nn.Linear(3, 8)
        self.parts = m.nn.ModuleList([self.layer, self.into])

    def loss(self, m: Any, x: Any) -> Any:
        y = self.layer(self.into(x))
        return (y.reshape(-1, 8) * y.flatten(0, 1).mean()).square().mean()


class Convolving:
    def __init__(self, m: Any) -> None:
        self.conv, self.norm = m.nn.Conv1d(3, 4, 3, padding=1), m.nn.BatchNorm1d(4)
        self.parts = m.nn.ModuleList([self.conv, self.norm])

    def loss(self, m: Any, x: Any) -> Any:
        return self.norm(self.conv(x.transpose(1, 2))).relu().sum(2).std()


LENGTHS = [(2, 5), (2, 6), (2, 7), (2, 9), (2, 30)]
COINCIDENCE = [(3, 6), (4, 8), (5, 10), (7, 6), (1, 7), (9, 4)]  # at first, lengths are twice the batches


@pytest.mark.parametrize(
    "kind, sizes", [(Recurrent, LENGTHS), (Attending, LENGTHS), (Convolving, COINCIDENCE)]
)
def test_training_on_data_of_changing_sizes(kind: Any, sizes: list[tuple[int, int]]) -> None:
    ours, theirs = kind(fb), kind(torch)
    ours.parts.load_state_dict({k: fb.tensor(v.numpy()) for k, v in theirs.parts.state_dict().items()})
    optimizers = [m.optim.SGD(net.parts.parameters(), lr=0.05) for m, net in ((fb, ours), (torch, theirs))]
    compiled = []
    for batch, length in sizes:
        x, losses = data(batch, length, 3), []
        for m, net, optimizer in zip((fb, torch), (ours, theirs), optimizers):
            optimizer.zero_grad()
            loss = net.loss(m, m.tensor(x))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
        compiled.append(fb.stats().compilations)
    for p, q in zip(ours.parts.parameters(), theirs.parts.parameters()):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-4, atol=1e-5)
    if sizes is LENGTHS:
        assert compiled[-1] == compiled[FIRST], "the third size is compiled for all"


def test_a_text_that_grows() -> None:
    """One token more in each step, and a cache of keys."""
    ours, theirs = fb.nn.Embedding(11, 4), torch.nn.Embedding(11, 4)
    ours.load_state_dict({"weight": fb.tensor(theirs.weight.detach().numpy())})
    texts, compiled = [], []
    for m, table in ((fb, ours), (torch, theirs)):
        ids, keys = m.tensor([[1, 2, 3]]), m.zeros(1, 3, 4)
        with m.no_grad():
            for _ in range(12):
                keys = m.cat([keys, table(ids)[:, -1:]], 1)
                scores = m.softmax(keys @ table(ids)[:, -1, :, None], 1)
                found = (table.weight @ (keys * scores).sum(1)[0]).argmax()
                ids = m.cat([ids, found.reshape(1, 1)], 1)
                assert 0 <= ids[0, -1].item() < 11
                compiled.append(fb.stats().compilations)
        texts.append(ids.tolist())
    assert texts[0] == texts[1] and compiled[11] == compiled[4]


PROGRAMS = [
    lambda m, x, y: (x[1:] - x[:-1]).cumsum(0) + y[1:],
    lambda m, x, y: m.cat([x, y, x], 1).reshape(-1)[: x.shape[0]] * float(x.shape[1]),
    lambda m, x, y: (x @ y.t()).softmax(1) / x.shape[0],
    lambda m, x, y: m.nn.functional.pad(x, (1, 2, 0, 3)).sort(0)[0] + m.arange(x.shape[1] + 3),
    lambda m, x, y: m.where(x > 0, x, y.flip(0)).mean(0, keepdim=True).expand(x.shape).tril(),
    lambda m, x, y: x.repeat(2, 1).view(2, *x.shape).permute(1, 2, 0).reshape(x.shape[0], -1).amax(1),
    lambda m, x, y: x[x.shape[0] // 2 :].sum(0) + y[::2].sum(0),
    lambda m, x, y: m.outer(x.sum(1), m.ones(x.shape[0])).abs().sqrt().std() * y,
]


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
@settings(max_examples=2, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=4, max_size=5))
def test_whatever_the_sizes_the_result_is_the_same(number: int, sizes: list[tuple[int, int]]) -> None:
    program = PROGRAMS[number]
    for rows, columns in sizes:
        x, y = data(rows, columns), data(rows, columns)
        try:
            expected = program(torch, torch.tensor(x), torch.tensor(y))
        except (RuntimeError, IndexError):
            continue
        found = program(fb, fb.tensor(x), fb.tensor(y))
        assert tuple(found.shape) == tuple(expected.shape)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_slice_that_moves_is_no_size() -> None:
    """Its bounds vary while sizes do not: each is compiled, and right."""
    x = fb.arange(40.0)
    for i in (3, 5, 11, 19, 28):
        y = (x * 2.0)[i : i + 4]
        assert y.tolist() == [2.0 * k for k in range(i, i + 4)]


def test_patterns() -> None:
    seen = [[5, 7, 10, 35, 3, 9], [6, 7, 12, 42, 3, 11], [9, 7, 18, 63, 3, 17]]
    pattern = Pattern([0, 2], seen)
    s = dim("s0")
    assert pattern.numbers == [s, 7, s * 2, s * 7, 3, s * 2 - 1]
    assert pattern.fits([20, 7, 40, 140, 3, 39])
    for wrong in ([20, 7, 40, 140, 3, 40], [20, 8, 40, 140, 3, 39], [1, 7, 2, 7, 3, 1]):
        assert not pattern.fits(wrong)
    both = Pattern([0, 1], [[2, 3, 6], [2, 5, 10], [3, 5, 15]])
    assert both.numbers[2] == dim("s0") * dim("s1") and both.fits([4, 9, 36]) and not both.fits([4, 9, 35])
    for sizes, numbers in (
        [[0], [[4, 1], [4, 2], [4, 5]]],
        [[0], [[3, 8], [4, 9], [5, 11]]],
    ):
        with pytest.raises(ValueError):
            Pattern(sizes, numbers)
