"""Sorting along an axis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build, sampling
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import TensorType, bf16, f16, f32, f64, i1, i32, i64, u8

Array = np.ndarray[Any, Any]


class Sort(GraphOp):
    """(x sorted along `dimension`, the i64 position in x of each sorted element); stable, NaN counts as the largest.

    Any element type; both results have the shape of x. StableHLO `sort` of x and its positions with a fixed comparator.
    """

    name = "graph.sort"
    schedule_family: ClassVar[str] = "sort"
    dimension: int
    descending: bool = False

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        if len(operands) != 1:
            raise self.reject("wrong number of operands", expected=1, actual=len(operands))
        (x,) = operands
        if not 0 <= self.dimension < x.rank:
            raise self.reject("dimension out of range", expected=f"0 to {x.rank - 1}", actual=self.dimension)
        return x, x.with_element(i64)

    def before(self, b: Any, x: Any, y: Any) -> Any:
        """i1: must `x` come before `y` for a reason other than being first already? For lowerings."""
        if x.element.is_bool:
            x, y = b.convert(x, u8), b.convert(y, u8)
        low, high = (y, x) if self.descending else (x, y)
        less = b.compare("LT", low, high)
        if not x.element.is_float:
            return less
        return b.or_(less, b.and_(b.compare("EQ", low, low), b.compare("NE", high, high)))

    def vjp(
        self, ct: tuple[Value | None, ...], x: Value, *, result: tuple[Value, ...]
    ) -> tuple[Value | None, ...]:
        if ct[0] is None:
            return (None,)
        return (build.scatter_along(build.zeros_like(x), result[1], ct[0], self.dimension),)

    def reference(self, x: Array) -> Any:
        axis = self.dimension
        keys = x if x.dtype.kind in "iu" else x.astype(np.int8 if x.dtype.kind == "b" else np.float64)
        if self.descending:
            # Sorting the reversed keys ascending and reversing again keeps equal keys in order.
            order = np.flip(np.argsort(np.flip(keys, axis), axis, kind="stable"), axis)
            order = x.shape[axis] - 1 - order
        else:
            order = np.argsort(keys, axis, kind="stable")
        return np.take_along_axis(x, order, axis), np.ascontiguousarray(order).astype(np.int64)

    def samples(self) -> Iterable[Sample]:
        for descending in (False, True):

            def torch(x: Any, axis: int = 0, d: bool = descending) -> Any:
                return x.sort(dim=axis, descending=d, stable=True)

            for shape, axis, element in (
                ((3, 5), 1, f64),
                ((4, 3), 0, f32),
                ((2, 131), 1, f32),
                ((1,), 0, f32),
                ((0, 2), 0, f32),
                ((7,), 0, f16),
                ((2, 6), 1, bf16),
                ((12,), 0, i32),
                ((9,), 0, u8),
                ((6,), 0, i1),
            ):
                operand = sampling.array(shape, element, 0 if element is u8 else -4, 4)
                yield Sample(Sort(axis, descending), (operand,), lambda x, a=axis, f=torch: f(x, a))
            special = np.array([2, np.nan, -np.inf, 2, np.inf, np.nan], np.float32)
            yield Sample(Sort(0, descending), (special,), torch, ())
