"""Runs hand-built loop-level functions on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.targets.cpu import compile_functions, has_avx512, has_fma
from flambeau.compiler.targets.machine import host_target
from flambeau.runtime.engine import default_engine


def new_builder() -> LoopBuilder:
    """A builder for this machine."""
    target = host_target()
    return LoopBuilder(fma=has_fma(target), avx512=has_avx512(target))


def aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy whose data start at a multiple of 64."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def compiled(
    builder: LoopBuilder, name: str, opt_level: int = 3, symbols: dict[str, int] | None = None
) -> Callable[..., None]:
    """The function `name`, callable with arrays (aligned), ints (i64), floats (f64), np.float32 and ctypes pointers."""
    code = compile_functions(builder.functions, host_target(), opt_level)
    loaded = default_engine().add_object(code, exports=[name], symbols=symbols)

    def call(*arguments: Any) -> None:
        converted, types = [], []
        for a in arguments:
            if isinstance(a, np.ndarray):
                assert a.size == 0 or a.ctypes.data % 64 == 0
                types.append(ctypes.c_void_p)
                converted.append(a.ctypes.data)
            elif isinstance(a, np.float32):
                types.append(ctypes.c_float)
                converted.append(float(a))
            elif isinstance(a, float):
                types.append(ctypes.c_double)
                converted.append(a)
            elif a is None or isinstance(a, ctypes.c_void_p):
                types.append(ctypes.c_void_p)
                converted.append(a)
            else:
                types.append(ctypes.c_int64)
                converted.append(int(a))
        ctypes.CFUNCTYPE(None, *types)(loaded.address(name))(*converted)

    call.loaded = loaded  # type: ignore[attr-defined]
    return call
