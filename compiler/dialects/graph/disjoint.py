"""Sums of parts that do not overlap are one value joined together: what gradients of slices and `unbind` add up to."""

from __future__ import annotations

from flambeau.compiler.dialects.graph.shape import Concatenate, Pad, Reshape, Transpose
from flambeau.compiler.ir.core import Operation, Value, apply
from flambeau.compiler.ir.types import TensorType


def joined(x: Value, y: Value) -> Value | None:
    """``x + y`` where both are paddings by zeros, moved in the same way, whose parts are neighbours along one axis; else
    None."""
    if (
        x.definition is None or y.definition is None
    ):  # before their operations are asked for, which may have to be made
        return None
    a, b = x.owner, y.owner
    assert a is not None and b is not None
    if a.definition is b.definition and isinstance(a.definition, Reshape | Transpose):
        (inner_x,), (inner_y,) = a.operands, b.operands
        if inner_x.type is not inner_y.type:
            return None
        inner = joined(inner_x, inner_y)
        return None if inner is None else apply(a.definition, inner)
    left, right = _padded_axis(a), _padded_axis(b)
    if left is None or left != right:
        return None
    if _end(a, left) == _start(b, left):
        return _join(a, b, left)
    return _join(b, a, left) if _end(b, left) == _start(a, left) else None


def _padded_axis(operation: Operation) -> int | None:
    """The only axis along which a value is padded, by zeros."""
    pad = operation.definition
    if not isinstance(pad, Pad) or pad.value != 0 or any(pad.interior):
        return None
    axes = [axis for axis, ends in enumerate(zip(pad.low, pad.high, strict=True)) if ends != (0, 0)]
    return axes[0] if len(axes) == 1 else None


def _start(operation: Operation, axis: int) -> object:
    assert isinstance(operation.definition, Pad)
    return operation.definition.low[axis]


def _end(operation: Operation, axis: int) -> object:
    (part,) = operation.operands
    assert isinstance(operation.definition, Pad) and isinstance(part.type, TensorType)
    return operation.definition.low[axis] + part.type.shape[axis]


def _join(first: Operation, second: Operation, axis: int) -> Value:
    low, high = first.definition, second.definition
    assert isinstance(low, Pad) and isinstance(high, Pad)
    parts: list[Value] = []
    for (part,) in (first.operands, second.operands):
        inner = part.owner
        if inner is not None and inner.definition is Concatenate(axis):
            parts.extend(inner.operands)
        else:
            parts.append(part)
    both = apply(Concatenate(axis), *parts)
    return apply(Pad(low.low, high.high, low.interior), both)
