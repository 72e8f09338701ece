"""What a compiled function reaches besides its arguments, and whether that is still the same: modules and names.

Modules are those that the function, its object, its closure, its globals and its arguments name, all below them, and
those that were called while it was traced. Their parameters, buffers, children and other attributes are guarded, but
for attributes that the function itself has set, and for hooks. Names are the function's own globals and closure
variables that are bound to modules, tensors and plain values; what functions that it calls look up is not guarded.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable
from typing import Any

from flambeau.nn.module import Module
from flambeau.tables import PLAIN, changes, same
from flambeau.tensor import Tensor


class Reach:
    """The modules and names that `function` reached when it was called with `arguments` (args, kwargs)."""

    def __init__(self, function: Any, arguments: tuple[Any, Any]) -> None:
        self.modules: list[Module] = []
        self._names = _names_of(function)
        self._bound = [(holder, name, _look_up(holder, name)) for holder, name in self._names]
        self._bound = [b for b in self._bound if isinstance(b[2], (Module, Tensor, *PLAIN))]
        objects = [function, getattr(function, "__self__", None), *[value for _, _, value in self._bound]]
        self.add(objects)
        self.add_arguments(arguments)
        self._note()

    def add(self, objects: Iterable[Any]) -> bool:
        """Guard the modules among `objects` and all below them too. Are there new ones?"""
        known = {id(m) for m in self.modules}
        before = len(known)
        for x in objects:
            if isinstance(x, Module):
                for module in x.modules():
                    if id(module) not in known:
                        known.add(id(module))
                        self.modules.append(module)
        return len(known) > before

    def add_arguments(self, arguments: tuple[Any, Any]) -> bool:
        """The same of the modules among a call's arguments."""
        return self.add([*arguments[0], *arguments[1].values()])

    def stands(self) -> bool:
        """Is all that was reached the same? Quick, as long as no module has changed anywhere."""
        if changes.count != self._count:
            if self._versions != self._sum():
                return False
            self._count = changes.count
        return not self._bound or all(
            same(_look_up(holder, name), value) for holder, name, value in self._bound
        )

    def settle(self) -> None:
        """After a trace: what the function itself has set is no condition, and the rest is as it is now."""
        self._bound = [b for b in self._bound if _look_up(b[0], b[1]) is b[2]]
        self._note()

    def _note(self) -> None:
        self._count = changes.count
        self._versions = self._sum()

    def _sum(self) -> int:
        return sum([m._parameters.version + m._buffers.version + m._modules.version for m in self.modules])


def _names_of(function: Any) -> list[tuple[Any, str]]:
    """The function's closure cells (with an empty name) and its globals, as (where they are, name)."""
    function = getattr(function, "__func__", function)
    found: list[tuple[Any, str]] = [(cell, "") for cell in getattr(function, "__closure__", None) or ()]
    code = getattr(function, "__code__", None)
    if code is not None:
        globals_ = function.__globals__
        names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
        found += [(globals_, name) for name in sorted(names) if name in globals_]
    return found


def _look_up(holder: Any, name: str) -> Any:
    if name:
        return holder.get(name, _look_up)
    try:
        return holder.cell_contents
    except ValueError:  # a name of the closure that is not bound yet
        return _look_up
