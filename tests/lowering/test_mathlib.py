"""mathlib's functions: accuracy against NumPy, PyTorch and multiple precision, and C99's special values."""

from __future__ import annotations

import itertools

import mpmath as mp
import numpy as np
import pytest

from flambeau.compiler.lowering.mathlib import FUNCTIONS
from tests.lowering.llvm_builder import Compiled, LlvmBuilder, Value
from tests.lowering.mathlib_reference import (
    AVX512,
    BOUNDS,
    DOMAINS,
    EXACT,
    NUMPY,
    SPECIAL,
    all_f32_errors,
    f32_error_against_f64,
    f32_patterns,
    f64_samples,
    ulp_error_f64,
    ulp_errors_f32,
)
from tests.lowering.numpy_builder import NumpyBuilder

UNARY = sorted(DOMAINS)
BINARY = ["atan2", "pow"]
DTYPES = {"f32": np.float32, "f64": np.float64}


@pytest.fixture(autouse=True)
def quiet() -> object:
    with np.errstate(all="ignore"), mp.workprec(200):
        yield


def same(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Equal with the sign of zeros, or both NaN."""
    return ((x == y) & (np.signbit(x) == np.signbit(y))) | (np.isnan(x) & np.isnan(y))


def binary_samples(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.normal(0, 1, (2, count))
    wide = np.exp2(rng.uniform(-100, 100, (2, count)))
    if name == "atan2":
        return np.concatenate([normal[0], wide[0]]), np.concatenate([normal[1], -wide[1]])
    near_one = 1 + rng.normal(0, 1e-3, count)
    return (
        np.concatenate([np.abs(normal[0]), wide[0], near_one]),
        np.concatenate([10 * normal[1], rng.uniform(-1, 1, count), rng.uniform(-6e4, 6e4, count)]),
    )


def test_every_function_is_tested() -> None:
    # GELU has errors of its own kind: test_gelu.py.
    names = {name for name, _ in FUNCTIONS} - {"gelu"}
    assert names == set(UNARY + BINARY) == set(NUMPY) == set(EXACT) == set(BOUNDS)
    assert len(FUNCTIONS) == 2 * len(names) + 2


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("exact_fma", [True, False], ids=["fma", "no-fma"])
def test_f32_sampled(name: str, exact_fma: bool) -> None:
    x = f32_patterns(4099)
    errors = ulp_errors_f32(
        Compiled(FUNCTIONS[name, "f32"], "f32", exact_fma=exact_fma)(x), NUMPY[name](x.astype(float))
    )
    worst = int(np.argmax(errors))
    assert errors[worst] <= BOUNDS[name][0], f"{name}({x[worst]!r})"


def test_which_functions_use_avx512() -> None:
    def text(name: str, type: str, avx512: bool) -> list[str]:
        b = LlvmBuilder(avx512=avx512)
        FUNCTIONS[name, type](b, *(Value(f"%x{i}", type) for i in range(1 + (name in BINARY))))
        return b.lines

    differing = {name for name, type in FUNCTIONS if text(name, type, False) != text(name, type, True)}
    assert differing == {*AVX512, "gelu"}


@pytest.mark.parametrize("name", AVX512)
def test_with_avx512(name: str) -> None:
    x = f32_patterns(4099)
    exact = NUMPY[name](x.astype(float))
    errors = ulp_errors_f32(Compiled(FUNCTIONS[name, "f32"], "f32", avx512=True)(x), exact)
    worst = int(np.argmax(errors))
    assert errors[worst] <= BOUNDS[name][0], f"{name}({x[worst]!r})"
    wide = f64_samples(name, 400, np.random.default_rng(11))
    for argument, value in zip(wide, Compiled(FUNCTIONS[name, "f64"], "f64", avx512=True)(wide)):
        assert ulp_error_f64(value, EXACT[name](mp.mpf(float(argument)))) <= BOUNDS[name][1], argument


@pytest.mark.conformance
@pytest.mark.parametrize("name", AVX512)
def test_f32_all_with_avx512(name: str) -> None:
    for x, errors in all_f32_errors(name, avx512=True):
        worst = int(np.argmax(errors))
        assert errors[worst] <= BOUNDS[name][0], f"{name}({x[worst]!r})"


@pytest.mark.parametrize("name, avx512", [(n, False) for n in UNARY] + [(n, True) for n in AVX512])
def test_the_sweep_measures_right(name: str, avx512: bool) -> None:
    """The error computed inside the compiled loop, which the sweep over all f32 numbers relies on."""
    x = f32_patterns(65_537)
    y = Compiled(FUNCTIONS[name, "f32"], "f32", avx512=avx512)(x)
    exact = Compiled(FUNCTIONS[name, "f64"], "f64")(x)
    measured = Compiled(f32_error_against_f64(name, avx512), "f32")
    np.testing.assert_allclose(measured(x), ulp_errors_f32(y, exact), rtol=1e-6, atol=1e-6)


@pytest.mark.conformance
@pytest.mark.parametrize("name", UNARY)
def test_f32_all(name: str) -> None:
    for x, errors in all_f32_errors(name):
        worst = int(np.argmax(errors))
        assert errors[worst] <= BOUNDS[name][0], f"{name}({x[worst]!r})"


def check_f64(name: str, count: int) -> None:
    x = f64_samples(name, count, np.random.default_rng(11))
    for argument, value in zip(x, Compiled(FUNCTIONS[name, "f64"], "f64")(x)):
        error = ulp_error_f64(value, EXACT[name](mp.mpf(float(argument))))
        assert error <= BOUNDS[name][1], f"{name}({argument!r}) = {value!r}"


@pytest.mark.parametrize("name", UNARY)
def test_f64_sampled(name: str) -> None:
    check_f64(name, 400)


@pytest.mark.conformance
@pytest.mark.parametrize("name", UNARY)
def test_f64_sampled_densely(name: str) -> None:
    check_f64(name, 8000)


@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_f64_negative_arguments(name: str) -> None:
    """By the reflection formula: accurate to 1e-15 of the larger term."""
    x = -np.random.default_rng(5).uniform(0, 12, 400)
    for argument, value in zip(x, Compiled(FUNCTIONS[name, "f64"], "f64")(x)):
        exact = EXACT[name](mp.mpf(float(argument)))
        scale = abs(exact) + abs(EXACT[name](1 - mp.mpf(float(argument))))
        assert abs(value - exact) <= 1e-15 * scale, f"{name}({argument!r}) = {value!r}"


@pytest.mark.parametrize("name, avx512", [(n, False) for n in UNARY] + [(n, True) for n in AVX512])
@pytest.mark.parametrize("type", ["f32", "f64"])
def test_special_values(name: str, avx512: bool, type: str) -> None:
    """Infinities, NaN, signed zeros and the edges of the domain, exactly as NumPy and PyTorch have them."""
    x = np.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, np.inf, -np.inf, np.nan], DTYPES[type])
    got = Compiled(FUNCTIONS[name, type], type, avx512=avx512)(x)
    expected = NUMPY[name](x.astype(np.float64)).astype(x.dtype)
    if name == "erfinv":
        expected[1] = -0.0  # odd; PyTorch's polynomial loses the sign
    exactly = ~np.isfinite(expected) | (expected == 0)
    np.testing.assert_array_equal(same(got, expected)[exactly], True, err_msg=f"{got} {expected}")
    assert np.isfinite(got[~exactly]).all()


@pytest.mark.parametrize(
    "name",
    ["asin", "asinh", "atan", "atanh", "cbrt", "erfinv", "expm1", "log1p", "sin", "sinh", "tan", "tanh"],
)
@pytest.mark.parametrize("type", ["f32", "f64"])
def test_subnormal_numbers_and_signs_survive(name: str, type: str) -> None:
    smallest = np.finfo(DTYPES[type]).smallest_subnormal
    x = np.array([smallest, -smallest, 1000 * smallest, -1000 * smallest], DTYPES[type])
    got = Compiled(FUNCTIONS[name, type], type)(x)
    if name == "cbrt":
        np.testing.assert_allclose(got, np.cbrt(x), rtol=1e-6)
    elif name == "erfinv":
        np.testing.assert_allclose(got[2:], x[2:] * 0.886, rtol=1e-2)
    else:
        np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("type", ["f32", "f64"])
def test_binary_special_values(name: str, type: str) -> None:
    pairs = np.array(list(itertools.product(SPECIAL, SPECIAL)), DTYPES[type])
    x, y = pairs[:, 0].copy(), pairs[:, 1].copy()
    got = Compiled(FUNCTIONS[name, type], type, arity=2)(x, y)
    expected = NUMPY[name](x.astype(np.float64), y.astype(np.float64)).astype(x.dtype)
    close = np.abs(got - expected) <= 2 * np.spacing(np.abs(expected))
    wrong = ~same(got, expected) & ~(close & np.isfinite(expected) & (np.sign(got) == np.sign(expected)))
    assert not wrong.any(), [(name, *p, g, e) for p, g, e in zip(pairs[wrong], got[wrong], expected[wrong])]


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("exact_fma", [True, False], ids=["fma", "no-fma"])
def test_binary_f32(name: str, exact_fma: bool) -> None:
    x, y = (v.astype(np.float32) for v in binary_samples(name, 200_000))
    got = Compiled(FUNCTIONS[name, "f32"], "f32", 2, exact_fma)(x, y)
    errors = ulp_errors_f32(got, NUMPY[name](x.astype(np.float64), y.astype(np.float64)))
    worst = int(np.argmax(errors))
    assert errors[worst] <= BOUNDS[name][0], (name, x[worst], y[worst])


@pytest.mark.parametrize("name", BINARY)
def test_binary_f64(name: str) -> None:
    x, y = binary_samples(name, 300)
    for a, b, value in zip(x, y, Compiled(FUNCTIONS[name, "f64"], "f64", 2)(x, y)):
        error = ulp_error_f64(value, EXACT[name](mp.mpf(float(a)), mp.mpf(float(b))))
        assert error <= BOUNDS[name][1], (name, a, b, value)


@pytest.mark.parametrize("name, avx512", [(n, False) for n in UNARY + BINARY] + [(n, True) for n in AVX512])
@pytest.mark.parametrize("type", ["f32", "f64"])
def test_both_builders_agree(name: str, avx512: bool, type: str) -> None:
    """Bit for bit: nothing depends on the code generator (the NumPy builder's f64 fma is exact only in range, so
    f64 stays within moderate arguments)."""
    arity = 2 if name in BINARY else 1
    if arity == 2:
        arguments = [v.astype(DTYPES[type]) for v in binary_samples(name, 1000)]
    elif type == "f32":
        arguments = [f32_patterns(1_000_003)]
    else:
        x = f64_samples(name, 2000, np.random.default_rng(3))
        arguments = [x[(np.abs(x) > 2.0**-400) & (np.abs(x) < 2.0**400)]]
    function = FUNCTIONS[name, type]
    compiled = Compiled(function, type, arity, avx512=avx512)
    assert same(compiled(*arguments), function(NumpyBuilder(avx512), *arguments)).all()
