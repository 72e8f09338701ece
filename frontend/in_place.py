"""Methods that write: of elementwise functions, copies, fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flambeau import arithmetic, evaluation, pointwise
from flambeau.compiler.dialects.graph import build
from flambeau.operands import put, value_of
from flambeau.runtime.buffer import copied
from flambeau.tensor import Tensor, method, read, write


def _in_place(function: Callable[..., Tensor], operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` as a method that writes; `operator` is quicker where there is only one more operand."""

    def method_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made = operator if len(args) == 1 and not kwargs else function
        return put(self, read(made(self, *args, **kwargs)))

    method_.__doc__ = f"In place: {function.__doc__}"
    return method_


_FUNCTIONS = {
    arithmetic: "add sub mul div floor_divide remainder fmod pow reciprocal maximum minimum",
    pointwise: (
        "bitwise_and bitwise_or bitwise_xor clamp clamp_min clamp_max lerp addcmul addcdiv exp log sqrt rsqrt sin cos tanh "
        "sigmoid floor ceil round trunc abs neg sign square relu nan_to_num eq ne lt le gt ge erf expm1 log1p"
    ),
}
_OTHER_NAMES = {
    "add": "__iadd__", "sub": "__isub__", "mul": "__imul__", "div": "__itruediv__", "floor_divide": "__ifloordiv__",
    "remainder": "__imod__", "pow": "__ipow__", "bitwise_and": "__iand__", "bitwise_or": "__ior__",
    "bitwise_xor": "__ixor__", "clamp": "clip_",
}  # fmt: skip
_OPERATORS = {"add": "__add__", "sub": "__sub__", "mul": "__mul__", "div": "__truediv__"}

for _module, _names in _FUNCTIONS.items():
    for _name in _names.split():
        _other = [_OTHER_NAMES[_name]] if _name in _OTHER_NAMES else []
        _function = getattr(_module, _name)
        _operator = getattr(Tensor, _OPERATORS[_name]) if _name in _OPERATORS else _function
        method(f"{_name}_", *_other)(_in_place(_function, _operator))


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
