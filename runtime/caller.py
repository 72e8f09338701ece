"""Calling an entry from Python in a tenth of a microsecond: a function of CPython's calling convention, as LLVM IR.

What `ctypes` takes two microseconds for (addresses of arrays, an array of them, a call) is a loop over the arguments here.
It leans on two things of CPython and NumPy that binary interfaces fix: METH_FASTCALL, and that an array's data pointer is
its first field (which `buffer.address_of` leans on, too).
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

from flambeau.runtime.buffer import READS_POINTERS
from flambeau.runtime.engine import default_engine

#: Words of a record: the entry, the number of inputs, scratch memory, the pool, and how many pointers follow.
ENTRY, INPUTS, ARENA, POOL, HELD, POINTERS = range(6)

_FASTCALL = 0x80
_SYMBOLS = ("PyEval_SaveThread", "PyEval_RestoreThread", "PyLong_FromLongLong")
_lock = threading.Lock()
_UNKNOWN: Any = object()
_call: Callable[..., int] | None = _UNKNOWN
_kept: tuple[Any, ...] = ()  # what the function needs, as long as the process


class _MethodDefinition(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def caller() -> Callable[..., int] | None:
    """``call(record, *arrays)`` runs the record's entry on the memory of arrays, inputs before outputs, and returns its
    status; other Python threads run meanwhile. `record` is an array of 64-bit words as above. Nothing is checked.

    None where the interpreter is not one that this can be done with.
    """
    global _call
    if _call is _UNKNOWN:
        with _lock:
            if _call is _UNKNOWN:
                _call = _make()
    return _call


def _make() -> Callable[..., int] | None:
    global _kept
    if not READS_POINTERS or getattr(sys, "_is_gil_enabled", lambda: True)() is False:
        return None
    engine = default_engine()
    text = (Path(__file__).parent / "native" / "call.ll").read_text(encoding="utf-8")
    symbols = {s: ctypes.cast(getattr(ctypes.pythonapi, s), ctypes.c_void_p).value or 0 for s in _SYMBOLS}
    code = engine.add_text(Template(text).substitute(head=object.__basicsize__), symbols, ["fb_call"])
    definition = _MethodDefinition(b"call", code.address("fb_call"), _FASTCALL, b"Runs an entry on arrays.")
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
        ("PyCFunction_NewEx", ctypes.pythonapi)
    )
    call: Callable[..., int] = make(ctypes.addressof(definition), None, None)
    _kept = code, definition
    return call
