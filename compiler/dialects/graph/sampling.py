"""Arrays and sets of samples that operations declare; deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.ir.types import ElementType, bf16, f16, f32, f64, i8, i16, i32, i64, u8

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


#: f64, scalar, size 1, more than any vector with a rest, empty, halves.
_FLOATS = (((3, 4), f64), ((), f32), ((2, 1), f32), ((3, 67), f32), ((0, 3), f32), ((7,), f16), ((41,), bf16))
#: What IEEE 754 treats apart.
SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e30, -1e30, 1e-42], np.float32
)


def unary(
    definition: GraphOp, torch: Callable[..., Any] | None, low: float = -2, high: float = 2
) -> Iterator[Sample]:
    """Float samples of an operation on one operand, and the special numbers in f32 and f64."""
    for shape, element in _FLOATS:
        yield Sample(definition, (array(shape, element, low, high),), torch)
    yield Sample(definition, (SPECIAL,), torch, ())
    yield Sample(definition, (SPECIAL.astype(np.float64),), torch, ())


def binary(
    definition: GraphOp, torch: Callable[..., Any] | None, low: float = -2, high: float = 2
) -> Iterator[Sample]:
    """Float samples of an operation on two operands."""
    for shape, element in _FLOATS:
        operands = array(shape, element, low, high), array(shape, element, low, high, 1)
        yield Sample(definition, operands, torch)
    every, other = (np.ascontiguousarray(a) for a in np.meshgrid(SPECIAL, SPECIAL))
    yield Sample(definition, (every, other), torch, ())


def own_special(samples: Iterable[Sample]) -> Iterator[Sample]:
    """For operations that treat the special numbers otherwise than PyTorch: these samples lose their counterpart."""
    for sample in samples:
        yield replace(sample, torch=None) if sample.differentiable == () else sample


def integers(
    definition: GraphOp, torch: Callable[..., Any] | None, arity: int, low: int = -9, high: int = 9
) -> Iterator[Sample]:
    """Integer samples: signed words and bytes, and unsigned bytes; the last operand has no zeros."""
    for element in (i64, i32, i16, i8, u8):
        least = low if element.kind == "int" else 0
        operands = [array((3, 23), element, least, high, seed) for seed in range(arity)]
        operands[-1] = np.where(operands[-1] == 0, element.numpy.type(3), operands[-1])
        yield Sample(definition, tuple(operands), torch)
