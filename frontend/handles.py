"""What registering a hook returns."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import Any

_numbers = count()


class RemovableHandle:
    """Removes a hook again, by `remove()` or at the end of a `with`."""

    def __init__(self, hooks: dict[int, Any], hook: Any, prepend: bool = False) -> None:
        self.id = next(_numbers)
        self._hooks = hooks
        hooks[self.id] = hook
        if prepend and isinstance(hooks, OrderedDict):
            hooks.move_to_end(self.id, last=False)

    def remove(self) -> None:
        """The hook is called no more."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()
