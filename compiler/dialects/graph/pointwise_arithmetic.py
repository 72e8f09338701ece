"""Pointwise arithmetic: what `arith` has an instruction for, on floats and integers alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import Elementwise, NotDifferentiable, Sample
from flambeau.compiler.dialects.graph.disjoint import joined
from flambeau.compiler.ir.core import Value

Array = np.ndarray[Any, Any]
Gradients = tuple[Value | None, ...]
NUMBERS = ("float", "int", "uint")


class Arithmetic(Elementwise):
    """Two operands of one numeric type; the result has it too."""

    kinds: ClassVar[tuple[str, ...]] = NUMBERS
    arity: ClassVar[int] = 2


class Add(Arithmetic):
    """Sum of two tensors of one shape and numeric type; integers wrap. StableHLO `add`."""

    name = "graph.add"

    def fold(self, x: Value, y: Value) -> Value | None:
        if build.is_splat(y, 0):
            return x
        return y if build.is_splat(x, 0) else joined(x, y)

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.add(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        return ct, ct

    def reference(self, x: Array, y: Array) -> Any:
        return x + y

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Add(), lambda x, y: x + y)
        yield from sampling.integers(Add(), lambda x, y: x + y, 2)


class Subtract(Arithmetic):
    """Difference of two tensors of one shape and numeric type; integers wrap. StableHLO `subtract`."""

    name = "graph.subtract"

    def fold(self, x: Value, y: Value) -> Value | None:
        return x if build.is_splat(y, 0) else None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.sub(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        return ct, build.neg(ct)

    def reference(self, x: Array, y: Array) -> Any:
        return x - y

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Subtract(), lambda x, y: x - y)
        yield from sampling.integers(Subtract(), lambda x, y: x - y, 2)


class Multiply(Arithmetic):
    """Product of two tensors of one shape and numeric type; integers wrap. StableHLO `multiply`."""

    name = "graph.multiply"

    def fold(self, x: Value, y: Value) -> Value | None:
        for one, other in ((x, y), (y, x)):
            if build.is_splat(one, 1):
                return other
            if build.is_splat(one, 0) and not build.element_of(one).is_float:  # 0 * NaN and 0 * inf are NaN
                return one
            if build.is_splat(one, -1):
                return build.neg(other)
        return None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.mul(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        return build.mul(ct, y), build.mul(ct, x)

    def reference(self, x: Array, y: Array) -> Any:
        return x * y

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Multiply(), lambda x, y: x * y)
        yield from sampling.integers(Multiply(), lambda x, y: x * y, 2)


class Divide(Arithmetic):
    """Quotient of two tensors of one shape and numeric type; integers truncate, and give 0 by 0. StableHLO `divide`."""

    name = "graph.divide"

    def fold(self, x: Value, y: Value) -> Value | None:
        return x if build.is_splat(y, 1) else None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.div(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        scaled = build.div(ct, y)
        return scaled, build.neg(build.mul(scaled, result))

    def reference(self, x: Array, y: Array) -> Any:
        if x.dtype.kind not in "iu":
            return x / y
        safe = np.where(y == 0, np.ones_like(y), y)
        down = x // safe
        quotient = down + ((x - down * safe != 0) & ((x < 0) != (safe < 0))).astype(x.dtype)
        return np.where(y == 0, np.zeros_like(x), quotient)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Divide(), lambda x, y: x / y, 0.5, 3)
        yield from sampling.integers(Divide(), lambda x, y: x.div(y, rounding_mode="trunc"), 2)


class Remainder(Arithmetic):
    """Remainder of a truncating division, with the dividend's sign (C `fmod`); x for an integer divisor 0.

    Two tensors of one shape and numeric type. StableHLO `remainder`.
    """

    name = "graph.remainder"

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.rem(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        return ct, build.neg(build.mul(ct, build.trunc(build.div(x, y))))

    def reference(self, x: Array, y: Array) -> Any:
        if x.dtype.kind in "iu":
            return np.where(y == 0, x, np.fmod(x, np.where(y == 0, np.ones_like(y), y)))
        return np.fmod(x, y)

    def samples(self) -> Iterable[Sample]:
        # PyTorch's vectorised fmod gives NaN where the quotient overflows.
        yield from sampling.own_special(sampling.binary(Remainder(), lambda x, y: x.fmod(y), 0.5, 3))
        x, y = np.array([5.3, -5.3, 7.1, -7.1]), np.array([3.0, 3.0, -2.0, -2.0])
        yield Sample(Remainder(), (x, y), lambda x, y: x.fmod(y))
        yield from sampling.integers(Remainder(), lambda x, y: x.fmod(y), 2)


class Power(Arithmetic):
    """x to the power y, elementwise; an integer to a negative power is 0 unless it is 1 or -1. StableHLO `power`."""

    name = "graph.power"

    def fold(self, x: Value, y: Value) -> Value | None:
        exponent = build.splat_value(y)
        if exponent == 0:
            return build.ones_like(x)
        if exponent == 1:
            return x
        if exponent == 2:
            return build.mul(x, x)
        if exponent == 3:
            return build.mul(build.mul(x, x), x)
        if exponent == -1 and build.element_of(x).is_float:
            return build.div(1, x)
        return None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.pow(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        # PyTorch's conventions: a zero exponent stops the base's gradient, 0 ** (y >= 0) the exponent's.
        slope = build.mul(y, build.pow(x, build.sub(y, 1)))
        dx = build.mul(ct, build.select(build.eq(y, 0), 0, slope) if build.splat_value(y) is None else slope)
        flat = build.and_(build.eq(x, 0), build.ge(y, 0))
        return dx, build.mul(ct, build.select(flat, 0, build.mul(result, build.log(x))))

    def reference(self, x: Array, y: Array) -> Any:
        if x.dtype.kind not in "iu":
            return np.power(x.astype(np.float64), y.astype(np.float64)).astype(x.dtype)
        if x.dtype.kind == "u":
            return np.power(x, y)
        inverse = np.where(x == 1, 1, np.where(x == -1, np.where(y % 2 != 0, -1, 1), 0)).astype(x.dtype)
        return np.where(y < 0, inverse, np.power(x, np.maximum(y, 0)))

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Power(), lambda x, y: x**y, 0.5, 3)
        yield from sampling.integers(Power(), lambda x, y: x**y, 2, 0, 5)


class Maximum(Arithmetic):
    """The larger of two tensors' elements, NaN if either is; at ties the gradient is halved. StableHLO `maximum`."""

    name = "graph.maximum"

    def fold(self, x: Value, y: Value) -> Value | None:
        return x if x is y else None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.max(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        shared = build.select(build.eq(x, y), build.mul(ct, 0.5), ct)
        return build.select(build.lt(x, y), 0, shared), build.select(build.lt(y, x), 0, shared)

    def reference(self, x: Array, y: Array) -> Any:
        return np.maximum(x, y)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Maximum(), lambda x, y: x.maximum(y))
        yield from sampling.integers(Maximum(), lambda x, y: x.maximum(y), 2)
        special = np.array([1, np.nan, -np.inf, 2], np.float32), np.array([np.nan, 1, 0, 2], np.float32)
        yield Sample(Maximum(), special, lambda x, y: x.maximum(y), ())


