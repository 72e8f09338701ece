"""Index expressions of `LoopBuilder`: symbols for SSA indices, and the operations that compute a `Dim`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flambeau.compiler.dialects.loops import arith, vector
from flambeau.compiler.dialects.loops.base import LoopOp
from flambeau.compiler.ir.core import Block, Operation, Value
from flambeau.compiler.ir.dims import Compound, Dim, Index, Symbol, known_nonnegative, lower, of_symbol
from flambeau.compiler.ir.scalar_builder import ScalarBuilder
from flambeau.compiler.ir.types import VectorType
from flambeau.compiler.ir.types import index as index_type

Position = Any  # int | Dim | Value


class Scope:
    """A block under construction. `depth` counts from the function's body, 0. `loop`: it is a loop's body."""

    __slots__ = ("block", "depth", "loop", "open")

    def __init__(self, block: Block, depth: int, loop: bool = False) -> None:
        self.block, self.depth, self.loop, self.open = block, depth, loop, True


class IndexBuilder(ScalarBuilder):
    """The part of `LoopBuilder` that knows which symbol has which SSA value, and where."""

    def __init__(self, fma: bool, avx512: bool) -> None:
        super().__init__(fma, avx512)
        #: The position inside a vector, if code is made for `lanes` elements at once (`LoopBuilder.lanes_of`).
        self.lane: Symbol | None = None
        self.lanes = 0
        self._forget()

    def _forget(self) -> None:
        self._scopes: list[Scope] = []
        self._symbol_scopes: dict[Symbol, Scope] = {}
        self._bound: dict[Symbol, Value] = {}
        self._indices: dict[Dim, tuple[Value, Scope]] = {}
        self._counter = 0

    if TYPE_CHECKING:

        def emit(self, definition: LoopOp, *operands: Value, scope: Scope | None = None) -> Operation: ...

    def bind(self, symbol: Symbol | Dim, value: Value) -> None:
        """In this function, from this block on, `symbol` (a shape symbol, say) has `value`, of type index."""
        symbol = symbol if isinstance(symbol, Symbol) else only_symbol(symbol)
        self._bound[symbol] = value
        self._symbol_scopes[symbol] = self._scopes[-1]

    def symbol(self, value: Value, low: Index = 0, high: Index | None = None, name: str | None = None) -> Dim:
        """A fresh expression for an SSA index whose bounds (inclusive) the caller knows."""
        self._counter += 1
        symbol = Symbol(name or f"v{self._counter}", low, high, value)
        self._symbol_scopes[symbol] = self._scopes[-1]
        return of_symbol(symbol)

    def dim_value(self, symbol: Symbol | Dim) -> Value:
        """The SSA index of a symbol."""
        symbol = symbol if isinstance(symbol, Symbol) else only_symbol(symbol)
        value: Value | None = self._bound.get(symbol, symbol.value)
        if value is None:
            raise KeyError(f"the dimension {symbol} is not bound to a parameter of this function")
        return value

    def index(self, expression: Position) -> Value:
        """The SSA index of an expression (or of a vector of them, if it contains the lane)."""
        if isinstance(expression, Value):
            return expression
        if not isinstance(expression, Dim):
            return self.constant(index_type, expression)
        found = self._indices.get(expression)
        if found is not None and found[1].open:
            return found[0]
        scope = self._scope_of(expression)
        value = self._materialise(expression, scope)
        self._indices[expression] = (value, scope)
        return value

    def _scope_of(self, expression: Dim) -> Scope:
        scope = self._scopes[0]
        for symbol in expression.symbols():
            home = self._symbol_scopes.get(symbol)
            if home is None:
                raise KeyError(f"the dimension {symbol} is not bound in this function")
            if home.depth > scope.depth:
                scope = home
        if not scope.open:
            raise ValueError(f"{expression} is used outside the block that defines it")
        return scope

    def _steady_scope(self, expression: Index) -> Scope:
        """The outermost block that knows the expression and has only loops between itself and here."""
        home = self._scope_of(expression) if isinstance(expression, Dim) else self._scopes[0]
        inside = len(self._scopes) - 1
        while inside > home.depth and self._scopes[inside].loop:
            inside -= 1
        return self._scopes[inside]

    def _materialise(self, expression: Dim, scope: Scope) -> Value:
        """Outer terms first, each sum in its own block; the constant last, so that neighbours share the rest."""
        terms = dict(expression.terms)
        constant = terms.pop((), 0)
        if constant and terms:
            return self._index_add(scope, self.index(Dim(terms)), constant)
        if len(terms) == 1:
            ((monomial, coefficient),) = terms.items()
            if coefficient != 1:
                return self._index_binary(
                    scope, arith.MulI(("nsw",)), self.index(Dim({monomial: 1})), coefficient
                )
            value = self._atom(monomial[0], scope)
            for atom in monomial[1:]:
                value = self._index_binary(scope, arith.MulI(("nsw",)), value, self._atom(atom, scope))
            return value
        by_depth = sorted(terms.items(), key=lambda term: self._scope_of(Dim({term[0]: 1})).depth)
        last, coefficient = by_depth[-1]
        rest = self.index(Dim(dict(by_depth[:-1])))
        if coefficient < 0:
            subtrahend = self.index(Dim({last: -coefficient}))
            return self._index_binary(scope, arith.SubI(("nsw",)), rest, subtrahend)
        return self._index_binary(scope, arith.AddI(("nsw",)), rest, self.index(Dim({last: coefficient})))

    def _index_add(self, scope: Scope, value: Value, constant: int) -> Value:
        return self._index_binary(scope, arith.AddI(("nsw",)), value, constant)

    def _atom(self, atom: Symbol | Compound, scope: Scope) -> Value:
        if isinstance(atom, Symbol):
            return self.dim_value(atom)
        expression = Dim({(atom,): 1})
        found = self._indices.get(expression)
        if found is not None and found[1].open:
            return found[0]
        home = self._scope_of(expression)
        a, b = self.index(atom.a), self.index(atom.b)
        definition: LoopOp
        if atom.kind in ("floordiv", "mod"):
            unsigned = known_nonnegative(atom.a) or _unsigned(atom.a)
            if atom.kind == "floordiv":
                definition = arith.DivUI() if unsigned else arith.FloorDivSI()
            elif unsigned:
                definition = arith.RemUI()
            else:
                quotient = self._index_binary(home, arith.FloorDivSI(), a, b)
                product = self._index_binary(home, arith.MulI(("nsw",)), quotient, b)
                value = self._index_binary(home, arith.SubI(("nsw",)), a, product)
                self._indices[expression] = (value, home)
                return value
        else:
            definition = arith.MaxSI() if atom.kind == "max" else arith.MinSI()
        value = self._index_binary(home, definition, a, b)
        self._indices[expression] = (value, home)
        return value

    def _index_binary(self, scope: Scope, definition: LoopOp, a: Value, b: Value | int) -> Value:
        right = self.constant(a.type, b) if isinstance(b, int) else b
        if a.type is not right.type:  # one of them is a vector: the expression contains the lane
            a, right = self._spread_index(scope, a), self._spread_index(scope, right)
        return self.emit(definition, a, right, scope=scope).results[0]

    def _spread_index(self, scope: Scope, value: Value) -> Value:
        if isinstance(value.type, VectorType):
            return value
        return self.emit(vector.Broadcast(self.lanes), value, scope=scope).results[0]


def only_symbol(expression: Dim) -> Symbol:
    """The symbol that an expression consists of. ValueError if it is more than that."""
    ((monomial, coefficient),) = expression.terms.items()
    if coefficient != 1 or len(monomial) != 1 or not isinstance(monomial[0], Symbol):
        raise ValueError(f"{expression} is not a single symbol")
    return monomial[0]


def _unsigned(expression: Index) -> bool:
    low = lower(expression)
    return isinstance(low, int) and low >= 0
