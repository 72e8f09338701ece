"""Integer expressions over named symbols: symbolic dimensions and loop indices share this one class.

A `Dim` is a polynomial with integer coefficients over *atoms*; an atom is a `Symbol`, a floor division, a
remainder, a maximum or a minimum. Arithmetic keeps a normal form, so equal polynomials are equal objects, and a
result that is a plain number is returned as `int`. Every expression knows bounds, from which `//` and `%` by a
number or an expression simplify: ``(i * 8 + j) // 8`` is ``i`` when ``0 <= j < 8``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Index: TypeAlias = "int | Dim"


class Symbol:
    """A named integer. `low` and `high` (inclusive) bound it; `high` may be an expression, or None for unbounded.

    `value` carries the SSA value that a symbol stands for inside a loop nest; symbols are compared by identity
    there, and by name when they are dimensions of a shape (see `dim`).
    """

    __slots__ = ("name", "low", "high", "value")

    def __init__(self, name: str, low: Index = 0, high: Index | None = None, value: Any = None) -> None:
        self.name, self.low, self.high, self.value = name, low, high, value

    def __repr__(self) -> str:
        return self.name


class Compound:
    """A non-polynomial atom: ``a floordiv b``, ``a mod b``, ``a max b`` or ``a min b``."""

    __slots__ = ("kind", "a", "b", "_hash")
    KINDS: dict[str, Callable[[int, int], int]] = {
        "floordiv": lambda a, b: a // b,
        "mod": lambda a, b: a % b,
        "max": max,
        "min": min,
    }

    def __init__(self, kind: str, a: Index, b: Index) -> None:
        self.kind, self.a, self.b = kind, a, b
        self._hash = hash((kind, a, b))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Compound)
            and self.kind == other.kind
            and type(self.a) is type(other.a)
            and self.a == other.a
            and self.b == other.b
        )

    def __repr__(self) -> str:
        return f"({self.a} {self.kind} {self.b})"


Atom: TypeAlias = "Symbol | Compound"
Monomial: TypeAlias = "tuple[Atom, ...]"

_SYMBOLS: dict[str, Dim] = {}


def dim(name: str) -> Dim:
    """The symbolic dimension called `name`; the same object each time. Simplification takes it to be at least 1."""
    found = _SYMBOLS.get(name)
    if found is None:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"a dimension's name must be an identifier, got {name!r}")
        found = _SYMBOLS[name] = Dim({(Symbol(name, 1),): 1})
    return found


def of_symbol(symbol: Symbol) -> Dim:
    """The expression that is just `symbol`."""
    return Dim({(symbol,): 1})


def _order(atom: Atom) -> tuple[str, int]:
    return (repr(atom), id(atom) if isinstance(atom, Symbol) else 0)


class Dim:
    """An integer expression that is not a plain number. Immutable and hashable; see the module's text."""

    __slots__ = ("terms", "_hash", "_text")

    def __init__(self, terms: dict[Monomial, int]) -> None:
        self.terms = terms
        self._hash = hash(frozenset(terms.items()))
        self._text: str | None = None

    # -- identity ------------------------------------------------------------------------------------------------
    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms

    def __repr__(self) -> str:
        if self._text is None:
            self._text = self._print()
        return self._text

    def _print(self) -> str:
        parts = []
        for monomial, coefficient in sorted(
            self.terms.items(), key=lambda t: [_order(a) for a in t[0]], reverse=True
        ):
            factors = [repr(a) for a in monomial]
            if coefficient != 1 or not factors:
                factors.append(str(coefficient))
            parts.append("*".join(factors))
        return " + ".join(parts).replace("+ -", "- ") if len(parts) < 2 else "(" + " + ".join(parts) + ")"

    # -- arithmetic ----------------------------------------------------------------------------------------------
    def __add__(self, other: Index) -> Index:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            total = terms.get(monomial, 0) + coefficient
            if total:
                terms[monomial] = total
            else:
                terms.pop(monomial, None)
        return _make(terms)

    __radd__ = __add__

    def __neg__(self) -> Index:
        return _make({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: Index) -> Index:
        return self + (-other)

    def __rsub__(self, other: Index) -> Index:
        return -self + other

    def __mul__(self, other: Index) -> Index:
        terms: dict[Monomial, int] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in _terms(other).items():
                monomial = tuple(sorted(m1 + m2, key=_order)) if m1 and m2 else m1 + m2
                total = terms.get(monomial, 0) + c1 * c2
                if total:
                    terms[monomial] = total
                else:
                    terms.pop(monomial, None)
        return _make(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: Index) -> Index:
        return divide(self, other)[0]

    def __rfloordiv__(self, other: Index) -> Index:
        return divide(other, self)[0]

    def __mod__(self, other: Index) -> Index:
        return divide(self, other)[1]

    def __rmod__(self, other: Index) -> Index:
        return divide(other, self)[1]

    # -- questions -----------------------------------------------------------------------------------------------
    def atoms(self) -> Iterator[Atom]:
        """Every atom in the expression, outermost only."""
        for monomial in self.terms:
            yield from monomial

    def symbols(self) -> set[Symbol]:
        """Every symbol on which the expression depends."""
        found: set[Symbol] = set()
        for atom in self.atoms():
            if isinstance(atom, Symbol):
                found.add(atom)
                continue
            for part in (atom.a, atom.b):
                if isinstance(part, Dim):
                    found |= part.symbols()
        return found


def _terms(value: Index) -> Mapping[Monomial, int]:
    if isinstance(value, Dim):
        return value.terms
    return {(): value} if value else {}


def _make(terms: dict[Monomial, int]) -> Index:
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Dim(terms)


def _atom(kind: str, a: Index, b: Index) -> Index:
    if isinstance(a, int) and isinstance(b, int):
        return Compound.KINDS[kind](a, b)
    return Dim({(Compound(kind, a, b),): 1})


def divide(a: Index, b: Index) -> tuple[Index, Index]:
    """Floor quotient and remainder of `a` by `b` (`b` positive), simplified by bounds."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b, a % b
    if b == 1:
        return a, 0
    if a == b:
        return 1, 0
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(a).items():
        divided = _divide_monomial(monomial, coefficient, b)
        if divided is None:
            rest[monomial] = rest.get(monomial, 0) + coefficient
            continue
        (m, q), r = divided
        if q:
            quotient[m] = quotient.get(m, 0) + q
        if r:
            rest[monomial] = rest.get(monomial, 0) + r
    whole, remainder = _make(quotient), _make(rest)
    if isinstance(remainder, int) and isinstance(b, int):
        return whole + remainder // b, remainder % b
    most = upper(remainder)
    if most is not None and known_nonnegative(remainder) and known_nonnegative(b - 1 - most):
        return whole, remainder
    inner = _atom("floordiv", remainder, b)
    return whole + inner, _atom("mod", remainder, b)


def _divide_monomial(monomial: Monomial, c: int, b: Index) -> tuple[tuple[Monomial, int], int] | None:
    """Split ``c * monomial`` by `b`: (quotient monomial, its coefficient), remainder coefficient; None if nothing divides."""
    if isinstance(b, int):
        if not monomial:
            return ((), c // b), c % b
        return ((monomial, c // b), 0) if c % b == 0 else None
    if len(b.terms) != 1:
        return None
    (factor, k), *_ = b.terms.items()
    if c % k:
        return None
    left = list(monomial)
    for atom in factor:
        if atom not in left:
            return None
        left.remove(atom)
    return (tuple(left), c // k), 0


def maximum(a: Index, b: Index) -> Index:
    """The larger of two expressions; decided now where bounds allow."""
    if known_nonnegative(a - b):
        return a
    if known_nonnegative(b - a):
        return b
    return _atom("max", a, b)


def minimum(a: Index, b: Index) -> Index:
    """The smaller of two expressions; decided now where bounds allow."""
    if known_nonnegative(a - b):
        return b
    if known_nonnegative(b - a):
        return a
    return _atom("min", a, b)


def _bound(atom: Atom, top: bool) -> Index | None:
    """A lower (or upper, if `top`) bound of one atom, or None."""
    if isinstance(atom, Symbol):
        return atom.high if top else atom.low
    if atom.kind == "mod":
        return atom.b - 1 if top else 0
    if atom.kind == "floordiv":
        inner = upper(atom.a) if top else lower(atom.a)
        if inner is None or not (isinstance(inner, int) and isinstance(atom.b, int)):
            return 0 if not top and known_nonnegative(atom.a) else None
        return inner // atom.b
    bounds = [upper(x) if top else lower(x) for x in (atom.a, atom.b)]
    known = [x for x in bounds if isinstance(x, int)]
    if atom.kind == "max":
        return max(known) if (known and not top) or len(known) == 2 else None
    return min(known) if (known and top) or len(known) == 2 else None


def _range(value: Index, top: bool) -> Index | None:
    if isinstance(value, int):
        return value
    total: Index = 0
    for monomial, coefficient in value.terms.items():
        product: Index = coefficient
        for atom in monomial:
            low = _bound(atom, False)
            if low is None or not (isinstance(low, int) and low >= 0):
                return None if len(monomial) > 1 else _single(value, top)
            bound = _bound(atom, top == (coefficient > 0))
            if bound is None:
                # An unbounded shape symbol is its own bound: it stays symbolic.
                if isinstance(atom, Symbol) and atom.value is None:
                    bound = of_symbol(atom)
                else:
                    return None
            product = product * bound
        total = total + product
    return total


def _single(value: Dim, top: bool) -> Index | None:
    """Bounds of an affine expression whose atoms may be negative."""
    total: Index = 0
    for monomial, coefficient in value.terms.items():
        if len(monomial) > 1:
            return None
        bound: Index | None = 1 if not monomial else _bound(monomial[0], top == (coefficient > 0))
        if bound is None:
            return None
        total = total + coefficient * bound
    return total


def lower(value: Index) -> Index | None:
    """A lower bound of `value`, if one is known."""
    return _range(value, False)


def upper(value: Index) -> Index | None:
    """An upper bound of `value` (in terms of shape symbols), if one is known."""
    return _range(value, True)


def known_nonnegative(value: Index | None) -> bool:
    """Is `value` certainly >= 0? Shape symbols are taken to be at least 1."""
    if value is None:
        return False
    if isinstance(value, int):
        return value >= 0
    low: Index = 0
    for monomial, coefficient in value.terms.items():
        if coefficient < 0:
            return _affine_nonnegative(value)
        product: Index = coefficient
        for atom in monomial:
            bound = _bound(atom, False)
            if not isinstance(bound, int):
                return False
            if isinstance(atom, Symbol) and atom.value is None and atom.high is None:
                bound = max(bound, 1)
            if bound < 0:
                return _affine_nonnegative(value)
            product = product * bound
        low = low + product
    return isinstance(low, int) and low >= 0


def decided(position: Index, low: Index, high: Index) -> bool | None:
    """Whether low <= position < high, as far as bounds say."""
    if known_nonnegative(position - low) and known_nonnegative(high - 1 - position):
        return True
    if known_nonnegative(low - 1 - position) or known_nonnegative(position - high):
        return False
    return None


def _affine_nonnegative(value: Dim) -> bool:
    low = lower(value)
    if isinstance(low, int):
        return low >= 0
    if isinstance(low, Dim) and low != value:
        return all(c >= 0 for c in low.terms.values()) or _ones_nonnegative(low)
    return _ones_nonnegative(value)


def _ones_nonnegative(value: Dim) -> bool:
    """``N*k - c >= 0`` for k >= c: substitutes each shape symbol's least value, 1, where only the constant is negative."""
    constant = value.terms.get((), 0)
    others = [(m, c) for m, c in value.terms.items() if m]
    if any(c < 0 for _, c in others):
        return False
    if any(
        not isinstance(a, Symbol) or a.value is not None or a.high is not None for m, _ in others for a in m
    ):
        return False
    return sum(c for _, c in others) + constant >= 0


def substitute(value: Index, binding: Mapping[Symbol, Index]) -> Index:
    """Replace symbols by expressions or numbers."""
    if isinstance(value, int):
        return value
    total: Index = 0
    for monomial, coefficient in value.terms.items():
        product: Index = coefficient
        for atom in monomial:
            product = product * _substitute_atom(atom, binding)
        total = total + product
    return total


def _substitute_atom(atom: Atom, binding: Mapping[Symbol, Index]) -> Index:
    if isinstance(atom, Symbol):
        return binding.get(atom, of_symbol(atom))
    a, b = substitute(atom.a, binding), substitute(atom.b, binding)
    if atom.kind in ("floordiv", "mod"):
        return divide(a, b)[0 if atom.kind == "floordiv" else 1]
    return maximum(a, b) if atom.kind == "max" else minimum(a, b)


def evaluate(value: Index, binding: Mapping[str, int]) -> int:
    """The number that `value` has when each symbol (by name) has the number in `binding`. KeyError if one is missing."""
    if isinstance(value, int):
        return value
    total = 0
    for monomial, coefficient in value.terms.items():
        product = coefficient
        for atom in monomial:
            if isinstance(atom, Symbol):
                product *= binding[atom.name]
            else:
                product *= Compound.KINDS[atom.kind](evaluate(atom.a, binding), evaluate(atom.b, binding))
        total += product
    return total


def product(values: tuple[Index, ...] | list[Index]) -> Index:
    """The product of all, 1 if there are none."""
    result: Index = 1
    for value in values:
        result = result * value
    return result


_TOKEN = re.compile(r"\s*(?:(\d+)|(floordiv|mod|max|min)\b|([A-Za-z_]\w*)|([-+*()]))")


def parse(text: str) -> Index:
    """Read an expression as `repr` prints it. ValueError on anything else."""
    tokens: list[str] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"unexpected {text[position:]!r} in the dimension {text!r}")
        tokens.append(match.group().strip())
        position = match.end()
    value, rest = _parse_sum(tokens, 0, text)
    if rest != len(tokens):
        raise ValueError(f"unexpected {tokens[rest]!r} in the dimension {text!r}")
    return value


