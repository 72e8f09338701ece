"""LLVM's spelling of types and numbers."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.loops.base import scalar_of
from flambeau.compiler.ir.types import (
    ElementType,
    IndexType,
    MemRefType,
    PointerType,
    Type,
    VectorType,
    bf16,
    f16,
    f32,
    f64,
    i1,
)

_FLOATS = {f64: "double", f32: "float", f16: "half", bf16: "bfloat"}
_TYPES: dict[Type, str] = {}
_SUFFIXES: dict[Type, str] = {}


def llvm_type(type: Type) -> str:
    """The LLVM type of a value in a register."""
    found = _TYPES.get(type)
    if found is None:
        found = _TYPES[type] = _llvm_type(type)
    return found


def _llvm_type(type: Type) -> str:
    if isinstance(type, VectorType):
        return f"<{type.shape[0]} x {llvm_type(type.element)}>"
    if isinstance(type, ElementType):
        return _FLOATS.get(type) or f"i{type.bits}"
    if isinstance(type, IndexType):
        return "i64"
    if isinstance(type, MemRefType | PointerType):
        return "ptr"
    raise CompilationError(f"no LLVM type for {type}")


def suffix(type: Type) -> str:
    """How intrinsics' names spell a type: ``v8f32``."""
    found = _SUFFIXES.get(type)
    if found is None:
        scalar = scalar_of(type)
        if isinstance(scalar, IndexType):
            text = "i64"
        elif isinstance(scalar, ElementType):
            text = scalar.name if scalar.is_float else f"i{scalar.bits}"
        else:
            text = "p0"
        found = _SUFFIXES[type] = f"v{type.shape[0]}{text}" if isinstance(type, VectorType) else text
    return found


def literal(value: float | int, type: Type) -> str:
    """A number in LLVM's spelling; for a vector type, in every lane."""
    if isinstance(type, VectorType):
        inner = literal(value, type.element)
        return f"splat ({llvm_type(type.element)} {inner})"
    if isinstance(type, ElementType) and type.is_float:
        return _float_literal(float(value), type)
    if type is i1:
        return "true" if value else "false"
    return str(int(value))


def _float_literal(value: float, type: ElementType) -> str:
    if type is f64:
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    if type is f32:
        with np.errstate(over="ignore"):
            rounded = float(np.float32(value))
        return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
    if type is f16:
        with np.errstate(over="ignore"):
            return f"0xH{int(np.float16(value).view(np.uint16)):04X}"
    return f"0xR{int(np.asarray(value, ml_dtypes.bfloat16).view(np.uint16)):04X}"


def memory_type(type: Type) -> str:
    """The LLVM type of a value in memory: booleans take a byte, 16-bit floats are words of so many bits.

    (Where LLVM takes a masked access of such floats apart, it would convert each to f32 and back by functions of a library.)
    """
    scalar = scalar_of(type)
    name = "i8" if scalar is i1 else "i16" if scalar is f16 or scalar is bf16 else ""
    if not name:
        return llvm_type(type)
    return f"<{type.shape[0]} x {name}>" if isinstance(type, VectorType) else name


def alignment(type: Type) -> int:
    """Natural alignment in bytes of an element in memory."""
    scalar = scalar_of(type)
    return scalar.itemsize if isinstance(scalar, ElementType) else 8
