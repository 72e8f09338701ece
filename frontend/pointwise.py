"""Elementwise functions and operators, with PyTorch's promotion and broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flambeau import devices, dtypes, evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph import comparison_logic as logic
from flambeau.compiler.dialects.graph import pointwise_arithmetic as arithmetic
from flambeau.compiler.dialects.graph.comparison_logic import Convert
from flambeau.compiler.dialects.graph.shape import BroadcastInDim
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.evaluation import record
from flambeau.runtime.buffer import copied
from flambeau.tape import Recorded, Rule, location_of, state
from flambeau.tensor import Tensor, fresh, method, read, wrap, write

#: A `Dim` is a size of a tensor whose shape is symbolic: an integer that each run knows.
_NUMBERS = (int, float, bool, np.generic, Dim)


def broadcast_shapes(*shapes: Any) -> tuple[Any, ...]:
    """The shape to which all broadcast. RuntimeError as PyTorch's if there is none."""
    shapes = tuple([(s,) if isinstance(s, int) else s for s in shapes])
    rank = max((len(s) for s in shapes), default=0)
    result: list[Any] = [1] * rank
    for shape in shapes:
        for i in range(1, len(shape) + 1):
            size = shape[-i]
            if size == 1 or size == result[-i]:
                continue
            if result[-i] != 1:
                raise RuntimeError(
                    f"The size of tensor a ({result[-i]}) must match the size of tensor b ({size}) "
                    f"at non-singleton dimension {rank - i}"
                )
            result[-i] = size
    return tuple(result)


