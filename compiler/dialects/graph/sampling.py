"""Arrays and sets of samples that operations declare; deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.ir.types import ElementType, bf16, f16, f32, f64, i8, i32, i64, u8

Array = np.ndarray[Any, Any]


def array(
    shape: tuple[int, ...], element: ElementType = f64, low: float = -2, high: float = 2, seed: int = 0
) -> Array:
    """Numbers in [low, high), no two alike and at least a 1/(4n) of the range apart, in a scrambled order.

    Being spread out keeps gradient checks away from ties; for integers they are drawn with repetition.
    """
    random = np.random.default_rng(1000 + seed)
    count = int(np.prod(shape, dtype=np.int64))
    if element.is_bool:
        return random.integers(0, 2, shape).astype(np.bool_)
    if element.is_integer:
        return random.integers(int(low), int(high), shape).astype(element.numpy)
    steps = (np.arange(count) + random.uniform(0.125, 0.875, count)) / max(count, 1)
    values: Array = random.permutation(low + (high - low) * steps).reshape(shape)
    return values.astype(element.numpy)


def unary(
    definition: GraphOp, torch: Callable[..., Any] | None, low: float = -2, high: float = 2
) -> Iterator[Sample]:
    """Float samples of an operation on one operand: f64, scalar, size 1, empty, halves."""
    for shape, element in (((3, 4), f64), ((), f32), ((5, 1), f32), ((0, 3), f32), ((7,), f16), ((9,), bf16)):
        yield Sample(definition, (array(shape, element, low, high),), torch)


def binary(
    definition: GraphOp, torch: Callable[..., Any] | None, low: float = -2, high: float = 2
) -> Iterator[Sample]:
    """Float samples of an operation on two operands."""
    for shape, element in (((3, 4), f64), ((), f32), ((2, 1), f32), ((0,), f32), ((7,), f16), ((9,), bf16)):
        yield Sample(
            definition, (array(shape, element, low, high), array(shape, element, low, high, 1)), torch
        )


def integers(
    definition: GraphOp, torch: Callable[..., Any] | None, arity: int, low: int = -9, high: int = 9
) -> Iterator[Sample]:
    """Integer samples: signed words and bytes, and unsigned bytes; the last operand has no zeros."""
    for element in (i64, i32, i8, u8):
        least = low if element.kind == "int" else 0
        operands = [array((3, 5), element, least, high, seed) for seed in range(arity)]
        operands[-1] = np.where(operands[-1] == 0, element.numpy.type(3), operands[-1])
        yield Sample(definition, tuple(operands), torch)
