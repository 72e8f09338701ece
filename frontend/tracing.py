"""What a function sees while it runs on placeholders: memory of its own in place of all that was there before.

Cells, views and gradients of the program stay as they are, whatever the function does to them; other threads go on using
them meanwhile. `compile` and `export` derive their traces from this class.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import TensorType
from flambeau.reverse import is_leaf
from flambeau.storage import Cell, apply_chain


class Trace:
    """One run of a function. `state.trace` is it meanwhile."""

    def __init__(self) -> None:
        self.created: weakref.WeakSet[Cell] = weakref.WeakSet()
        self.modules: dict[Any, None] = {}  # that were called
        #: By the tensor's identity: the tensor, its `.grad` before, and now.
        self.gradients: dict[int, list[Any]] = {}
        self._cells: dict[Cell, Cell] = {}
        self._views: dict[int, tuple[weakref.ref[Any], Value, Value]] = {}

    def makes(self, cell: Cell) -> None:
        """The run has made a cell."""
        self.created.add(cell)

    def cell(self, cell: Cell) -> Cell:
        """The cell that the run reads and writes for `cell`: itself, if the run has made it."""
        found = self._cells.get(cell)
        if found is None:
            if cell in self.created:
                return cell
            found = Cell.__new__(Cell)
            found.version, found.parent, found.leaf = cell.version, cell.parent, cell.leaf
            found.through, found.seen = cell.through, None
            found.value = cell.value if cell.parent is not None else self.placeholder(cell)
            self._cells[cell] = self._cells[found] = found
        return found

    def placeholder(self, cell: Cell) -> Value:
        """What stands for the content of a cell that was there before."""
        raise NotImplementedError

    def writes(self, cell: Cell) -> None:
        """The run is about to write to `cell`, which it has made or has instead of another."""

    def view(self, tensor: Any, base: Value) -> Value:
        """What `tensor` shows of its cell's value; the same value as long as that is the same."""
        known = self._views.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] is not base:
            shown = apply_chain(tensor._chain, base)
            known = self._views[id(tensor)] = weakref.ref(tensor), base, shown
        return known[2]

    def grad(self, tensor: Any) -> Any:
        """The tensor's `.grad` as the run sees it."""
        found = self.gradients.get(id(tensor))
        return tensor._grad if found is None else found[2]

    def set_grad(self, tensor: Any, gradient: Any) -> None:
        """Set it, for the run."""
        found = self.gradients.setdefault(id(tensor), [tensor, tensor._grad, None])
        found[2] = gradient


class InputTrace(Trace):
    """Notes what a run reads, as the inputs of a graph."""

    def __init__(self, symbolic: Mapping[Cell, TensorType] | None = None) -> None:
        super().__init__()
        self.inputs: dict[Cell, tuple[Value, Value]] = {}  # cell -> (value before, placeholder)
        self.providers: list[tuple[Value, Callable[[], Any], Any]] = []
        #: Types with symbolic sizes, of arguments' cells.
        self.symbolic = symbolic or {}

    def placeholder(self, cell: Cell) -> Value:
        before = cell.value
        placeholder = Value(self.symbolic.get(cell, before.type))
        if before.requires_grad and is_leaf(before):
            placeholder.requires_grad, placeholder.hooks = True, before.hooks
        self.inputs[cell] = before, placeholder
        return placeholder

    def after(self, cell: Cell) -> Value:
        """What the run left in a cell that was there before."""
        return self.cell(cell).value

    def provide(self, source: Callable[[], Any], element: Any, type: Any) -> Value:
        value = Value(type)
        self.providers.append((value, source, element))
        return value