_STEPS: dict[Any, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
_REMEMBERED = 1 << 14


def _to(kind: Any, element: ElementType, shape: tuple[Any, ...]) -> tuple[Any, ...]:
    steps: list[Any] = []
    if kind.element is not element:
        steps.append(Convert(element))
    if kind.shape != shape:
        offset = len(shape) - len(kind.shape)
        steps.append(BroadcastInDim(shape, tuple(range(offset, len(shape)))))
    return tuple(steps)


def operands(a: Any, b: Any, floating: bool = False) -> tuple[Value, Value]:
    """Both as values of the promoted element type and the common shape; `floating` makes integers floats."""
    if isinstance(a, Tensor):
        x = read(a)
        if not isinstance(b, Tensor):
            y, weak = _scalar(b, x, floating), 0
        else:
            y, weak = read(b), 3
    elif isinstance(b, Tensor):
        y = read(b)
        x, weak = _scalar(a, y, floating), 1
    else:
        raise TypeError(f"expected a Tensor, got {type(a).__name__} and {type(b).__name__}")
    tx, ty = x.type, y.type
    if tx is ty and not floating:
        return x, y
    key = (tx, ty, weak, floating)
    steps = _STEPS.get(key)
    if steps is None:
        sx, sy = tx.shape, ty.shape  # type: ignore[attr-defined]
        ranks = (0 if weak == 1 else 1 + (len(sx) > 0), 0 if weak == 0 else 1 + (len(sy) > 0))
        element = dtypes.result_element([(tx.element, ranks[0]), (ty.element, ranks[1])])  # type: ignore[attr-defined]
        if floating and not element.is_float:
            element = dtypes.get_default_dtype().element
        shape = broadcast_shapes(sx, sy)
        if len(_STEPS) >= _REMEMBERED:
            _STEPS.clear()
        steps = _STEPS[key] = _to(tx, element, shape), _to(ty, element, shape)
    for definition in steps[0]:
        x = record(definition, x)
    for definition in steps[1]:
        y = record(definition, y)
    return x, y


def _scalar(number: Any, other: Value, floating: bool) -> Value:
    """A Python number in the element type that it takes beside `other`."""
    if not isinstance(number, _NUMBERS):
        raise TypeError(
            f"unsupported operand type: expected a Tensor or a number, got {type(number).__name__}"
        )
    element: ElementType = other.type.element  # type: ignore[attr-defined]
    kind = ir.i64 if isinstance(number, Dim) else dtypes.scalar_element(number)
    if dtypes.category(kind) > dtypes.category(element):
        element = kind
    if floating and not element.is_float:
        element = dtypes.get_default_dtype().element
    return evaluation.number(number, element)


def value_of(x: Any, like: Value) -> Value:
    """A tensor or number as a value of `like`'s type, broadcast and converted (what in-place writes do)."""
    y = read(x) if isinstance(x, Tensor) else evaluation.number(x, build.element_of(like))
    return fit(y, like)


def fit(y: Value, like: Value) -> Value:
    """`y` converted and broadcast to `like`'s type. RuntimeError if its shape does not broadcast to it."""
    if y.type is like.type:
        return y
    shape = build.shape_of(like)
    if broadcast_shapes(build.shape_of(y), shape) != shape:
        raise RuntimeError(
            f"output with shape {list(shape)} doesn't match the broadcast shape "
            f"{list(broadcast_shapes(build.shape_of(y), shape))}"
        )
    for definition in _to(y.type, build.element_of(like), shape):
        y = record(definition, y)
    return y


def put(target: Tensor, result: Value) -> Tensor:
    """Write `result` in place, with PyTorch's check that its dtype can be cast to the target's."""
    like = read(target)
    a, b = build.element_of(result), build.element_of(like)
    if dtypes.category(a) > dtypes.category(b):
        raise RuntimeError(f"result type {_long(a)} can't be cast to the desired output type {_long(b)}")
    result = fit(result, like)
    del like  # what it shows may be written over where nobody has it
    return write(target, result)


_LONG = {
    "f64": "Double",
    "f32": "Float",
    "f16": "Half",
    "bf16": "BFloat16",
    "i64": "Long",
    "i32": "Int",
    "i16": "Short",
}
_LONG |= {"i8": "Char", "ui8": "Byte", "i1": "Bool"}


def _long(element: ElementType) -> str:
    return _LONG[element.name]


def deliver(result: Value, name: str, out: Tensor | None) -> Tensor:
    """A new tensor, or `out` with the result written into it."""
    return wrap(result, name) if out is None else put(out, result)


# -- two operands --------------------------------------------------------------------------------------------------

_ADD, _SUB, _MUL, _DIV = arithmetic.Add(), arithmetic.Subtract(), arithmetic.Multiply(), arithmetic.Divide()


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
        value = Value(self.number)
        value.data = None if flows else self._arrays.get(number)
        if value.data is None:
            value.data = evaluation.array_of(number, self.number.element)
            if not flows:
                if len(self._arrays) > 100:
                    self._arrays.clear()
                self._arrays[number] = value.data
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
            if other == 0 or other == 1:  # rules like to know these
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


def _scaled(b: Any, alpha: Any) -> Any:
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
    return deliver(_add(input, _scaled(other, alpha)), "Add", out)


def _radd(self: Tensor, other: Any) -> Tensor:
    return wrap(_add(self, other), "Add")


@method("sub", "subtract")
def sub(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Tensor:
    """input - alpha * other"""
    return deliver(_sub(input, _scaled(other, alpha)), "Sub", out)


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
        return deliver(_power(x, exponent), "Pow", out)
    return deliver(build.pow(*operands(input, exponent)), "Pow", out)


_times_itself = _operator(_MUL, "Pow", lambda x, _: pow(x, 2))


@method("__pow__")
def _pow(self: Tensor, exponent: Any) -> Tensor:
    return _times_itself(self, self) if exponent.__class__ is int and exponent == 2 else pow(self, exponent)


def _power(x: Value, exponent: Any) -> Value:
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


def _compared(direction: str) -> Callable[..., Any]:
    definition = logic.Compare(direction)

    def function(input: Any, other: Any, *, out: Tensor | None = None) -> Any:
        if not isinstance(other, (Tensor, *_NUMBERS)):
            return NotImplemented
        return deliver(record(definition, *operands(input, other)), "", out)

    function.__doc__ = f"Elementwise comparison {direction}."
    return function


eq = method("eq", "__eq__")(_compared("EQ"))
ne = method("ne", "__ne__", "not_equal")(_compared("NE"))
lt = method("lt", "__lt__", "less")(_compared("LT"))
le = method("le", "__le__", "less_equal")(_compared("LE"))
gt = method("gt", "__gt__", "greater")(_compared("GT"))
ge = method("ge", "__ge__", "greater_equal")(_compared("GE"))


def _bits(make: Callable[[Value, Value], Value], name: str) -> Callable[..., Tensor]:
    def function(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
        x, y = operands(input, other)
        if build.element_of(x).is_float:
            raise RuntimeError(f"\"{name}\" not implemented for '{_long(build.element_of(x))}'")
        return deliver(make(x, y), name, out)

    return function


bitwise_and = method("bitwise_and", "__and__", "__rand__")(_bits(build.and_, "bitwise_and_cpu"))
bitwise_or = method("bitwise_or", "__or__", "__ror__")(_bits(build.or_, "bitwise_or_cpu"))
bitwise_xor = method("bitwise_xor", "__xor__", "__rxor__")(_bits(build.xor, "bitwise_xor_cpu"))


@method("bitwise_left_shift", "__lshift__")
def bitwise_left_shift(input: Any, other: Any) -> Tensor:
    """input << other"""
    return wrap(build.binary("shift_left", *operands(input, other)))


@method("bitwise_right_shift", "__rshift__")
def bitwise_right_shift(input: Any, other: Any) -> Tensor:
    """input >> other"""
    return wrap(build.binary("shift_right", *operands(input, other)))


@method("bitwise_not", "__invert__")
def bitwise_not(input: Tensor) -> Tensor:
    """Complement; logical for booleans."""
    return wrap(build.not_(read(input)))


def _truth(x: Any) -> Value:
    value = read(x)
    return value if build.element_of(value) is ir.i1 else build.ne(value, 0)


def _logical(make: Callable[[Value, Value], Value]) -> Callable[..., Tensor]:
    def function(input: Tensor, other: Tensor) -> Tensor:
        x, y = _truth(input), _truth(other)
        shape = broadcast_shapes(build.shape_of(x), build.shape_of(y))
        return wrap(make(build.broadcast_to(x, shape), build.broadcast_to(y, shape)))

    return function


logical_and = method("logical_and")(_logical(build.and_))
logical_or = method("logical_or")(_logical(build.or_))
logical_xor = method("logical_xor")(_logical(build.xor))


@method("logical_not")
def logical_not(input: Tensor) -> Tensor:
    """True where the element is zero."""
    return wrap(build.not_(_truth(input)))


# -- one operand ---------------------------------------------------------------------------------------------------


def floating(x: Value) -> Value:
    """Integers and booleans in the default dtype."""
    return x if build.element_of(x).is_float else build.convert(x, dtypes.get_default_dtype().element)


def _unary(operation: str, name: str, keep_integers: bool = False) -> Callable[..., Tensor]:
    def function(input: Tensor, *, out: Tensor | None = None) -> Tensor:
        x = read(input)
        if keep_integers and not build.element_of(x).is_float:
            return deliver(x, name, out) if out is not None else wrap(build.unary("copy", x), name)
        return deliver(record(build.op(operation), floating(x)), name, out)

    function.__doc__ = f"`graph.{operation}` of each element; integers become floats."
    return function


exp = method("exp")(_unary("exponential", "Exp"))
exp2 = method("exp2")(_unary("exponential2", "Exp2"))
expm1 = method("expm1")(_unary("exponential_minus_one", "Expm1"))
log = method("log")(_unary("log", "Log"))
log2 = method("log2")(_unary("log2", "Log2"))
log10 = method("log10")(_unary("log10", "Log10"))
log1p = method("log1p")(_unary("log_plus_one", "Log1P"))
sqrt = method("sqrt")(_unary("sqrt", "Sqrt"))
rsqrt = method("rsqrt")(_unary("rsqrt", "Rsqrt"))
sin = method("sin")(_unary("sine", "Sin"))
cos = method("cos")(_unary("cosine", "Cos"))
tan = method("tan")(_unary("tan", "Tan"))
asin = method("asin", "arcsin")(_unary("asin", "Asin"))
acos = method("acos", "arccos")(_unary("acos", "Acos"))
atan = method("atan", "arctan")(_unary("atan", "Atan"))
sinh = method("sinh")(_unary("sinh", "Sinh"))
cosh = method("cosh")(_unary("cosh", "Cosh"))
tanh = method("tanh")(_unary("tanh", "Tanh"))
asinh = method("asinh")(_unary("asinh", "Asinh"))
acosh = method("acosh")(_unary("acosh", "Acosh"))
atanh = method("atanh")(_unary("atanh", "Atanh"))
erf = method("erf")(_unary("erf", "Erf"))
erfc = method("erfc")(_unary("erfc", "Erfc"))
erfinv = method("erfinv")(_unary("erfinv", "Erfinv"))
lgamma = method("lgamma")(_unary("lgamma", "Lgamma"))
digamma = method("digamma")(_unary("digamma", "Digamma"))
sigmoid = method("sigmoid")(_unary("logistic", "Sigmoid"))
floor = method("floor")(_unary("floor", "Floor", True))
ceil = method("ceil")(_unary("ceil", "Ceil", True))
trunc = method("trunc", "fix")(_unary("truncate", "Trunc", True))


@method("round")
def round(input: Tensor, *, decimals: int = 0, out: Tensor | None = None) -> Tensor:
    """To the nearest integer (ties to even), or to `decimals` digits."""
    x = read(input)
    if not build.element_of(x).is_float:
        return deliver(build.unary("copy", x), "Round", out)
    if decimals == 0:
        return deliver(record(build.op("round_nearest_even"), x), "Round", out)
    scale = 10.0 ** abs_(decimals)
    up, down = (build.mul, build.div) if decimals > 0 else (build.div, build.mul)
    return deliver(down(build.unary("round_nearest_even", up(x, scale)), scale), "Round", out)


def abs_(x: Any) -> Any:
    return -x if x < 0 else x


@method("abs", "absolute", "__abs__")
def abs(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The magnitude."""
    return deliver(build.abs(read(input)), "Abs", out)


@method("neg", "__neg__", "negative")
def neg(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """-input"""
    x = read(input)
    if build.element_of(x) is ir.i1:
        raise RuntimeError(
            "Negation, the `-` operator, on a bool tensor is not supported. "
            "If you are trying to invert a mask, use the `~` or `logical_not()` operator instead."
        )
    return deliver(record(arithmetic.Negate(), x), "Neg", out)


@method("__pos__", "positive")
def positive(input: Tensor) -> Tensor:
    """input itself"""
    return input


@method("sign", "sgn")
def sign(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """-1, 0 or 1"""
    x = read(input)
    return deliver(x if build.element_of(x) is ir.i1 else build.sign(x), "Sign", out)


@method("square")
def square(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """input * input"""
    return deliver(_power(read(input), 2), "Pow", out)


@method("reciprocal")
def reciprocal(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    """1 / input"""
    return deliver(build.reciprocal(floating(read(input))), "Reciprocal", out)


@method("relu")
def relu(input: Tensor) -> Tensor:
    """max(input, 0)"""
    return wrap(build.unary("relu", read(input)), "Relu")


@method("isnan")
def isnan(input: Tensor) -> Tensor:
    """Is it NaN?"""
    x = read(input)
    return wrap(
        build.is_nan(x) if build.element_of(x).is_float else build.constant(False, ir.i1, build.shape_of(x))
    )


@method("isinf")
def isinf(input: Tensor) -> Tensor:
    """Is it infinite?"""
    x = read(input)
    if not build.element_of(x).is_float:
        return wrap(build.constant(False, ir.i1, build.shape_of(x)))
    return wrap(build.eq(build.abs(x), math.inf))


@method("isfinite")
def isfinite(input: Tensor) -> Tensor:
    """Neither infinite nor NaN?"""
    x = read(input)
    return wrap(
        build.is_finite(x) if build.element_of(x).is_float else build.constant(True, ir.i1, build.shape_of(x))
    )


@method("nan_to_num")
def nan_to_num(
    input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """NaN and infinities replaced by numbers."""
    x = read(input)
    if not build.element_of(x).is_float:
        return wrap(build.unary("copy", x))
    limits = dtypes.finfo(input.dtype)
    high, low = limits.max if posinf is None else posinf, limits.min if neginf is None else neginf
    x = build.select(build.is_nan(x), build.full_like(x, nan), x)
    x = build.select(build.eq(x, math.inf), build.full_like(x, high), x)
    return wrap(build.select(build.eq(x, -math.inf), build.full_like(x, low), x), "NanToNum")


# -- three operands ------------------------------------------------------------------------------------------------


@method("clamp", "clip")
def clamp(input: Tensor, min: Any = None, max: Any = None, *, out: Tensor | None = None) -> Tensor:
    """Limited to [min, max]; numbers or tensors, either may be None."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    x = read(input)
    for bound, make, outside in ((min, build.maximum, build.lt), (max, build.minimum, build.gt)):
        if bound is None:
            continue
        x, limit = operands(wrap(x), bound)
        if build.element_of(
            x
        ).is_float:  # unlike `maximum`, an element that equals its limit keeps its gradient
            x = build.select(outside(x, limit), limit, x)
        else:
            x = make(x, limit)
    return deliver(
        x, "ClampBackward1" if not isinstance(min, Tensor) and not isinstance(max, Tensor) else "Clamp", out
    )


@method("clamp_min")
def clamp_min(input: Tensor, min: Any) -> Tensor:
    """max(input, min)"""
    return clamp(input, min)


@method("clamp_max")
def clamp_max(input: Tensor, max: Any) -> Tensor:
    """min(input, max)"""
    return clamp(input, None, max)


def where(condition: Tensor, input: Any = None, other: Any = None, *, out: Tensor | None = None) -> Any:
    """`input` where `condition`, else `other`; with the condition alone, its nonzero indices by dimension."""
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)  # type: ignore[attr-defined]
    if not isinstance(input, Tensor) and not isinstance(other, Tensor):
        element = dtypes.promote_elements(dtypes.scalar_element(input), dtypes.scalar_element(other))
        x, y = evaluation.number(input, element), evaluation.number(other, element)
    else:
        x, y = operands(input, other)
    c = _truth(condition)
    shape = broadcast_shapes(build.shape_of(c), build.shape_of(x), build.shape_of(y))
    return deliver(record(logic.Select(), *(build.broadcast_to(v, shape) for v in (c, x, y))), "Where", out)


@method("where")
def _where(self: Tensor, condition: Tensor, other: Any) -> Any:
    return where(condition, self, other)


@method("lerp")
def lerp(input: Tensor, end: Any, weight: Any) -> Tensor:
    """input + weight * (end - input)"""
    return add(input, mul(sub(end, input), weight))


@method("addcmul")
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """input + value * tensor1 * tensor2"""
    return add(input, _scaled(mul(tensor1, tensor2), value))


@method("addcdiv")
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """input + value * tensor1 / tensor2"""
    return add(input, _scaled(div(tensor1, tensor2), value))


# -- in place ------------------------------------------------------------------------------------------------------


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def method_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return put(self, read(function(self, *args, **kwargs)))

    method_.__doc__ = f"In place: {function.__doc__}"
    return method_


for _function, _names in {
    add: ("add_", "__iadd__"), sub: ("sub_", "__isub__"), mul: ("mul_", "__imul__"), div: ("div_", "__itruediv__"),
    floor_divide: ("floor_divide_", "__ifloordiv__"), remainder: ("remainder_", "__imod__"), pow: ("pow_", "__ipow__"),
    bitwise_and: ("bitwise_and_", "__iand__"), bitwise_or: ("bitwise_or_", "__ior__"),
    bitwise_xor: ("bitwise_xor_", "__ixor__"), clamp: ("clamp_", "clip_"), clamp_min: ("clamp_min_",),
    clamp_max: ("clamp_max_",), lerp: ("lerp_",), addcmul: ("addcmul_",), addcdiv: ("addcdiv_",), fmod: ("fmod_",),
    exp: ("exp_",), log: ("log_",), sqrt: ("sqrt_",), rsqrt: ("rsqrt_",), sin: ("sin_",), cos: ("cos_",),
    tanh: ("tanh_",), sigmoid: ("sigmoid_",), floor: ("floor_",), ceil: ("ceil_",), round: ("round_",),
    trunc: ("trunc_",), abs: ("abs_",), neg: ("neg_",), sign: ("sign_",), square: ("square_",), relu: ("relu_",),
    reciprocal: ("reciprocal_",), nan_to_num: ("nan_to_num_",), eq: ("eq_",), ne: ("ne_",), lt: ("lt_",), le: ("le_",),
    gt: ("gt_",), ge: ("ge_",), maximum: ("maximum_",), minimum: ("minimum_",), erf: ("erf_",), expm1: ("expm1_",),
    log1p: ("log1p_",),
}.items():  # fmt: skip
    method(*_names)(_in_place(_function))


@method("copy_")
def copy_(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Write `src`, broadcast and converted."""
    like = read(self)
    value = value_of(src, like)
    if value.data is not None and not value.requires_grad:
        # Now, rather than late: the program may write to the source's array, and need not keep it until then.
        value = evaluation.leaf(copied(value.data), build.element_of(value))
    return write(self, value)


@method("fill_")
def fill_(self: Tensor, value: Any) -> Tensor:
    """Write one number everywhere."""
    like = read(self)
    if isinstance(value, Tensor) and value.ndim > 0:
        raise RuntimeError(
            f"fill_ only supports 0-dimension value tensor but got tensor with {value.ndim} dimensions."
        )
    return write(self, value_of(value, like), 0 not in build.shape_of(like))


@method("zero_")
def zero_(self: Tensor) -> Tensor:
    """Write zeros."""
    return fill_(self, 0)


# -- conversion ----------------------------------------------------------------------------------------------------


@method("to")
def to(
    self: Tensor, *args: Any, dtype: Any = None, device: Any = None, copy: bool = False, **_: Any
) -> Tensor:
    """In another dtype or on another device; itself if nothing changes."""
    for arg in args:
        if isinstance(arg, dtypes.dtype):
            dtype = arg
        elif isinstance(arg, Tensor):
            dtype = arg.dtype
        elif not isinstance(arg, bool) and arg is not None:
            device = arg
    devices.check(device)
    if dtype is None or dtype is self.dtype:
        return self.clone() if copy else self  # type: ignore[attr-defined, no-any-return]
    return wrap(record(Convert(dtype.element), read(self)), "ToCopy")


@method("type")
def type_(self: Tensor, dtype: Any = None) -> Any:
    """The name of its dtype, or itself in another."""
    if dtype is None:
        return f"torch.{_long(self.dtype.element)}Tensor"
    return to(self, dtype)


@method("type_as")
def type_as(self: Tensor, other: Tensor) -> Tensor:
    """In `other`'s dtype."""
    return to(self, other.dtype)


def _convert(target: dtypes.dtype) -> Callable[[Tensor], Tensor]:
    return lambda self, *args, **kwargs: to(self, target)  # type: ignore[misc]


for _names, _target in {
    ("float",): dtypes.float32, ("double",): dtypes.float64, ("half",): dtypes.float16, ("bfloat16",): dtypes.bfloat16,
    ("int",): dtypes.int32, ("long",): dtypes.int64, ("short",): dtypes.int16, ("char",): dtypes.int8,
    ("byte",): dtypes.uint8, ("bool",): dtypes.bool_,
}.items():  # fmt: skip
    method(*_names)(_convert(_target))


@method("cpu")
def cpu(self: Tensor) -> Tensor:
    """Itself."""
    return self


@method("cuda")
def cuda(self: Tensor, device: Any = None) -> Tensor:
    """RuntimeError: there is no CUDA device."""
    return to(self, device=device or "cuda")


def result_type(a: Any, b: Any) -> dtypes.dtype:
    """The dtype that an operation on both would have."""
    ranked = [
        (x.dtype.element, 1 + (x.ndim > 0)) if isinstance(x, Tensor) else (dtypes.scalar_element(x), 0)
        for x in (a, b)
    ]
    return dtypes.of_element[dtypes.result_element(ranked)]