def _parse_sum(tokens: list[str], at: int, text: str) -> tuple[Index, int]:
    value, at = _parse_product(tokens, at, text)
    while at < len(tokens) and tokens[at] in ("+", "-", "floordiv", "mod", "max", "min"):
        operator = tokens[at]
        right, at = _parse_product(tokens, at + 1, text)
        if operator in ("floordiv", "mod"):
            if isinstance(right, int) and right <= 0:
                raise ValueError(f"division by {right} in the dimension {text!r}")
            value = divide(value, right)[0 if operator == "floordiv" else 1]
        elif operator in ("max", "min"):
            value = maximum(value, right) if operator == "max" else minimum(value, right)
        else:
            value = value + right if operator == "+" else value - right
    return value, at


def _parse_product(tokens: list[str], at: int, text: str) -> tuple[Index, int]:
    value, at = _parse_atom(tokens, at, text)
    while at < len(tokens) and tokens[at] == "*":
        right, at = _parse_atom(tokens, at + 1, text)
        value = value * right
    return value, at


def _parse_atom(tokens: list[str], at: int, text: str) -> tuple[Index, int]:
    if at >= len(tokens):
        raise ValueError(f"the dimension {text!r} ends too early")
    token = tokens[at]
    if token == "-":
        value, at = _parse_atom(tokens, at + 1, text)
        return -value, at
    if token == "(":
        value, at = _parse_sum(tokens, at + 1, text)
        if at >= len(tokens) or tokens[at] != ")":
            raise ValueError(f"missing ')' in the dimension {text!r}")
        return value, at + 1
    if token.isdigit():
        return int(token), at + 1
    if token[0].isalpha() or token[0] == "_":
        return dim(token), at + 1
    raise ValueError(f"unexpected {token!r} in the dimension {text!r}")


def recombine(value: Index) -> Index:
    """Put digits together again: ``(x floordiv n) * n + x mod n`` is x, at any multiple. Equal to `value`.

    So the position of ``(i // w, i % w)`` in a row-major matrix of width w becomes i.
    """
    changed = isinstance(value, Dim)
    while changed and isinstance(value, Dim):
        changed = False
        for monomial, coefficient in value.terms.items():
            following = _recombine_once(value, monomial, coefficient)
            if following is not None:
                value, changed = following, True
                break
    return value


def _recombine_once(value: Dim, monomial: Monomial, coefficient: int) -> Index | None:
    """`value` with one remainder and its quotient replaced by what was divided, or None if there is no such pair."""
    for at, atom in enumerate(monomial):
        if not isinstance(atom, Compound) or atom.kind != "mod":
            continue
        rest: Index = coefficient
        for other in (*monomial[:at], *monomial[at + 1 :]):
            rest = rest * Dim({(other,): 1})
        high = _terms(rest * atom.b * divide(atom.a, atom.b)[0])
        if all(value.terms.get(m) == c for m, c in high.items()):
            return value - Dim({monomial: coefficient}) - _make(dict(high)) + rest * atom.a
    return None
