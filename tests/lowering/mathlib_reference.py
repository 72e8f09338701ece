"""References, samples, error measures and asserted bounds of mathlib's functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mpmath as mp
import numpy as np
import torch

from flambeau.compiler.lowering.mathlib import FUNCTIONS
from tests.lowering.llvm_builder import Compiled

Array = Any  # a NumPy array


def _torch(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    return lambda x: f(torch.from_numpy(x)).numpy()


#: In f64, on arrays: the reference of the f32 functions.
NUMPY: dict[str, Callable[..., Array]] = {
    "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan,
    "atan2": np.arctan2, "atanh": np.arctanh, "cbrt": np.cbrt, "cos": np.cos, "cosh": np.cosh,
    "digamma": _torch(torch.digamma), "erf": _torch(torch.erf), "erfc": _torch(torch.erfc),
    "erfinv": _torch(torch.erfinv), "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1,
    "lgamma": _torch(torch.lgamma), "log": np.log, "log10": np.log10, "log1p": np.log1p, "log2": np.log2,
    "pow": np.power, "rsqrt": lambda x: 1.0 / np.sqrt(x), "sin": np.sin, "sinh": np.sinh, "tan": np.tan,
    "tanh": np.tanh,
}  # fmt: skip


def _exactly_reduced(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """With enough digits to reduce the largest f64 angle."""

    def wide(x: Any) -> Any:
        with mp.workprec(1400):
            return +f(x)

    return wide


def _log_abs_gamma(x: Any) -> Any:
    return mp.re(mp.loggamma(x)) if x > 0 else mp.log(abs(mp.gamma(x)))


#: In multiple precision, one value at a time: the reference of the f64 functions.
EXACT: dict[str, Callable[..., Any]] = {
    "acos": mp.acos, "acosh": mp.acosh, "asin": mp.asin, "asinh": mp.asinh, "atan": mp.atan, "atan2": mp.atan2,
    "atanh": mp.atanh, "cbrt": lambda x: mp.sign(x) * mp.cbrt(abs(x)), "cos": _exactly_reduced(mp.cos),
    "cosh": mp.cosh, "digamma": mp.digamma, "erf": mp.erf, "erfc": mp.erfc, "erfinv": mp.erfinv, "exp": mp.exp,
    "exp2": lambda x: mp.mpf(2) ** x, "expm1": mp.expm1, "lgamma": _log_abs_gamma, "log": mp.log,
    "log10": mp.log10, "log1p": mp.log1p, "log2": lambda x: mp.log(x) / mp.log(2), "pow": mp.power,
    "rsqrt": lambda x: 1 / mp.sqrt(x), "sin": _exactly_reduced(mp.sin), "sinh": mp.sinh,
    "tan": _exactly_reduced(mp.tan), "tanh": mp.tanh,
}  # fmt: skip

#: Where f64 samples are drawn: uniformly from the first interval, and with exponents uniformly from the second. The
#: third entry says whether negative arguments are drawn too.
DOMAINS: dict[str, tuple[tuple[float, float], tuple[float, float], bool]] = {
    "acos": ((-1, 1), (-1074, 0), True),
    "acosh": ((1, 5), (0, 1024), False),
    "asin": ((-1, 1), (-1074, 0), True),
    "asinh": ((-5, 5), (-1074, 1024), True),
    "atan": ((-4, 4), (-1074, 1024), True),
    "atanh": ((-1, 1), (-1074, 0), True),
    "cbrt": ((-9, 9), (-1074, 1024), True),
    "cos": ((-1000, 1000), (-1074, 1024), True),
    "cosh": ((-710, 710), (-1074, 9), True),
    "digamma": ((0, 20), (-1000, 1000), False),
    "erf": ((-6, 6), (-1074, 4), True),
    "erfc": ((-5, 27), (-1074, 4), True),
    "erfinv": ((-1, 1), (-1074, 0), True),
    "exp": ((-745, 709), (-1074, 9), True),
    "exp2": ((-1075, 1024), (-1074, 10), True),
    "expm1": ((-40, 709), (-1074, 9), True),
    "lgamma": ((0, 20), (-1000, 1000), False),
    "log": ((0, 4), (-1074, 1024), False),
    "log10": ((0, 4), (-1074, 1024), False),
    "log1p": ((-1, 3), (-1074, 1024), False),
    "log2": ((0, 4), (-1074, 1024), False),
    "rsqrt": ((0, 4), (-1074, 1024), False),
    "sin": ((-1000, 1000), (-1074, 1024), True),
    "sinh": ((-710, 710), (-1074, 9), True),
    "tan": ((-1000, 1000), (-1074, 1024), True),
    "tanh": ((-20, 20), (-1074, 6), True),
}

#: Functions with another form where there is AVX-512.
AVX512 = ["erf", "exp", "exp2", "tanh"]

#: Largest error in ulp that the tests allow: f32 over all arguments (without FMA too), f64 over samples.
BOUNDS: dict[str, tuple[float, float]] = {
    "acos": (1.3, 1.3), "acosh": (1.9, 1.6), "asin": (1.7, 1.6), "asinh": (1.6, 1.5), "atan": (1.6, 1.6),
    "atan2": (1.8, 1.8), "atanh": (1.5, 1.5), "cbrt": (0.51, 0.51), "cos": (0.9, 0.9), "cosh": (1.7, 1.5),
    "digamma": (2.1, 2.5), "erf": (1.5, 1.0), "erfc": (1.3, 2.5), "erfinv": (1.8, 2.5), "exp": (1.1, 1.1),
    "exp2": (1.1, 1.0), "expm1": (1.7, 2.0), "lgamma": (0.51, 2.3), "log": (1.0, 1.0), "log10": (2.0, 1.0),
    "log1p": (1.2, 1.0), "log2": (1.8, 1.0), "pow": (0.51, 1.1), "rsqrt": (1.6, 1.6), "sin": (0.9, 0.9),
    "sinh": (1.8, 1.7), "tan": (1.4, 1.3), "tanh": (1.5, 1.5),
}  # fmt: skip

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 2.5, -2.5, 3.0, -3.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38,
     -1e-38, 2.0**24 - 1, 2.0**24, -(2.0**25), 3e38, -3e38, 1 + 2.0**-23, 1 - 2.0**-24,
     88.7, 89.0, -104.0, 127.999, -150.0]
)  # fmt: skip


def f32_patterns(stride: int) -> Array:
    """Every ``stride``-th f32 number by bit pattern, with the special ones."""
    bits = np.arange(0, 2**32, stride, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([bits.view(np.float32), SPECIAL.astype(np.float32)])


def f64_samples(name: str, count: int, rng: np.random.Generator) -> Array:
    """About ``count`` arguments inside the function's domain, hard ones among them."""
    (lo, hi), (least, most), signed = DOMAINS[name]
    n = count // 4
    half = rng.uniform(least, most, n) / 2
    wide = np.exp2(half) * np.exp2(half)
    usual = np.exp2(rng.uniform(-20, min(most, 10), n))
    sign = rng.choice([-1.0, 1.0], 2 * n) if signed else 1.0
    near = 1 + rng.exponential(0.1, n) if name == "acosh" else rng.uniform(-2, 2, n)
    x = np.concatenate([rng.uniform(lo, hi, n), near, sign * np.concatenate([wide, usual])])
    if name in ("sin", "cos", "tan"):
        # The f64 number nearest to a multiple of pi/2 (J.-M. Muller, Elementary Functions, 3rd ed., table 11.1).
        x = np.concatenate([x, [6381956970095103 * 2.0**797], np.round(rng.uniform(1, 1e6, n)) * np.pi / 2])
    if name in ("asin", "acos", "atanh", "erfinv"):
        x = np.concatenate([x[np.abs(x) < 1], 1 - np.exp2(-rng.uniform(1, 53, n))])
    if lo >= 0 or name == "log1p":
        x = x[x >= 1] if name == "acosh" else x[x > (-1 if name == "log1p" else 0)]
    return x


