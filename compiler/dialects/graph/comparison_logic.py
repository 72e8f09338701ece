"""Comparisons, logic on bits, choice and conversion."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import Elementwise, GraphOp, NotDifferentiable, Sample, same_types
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import ElementType, TensorType, bf16, f16, f32, f64, i1, i8, i32, i64, u8, u32

Array = np.ndarray[Any, Any]
Gradients = tuple[Value | None, ...]
STEP = NotDifferentiable("its result is not a float", zero=True)
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}


class Compare(Elementwise):
    """i1: does x stand in `direction` (EQ, NE, LT, LE, GT, GE) to y? With NaN only NE holds. StableHLO `compare`."""

    name = "graph.compare"
    arity: ClassVar[int] = 2
    direction: str
    vjp = STEP

    def result_element(self, element: ElementType) -> ElementType:
        if self.direction not in _COMPARISONS:
            raise self.reject("unknown direction", expected=" ".join(_COMPARISONS), actual=self.direction)
        return i1

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.compare(self.direction, x, y)

    def reference(self, x: Array, y: Array) -> Any:
        return np.asarray(_COMPARISONS[self.direction](x, y))

    def samples(self) -> Iterable[Sample]:
        special = np.array([1, np.nan, 2, 0.0], np.float32), np.array([1, np.nan, 3, -0.0], np.float32)
        for direction, function in _COMPARISONS.items():
            yield Sample(Compare(direction), special, function)
            for element in (f64, f16, bf16, i64, i8, u8, i1):
                operands = [
                    sampling.array((3, 4), element, 0 if element is u8 else -3, 3, seed) for seed in (0, 1)
                ]
                yield Sample(Compare(direction), tuple(operands), function)
        yield Sample(Compare("LT"), (np.float32(1), np.float32(2)), operator.lt)
        yield Sample(Compare("GE"), (np.zeros((0, 2)), np.zeros((0, 2))), operator.ge)


class Logic(Elementwise):
    """Bitwise on integers, logical on i1."""

    kinds: ClassVar[tuple[str, ...]] = ("int", "uint", "bool")
    arity: ClassVar[int] = 2
    vjp = STEP


def _logic_samples(definition: Logic, function: Callable[..., Any]) -> Iterable[Sample]:
    yield from sampling.integers(definition, function, definition.arity)
    yield Sample(
        definition, tuple(sampling.array((3, 5), i1, seed=s) for s in range(definition.arity)), function
    )
    yield Sample(definition, (np.bool_(True),) * definition.arity, function)


class And(Logic):
    """Bitwise and of two integer tensors, logical of i1. StableHLO `and`."""

    name = "graph.and"

    def fold(self, x: Value, y: Value) -> Value | None:
        if x is y:
            return x
        for one, other in ((x, y), (y, x)):
            if build.is_splat(one, 0):
                return one
            if build.is_splat(one, True) and build.element_of(one).is_bool:
                return other
        return None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.and_(x, y)

    def reference(self, x: Array, y: Array) -> Any:
        return x & y

    def samples(self) -> Iterable[Sample]:
        yield from _logic_samples(And(), operator.and_)


class Or(Logic):
    """Bitwise or of two integer tensors, logical of i1. StableHLO `or`."""

    name = "graph.or"

    def fold(self, x: Value, y: Value) -> Value | None:
        if x is y:
            return x
        for one, other in ((x, y), (y, x)):
            if build.is_splat(one, 0):
                return other
            if build.is_splat(one, True) and build.element_of(one).is_bool:
                return one
        return None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.or_(x, y)

    def reference(self, x: Array, y: Array) -> Any:
        return x | y

    def samples(self) -> Iterable[Sample]:
        yield from _logic_samples(Or(), operator.or_)


class Xor(Logic):
    """Bitwise exclusive or of two integer tensors, logical of i1. StableHLO `xor`."""

    name = "graph.xor"

    def fold(self, x: Value, y: Value) -> Value | None:
        if build.is_splat(y, 0):
            return x
        return y if build.is_splat(x, 0) else None

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.xor(x, y)

    def reference(self, x: Array, y: Array) -> Any:
        return x ^ y

    def samples(self) -> Iterable[Sample]:
        yield from _logic_samples(Xor(), operator.xor)


class Not(Logic):
    """Bitwise complement of an integer tensor, logical of i1. StableHLO `not`."""

    name = "graph.not"
    arity: ClassVar[int] = 1

    def fold(self, x: Value) -> Value | None:
        inner = x.owner
        return inner.operands[0] if inner is not None and isinstance(inner.definition, Not) else None

    def element(self, b: Any, x: Any) -> Any:
        return b.not_(x)

    def reference(self, x: Array) -> Any:
        return ~x

    def samples(self) -> Iterable[Sample]:
        yield from _logic_samples(Not(), operator.invert)


class Shift(Elementwise):
    """Bits of integers moved by a count of the same type."""

    kinds: ClassVar[tuple[str, ...]] = ("int", "uint")
    arity: ClassVar[int] = 2
    vjp = STEP

    def fold(self, x: Value, y: Value) -> Value | None:
        return x if build.is_splat(y, 0) else None


def _shift_samples(definition: Shift, function: Callable[..., Any] | None) -> Iterable[Sample]:
    for element in (i64, i32, i8, u8):
        x = sampling.array((3, 5), element, 0 if element is u8 else -99, 99)
        yield Sample(definition, (x, sampling.array((3, 5), element, 0, 7, 1)), function)
    yield Sample(definition, (np.array([-5, 7, 9], np.int32), np.array([40, 32, 31], np.int32)))
    yield Sample(definition, (sampling.array((4,), u32, 0, 99), np.array([0, 3, 31, 32], np.uint32)))


class ShiftLeft(Shift):
    """x moved left by y bits; 0 for a count outside the width. Integers. StableHLO `shift_left`."""

    name = "graph.shift_left"

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.shift_left(x, y)

    def reference(self, x: Array, y: Array) -> Any:
        bits = x.dtype.itemsize * 8
        inside = (y >= 0) & (y < bits)
        return np.where(inside, np.left_shift(x, np.where(inside, y, 0).astype(x.dtype)), 0).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        yield from _shift_samples(ShiftLeft(), operator.lshift)


class ShiftRight(Shift):
    """x moved right by y bits, keeping the sign of signed integers; a count outside the width leaves the sign.

    StableHLO `shift_right_arithmetic` and, for unsigned elements, `shift_right_logical`.
    """

    name = "graph.shift_right"

    def element(self, b: Any, x: Any, y: Any) -> Any:
        return b.shift_right(x, y)

    def reference(self, x: Array, y: Array) -> Any:
        bits = x.dtype.itemsize * 8
        inside = (y >= 0) & (y < bits)
        moved = np.right_shift(x, np.where(inside, y, bits - 1).astype(x.dtype))
        return moved if x.dtype.kind == "i" else np.where(inside, moved, 0).astype(x.dtype)

    def samples(self) -> Iterable[Sample]:
        yield from _shift_samples(ShiftRight(), operator.rshift)


class Select(GraphOp):
    """x where the i1 condition holds, else y; the three shapes are equal, x and y of one type. StableHLO `select`."""

    name = "graph.select"

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 3:
            raise self.reject("wrong number of operands", expected=3, actual=len(operands))
        condition, x, y = operands
        if not condition.element.is_bool:
            raise self.reject("the condition must be boolean", expected=i1, actual=condition.element)
        result = same_types(self, (x, y))
        if condition.shape != x.shape:
            raise self.reject("the condition's shape differs", expected=x.shape, actual=condition.shape)
        return result

    def fold(self, condition: Value, x: Value, y: Value) -> Value | None:
        known = build.splat_value(condition)
        if known is not None:
            return x if known else y
        return x if x is y else None

    def element_at(self, b: Any, index: Any, condition: Any, x: Any, y: Any) -> Any:
        return b.select(condition(index), x(index), y(index))

    def vjp(self, ct: Value, condition: Value, x: Value, y: Value, *, result: Value) -> Gradients:
        return None, build.select(condition, ct, 0), build.select(condition, 0, ct)

    def reference(self, condition: Array, x: Array, y: Array) -> Any:
        return np.where(condition, x, y)

    def samples(self) -> Iterable[Sample]:
        for shape, element in (
            ((3, 4), f64),
            ((), f32),
            ((0, 2), f32),
            ((9,), f16),
            ((9,), bf16),
            ((2, 5), i32),
            ((6,), i1),
        ):
            operands = (
                sampling.array(shape, i1),
                sampling.array(shape, element),
                sampling.array(shape, element, seed=1),
            )
            yield Sample(Select(), operands, lambda c, x, y: x.where(c, y))


class Clamp(Elementwise):
    """x limited to [low, high]; NaN if any is. Operands (low, x, high) of one numeric type. StableHLO `clamp`.

    The gradient reaches x where it is inside or on a limit (PyTorch), and the limits where they win.
    """

    name = "graph.clamp"
    arity: ClassVar[int] = 3
    kinds: ClassVar[tuple[str, ...]] = ("float", "int", "uint")

    def element(self, b: Any, low: Any, x: Any, high: Any) -> Any:
        return b.min(b.max(x, low), high)

    def vjp(self, ct: Value, low: Value, x: Value, high: Value, *, result: Value) -> Gradients:
        above = build.gt(x, high)
        below = build.lt(x, low)
        ordered = build.lt(low, high)
        return (
            build.select(build.and_(below, ordered), ct, 0),
            build.select(build.or_(below, above), 0, ct),
            build.select(build.or_(above, build.and_(below, build.not_(ordered))), ct, 0),
        )

    def reference(self, low: Array, x: Array, high: Array) -> Any:
        return np.minimum(np.maximum(x, low), high)

    def samples(self) -> Iterable[Sample]:
        for shape, element in (
            ((3, 4), f64),
            ((), f32),
            ((0,), f32),
            ((9,), f16),
            ((9,), bf16),
            ((2, 5), i32),
        ):
            low, high = np.full(shape, -1, element.numpy), np.full(shape, 1, element.numpy)
            yield Sample(
                Clamp(), (low, sampling.array(shape, element, -3, 3), high), lambda l, x, h: x.clamp(l, h)
            )


class Convert(GraphOp):
    """x in another element type: floats round to nearest even, to integers they truncate, non-zero is true.

    Any shape. StableHLO `convert`. A float outside the integer's range has no defined result.
    """

    name = "graph.convert"
    element: ElementType

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        return operands[0].with_element(self.element)

    def fold(self, x: Value) -> Value | None:
        if build.element_of(x) is self.element:
            return x
        inner = x.owner
        if inner is None or not isinstance(inner.definition, Convert):
            return None
        source = inner.operands[0]
        # A detour through a type that holds every value of the source.
        wider = {
            (bf16, f32),
            (f16, f32),
            (bf16, f64),
            (f16, f64),
            (f32, f64),
            (i1, i8),
            (i8, i32),
            (i32, i64),
        }
        if (build.element_of(source), build.element_of(x)) in wider:
            return build.convert(source, self.element)
        return None

    def element_at(self, b: Any, index: Any, x: Any) -> Any:
        return b.convert(x(index), self.element)

    def vjp(self, ct: Value, x: Value, *, result: Value) -> Gradients:
        source = build.element_of(x)
        return (build.convert(ct, source) if source.is_float and self.element.is_float else None,)

    def reference(self, x: Array) -> Any:
        if self.element.is_bool:
            return x != 0
        with np.errstate(all="ignore"):
            if x.dtype.kind not in "iufb":  # bfloat16 goes through f32, which holds it exactly
                return x.astype(np.float32).astype(self.element.numpy)
            return x.astype(self.element.numpy)

    def samples(self) -> Iterable[Sample]:
        elements = (f64, f32, f16, bf16, i64, i32, i8, u8, i1)
        for source in elements:
            for target in elements:
                low = 0 if u8 in (source, target) else -3
                operand = sampling.array((2, 3), source, low, 3)
                name = target.numpy.name
                yield Sample(
                    Convert(target), (operand,), lambda x, name=name: x.to(_torch_dtype(x, name)), ()
                )
        yield Sample(Convert(f64), (sampling.array((3, 4), f64),), lambda x: x.double())
        yield Sample(Convert(f32), (np.float64(1.5),), lambda x: x.float(), ())
        yield Sample(Convert(f32), (np.zeros((0, 3), np.float16),), lambda x: x.float(), ())


def _torch_dtype(x: Any, name: str) -> Any:
    """torch's dtype of a NumPy name, found through a tensor's module so that torch is not imported here."""
    methods = {
        "bfloat16": "bfloat16",
        "float16": "half",
        "float32": "float",
        "float64": "double",
        "int64": "long",
    }
    methods |= {"int32": "int", "int16": "short", "int8": "char", "uint8": "byte", "bool": "bool"}
    return getattr(x, methods[name])().dtype
