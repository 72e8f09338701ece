"""`repr` is PyTorch's, character by character."""

import numpy as np
import pytest
import torch

import flambeau as fb

CASES = """
t.tensor(1.5)
t.tensor(3)
t.tensor(True)
t.tensor([])
t.zeros(0, 3)
t.zeros(0, 3, dtype=t.int64)
t.tensor([1., 2., 3.])
t.tensor([1.5, 2.25, -3.125])
t.tensor([1e-5, 1.0])
t.tensor([1e9, 1.0])
t.tensor([1e6, 2e6])
t.tensor([1e-3, 1000.5])
t.tensor([float('nan'), float('inf'), -1.5])
t.tensor([float('inf'), 1.0])
t.tensor([float('nan')])
t.tensor([0.0, 0.0])
t.tensor([[1, 20], [300, -4]])
t.tensor([1, 2], dtype=t.int32)
t.tensor([1, 2], dtype=t.uint8)
t.tensor([1.5, 2], dtype=t.float64)
t.tensor([1.5, 2], dtype=t.float16)
t.tensor([1.5, 2], dtype=t.bfloat16)
t.tensor([True, False])
t.arange(30)
t.arange(30.)
t.arange(2000)
t.arange(2000.).reshape(2, 1000)
t.arange(3000.).reshape(10, 10, 30) / 7
t.arange(24).reshape(2, 3, 4)
t.arange(48.).reshape(2, 2, 3, 4) * 0.1
t.ones(3, requires_grad=True)
t.ones(3, dtype=t.float64, requires_grad=True)
t.ones(3, requires_grad=True) + 1
t.ones(3, requires_grad=True) - 1
t.ones(3, requires_grad=True) * 2
t.ones(3, requires_grad=True) / 2
t.ones(3, requires_grad=True) ** 2
-t.ones(3, requires_grad=True)
1 - t.ones(3, requires_grad=True)
t.ones(3, requires_grad=True).sum()
t.ones(3, requires_grad=True).sum(0)
t.ones(3, requires_grad=True).mean()
t.ones(2, 3, requires_grad=True).mean(1)
t.ones(3, requires_grad=True).exp()
t.ones(3, requires_grad=True).log()
t.ones(3, requires_grad=True).relu()
t.ones(3, requires_grad=True).sigmoid()
t.ones(3, requires_grad=True).tanh()
t.ones(3, requires_grad=True).max()
t.ones(3, requires_grad=True)[0]
t.ones(3, requires_grad=True)[1:]
t.ones(2, 3, requires_grad=True).view(6)
t.ones(2, 3, requires_grad=True).reshape(6)
t.ones(2, 3, requires_grad=True).t()
t.ones(2, 3, requires_grad=True).T
t.ones(2, 3, requires_grad=True).transpose(0, 1)
t.ones(2, 3, requires_grad=True).permute(1, 0)
t.ones(2, 3, requires_grad=True).unsqueeze(0)
t.ones(2, 1, requires_grad=True).squeeze()
t.ones(2, 1, requires_grad=True).squeeze(1)
t.ones(2, 1, requires_grad=True).expand(2, 3)
t.ones(3, requires_grad=True).clone()
t.ones(2, 2, requires_grad=True) @ t.ones(2, 2)
t.ones(2, requires_grad=True) @ t.ones(2)
t.cat([t.ones(2, requires_grad=True), t.ones(1)])
t.stack([t.ones(2, requires_grad=True), t.ones(2)])
t.where(t.tensor([True, False]), t.ones(2, requires_grad=True), t.zeros(2))
t.softmax(t.ones(2, requires_grad=True), 0)
t.ones(3, requires_grad=True).double()
t.ones(20, requires_grad=True) / 3
t.float32
t.device('cuda:1')
t.ones(2, 3).shape
t.ones(3, 2).sort(1)
t.ones(3, 2).max(1)
t.ones(3, requires_grad=True).grad_fn
t.ones(3, requires_grad=True).detach()
""".strip().split("\n")


@pytest.mark.parametrize("line", CASES)
def test_repr(line: str) -> None:
    assert repr(eval(line, {"t": fb})) == repr(eval(line, {"t": torch}))


@pytest.mark.parametrize("seed", range(40))
def test_repr_of_random_tensors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, rng.integers(0, 4)).tolist())
    array = (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 8, shape)).astype(np.float32)
    if seed % 3 == 0:
        array = np.round(array)
    array = np.asarray(array)
    assert repr(fb.tensor(array)) == repr(torch.tensor(array))


def test_print_options() -> None:
    for library in (fb, torch):
        library.set_printoptions(precision=2, sci_mode=False, linewidth=40)
    try:
        assert repr(fb.arange(12.0) / 7) == repr(torch.arange(12.0) / 7)
    finally:
        for library in (fb, torch):
            library.set_printoptions(profile="default")