def ulp_errors_f32(y: Array, exact: Array) -> Array:
    """|y - exact| in units of f32's last place at ``exact``; infinite where only one is NaN."""
    if np.isnan(exact).all():  # outside the domain: many neighbours are, so this saves time
        return np.where(np.isnan(y), 0.0, np.inf)
    unit = np.maximum(exact.view(np.int64) & 0x7FF0000000000000, (1023 - 126) << 52).view(np.float64)
    wide = y.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(wide - exact) / unit * 2.0**23
    odd = np.flatnonzero(~np.isfinite(error))
    if odd.size:
        got, expected = y[odd], exact[odd]
        # Overflow: as if infinity were 2**128.
        clipped = np.abs(np.clip(wide[odd], -(2.0**128), 2.0**128) - np.clip(expected, -(2.0**128), 2.0**128))
        distance = np.where(np.isnan(clipped), np.inf, clipped / 2.0**104)
        same = (got == expected.astype(np.float32)) | (np.isnan(got) & np.isnan(expected))
        error[odd] = np.where(same, 0.0, distance)
    return error


def f32_error_against_f64(name: str, avx512: bool = False) -> Callable[..., Any]:
    """The function x -> error in ulp of the f32 function against the f64 function, itself written through a builder,
    so that a sweep over all f32 numbers runs vectorised. Measures like ``ulp_errors_f32``."""

    def error(b: Any, x: Any) -> Any:
        b.avx512 = avx512
        y = b.fpext(FUNCTIONS[name, "f32"](b, x), "f64")
        b.avx512 = False
        exact = FUNCTIONS[name, "f64"](b, b.fpext(x, "f64"))
        magnitude = b.fabs(exact)
        exponent = b.iand(b.bitcast(magnitude, "i64"), b.const("i64", 0x7FF0000000000000))
        least = b.const("i64", (1023 - 126) << 52)
        unit = b.bitcast(b.select(b.icmp("sgt", exponent, least), exponent, least), "f64")
        infinite = b.fcmp("oeq", b.fabs(y), b.const("f64", np.inf))
        limit = b.copysign(b.const("f64", 2.0**128), y)
        distance = b.fabs(b.fsub(b.select(infinite, limit, y), exact))
        result = b.fmul(b.fdiv(distance, unit), b.const("f64", 2.0**23))
        same_sign = b.fcmp("ogt", b.fmul(b.copysign(b.const("f64", 1.0), exact), limit), b.const("f64", 0.0))
        overflow = b.iand(b.iand(infinite, same_sign), b.fcmp("oge", magnitude, b.const("f64", 2.0**128)))
        right = b.ior(overflow, b.iand(b.fcmp("uno", y, y), b.fcmp("uno", exact, exact)))
        result = b.select(b.fcmp("uno", result, result), b.const("f64", np.inf), result)
        return b.fptrunc(b.select(right, b.const("f64", 0.0), result), "f32")

    return error


