"""Data types and PyTorch's promotion between them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.types import ElementType


class dtype:
    """A data type as users see it; `element` is the compiler's. One instance a type, compared by identity."""

    __slots__ = ("name", "element", "order")

    def __init__(self, name: str, element: ElementType, order: int) -> None:
        self.name, self.element, self.order = name, element, order

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return by_name, (self.name,)

    @property
    def is_floating_point(self) -> bool:
        return self.element.is_float

    @property
    def is_complex(self) -> bool:
        return False

    @property
    def is_signed(self) -> bool:
        return self.element.kind in ("int", "float")

    @property
    def itemsize(self) -> int:
        return self.element.itemsize

    @property
    def numpy(self) -> np.dtype[Any]:
        return self.element.numpy


bool_ = dtype("bool", ir.i1, 0)
uint8 = dtype("uint8", ir.u8, 1)
int8 = dtype("int8", ir.i8, 1)
int16 = short = dtype("int16", ir.i16, 2)
int32 = int_ = dtype("int32", ir.i32, 3)
int64 = long = dtype("int64", ir.i64, 4)
float16 = half = dtype("float16", ir.f16, 5)
bfloat16 = dtype("bfloat16", ir.bf16, 5)
float32 = float_ = dtype("float32", ir.f32, 6)
float64 = double = dtype("float64", ir.f64, 7)

ALL = (bool_, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64)
_BY_NAME = {d.name: d for d in ALL}
of_element = {d.element: d for d in ALL}
_ABSORBS = {"bool": 0, "int": 1, "uint": 1, "float": 2}


def by_name(name: str) -> dtype:
    """The dtype called `name`. KeyError if there is none."""
    return _BY_NAME[name]


_default = float32


def get_default_dtype() -> dtype:
    """The dtype of floating tensors made from Python numbers."""
    return _default


def set_default_dtype(d: dtype) -> None:
    """Sets what `get_default_dtype` returns. TypeError unless it is a floating dtype."""
    global _default
    if not d.is_floating_point:
        raise TypeError(f"only floating-point types are supported as the default type, got {d}")
    _default = d


def promote_elements(a: ElementType, b: ElementType) -> ElementType:
    """The element type to which both convert, by PyTorch's table."""
    if a is b:
        return a
    x, y = of_element[a], of_element[b]
    if x.order == y.order:  # (uint8, int8) and (float16, bfloat16) meet one step up
        return ir.i16 if x.order == 1 else ir.f32
    return a if x.order > y.order else b


def promote_types(a: dtype, b: dtype) -> dtype:
    """The dtype to which both convert, by PyTorch's table."""
    return of_element[promote_elements(a.element, b.element)]


def category(element: ElementType) -> int:
    """0 for bool, 1 for integers, 2 for floats: the order in which PyTorch's categories win."""
    return _ABSORBS[element.kind]


def scalar_element(number: Any) -> ElementType:
    """The element type of a Python number on its own."""
    if isinstance(number, (bool, np.bool_)):
        return ir.i1
    if isinstance(number, (int, np.integer)):
        return ir.i64
    if isinstance(number, (float, np.floating)):
        return _default.element
    raise TypeError(f"expected a number, got {type(number).__name__}")


def result_element(operands: list[tuple[ElementType, int]]) -> ElementType:
    """PyTorch's promotion of (element, priority): 2 for tensors with dimensions, 1 for 0-d tensors, 0 for numbers."""
    best: dict[int, ElementType] = {}
    for element, priority in operands:
        best[priority] = element if priority not in best else promote_elements(best[priority], element)
    ranked = [best[p] for p in (2, 1, 0) if p in best]
    result = ranked[0]
    for lower in ranked[1:]:
        if category(lower) > category(result):
            result = lower
    return result


class finfo:
    """Limits of a floating dtype (the default one if none is given)."""

    def __init__(self, type: dtype | None = None) -> None:
        d = type or _default
        info = ml_dtypes.finfo(d.numpy)
        self.bits, self.dtype = int(info.bits), d.name
        self.eps, self.max, self.min = float(info.eps), float(info.max), float(info.min)
        self.tiny = self.smallest_normal = float(info.smallest_normal)
        self.resolution = float(info.resolution)


class iinfo:
    """Limits of an integer dtype."""

    def __init__(self, type: dtype) -> None:
        info = np.iinfo(type.numpy)
        self.bits, self.max, self.min, self.dtype = info.bits, int(info.max), int(info.min), type.name
