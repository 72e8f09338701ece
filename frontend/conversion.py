"""Other dtypes and devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flambeau import devices, dtypes
from flambeau.compiler.dialects.graph.comparison_logic import Convert
from flambeau.evaluation import record
from flambeau.operands import long_name
from flambeau.tensor import Tensor, method, read, wrap


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
        return f"torch.{long_name(self.dtype.element)}Tensor"
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
