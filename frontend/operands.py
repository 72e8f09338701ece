"""What operators make of their operands: PyTorch's promotion and broadcasting, and where results go."""

from __future__ import annotations

from typing import Any

import numpy as np

from flambeau import dtypes, evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.comparison_logic import Convert
from flambeau.compiler.dialects.graph.shape import BroadcastInDim
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import ElementType
from flambeau.evaluation import record
from flambeau.tensor import Tensor, read, wrap, write

#: A `Dim` is a size of a tensor whose shape is symbolic: an integer that each run knows.
NUMBERS = (int, float, bool, np.generic, Dim)


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
    if not isinstance(number, NUMBERS):
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


def floating(x: Value) -> Value:
    """Integers and booleans in the default dtype."""
    return x if build.element_of(x).is_float else build.convert(x, dtypes.get_default_dtype().element)


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
    if result.type is not like.type:
        a, b = build.element_of(result), build.element_of(like)
        if dtypes.category(a) > dtypes.category(b):
            raise RuntimeError(
                f"result type {long_name(a)} can't be cast to the desired output type {long_name(b)}"
            )
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


def long_name(element: ElementType) -> str:
    return _LONG[element.name]


def deliver(result: Value, name: str, out: Tensor | None) -> Tensor:
    """A new tensor, or `out` with the result written into it."""
    return wrap(result, name) if out is None else put(out, result)
