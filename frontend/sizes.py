"""Graphs that differ in sizes only, and the one graph with symbolic sizes that stands for all of them.

A program whose data has another length each time records graphs of one form. The first ones are compiled for their sizes
(a loop's batches, and the smaller last one). From the third on, a size is a symbol, and every other number that varied with
it (a shape to broadcast to, a slice's limit) is an expression of the symbols, guessed from the graphs seen so far. What was
guessed is checked for each graph: its numbers have to be those that the expressions have for its sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any

from flambeau.compiler.dialects.graph.constants import Constant, DimensionValue
from flambeau.compiler.ir.core import Graph, Operation, Value, create
from flambeau.compiler.ir.dims import Index, dim, evaluate
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import TensorType, tensor

#: Graphs of one form that are compiled for their sizes before one is compiled for all.
FIRST = 2
#: Graphs of one form that are remembered to guess from, and guesses that are made.
SEEN, GUESSES = 8, 4


class Form:
    """A graph without its numbers, and these numbers: sizes, and whatever else in types and attributes is one.

    `sizes` are the positions of the leaves' sizes among the numbers. Graphs of equal `key` have the numbers at the same
    positions.
    """

    __slots__ = ("key", "numbers", "sizes")

    def __init__(self, leaves: Sequence[Value], operations: Sequence[Operation], rest: Any) -> None:
        self.numbers: list[int] = []
        types = tuple([self._without(v.type) for v in leaves])
        self.sizes = range(len(self.numbers))
        definitions = tuple([self._without(o.definition) for o in operations])
        self.key = types, definitions, rest

    def _without(self, x: Any) -> Any:
        """`x` with nothing in place of each number, which `numbers` gets: what `_Filling` undoes."""
        if type(x) is int:
            self.numbers.append(x)
            return int
        if isinstance(x, tuple):
            return tuple([self._without(part) for part in x])
        if isinstance(x, TensorType):
            return TensorType, x.element, self._without(x.shape)
        if isinstance(x, Constant) and _is_count(x):
            self.numbers.append(int(x.literal.array))
            return Constant, x.literal.element
        if isinstance(x, OpDef):
            return type(x), *[self._without(part) for _, part in x.attribute_items()]
        if isinstance(x, Graph):
            types = tuple([self._without(p.type) for p in x.parameters])
            at = {v: n for n, v in enumerate(x.parameters)}
            operations = []
            for operation in x.operations:
                operands = tuple([at[v] for v in operation.operands])
                operations.append((self._without(operation.definition), operands))
                for result in operation.results:
                    at[result] = len(at)
            return Graph, types, tuple(operations), tuple([at[v] for v in x.results])
        return x


def _is_count(x: Constant) -> bool:
    """Is it one number that may be a size?"""
    literal = x.literal
    return (
        literal.shape == ()
        and not literal.element.is_bool
        and float(literal.array).is_integer()
        and literal.array > 1
    )


class Pattern:
    """The numbers of a form's graphs: plain ones, and expressions of symbols, each of which is a leaf's size. Sizes that vary
    are 2 or more, since broadcasting treats 0 and 1 differently."""

    def __init__(self, sizes: Sequence[int], seen: Sequence[Sequence[int]]) -> None:
        """What `seen` have in common: no size that varies is below 2. ValueError if a number varies in another way."""
        columns = list(zip(*seen))
        symbols: dict[tuple[int, ...], Index] = {}
        self.places: dict[str, int] = {}  # where a symbol's size is
        for column, at in sorted([(columns[at], at) for at in sizes]):
            if len(set(column)) == 1 or _expression(column, symbols) is not None:
                continue
            name = f"s{len(symbols)}"
            symbols[column] = dim(name)
            self.places[name] = at
        if not symbols:
            raise ValueError("no size varies")
        self.numbers: list[Index] = list(seen[0])
        self.varying: list[int] = []
        for at, column in enumerate(columns):
            if len(set(column)) > 1:
                expression = _expression(column, symbols)
                if expression is None:
                    raise ValueError(f"{column} is no expression of the sizes")
                self.varying.append(at)
                self.numbers[at] = expression
        varying = set(self.varying)
        self._sizes = [at for at in sizes if at in varying]
        self._fixed = [at for at in range(len(columns)) if at not in varying]
        self._fixed_numbers = [self.numbers[at] for at in self._fixed]

    def fits(self, numbers: Sequence[int]) -> bool:
        """Are these numbers of the pattern?"""
        sizes: dict[str, Any] = {name: numbers[at] for name, at in self.places.items()}
        if min([numbers[at] for at in self._sizes]) < 2:
            return False
        if [numbers[at] for at in self._fixed] != self._fixed_numbers:
            return False
        return all(evaluate(self.numbers[at], sizes) == numbers[at] for at in self.varying)  # type: ignore[arg-type]


def _expression(column: tuple[int, ...], symbols: dict[tuple[int, ...], Index]) -> Index | None:
    """What gives a column of numbers from the symbols' columns: a line through one symbol, or a multiple of a product.
    None if nothing does."""
    found = symbols.get(column)
    if found is not None:
        return found
    for sizes, symbol in symbols.items():
        a, b = _line(sizes, column)
        if a is not None:
            return symbol * a + b
    for (s, x), (t, y) in combinations_with_replacement(symbols.items(), 2):
        ratios = {divmod(c, p * q) for c, p, q in zip(column, s, t)}
        ratio, rest = ratios.pop()
        if not ratios and rest == 0:
            return x * y * ratio
    return None


def _line(x: Sequence[int], y: Sequence[int]) -> tuple[int | None, int]:
    """(a, b) with y = a x + b, whole numbers; a is None if there are none."""
    i = next((n for n in range(len(x)) if x[n] != x[0]), None)
    if i is None:
        return None, 0
    a, rest = divmod(y[i] - y[0], x[i] - x[0])
    b = y[0] - a * x[0]
    if rest or any(a * p + b != q for p, q in zip(x, y)):
        return None, 0
    return a, b


class _Filling:
    """Puts a pattern's numbers where `Form` took numbers from."""

    def __init__(self, numbers: Sequence[Index]) -> None:
        self._numbers: Iterator[Any] = iter(numbers)

    def type(self, given: TensorType) -> TensorType:
        return tensor(self._filled(given.shape), given.element)

    def _filled(self, x: Any) -> Any:
        if type(x) is int:
            return next(self._numbers)
        if isinstance(x, tuple):
            return tuple([self._filled(part) for part in x])
        if isinstance(x, TensorType):
            return self.type(x)
        if isinstance(x, OpDef):
            return self.definition(x)
        if isinstance(x, Graph):
            return self._graph(x)
        return x

    def definition(self, x: OpDef) -> OpDef:
        """The same operation with its numbers replaced."""
        if isinstance(x, Constant) and _is_count(x):
            number = next(self._numbers)
            return x if isinstance(number, int) else DimensionValue(number, x.literal.element)
        return type(x)(*[self._filled(part) for _, part in x.attribute_items()])

    def _graph(self, graph: Graph) -> Graph:
        inside = dict(zip(graph.parameters, [Value(self.type(p.type)) for p in graph.parameters]))  # type: ignore[arg-type]
        parameters = list(inside.values())
        for operation in graph.operations:
            made = create(self.definition(operation.definition), *[inside[v] for v in operation.operands])
            inside.update(zip(operation.results, made.results, strict=True))
        return Graph(parameters, [inside[v] for v in graph.results], graph.name)


