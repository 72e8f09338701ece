"""Arithmetic of two operands, as functions, methods and operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flambeau import dtypes, evaluation
from flambeau.compiler.dialects.graph import build, pointwise_arithmetic
from flambeau.compiler.dialects.graph import comparison_logic as logic
from flambeau.compiler.dialects.graph.shape import BroadcastInDim
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.types import TensorType
from flambeau.evaluation import record
from flambeau.operands import deliver, floating, operands
from flambeau.tape import Recorded, Rule, location_of, state
from flambeau.tensor import Tensor, fresh, method, read, wrap

_ADD, _SUB, _MUL, _DIV = (
    pointwise_arithmetic.Add(),
    pointwise_arithmetic.Subtract(),
    pointwise_arithmetic.Multiply(),
    pointwise_arithmetic.Divide(),
)
#: Of these, adding one is nothing special.
_SUMS = (_ADD, _SUB)


class _WithNumber(Rule):
    """An operation on a floating tensor and a number, which is broadcast: one value to record instead of two."""

    __slots__ = ("definition", "broadcast", "number", "first", "_arrays")

    def __init__(self, definition: Any, type_: TensorType, first: bool) -> None:
        self.definition, self.first = definition, first
        self.types = (type_,)
        self.broadcast = BroadcastInDim(type_.shape, ())
        self.number = ir.tensor((), type_.element)
        self._arrays: dict[Any, Any] = {}

    def value(self, number: float, flows: bool) -> Value:
        """A number, as an input of the program. Numbers that come again share their memory, but not where derivatives flow:
        a gradient may be the number itself, and is the user's."""
        array = None if flows else self._arrays.get(number)
        if array is None:
            array = evaluation.array_of(number, self.number.element)
            if not flows:
                if len(self._arrays) > 100:
                    self._arrays.clear()
                self._arrays[number] = array
        value = Value(self.number)
        value.data = array
        return value

    def operation(self, value: Recorded) -> Operation:
        x, number = value.sources
        place = location_of(value.place)
        if x.type is not number.type:
            number = Operation(self.broadcast, (number,), self.types, place).result
        operands = (number, x) if self.first else (x, number)
        return Operation(self.definition, operands, self.types, place, results=(value,))


def _operator(definition: Any, name: str, function: Callable[[Any, Any], Tensor], first: bool = False) -> Any:
    """`function` as an operator: the frequent cases in few frames, all others as they are. `first`: a number comes first,
    as the operator of its right side."""
    rules: dict[Any, _WithNumber] = {}

    def operator(self: Tensor, other: Any) -> Any:
        now = state.now
        if now.trace is not None:
            return function(self, other)
        kind = other.__class__
        x = self._cell.value if self._chain is None and self._cell.parent is None else read(self)
        rule: Any = definition
        if kind is float or kind is int:
            rule = rules.get(x.type)
            if rule is None:
                if x.type.element.kind != "float":  # type: ignore[attr-defined]
                    return function(self, other)
                if len(rules) > 1000:
                    rules.clear()
                rule = rules[x.type] = _WithNumber(definition, x.type, first)  # type: ignore[arg-type]
            if other == 0 or (other == 1 and definition not in _SUMS):  # rules like to know these
                return function(self, other)
            flows = now.grad and x.requires_grad
            y = rule.value(other, flows)
        elif isinstance(other, Tensor):
            y = other._cell.value if other._chain is None and other._cell.parent is None else read(other)
            if y.type is not x.type or x.type.element is ir.i1:  # type: ignore[attr-defined]
                return function(self, other)
            flows = now.grad and (x.requires_grad or y.requires_grad)
        else:
            return function(self, other)
        value = now.apply_pair(rule, x, y, flows)
        if flows:
            value.hooks = name
        return fresh(now, value)

    return operator


def scaled(b: Any, alpha: Any) -> Any:
    return b if alpha == 1 else mul(b, alpha) if isinstance(b, Tensor) else b * alpha


def _add(a: Any, b: Any) -> Value:
    x, y = operands(a, b)
    return record(_ADD if build.element_of(x) is not ir.i1 else logic.Or(), x, y)


def _sub(a: Any, b: Any) -> Value:
    x, y = operands(a, b)
    if build.element_of(x) is ir.i1:
        raise RuntimeError(
            "Subtraction, the `-` operator, with two bool tensors is not supported. "
            "Use the `^` or `logical_xor()` operator instead."
        )
    return record(_SUB, x, y)


def _mul(a: Any, b: Any) -> Value:
    x, y = operands(a, b)
    return record(_MUL if build.element_of(x) is not ir.i1 else logic.And(), x, y)


