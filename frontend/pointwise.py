"""Elementwise functions beside arithmetic: comparisons, bits, elementary functions, choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flambeau import dtypes, evaluation
from flambeau.arithmetic import add, div, mul, power, scaled, sub
from flambeau.compiler.dialects.graph import build, pointwise_arithmetic
from flambeau.compiler.dialects.graph import comparison_logic as logic
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import record
from flambeau.operands import NUMBERS, broadcast_shapes, deliver, floating, long_name, operands
from flambeau.tensor import Tensor, method, read, wrap


def _compared(direction: str) -> Callable[..., Any]:
    definition = logic.Compare(direction)

    def function(input: Any, other: Any, *, out: Tensor | None = None) -> Any:
        if not isinstance(other, (Tensor, *NUMBERS)):
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
            raise RuntimeError(f"\"{name}\" not implemented for '{long_name(build.element_of(x))}'")
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
    return deliver(record(pointwise_arithmetic.Negate(), x), "Neg", out)


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
    return deliver(power(read(input), 2), "Pow", out)


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
    return add(input, scaled(mul(tensor1, tensor2), value))


@method("addcdiv")
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Any = 1) -> Tensor:
    """input + value * tensor1 / tensor2"""
    return add(input, scaled(div(tensor1, tensor2), value))
