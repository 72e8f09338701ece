"""`func`: functions of a module."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import LoopOp
from flambeau.compiler.ir.types import FunctionType


class Func(LoopOp):
    """A function; its region's arguments are its parameters.

    `noalias` says of each parameter that the memory it points to is reached through no other; `internal` functions are
    seen in their module only; `inline` ones vanish into their callers. `alignment` is that of every memref parameter.
    """

    name = "func.func"
    sym_name: str
    function_type: FunctionType
    arg_names: tuple[str, ...] = ()
    noalias: tuple[bool, ...] = ()
    internal: bool = False
    inline: bool = False
    alignment: int = 64


class Return(LoopOp):
    """Ends a function and gives its results (at most one)."""

    name = "func.return"
    is_terminator = True


class Call(LoopOp):
    """Calls a function of this module by name."""

    name = "func.call"
    explicit_results = True
    callee: str
