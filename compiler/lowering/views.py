"""Values that are another value's elements in another order: transposes, slices, reshapes, broadcasts and chains of them.

A template that reads memory directly asks here whether an operand without a buffer is a view of one that has one.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NoReturn

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol
from flambeau.compiler.lowering.context import tensor_of
from flambeau.compiler.lowering.probe import axis_symbols, element_of

Position = tuple[Index, ...]


class _NotAView(Exception):
    """The element function does more than read one element."""


class _NoArithmetic:
    """Stands for the builder; a view's element function has no use for it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _NotAView


class _Read:
    """Stands for the element of `value` at `position`."""

    def __init__(self, value: Value, position: Position) -> None:
        self.value, self.position = value, position


def view_of(value: Value, memory: Container[Value]) -> tuple[Value, Callable[[Position], Position]] | None:
    """(base, position): the element of `value` at an index is that of `base`, which is in `memory`, at
    ``position(index)``. None if `value` is no view of such a value."""
    if value in memory:
        return value, lambda index: index
    chain = []
    while value not in memory:
        owner = value.owner
        if owner is None or not isinstance(owner.definition, GraphOp):
            return None
        if owner.definition.schedule_family != "element":
            return None
        step = _step(value, axis_symbols(tensor_of(value).shape))
        if step is None:
            return None
        chain.append(value)
        value = step[0]

    def position(index: Position) -> Position:
        for view in chain:
            step = _step(view, index)
            assert step is not None
            index = step[1]
        return index

    return value, position


def base_of(value: Value) -> Value:
    """What `value` is a view of; `value` itself if it is none."""
    while value.owner is not None and isinstance(value.owner.definition, GraphOp):
        if value.owner.definition.schedule_family != "element":
            break
        step = _step(value, axis_symbols(tensor_of(value).shape))
        if step is None:
            break
        value = step[0]
    return value


def _step(value: Value, index: Position) -> tuple[Value, Position] | None:
    """The one element that the element of `value` at `index` is a copy of."""
    try:
        result = element_of(value, _NoArithmetic(), index, _Read)
    except _NotAView:
        return None
    return (result.value, result.position) if isinstance(result, _Read) else None


def coefficient_of(offset: Index, symbol: Symbol) -> Index | None:
    """What `symbol` is multiplied by in `offset`; None if it occurs in any other way."""
    if isinstance(offset, int):
        return 0
    total: Index = 0
    for monomial, coefficient in offset.terms.items():
        plain = [a for a in monomial if a is symbol]
        rest = [a for a in monomial if a is not symbol]
        if (
            any(not isinstance(a, Symbol) and symbol in Dim({(a,): 1}).symbols() for a in rest)
            or len(plain) > 1
        ):
            return None
        if plain:
            total = total + Dim({tuple(rest): coefficient}) if rest else total + coefficient
    return total
