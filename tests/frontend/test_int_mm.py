"""`_int_mm`: products of bytes, as PyTorch has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import flambeau as fb


@pytest.mark.parametrize("left", [np.int8, np.uint8])
@pytest.mark.parametrize("size", [(5, 7, 3), (64, 65, 66), (0, 3, 2), (2, 0, 3)])
def test_like_torch(left: Any, size: tuple[int, int, int]) -> None:
    m, k, n = size
    rng = np.random.default_rng(m)
    a, b = rng.integers(-128, 128, (m, k)).astype(left), rng.integers(-128, 128, (k, n)).astype(np.int8)
    expected = torch._int_mm(torch.from_numpy(a), torch.from_numpy(b))
    found = fb._int_mm(fb.from_numpy(a), fb.from_numpy(b))
    assert found.dtype is fb.int32
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    out = fb.zeros(m, n, dtype=fb.int32)
    assert fb._int_mm(fb.from_numpy(a), fb.from_numpy(b), out=out) is out
    np.testing.assert_array_equal(out.numpy(), expected.numpy())


@pytest.mark.parametrize(
    "make",
    [
        lambda m: (m.zeros(2, 3, dtype=m.int8), m.zeros(2, 3, dtype=m.int8)),
        lambda m: (m.zeros(2, 3), m.zeros(3, 2)),
        lambda m: (m.zeros(2, 3, dtype=m.int16), m.zeros(3, 2)),
        lambda m: (m.zeros(2, 3, dtype=m.bfloat16), m.zeros(3, 2)),
        lambda m: (m.zeros(3, dtype=m.int8), m.zeros(3, 2, dtype=m.int8)),
        lambda m: (m.zeros(2, 3, dtype=m.int8), m.zeros(3, 2)),
        lambda m: (m.zeros(2, 3, dtype=m.int8), m.zeros(3, 2, dtype=m.uint8)),
    ],
)
def test_errors_like_torch(make: Any) -> None:
    with pytest.raises(RuntimeError) as theirs:
        torch._int_mm(*make(torch))
    with pytest.raises(RuntimeError) as ours:
        fb._int_mm(*make(fb))
    assert str(ours.value) == str(theirs.value).splitlines()[0]


def test_results_that_do_not_fit() -> None:
    x = fb.zeros(2, 2, dtype=fb.int8)
    for out in (fb.zeros(2, 2), fb.zeros(2, 3, dtype=fb.int32)):
        with pytest.raises(RuntimeError, match="int_mm_out_cpu: Expected result"):
            fb._int_mm(x, x, out=out)
