"""Typed handles over builder values, so that the formulas of this package read as formulas.

``Real`` is a value of type f32 or f64, ``Int`` its integer of equal width, ``Bool`` an i1. Python numbers become
constants. Everything here emits builder operations at once; nothing is rearranged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from flambeau.compiler.lowering.mathlib.protocol import Builder, FloatPredicate, IntPredicate, ScalarType, V


@dataclass(frozen=True)
class Format:
    """An IEEE 754 binary format: its type, the integer type of equal width, stored mantissa bits and exponent bias."""

    type: ScalarType
    int_type: ScalarType
    bits: int
    mantissa: int
    bias: int

    @property
    def smallest_normal(self) -> float:
        return float(2.0 ** (1 - self.bias))


F32 = Format("f32", "i32", 32, 23, 127)
F64 = Format("f64", "i64", 64, 52, 1023)


@dataclass(frozen=True, eq=False)
class Bool(Generic[V]):
    b: Builder[V]
    v: V

    def __and__(self, other: Bool[V]) -> Bool[V]:
        return Bool(self.b, self.b.iand(self.v, other.v))

    def __or__(self, other: Bool[V]) -> Bool[V]:
        return Bool(self.b, self.b.ior(self.v, other.v))

    def __invert__(self) -> Bool[V]:
        return Bool(self.b, self.b.not1(self.v))

    def select(self, x: Real[V], y: Real[V] | float) -> Real[V]:
        return Real(self.b, self.b.select(self.v, x.v, x.lift(y)), x.fmt)

    def select_const(self, x: float, y: float, fmt: Format) -> Real[V]:
        """A choice between two constants of ``fmt``."""
        return Real(self.b, self.b.select(self.v, self.b.const(fmt.type, x), self.b.const(fmt.type, y)), fmt)

    def select_int(self, x: Int[V], y: Int[V] | int) -> Int[V]:
        return Int(self.b, self.b.select(self.v, x.v, x.lift(y)), x.fmt)


@dataclass(frozen=True, eq=False)
class Int(Generic[V]):
    """An integer as wide as ``fmt``."""

    b: Builder[V]
    v: V
    fmt: Format

    def lift(self, y: Int[V] | int) -> V:
        return y.v if isinstance(y, Int) else self.b.const(self.fmt.int_type, y)

    def _make(self, v: V) -> Int[V]:
        return Int(self.b, v, self.fmt)

    def __add__(self, y: Int[V] | int) -> Int[V]:
        return self._make(self.b.iadd(self.v, self.lift(y)))

    def __sub__(self, y: Int[V] | int) -> Int[V]:
        return self._make(self.b.isub(self.v, self.lift(y)))

    def __rsub__(self, y: int) -> Int[V]:
        return self._make(self.b.isub(self.lift(y), self.v))

    def __and__(self, y: Int[V] | int) -> Int[V]:
        return self._make(self.b.iand(self.v, self.lift(y)))

    def __or__(self, y: Int[V] | int) -> Int[V]:
        return self._make(self.b.ior(self.v, self.lift(y)))

    def __xor__(self, y: Int[V] | int) -> Int[V]:
        return self._make(self.b.ixor(self.v, self.lift(y)))

    def __lshift__(self, n: int) -> Int[V]:
        return self._make(self.b.shl(self.v, self.lift(n)))

    def __rshift__(self, n: int) -> Int[V]:
        """Arithmetic shift."""
        return self._make(self.b.ashr(self.v, self.lift(n)))

    def compare(self, predicate: IntPredicate, y: Int[V] | int) -> Bool[V]:
        return Bool(self.b, self.b.icmp(predicate, self.v, self.lift(y)))

    def bitcast(self) -> Real[V]:
        return Real(self.b, self.b.bitcast(self.v, self.fmt.type), self.fmt)

    def look_up(self, entries: Sequence[float]) -> Real[V]:
        """The f32 number among 16 that the last four bits say; where the builder has `avx512`."""
        return Real(self.b, self.b.table(entries, self.v), self.fmt)

    def to_real(self) -> Real[V]:
        return Real(self.b, self.b.sitofp(self.v, self.fmt.type), self.fmt)


@dataclass(frozen=True, eq=False)
class Real(Generic[V]):
    b: Builder[V]
    v: V
    fmt: Format

    def lift(self, y: Real[V] | float) -> V:
        return y.v if isinstance(y, Real) else self.b.const(self.fmt.type, y)

    def const(self, value: float) -> Real[V]:
        return self._make(self.b.const(self.fmt.type, value))

    def _make(self, v: V) -> Real[V]:
        return Real(self.b, v, self.fmt)

    def __add__(self, y: Real[V] | float) -> Real[V]:
        return self._make(self.b.fadd(self.v, self.lift(y)))

    def __radd__(self, y: float) -> Real[V]:
        return self._make(self.b.fadd(self.lift(y), self.v))

    def __sub__(self, y: Real[V] | float) -> Real[V]:
        return self._make(self.b.fsub(self.v, self.lift(y)))

    def __rsub__(self, y: float) -> Real[V]:
        return self._make(self.b.fsub(self.lift(y), self.v))

    def __mul__(self, y: Real[V] | float) -> Real[V]:
        return self._make(self.b.fmul(self.v, self.lift(y)))

    def __rmul__(self, y: float) -> Real[V]:
        return self._make(self.b.fmul(self.lift(y), self.v))

    def __truediv__(self, y: Real[V] | float) -> Real[V]:
        return self._make(self.b.fdiv(self.v, self.lift(y)))

    def __rtruediv__(self, y: float) -> Real[V]:
        return self._make(self.b.fdiv(self.lift(y), self.v))

    def __neg__(self) -> Real[V]:
        return self._make(self.b.fneg(self.v))

    def __abs__(self) -> Real[V]:
        return self._make(self.b.fabs(self.v))

    def fma(self, y: Real[V] | float, z: Real[V] | float) -> Real[V]:
        """self * y + z."""
        return self._make(self.b.fma(self.v, self.lift(y), self.lift(z)))

    def scale(self, n: Real[V]) -> Real[V]:
        """self * 2**n for a whole n, rounded once; where the builder has `avx512`."""
        return self._make(self.b.scale(self.v, n.v))

    def bounded(self, limit: float, unsigned: bool = False) -> Real[V]:
        """Between -``limit`` and ``limit``, or its absolute value below that; the limit for NaN. Where the builder has
        `avx512`."""
        return self._make(self.b.bounded(self.v, limit, unsigned))

    def sqrt(self) -> Real[V]:
        return self._make(self.b.sqrt(self.v))

    def floor(self) -> Real[V]:
        return self._make(self.b.floor(self.v))

    def round_even(self) -> Real[V]:
        return self._make(self.b.round_even(self.v))

    def trunc(self) -> Real[V]:
        return self._make(self.b.trunc(self.v))

    def with_sign_of(self, y: Real[V]) -> Real[V]:
        return self._make(self.b.copysign(self.v, y.v))

    def compare(self, predicate: FloatPredicate, y: Real[V] | float) -> Bool[V]:
        return Bool(self.b, self.b.fcmp(predicate, self.v, self.lift(y)))

    def __lt__(self, y: Real[V] | float) -> Bool[V]:
        return self.compare("olt", y)

    def __le__(self, y: Real[V] | float) -> Bool[V]:
        return self.compare("ole", y)

    def __gt__(self, y: Real[V] | float) -> Bool[V]:
        return self.compare("ogt", y)

    def __ge__(self, y: Real[V] | float) -> Bool[V]:
        return self.compare("oge", y)

    def equals(self, y: Real[V] | float) -> Bool[V]:
        return self.compare("oeq", y)

    def is_nan(self) -> Bool[V]:
        return self.compare("uno", self)

    def at_most(self, limit: Real[V] | float) -> Real[V]:
        """Minimum with ``limit``; NaN stays NaN. (One instruction on x86.)"""
        bound = limit if isinstance(limit, Real) else self.const(limit)
        return (bound < self).select(bound, self)

    def at_least(self, limit: Real[V] | float) -> Real[V]:
        """Maximum with ``limit``; NaN stays NaN."""
        bound = limit if isinstance(limit, Real) else self.const(limit)
        return (bound > self).select(bound, self)

    def bits(self) -> Int[V]:
        return Int(self.b, self.b.bitcast(self.v, self.fmt.int_type), self.fmt)

    def widen(self) -> Real[V]:
        return Real(self.b, self.b.fpext(self.v, "f64"), F64)

    def narrow(self) -> Real[V]:
        return Real(self.b, self.b.fptrunc(self.v, "f32"), F32)


Pair = tuple[Real[V], Real[V]]
"""An unevaluated sum: a value and its (much smaller) error."""


def horner(x: Real[V], coefficients: Sequence[float]) -> Real[V]:
    """The polynomial with ``coefficients`` (constant term first) at x."""
    acc = x.const(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        acc = acc.fma(x, c)
    return acc


def odd_polynomial(x: Real[V], coefficients: Sequence[float]) -> Real[V]:
    """x + x**3 P(x**2), P by its ``coefficients``."""
    z = x * x
    return (x * z).fma(horner(z, coefficients), x)


def fast_two_sum(x: Real[V], y: Real[V]) -> Pair[V]:
    """x + y = s + e exactly, for |x| >= |y| or x = 0 (Dekker 1971)."""
    s = x + y
    return s, y - (s - x)


def two_sum(x: Real[V], y: Real[V]) -> Pair[V]:
    """x + y = s + e exactly (Knuth, TAOCP vol. 2, 4.2.2, theorem B)."""
    s = x + y
    t = s - x
    return s, (x - (s - t)) + (y - t)


def _split(x: Real[V]) -> Pair[V]:
    """x = hi + lo, each with half the digits (Veltkamp 1968). Overflows above 2**(emax - half the digits)."""
    c = x * float(2 ** ((x.fmt.mantissa + 2) // 2) + 1)
    hi = c - (c - x)
    return hi, x - hi


def two_prod(x: Real[V], y: Real[V]) -> Pair[V]:
    """x * y = p + e exactly, barring over- and underflow; by FMA, or by splitting where FMA does not round once."""
    p = x * y
    if x.b.exact_fma:
        return p, x.fma(y, -p)
    xh, xl = _split(x)
    yh, yl = _split(y)
    return p, xl * yl - (((p - xh * yh) - xl * yh) - xh * yl)


def residual(x: Real[V], y: Real[V], z: Real[V] | float) -> Real[V]:
    """z - x * y, where x * y is so close to z that the difference is exact before it is rounded."""
    if x.b.exact_fma:
        return (-x).fma(y, z)
    p, e = two_prod(x, y)
    return (z - p) - e


def exponent_bits(n: Int[V]) -> Int[V]:
    """n shifted into the exponent field: adding it to the bits of a normal number scales that number by 2**n."""
    return n << n.fmt.mantissa


def power_of_two(n: Int[V]) -> Real[V]:
    """2**n for n in the normal range."""
    return (exponent_bits(n) + (n.fmt.bias << n.fmt.mantissa)).bitcast()