def _div(a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return record(_DIV, *operands(a, b, True))
    x, y = operands(a, b)
    if rounding_mode == "floor":
        return build.floor_div(x, y)
    if rounding_mode == "trunc":
        quotient = build.div(x, y)
        return build.trunc(quotient) if build.element_of(x).is_float else quotient
    raise RuntimeError(
        f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found '{rounding_mode}'"
    )


@method("add")
def add(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """input + alpha * other"""
    return deliver(_add(input, scaled(other, alpha)), "Add", out)


def _radd(self: Tensor, other: Any) -> Tensor:
    return wrap(_add(self, other), "Add")


@method("sub", "subtract")
def sub(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """input - alpha * other"""
    return deliver(_sub(input, scaled(other, alpha)), "Sub", out)


def _rsub(self: Tensor, other: Any) -> Tensor:
    return wrap(_sub(other, self), "RsubBackward1" if not isinstance(other, Tensor) else "Rsub")


@method("mul", "multiply")
def mul(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    """input * other"""
    return deliver(_mul(input, other), "Mul", out)


@method("div", "true_divide", "divide")
def div(input: Any, other: Any, *, rounding_mode: str | None = None, out: Tensor | None = None) -> Tensor:
    """input / other; integers become floats unless `rounding_mode` is "floor" or "trunc"."""
    return deliver(_div(input, other, rounding_mode), "Div", out)


method("__add__")(_operator(_ADD, "Add", add))
method("__radd__")(_operator(_ADD, "Add", _radd))
method("__sub__")(_operator(_SUB, "Sub", sub))
method("__rsub__")(_operator(_SUB, "RsubBackward1", _rsub, True))
method("__mul__")(_operator(_MUL, "Mul", mul))
method("__rmul__")(_operator(_MUL, "Mul", mul))
method("__truediv__")(_operator(_DIV, "Div", div))


@method("reciprocal")
def reciprocal(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """1 / input"""
    return deliver(build.reciprocal(floating(read(input))), "Reciprocal", out)


@method("__rtruediv__")
def _rdiv(self: Tensor, other: Any) -> Tensor:
    return mul(reciprocal(self), other)


@method("floor_divide", "__floordiv__")
def floor_divide(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    """Quotient rounded down."""
    return deliver(_div(input, other, "floor"), "FloorDivide", out)


@method("__rfloordiv__")
def _rfloordiv(self: Tensor, other: Any) -> Tensor:
    return floor_divide(other, self)


@method("remainder", "__mod__")
def remainder(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    """Python's %: the sign of `other`."""
    return deliver(build.floor_mod(*operands(input, other)), "Remainder", out)


@method("__rmod__")
def _rmod(self: Tensor, other: Any) -> Tensor:
    return remainder(other, self)


@method("fmod")
def fmod(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    """C's fmod: the sign of `input`."""
    return deliver(build.rem(*operands(input, other)), "Fmod", out)


@method("pow")
def pow(input: Any, exponent: Any, *, out: Tensor | None = None) -> Tensor:
    """input to the power of exponent; small whole exponents become products."""
    if isinstance(input, Tensor) and not isinstance(exponent, Tensor):
        x = read(input)
        if isinstance(exponent, float) and not build.element_of(x).is_float:
            x = build.convert(x, dtypes.get_default_dtype().element)
        if not build.element_of(x).is_float and exponent < 0:
            raise RuntimeError("Integers to negative integer powers are not allowed.")
        return deliver(power(x, exponent), "Pow", out)
    return deliver(build.pow(*operands(input, exponent)), "Pow", out)


_times_itself = _operator(_MUL, "Pow", lambda x, _: pow(x, 2))


@method("__pow__")
def _pow(self: Tensor, exponent: Any) -> Tensor:
    return _times_itself(self, self) if exponent.__class__ is int and exponent == 2 else pow(self, exponent)


def power(x: Value, exponent: Any) -> Value:
    element = build.element_of(x)
    if exponent == 0:
        return build.ones_like(x)
    if exponent == 1:
        return x
    if element is ir.i1:
        x = build.convert(x, ir.i64)
    if exponent == 2:
        return record(_MUL, x, x)
    if exponent == 3:
        return record(_MUL, record(_MUL, x, x), x)
    if element.is_float and exponent == 0.5:
        return build.sqrt(x)
    if element.is_float and exponent == -1:
        return build.reciprocal(x)
    if isinstance(exponent, int) and element.is_float:
        return build.pow(x, exponent)
    return build.pow(*build.pair(x, evaluation.number(exponent, build.element_of(x))))


@method("__rpow__")
def _rpow(self: Tensor, other: Any) -> Tensor:
    return pow(other, self)


def _binary(
    name: str, make: Callable[[Value, Value], Value], doc: str, floating: bool = False
) -> Callable[..., Tensor]:
    def function(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
        return deliver(make(*operands(input, other, floating)), name, out)

    function.__doc__ = doc
    return function


maximum = method("maximum")(_binary("Maximum", build.maximum, "The larger of two; NaN wins."))
minimum = method("minimum")(_binary("Minimum", build.minimum, "The smaller of two; NaN wins."))
atan2 = method("atan2", "arctan2")(
    _binary("Atan2", build.atan2, "The angle of the point (other, input).", True)
)
