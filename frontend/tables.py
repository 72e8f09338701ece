"""Tables of a module's parameters, buffers and children, which count how often they change.

A compiled function that has captured modules compares one number at each call, `changes.count`; only if some module
somewhere has changed does it look at its own modules' counts (`guards`).
"""

from __future__ import annotations

import math
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None))


def same(a: Any, b: Any) -> bool:
    """Is a trace that has read `a` right for `b`? Plain values are compared (a NaN is itself), anything else is itself."""
    if a is b:
        return True
    if type(a) is not type(b) or not isinstance(a, PLAIN):
        return False
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


class Changes:
    """How often something has changed, in any module."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


changes = Changes()
#: Of modules' training mode: only if it has changed somewhere does a compiled function look at its own modules'.
modes = Changes()


class Table(dict[str, Any]):
    """A dictionary with a count of its changes. Setting what is there already is none.

    `own` is for names that traced functions have set themselves: they are no condition of what was traced.
    """

    __slots__ = ("own", "version")

    def __init__(self, *content: Any) -> None:
        super().__init__(*content)
        self.version = 0
        self.own: set[str] = set()

    def changed(self) -> None:
        """Something that compiled functions may have captured is another one now."""
        self.version += 1
        changes.count += 1

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self or self[name] is not value:
            super().__setitem__(name, value)
            self.changed()

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.changed()

    def __ior__(self, other: Any) -> Table:  # type: ignore[override, misc]
        self.update(other)
        return self

    def pop(self, *arguments: Any) -> Any:
        before = len(self)
        found = super().pop(*arguments)
        if len(self) != before:
            self.changed()
        return found

    def popitem(self) -> tuple[str, Any]:
        found = super().popitem()
        self.changed()
        return found

    def clear(self) -> None:
        super().clear()
        self.changed()

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *arguments: Any, **items: Any) -> None:
        for name, value in dict(*arguments, **items).items():
            self[name] = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Table, (dict(self),)
