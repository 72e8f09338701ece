"""Which sizes of a compiled function's arguments are symbolic.

Calls that differ in nothing but sizes are a family. Its first call is compiled for its sizes; the second makes the sizes
that differ symbolic, those that were always equal to one another by one symbol. Sizes 0 and 1 stay numbers, since
broadcasting treats them differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flambeau.compiler.ir.dims import Index, dim
from flambeau.compiler.ir.types import TensorType, tensor

#: The shapes of a call's tensor arguments, in order.
Sizes = tuple[tuple[int, ...], ...]


def without_sizes(key: Any) -> Any:
    """A call's key with ranks in place of shapes, where a tensor is no view."""
    if isinstance(key, tuple):
        if len(key) == 5 and key[0] == "tensor" and isinstance(key[1], TensorType) and key[2] is None:
            return ("tensor", key[1].element, key[1].rank, *key[3:])
        return tuple([without_sizes(part) for part in key])
    return key


@dataclass(frozen=True)
class Pattern:
    """For each argument and axis a number, or the name of a symbol."""

    shapes: tuple[tuple[int | str, ...], ...]

    def fits(self, sizes: Sizes) -> bool:
        """Are the numbers equal, and is each symbol one size of 2 or more?"""
        symbols: dict[str, int] = {}
        for shape, given in zip(self.shapes, sizes, strict=True):
            for expected, size in zip(shape, given, strict=True):
                if isinstance(expected, str):
                    if size < 2 or symbols.setdefault(expected, size) != size:
                        return False
                elif expected != size:
                    return False
        return True

    def type(self, number: int, given: TensorType) -> TensorType:
        """The type of argument `number`."""
        shape: list[Index] = [dim(d) if isinstance(d, str) else d for d in self.shapes[number]]
        return tensor(shape, given.element)


class Family:
    """Calls of one function that differ in sizes only, and what was compiled for them."""

    def __init__(self) -> None:
        self.seen: list[Sizes] = []
        self.found: list[tuple[Pattern, Any]] = []

    def find(self, sizes: Sizes) -> Any:
        """What was compiled for a pattern that fits, with guards that hold, or None."""
        for pattern, entry in self.found:
            if entry is not None and pattern.fits(sizes) and entry.fits():
                return entry
        return None

    def add(self, pattern: Pattern, entry: Any) -> None:
        """Remember what came of a pattern: an entry, or None if it cannot be compiled."""
        self.found.append((pattern, entry))

    def pattern(self, sizes: Sizes, whole: Sequence[bool]) -> Pattern | None:
        """The pattern to compile for these sizes, or None: nothing differs from before, or it was tried in vain.

        `whole`: which arguments are no views.
        """
        if sizes not in self.seen:
            self.seen.append(sizes)
        if len(self.seen) < 2:
            return None
        names: dict[tuple[int, ...], str] = {}
        shapes: list[tuple[int | str, ...]] = []
        for number, shape in enumerate(sizes):
            axes: list[int | str] = []
            for axis, size in enumerate(shape):
                column = tuple([seen[number][axis] for seen in self.seen])
                if whole[number] and size > 1 and len(set(column)) > 1:
                    axes.append(names.setdefault(column, f"s{len(names)}"))
                else:
                    axes.append(size)
            shapes.append(tuple(axes))
        pattern = Pattern(tuple(shapes))
        if not names or any(pattern == tried and entry is None for tried, entry in self.found):
            return None
        return pattern
