"""GELU in mathlib: its errors, which are relative to the argument, and its special values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flambeau.compiler.lowering.mathlib import FUNCTIONS
from tests.lowering.llvm_builder import Compiled
from tests.lowering.mathlib_reference import f32_patterns

#: Largest errors in units of 2**-24 |x| that the tests allow: with AVX-512's tables, and from erf.
BOUNDS = {True: 1.4, False: 1.9}


def exact(x: np.ndarray) -> np.ndarray:
    """In f64; the limits at infinities."""
    wide = torch.from_numpy(x.astype(np.float64))
    return (wide.clamp(min=-40) * torch.special.ndtr(wide)).numpy()


def errors(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """In units of 2**-24 |x|, but not of less than a subnormal number's last place."""
    finite = np.isfinite(x)
    unit = np.maximum(2.0**-24 * np.abs(x[finite].astype(np.float64)), 2.0**-149)
    return np.abs(y[finite] - exact(x[finite])) / unit


@pytest.mark.parametrize("avx512, exact_fma", [(True, True), (False, True), (False, False)])
def test_f32(avx512: bool, exact_fma: bool) -> None:
    x = np.concatenate([f32_patterns(4099), np.linspace(-9, 9, 200_001, dtype=np.float32)])
    y = Compiled(FUNCTIONS["gelu", "f32"], "f32", avx512=avx512, exact_fma=exact_fma)(x)
    assert errors(y, x).max() <= BOUNDS[avx512]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


def test_errors_are_below_torch() -> None:
    x = np.linspace(-9, 9, 200_001, dtype=np.float32)
    theirs = errors(torch.nn.functional.gelu(torch.from_numpy(x)).numpy(), x).max()
    for avx512 in (True, False):
        assert errors(Compiled(FUNCTIONS["gelu", "f32"], "f32", avx512=avx512)(x), x).max() < theirs


def test_f64() -> None:
    x = np.linspace(-40, 40, 100_001)
    y = Compiled(FUNCTIONS["gelu", "f64"], "f64")(x)
    assert (np.abs(y - exact(x)) <= 2.0**-52 * np.abs(x)).all()


@pytest.mark.parametrize("type", ["f32", "f64"])
@pytest.mark.parametrize("avx512", [True, False])
def test_special_values(type: str, avx512: bool) -> None:
    x = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30], np.float32 if type == "f32" else np.float64
    )
    y = Compiled(FUNCTIONS["gelu", type], type, avx512=avx512)(x)
    np.testing.assert_array_equal(y[[0, 1, 2, 4, 5]], x[[0, 1, 2, 4, 5]])
    assert np.signbit(y[1]) and not np.signbit(y[0])
    assert (np.abs(y[[3, 6]]) <= 1e-6).all()
