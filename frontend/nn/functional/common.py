"""What the functions of this package share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import ElementType
from flambeau.tensor import Tensor, read, wrap, write


def in_place(target: Tensor, result: Tensor, inplace: bool) -> Tensor:
    """`result`, written into `target` first if asked."""
    return write(target, read(result)) if inplace else result


def each(value: Any, rank: int) -> tuple[int, ...]:
    """One number an axis. RuntimeError for another count."""
    if not isinstance(value, Sequence):
        return (int(value),) * rank
    found = tuple([int(v) for v in value])
    if len(found) == 1:
        return found * rank
    if len(found) != rank:
        raise RuntimeError(f"expected 1 or {rank} numbers, got {len(found)}: {found}")
    return found


def reduced(value: Value, reduction: str, name: str) -> Tensor:
    """A loss an element as `reduction` says: "mean", "sum" or "none". ValueError for another word."""
    if reduction == "mean":
        return wrap(build.reduce_mean(value), name)
    if reduction == "sum":
        return wrap(build.reduce_sum(value), name)
    if reduction == "none":
        return wrap(value, name)
    raise ValueError(f"{reduction} is not a valid value for reduction")


def scaled(value: Value, factor: Value, axis: int) -> Value:
    """`value` times `factor`, which has one number a place of `axis`."""
    return build.mul(value, build.broadcast_along(factor, build.shape_of(value), axis))


def shifted(value: Value, offset: Value, axis: int) -> Value:
    """`value` plus `offset`, which has one number a place of `axis`."""
    return build.add(value, build.broadcast_along(offset, build.shape_of(value), axis))


def floating(tensor: Tensor, operation: str) -> ElementType:
    """The tensor's element type. RuntimeError unless it is a float, in PyTorch's words."""
    element = build.element_of(read(tensor))
    if not element.is_float:
        raise RuntimeError(f"\"{operation}\" not implemented for '{tensor.dtype.name.capitalize()}'")
    return element
