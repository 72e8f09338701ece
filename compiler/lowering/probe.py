"""Runs element functions without making code, to see which elements of which operands they read.

Fusion asks: does this value read that one only at its own row? Is the whole expression a plain chain that vectors can
run? How much work is one element?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, decided, maximum, minimum, of_symbol
from flambeau.compiler.ir.types import ElementType, TensorType, i1, u32

#: Cost of an operation in simple arithmetic operations; others are 1.
COSTS = {"math": 12, "div": 4, "rem": 8, "pow": 30}


class ProbeScalar:
    """Stands for a scalar; knows its element type, and whether it differs along the innermost axis. `value`: of a condition
    that bounds decide."""

    __slots__ = ("element", "value", "varies")

    def __init__(self, element: ElementType, varies: bool = False, value: bool | None = None) -> None:
        self.element = element
        self.value = value
        self.varies = varies


def _varies(*scalars: Any) -> bool:
    return any(isinstance(x, ProbeScalar) and x.varies for x in scalars)


class ProbeBuilder:
    """Has the methods of `ElementBuilder`, makes nothing, and counts. `inner` are the symbols of the innermost axis."""

    def __init__(self, inner: frozenset[Symbol] = frozenset()) -> None:
        self.inner = inner
        self.cost = 0
        #: False once something was used that has no form for vectors along the innermost axis: branches, loops, positions
        #: that come from data which differ along it.
        self.straight = True
        #: False once any position came from data.
        self.static = True
        #: (position, low, high) of every `in_bounds` that bounds do not decide.
        self.conditions: list[tuple[Index, Index, Index]] = []

    def __getattr__(self, name: str) -> Callable[..., ProbeScalar]:
        def method(*arguments: Any, **_: Any) -> ProbeScalar:
            self.cost += COSTS.get(name, 1)
            scalars = [a for a in arguments if isinstance(a, ProbeScalar)]
            return ProbeScalar(scalars[-1].element, _varies(*scalars))

        return method

    def constant(self, value: Any, element: ElementType) -> ProbeScalar:
        return ProbeScalar(element)

    def convert(self, x: ProbeScalar, element: ElementType) -> ProbeScalar:
        self.cost += 1
        return ProbeScalar(element, x.varies)

    bitcast = convert

    def compare(self, direction: str, x: ProbeScalar, y: ProbeScalar) -> ProbeScalar:
        self.cost += 1
        return ProbeScalar(i1, _varies(x, y))

    def index_to_scalar(self, expression: Index, element: ElementType) -> ProbeScalar:
        self.cost += 1
        return ProbeScalar(element, self.runs_along(expression))

    def runs_along(self, expression: Index) -> bool:
        """Does it differ along the innermost axis?"""
        return isinstance(expression, Dim) and not self.inner.isdisjoint(expression.symbols())

    def scalar_to_index(self, x: ProbeScalar, low: Index = 0, high: Index | None = None) -> Index:
        self.static = False
        if x.varies:
            self.straight = False
        return of_symbol(Symbol("data", low, high, self))

    clamped_index = scalar_to_index

    def in_bounds(self, position: Index, low: Index, high: Index) -> ProbeScalar:
        inside = decided(position, low, high)
        if inside is not None:
            return ProbeScalar(i1, False, inside)
        self.conditions.append((position, low, high))
        self.cost += 1
        return ProbeScalar(i1, self.runs_along(position))

    def and_(self, x: ProbeScalar, y: ProbeScalar) -> ProbeScalar:
        if x.value is not None or y.value is not None:
            return y if x.value or y.value is False else x
        self.cost += 1
        return ProbeScalar(x.element, _varies(x, y))

    def guarded(
        self, condition: Any, thunk: Callable[[], ProbeScalar], otherwise: ProbeScalar
    ) -> ProbeScalar:
        if condition.value is not None:
            return thunk() if condition.value else otherwise
        self.straight = self.static = False
        self.cost += 2
        return thunk()

    def loop(self, count: Index, init: Iterable[Any], body: Callable[..., Any]) -> Any:
        self.straight = self.static = False
        before = self.cost
        high = count - 1
        result = body(of_symbol(Symbol("k", 0, high, self)), *init)
        self.cost += (self.cost - before) * 8
        return (result,) if isinstance(result, ProbeScalar) else tuple(result)

    index_max = staticmethod(maximum)
    index_min = staticmethod(minimum)

    def mul_high(self, x: ProbeScalar, y: ProbeScalar) -> ProbeScalar:
        self.cost += 2
        return ProbeScalar(u32 if x.element is u32 else x.element, _varies(x, y))


class Reads:
    """What one element of a value reads: `accesses` are (value, index), `cost` the work; `straight`, `static` and `conditions`
    as in the builder."""

    __slots__ = ("accesses", "cost", "straight", "static", "operations", "conditions")

    def __init__(
        self,
        accesses: list[tuple[Value, tuple[Index, ...]]],
        cost: int,
        straight: bool,
        operations: int,
        static: bool = True,
        conditions: Sequence[tuple[Index, Index, Index]] = (),
    ) -> None:
        self.accesses, self.cost, self.straight, self.operations = accesses, cost, straight, operations
        self.static, self.conditions = static, conditions


def axis_symbols(shape: tuple[Index, ...]) -> tuple[Index, ...]:
    """A fresh symbol for a position on each axis; 0 where the axis has one position."""
    return tuple(0 if d == 1 else of_symbol(Symbol(f"i{n}", 0, d - 1, n)) for n, d in enumerate(shape))


def probe(value: Value, index: tuple[Index, ...], inline: Callable[[Value], bool]) -> Reads:
    """What the element of `value` at `index` reads, going through operations whose results `inline` accepts.

    `value`'s own operation is always entered.
    """
    last = index[-1] if index else 0
    builder = ProbeBuilder(frozenset(last.symbols()) if isinstance(last, Dim) else frozenset())
    accesses: list[tuple[Value, tuple[Index, ...]]] = []
    seen: dict[tuple[Value, tuple[Index, ...]], ProbeScalar] = {}
    count = 0

    def access(v: Value, at: tuple[Index, ...], root: bool = False) -> ProbeScalar:
        nonlocal count
        key = (v, at)
        if key in seen:
            return seen[key]
        if not root and (v.owner is None or not inline(v)):
            accesses.append(key)
            varies = any(builder.runs_along(position) for position in at)
        else:
            count += 1
            assert v.owner is not None
            varies = _varies(element_of(v, builder, at, access))
        assert isinstance(v.type, TensorType)
        result = seen[key] = ProbeScalar(v.type.element, varies)
        return result

    access(value, index, True)
    return Reads(accesses, builder.cost, builder.straight, count, builder.static, builder.conditions)


class Accessor:
    """What an element function gets for an operand: calling it at an index gives the element there."""

    __slots__ = ("type", "_value", "_access")

    def __init__(self, value: Value, access: Callable[[Value, tuple[Index, ...]], Any]) -> None:
        self.type = value.type
        self._value, self._access = value, access

    def __call__(self, index: tuple[Index, ...]) -> Any:
        return self._access(self._value, tuple(index))


def element_of(value: Value, b: Any, index: tuple[Index, ...], access: Callable[..., Any]) -> Any:
    """One element of the value that an element operation makes."""
    operation = value.owner
    assert operation is not None and isinstance(operation.definition, GraphOp)
    accessors = [Accessor(v, access) for v in operation.operands]
    result = operation.definition.element_at(b, index, *accessors)
    return result[value.index] if type(result) is tuple else result  # a Scalar is a named tuple
