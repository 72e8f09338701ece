"""Recurrent layers and cells against PyTorch's: results, first and second gradients, packed sequences, compiled code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flambeau as fb
from flambeau.nn.utils import rnn as ours_rnn
from flambeau.runtime import library
from tests.nn.compare import check_module, close, copy_weights, ours

KINDS = ("RNN", "LSTM", "GRU")


def pair(kind: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """The layer of that name, ours and theirs, in f64."""
    return (
        getattr(fb.nn, kind)(*sizes, dtype=fb.float64, **options),
        getattr(torch.nn, kind)(*sizes, dtype=torch.float64, **options),
    )


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_layers(
    kind: str,
    length: int,
    batch: int,
    features: int,
    hidden: int,
    layers: int,
    bias: bool,
    first: bool,
    both: bool,
) -> None:
    mine, theirs = pair(
        kind, features, hidden, num_layers=layers, bias=bias, batch_first=first, bidirectional=both
    )
    x = torch.randn(batch, length, features) if first else torch.randn(length, batch, features)
    check_module(mine, theirs, x.double().requires_grad_(), tol=1e-8)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
        ("LSTM", {"proj_size": 2, "bias": False}),
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ],
    ids=str,
)
def test_options(kind: str, options: dict[str, Any]) -> None:
    mine, theirs = pair(kind, 4, 6, **options)
    check_module(mine, theirs, torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True), tol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_states_and_unbatched_input(kind: str) -> None:
    mine, theirs = pair(kind, 4, 6, num_layers=2)
    for sizes in ((3,), ()):
        x = torch.randn(5, *sizes, 4, dtype=torch.float64, requires_grad=True)
        h, c = (torch.randn(2, *sizes, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
        copy_weights(mine, theirs)
        given_states, given_ours = ((h, c), (ours(h), ours(c))) if kind == "LSTM" else (h, ours(h))
        z, y = theirs(x, given_states), mine(ours(x), given_ours)
        close(y, z, 1e-9)
        z[0].square().sum().backward()
        y[0].square().sum().backward()
        states = zip(given_ours, given_states) if kind == "LSTM" else [(given_ours, given_states)]
        for a, b in states:
            close(a.grad, b.grad, 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_f32_and_dropout(kind: str) -> None:
    mine, theirs = getattr(fb.nn, kind)(8, 33), getattr(torch.nn, kind)(8, 33)
    check_module(mine, theirs, torch.randn(20, 4, 8, requires_grad=True))
    dropping = getattr(fb.nn, kind)(8, 16, num_layers=2, dropout=0.5)
    x = fb.randn(5, 3, 8)
    assert not np.array_equal(dropping(x)[0].detach().numpy(), dropping(x)[0].detach().numpy())
    dropping.eval()
    np.testing.assert_array_equal(dropping(x)[0].detach().numpy(), dropping(x)[0].detach().numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_second_gradients(kind: str) -> None:
    mine, theirs = pair(kind, 3, 4, num_layers=2)
    copy_weights(mine, theirs)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    y = ours(x)

    def penalty(library: Any, module: Any, x: Any) -> Any:
        loss = module(x)[0].square().sum()
        gradients = library.autograd.grad(loss, [x, *module.parameters()], create_graph=True)
        return sum((g * g).sum() for g in gradients)

    a, b = penalty(fb, mine, y), penalty(torch, theirs, x)
    close(a, b, 1e-8)
    a.backward()
    b.backward()
    close(y.grad, x.grad, 1e-7)
    for p, q in zip(mine.parameters(), theirs.parameters()):
        close(p.grad, q.grad, 1e-7)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind: str, bias: bool) -> None:
    mine, theirs = pair(kind, 4, 6, bias=bias)
    for sizes in ((3,), ()):
        check_module(mine, theirs, torch.randn(*sizes, 4, dtype=torch.float64, requires_grad=True), tol=1e-8)
        state = torch.randn(*sizes, 6, dtype=torch.float64)
        states = (state, state * 2) if kind == "LSTMCell" else state
        mine_states = tuple(map(ours, states)) if kind == "LSTMCell" else ours(state)
        x = torch.randn(*sizes, 4, dtype=torch.float64)
        close(mine(ours(x), mine_states), theirs(x, states), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences(kind: str, enforce_sorted: bool) -> None:
    from torch.nn.utils import rnn as theirs_rnn

    lengths = [5, 3, 3, 1] if enforce_sorted else [3, 1, 5, 3]
    mine, theirs = pair(kind, 4, 6, num_layers=2, bidirectional=True)
    copy_weights(mine, theirs)
    x = torch.randn(5, 4, 4, dtype=torch.float64, requires_grad=True)
    y = ours(x)
    packed = [
        module.pack_padded_sequence(v, lengths, enforce_sorted=enforce_sorted)
        for module, v in ((ours_rnn, y), (theirs_rnn, x))
    ]
    close(packed[0].data, packed[1].data, 0)
    close(packed[0].batch_sizes, packed[1].batch_sizes, 0)
    (a, a_state), (b, b_state) = mine(packed[0]), theirs(packed[1])
    close(a.data, b.data, 1e-9)
    close(a_state, b_state, 1e-9)
    padded = [
        m.pad_packed_sequence(p, padding_value=2.5, total_length=7)
        for m, p in ((ours_rnn, a), (theirs_rnn, b))
    ]
    close(padded[0][0], padded[1][0], 1e-9)
    close(padded[0][1], padded[1][1], 0)
    for output in (p[0] for p in padded):
        output.square().sum().backward()
    close(y.grad, x.grad, 1e-8)
    for p, q in zip(mine.parameters(), theirs.parameters()):
        close(p.grad, q.grad, 1e-8)


def test_sequences_of_different_lengths() -> None:
    from torch.nn.utils import rnn as theirs_rnn

    parts = [torch.randn(n, 2) for n in (4, 2, 3)]
    for options in ({}, {"batch_first": True, "padding_value": 1.0}, {"padding_side": "left"}):
        close(
            ours_rnn.pad_sequence([ours(p) for p in parts], **options),
            theirs_rnn.pad_sequence(parts, **options),
            0,
        )
    packed = ours_rnn.pack_sequence([ours(p) for p in parts], enforce_sorted=False)
    close(packed.data, theirs_rnn.pack_sequence(parts, enforce_sorted=False).data, 0)
    for a, b in zip(ours_rnn.unpack_sequence(packed), parts, strict=True):
        close(a, b, 0)
    with pytest.raises(RuntimeError, match="sorted in decreasing order"):
        ours_rnn.pack_sequence([ours(p) for p in parts])


def test_errors() -> None:
    lstm = fb.nn.LSTM(4, 6)
    with pytest.raises(RuntimeError, match="Expected 4, got 5"):
        lstm(fb.zeros(3, 2, 5))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        lstm(fb.zeros(3, 2, 4), (fb.zeros(1, 3, 6), fb.zeros(1, 2, 6)))
    with pytest.raises(ValueError, match="2D or 3D"):
        lstm(fb.zeros(4))
    with pytest.raises(ValueError, match="proj_size has to be smaller"):
        fb.nn.LSTM(4, 6, proj_size=6)


def test_a_compiled_training_step_takes_any_batch_and_length() -> None:
    fb.manual_seed(0)
    lstm, head = fb.nn.LSTM(3, 8), fb.nn.Linear(8, 2)
    parameters = [*lstm.parameters(), *head.parameters()]
    start = [p.detach().clone() for p in parameters]

    def step(x: Any, target: Any) -> Any:
        optimizer.zero_grad()
        loss = (head(lstm(x)[0]) - target).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    def losses(function: Any) -> list[float]:
        with fb.no_grad():
            for p, first in zip(parameters, start):
                p.copy_(first)
        rng = np.random.default_rng(1)
        found = []
        for length, batch in ((5, 4), (5, 4), (7, 4), (6, 3), (2, 2)):
            x = fb.tensor(rng.standard_normal((length, batch, 3)).astype(np.float32))
            found.append(function(x, x[..., :2] * 2).item())
        return found

    optimizer = fb.optim.SGD(parameters, lr=0.1)
    expected = losses(step)
    np.testing.assert_allclose(losses(fb.compile(step)), expected, 1e-5)


def test_an_lstm_is_exported_as_a_library_for_any_batch_and_length(tmp_path: Path) -> None:
    lstm = fb.nn.LSTM(3, 8, num_layers=2).eval()
    exported = fb.export(lstm, (fb.randn(6, 2, 3),), dynamic_shapes={0: {0: "T", 1: "N"}}, name="lstm")
    run = library.load(exported.save(tmp_path / "lstm.so"))
    for length, batch in ((6, 2), (1, 5), (9, 1)):
        x = np.random.default_rng(length).standard_normal((length, batch, 3)).astype(np.float32)
        y, (h, c) = lstm(fb.tensor(x))
        for found, expected in zip(run(x), (y, h, c), strict=True):
            np.testing.assert_allclose(found, expected.detach().numpy(), 1e-5, 1e-6)