def generalised(
    leaves: Sequence[Value], operations: Sequence[Operation], results: Sequence[Value], pattern: Pattern
) -> Graph:
    """The graph with a pattern's numbers. Raises whatever a symbolic size does to an operation's rules."""
    filling = _Filling(pattern.numbers)
    inside: dict[Value, Value] = {v: Value(filling.type(v.type)) for v in leaves}  # type: ignore[arg-type]
    parameters = list(inside.values())
    for operation in operations:
        made = create(filling.definition(operation.definition), *[inside[v] for v in operation.operands])
        inside.update(zip(operation.results, made.results, strict=True))
    return Graph(parameters, [inside[v] for v in results])


class Family:
    """Graphs of one form: what was seen of them, and what was compiled for a pattern."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.found: list[tuple[Pattern, Any]] = []

    def find(self, numbers: Sequence[int]) -> Any:
        """What was compiled for a pattern that the numbers fit, or None."""
        for pattern, plan in self.found:
            if plan is not None and pattern.fits(numbers):
                return plan
        return None

    def add(self, pattern: Pattern, plan: Any) -> None:
        """Remember what came of a pattern: None if it cannot be compiled."""
        self.found.append((pattern, plan))

    def pattern(self, form: Form) -> Pattern | None:
        """The pattern to compile for these numbers and those that were seen, or None."""
        self.seen.append(form.numbers)
        del self.seen[:-SEEN]
        varying = [at for at in form.sizes if len({numbers[at] for numbers in self.seen}) > 1]
        seen = [numbers for numbers in self.seen if min([numbers[at] for at in varying], default=0) > 1]
        if len(seen) <= FIRST or seen[-1] is not form.numbers or len(self.found) >= GUESSES:
            return None
        try:
            return Pattern(form.sizes, seen)
        except ValueError:
            return None
