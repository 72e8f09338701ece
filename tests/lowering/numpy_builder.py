"""A builder that computes at once with NumPy arrays: slow, needs no compiler, and rounds fma exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # a NumPy array or scalar

_DTYPES = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64}
_FLOAT_COMPARE = {
    "olt": np.less,
    "ole": np.less_equal,
    "ogt": np.greater,
    "oge": np.greater_equal,
    "oeq": np.equal,
}
_INT_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "slt": np.less, "sle": np.less_equal, "sgt": np.greater,
    "sge": np.greater_equal,
}  # fmt: skip


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    s = x + y
    t = s - x
    return s, (x - (s - t)) + (y - t)


def _round_to_odd_sum(x: Array, y: Array) -> Array:
    """x + y in f64, where inexact results get an odd last digit: rounding them once more is then rounding once
    (Boldo and Melquiond, IEEE Trans. Computers 57, 2008)."""
    s, e = _two_sum(x, y)
    bits = np.asarray(s, np.float64).view(np.int64)
    inexact = np.isfinite(s) & (e != 0) & (bits & 1 == 0)
    toward = np.where((e > 0) == (s > 0), 1, -1)
    return np.where(inexact, (bits + np.where(inexact, toward, 0)).view(np.float64), s)


def _two_prod(x: Array, y: Array) -> tuple[Array, Array]:
    def split(v: Array) -> tuple[Array, Array]:
        c = v * 134217729.0
        hi = c - (c - v)
        return hi, v - hi

    p = x * y
    (xh, xl), (yh, yl) = split(x), split(y)
    return p, xl * yl - (((p - xh * yh) - xl * yh) - xh * yl)


def fma32(x: Array, y: Array, z: Array) -> Array:
    """Exact: the product of two f32 numbers is an f64 number."""
    return _round_to_odd_sum(x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)).astype(
        np.float32
    )


def fma64(x: Array, y: Array, z: Array) -> Array:
    """Exact where neither the product nor its error over- or underflows; otherwise x * y + z rounded twice."""
    product, error = _two_prod(x, y)
    uh, ul = _two_sum(z, error)
    th, tl = _two_sum(product, uh)
    exact = th + _round_to_odd_sum(tl, ul)
    safe = (
        (np.abs(product) > 2.0**-960) & (np.abs(x) < 2.0**960) & (np.abs(y) < 2.0**960) & np.isfinite(exact)
    )
    return np.where(safe, exact, product + z)


class NumpyBuilder:
    """Satisfies mathlib's ``Builder`` protocol; values are NumPy arrays. Call under ``np.errstate(all="ignore")``."""

    exact_fma = True

    def __init__(self, avx512: bool = False) -> None:
        self.avx512 = avx512

    def scale(self, x: Array, n: Array) -> Array:
        whole = np.floor(np.nan_to_num(np.clip(n, -5000, 5000))).astype(np.int32)
        return np.where(np.isnan(n), n, np.ldexp(x, whole))

    def table(self, entries: Sequence[float], position: Array) -> Array:
        return np.asarray(entries, np.float32)[position & 15]

    def bounded(self, x: Array, limit: float, unsigned: bool = False) -> Array:
        magnitude = np.fmin(np.abs(x), x.dtype.type(limit))
        return magnitude if unsigned else np.where(np.isnan(x), magnitude, np.copysign(magnitude, x))

    def const(self, type: str, value: float | int) -> Array:
        return np.asarray(value).astype(_DTYPES[type])

    def fadd(self, x: Array, y: Array) -> Array:
        return x + y

    def fsub(self, x: Array, y: Array) -> Array:
        return x - y

    def fmul(self, x: Array, y: Array) -> Array:
        return x * y

    def fdiv(self, x: Array, y: Array) -> Array:
        return x / y

    def fneg(self, x: Array) -> Array:
        return -x

    def fabs(self, x: Array) -> Array:
        return np.abs(x)

    def fma(self, x: Array, y: Array, z: Array) -> Array:
        return (fma32 if np.asarray(x).dtype == np.float32 else fma64)(x, y, z)

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(x)

    def floor(self, x: Array) -> Array:
        return np.floor(x)

    def ceil(self, x: Array) -> Array:
        return np.ceil(x)

    def round_even(self, x: Array) -> Array:
        return np.rint(x)

    def trunc(self, x: Array) -> Array:
        return np.trunc(x)

    def copysign(self, magnitude: Array, sign: Array) -> Array:
        return np.copysign(magnitude, sign)

    def fcmp(self, predicate: str, x: Array, y: Array) -> Array:
        unordered = np.isnan(x) | np.isnan(y)
        if predicate == "uno":
            return unordered
        if predicate == "ord":
            return ~unordered
        if predicate == "one":
            return ~unordered & (x != y)
        return x != y if predicate == "une" else _FLOAT_COMPARE[predicate](x, y)

    def iadd(self, x: Array, y: Array) -> Array:
        return x + y

    def isub(self, x: Array, y: Array) -> Array:
        return x - y

    def imul(self, x: Array, y: Array) -> Array:
        return x * y

    def iand(self, x: Array, y: Array) -> Array:
        return x & y

    def ior(self, x: Array, y: Array) -> Array:
        return x | y

    def ixor(self, x: Array, y: Array) -> Array:
        return x ^ y

    def shl(self, x: Array, y: Array) -> Array:
        return x << y

    def lshr(self, x: Array, y: Array) -> Array:
        unsigned = np.uint32 if x.dtype == np.int32 else np.uint64
        return (x.view(unsigned) >> y.view(unsigned)).view(x.dtype)

    def ashr(self, x: Array, y: Array) -> Array:
        return x >> y

    def icmp(self, predicate: str, x: Array, y: Array) -> Array:
        if predicate.startswith("u"):
            unsigned = np.uint32 if x.dtype == np.int32 else np.uint64
            return _INT_COMPARE["s" + predicate[1:]](x.view(unsigned), y.view(unsigned))
        return _INT_COMPARE[predicate](x, y)

    def not1(self, x: Array) -> Array:
        return ~x

    def select(self, condition: Array, x: Array, y: Array) -> Array:
        return np.where(condition, x, y)

    def bitcast(self, x: Array, type: str) -> Array:
        return np.asarray(x).view(_DTYPES[type])

    def sitofp(self, x: Array, type: str) -> Array:
        return x.astype(_DTYPES[type])

    def fpext(self, x: Array, type: str) -> Array:
        return x.astype(_DTYPES[type])

    def fptrunc(self, x: Array, type: str) -> Array:
        return x.astype(_DTYPES[type])

    def trunci(self, x: Array, type: str) -> Array:
        return x.astype(_DTYPES[type])

    def extsi(self, x: Array, type: str) -> Array:
        return x.astype(_DTYPES[type])