class Minimum(Arithmetic):
    """The smaller of two tensors' elements, NaN if either is; at ties the gradient is halved. StableHLO `minimum`."""

    name = "graph.minimum"

    def fold(self, x: Value, y: Value) -> Value | None:
        return x if x is y else None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.min(x, y)

    def vjp(self, ct: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        shared = build.select(build.eq(x, y), build.mul(ct, 0.5), ct)
        return build.select(build.lt(y, x), 0, shared), build.select(build.lt(x, y), 0, shared)

    def reference(self, x: Array, y: Array) -> Any:
        return np.minimum(x, y)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.binary(Minimum(), lambda x, y: x.minimum(y))
        yield from sampling.integers(Minimum(), lambda x, y: x.minimum(y), 2)
        special = np.array([1, np.nan, -np.inf, 2], np.float32), np.array([np.nan, 1, 0, 2], np.float32)
        yield Sample(Minimum(), special, lambda x, y: x.minimum(y), ())


class Negate(Elementwise):
    """Each element negated; integers wrap. StableHLO `negate`."""

    name = "graph.negate"
    kinds: ClassVar[tuple[str, ...]] = NUMBERS

    def fold(self, x: Value) -> Value | None:
        inner = x.owner
        return inner.operands[0] if inner is not None and isinstance(inner.definition, Negate) else None

    def element(self, b: Any, x: Any) -> Any:
        return b.neg(x)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.neg(ct),)

    def reference(self, x: Array) -> Any:
        return np.negative(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Negate(), lambda x: -x)
        yield from sampling.integers(Negate(), lambda x: -x, 1)


class Abs(Elementwise):
    """Absolute value of each element; its gradient at 0 is 0. StableHLO `abs`."""

    name = "graph.abs"
    kinds: ClassVar[tuple[str, ...]] = NUMBERS

    def element(self, b: Any, x: Any) -> Any:
        return b.abs(x)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        return (build.mul(ct, build.sign(x)),)

    def reference(self, x: Array) -> Any:
        return np.abs(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.unary(Abs(), lambda x: x.abs())
        yield from sampling.integers(Abs(), lambda x: x.abs(), 1)


class Sign(Elementwise):
    """-1, 0 or 1 by the sign of each element; NaN stays NaN (PyTorch gives 0). StableHLO `sign`."""

    name = "graph.sign"
    kinds: ClassVar[tuple[str, ...]] = NUMBERS
    vjp = NotDifferentiable("it is constant between its steps", zero=True)

    def element(self, b: Any, x: Any) -> Any:
        return b.sign(x)

    def reference(self, x: Array) -> Any:
        return np.sign(x)

    def samples(self) -> Iterable[Sample]:
        yield from sampling.own_special(sampling.unary(Sign(), lambda x: x.sign()))
        yield from sampling.integers(Sign(), lambda x: x.sign(), 1)