def all_f32_errors(name: str, avx512: bool = False) -> Iterator[tuple[Array, Array]]:
    """(arguments, errors in ulp) over every f32 number: against the f64 function, which other tests hold to multiple
    precision, and against PyTorch for the functions that are computed in f64 anyway."""
    if name not in ("lgamma", "digamma"):
        measure = Compiled(f32_error_against_f64(name, avx512), "f32")
        yield from ((x, measure(x)) for x in chunks_of_all_f32())
        return
    function = Compiled(FUNCTIONS[name, "f32"], "f32")
    yield from (
        (x, ulp_errors_f32(function(x), NUMPY[name](x.astype(np.float64)))) for x in chunks_of_all_f32()
    )


def ulp_error_f64(y: float, exact: Any) -> float:
    """|y - exact| in units of f64's last place at ``exact``."""
    if not mp.isfinite(exact) or exact == 0:
        return 0.0 if y == float(exact) else np.inf
    exponent = mp.floor(mp.log(abs(exact), 2))
    if np.isnan(y):
        return np.inf
    if np.isinf(y):
        return 0.0 if abs(exact) >= mp.mpf(2) ** 1024 * (1 - mp.mpf(2) ** -54) else np.inf
    return float(abs(mp.mpf(float(y)) - exact) / mp.mpf(2) ** (max(exponent, -1022) - 52))


def chunks_of_all_f32(size: int = 1 << 14) -> Iterator[Array]:
    """All f32 numbers, in the order of their bits."""
    offsets = np.arange(size, dtype=np.uint32)
    for start in range(0, 2**32, size):
        yield (offsets + np.uint32(start)).view(np.float32)
