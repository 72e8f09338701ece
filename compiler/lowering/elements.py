"""`ElementBuilder`: arithmetic on graph elements, for the element functions of the operations.

A `Scalar` is a value with its graph element type. f16 and bf16 are f32 in registers, rounded after each operation, so
an expression gives the same bits whether it is fused or not. Booleans are i1 in registers and bytes in memory. Inside
`LoopBuilder.lanes_of` the same calls make vector code: a value is then one number, or one for each lane.

Integers wrap. Division by zero gives quotient 0 and the dividend as remainder; the least number by -1 is itself.
Floats to integers truncate; out of range they give the nearest i32 or i64, of which smaller types keep the low bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flambeau.compiler.dialects.loops import arith
from flambeau.compiler.dialects.loops.base import signless
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, decided, known_nonnegative, maximum, minimum
from flambeau.compiler.ir.scalar_builder import lanes_among
from flambeau.compiler.ir.types import (
    ElementType,
    MemRefType,
    Type,
    VectorType,
    bf16,
    f16,
    f32,
    f64,
    i1,
    i32,
    i64,
    u32,
)
from flambeau.compiler.ir.types import index as index_type
from flambeau.compiler.lowering.half import HalfFormats
from flambeau.compiler.lowering.mathlib import FUNCTIONS
from flambeau.compiler.lowering.remainder import remainder_f32, remainder_f64, remainder_of_f16

_FLOAT_PREDICATES = {"EQ": "oeq", "NE": "une", "LT": "olt", "LE": "ole", "GT": "ogt", "GE": "oge"}
_SIGNED_PREDICATES = {"EQ": "eq", "NE": "ne", "LT": "slt", "LE": "sle", "GT": "sgt", "GE": "sge"}
_UNSIGNED_PREDICATES = {"EQ": "eq", "NE": "ne", "LT": "ult", "LE": "ule", "GT": "ugt", "GE": "uge"}


class Scalar(NamedTuple):
    """A loop-level value and the graph element type that it stands for."""

    value: Value
    element: ElementType


def register_type(element: ElementType) -> ElementType:
    """The type of an element in a register: f32 for f16 and bf16, signless integers."""
    return f32 if element in (f16, bf16) else signless(element)


class ElementBuilder:
    """Element operations over a `LoopBuilder`, which is `b`. `f16_instructions`: the target converts f16 itself."""

    def __init__(self, b: LoopBuilder, f16_instructions: bool = False) -> None:
        self.b = b
        self.half = HalfFormats(b, f16_instructions)

    # -- making scalars ----------------------------------------------------------------------------------------------
    def constant(self, value: Any, element: ElementType) -> Scalar:
        """A number, rounded (or wrapped) to `element`."""
        with np.errstate(over="ignore"):
            if element.is_float:
                number: float | int = float(np.asarray(value, np.float64).astype(element.numpy))
            elif element.is_bool:
                number = int(bool(value))
            else:
                # The signless register holds the number modulo 2 ** bits.
                half = 1 << (element.bits - 1)
                number = (int(value) + half) % (2 * half) - half
        return Scalar(self.b.constant(register_type(element), number), element)

    def load(self, buffer: Value, indices: Sequence[Any], steady: bool = False) -> Scalar:
        """The element of a buffer at the indices. `steady`: nothing writes to the buffer meanwhile."""
        assert isinstance(buffer.type, MemRefType)
        element = buffer.type.element
        value = self.b.load(buffer, indices, steady)
        if element in (f16, bf16):
            value = self.half.widen(value, element)
        return Scalar(value, element)

    def store(self, x: Scalar, buffer: Value, indices: Sequence[Any], nontemporal: bool = False) -> None:
        """Writes an element, which has the buffer's element type; whole vectors past the caches, if `nontemporal`."""
        assert isinstance(buffer.type, MemRefType)
        if x.element is not buffer.type.element:
            raise TypeError(f"cannot store {x.element} in {buffer.type}")
        value = self.half.narrow(x.value, x.element) if x.element in (f16, bf16) else x.value
        self.b.store(value, buffer, indices, nontemporal)

    def index_to_scalar(self, expression: Index, element: ElementType) -> Scalar:
        """The value of an index expression, converted to `element`."""
        return self.convert(Scalar(self.b.index_cast(self.b.index(expression), i64), i64), element)

    def scalar_to_index(self, x: Scalar, low: Index = 0, high: Index | None = None) -> Index:
        """An integer as an index expression. The caller knows that low <= x <= high; see `clamped_index`."""
        wide = self.convert(x, i64).value
        return self.b.symbol(self.b.index_cast(wide, index_type), low, high)

    def clamped_index(self, x: Scalar, low: Index, high: Index) -> Index:
        """An integer, clamped to low ... high (inclusive), as an index expression."""
        b = self.b
        wide = b.index_cast(self.convert(x, i64).value, index_type)
        value = b.imin(b.imax(wide, b.index(low)), b.index(high))
        return b.symbol(value, low, high)

    # -- arithmetic ----------------------------------------------------------------------------------------------------
    def _same(self, what: str, x: Scalar, y: Scalar) -> ElementType:
        if x.element is not y.element:
            raise TypeError(f"{what} takes scalars of the same element type, got {x.element} and {y.element}")
        return x.element

    def _float(self, value: Value, element: ElementType) -> Scalar:
        """A float result, rounded to its element type."""
        if element in (f16, bf16):
            value = self.half.round(value, element)
        return Scalar(value, element)

    def add(self, x: Scalar, y: Scalar) -> Scalar:
        """Sum; of booleans, or."""
        element = self._same("add", x, y)
        if element.is_float:
            return self._float(self.b.fadd(x.value, y.value), element)
        return Scalar((self.b.ior if element.is_bool else self.b.iadd)(x.value, y.value), element)

    def sub(self, x: Scalar, y: Scalar) -> Scalar:
        """Difference; of booleans, exclusive or."""
        element = self._same("sub", x, y)
        if element.is_float:
            return self._float(self.b.fsub(x.value, y.value), element)
        return Scalar((self.b.ixor if element.is_bool else self.b.isub)(x.value, y.value), element)

    def mul(self, x: Scalar, y: Scalar) -> Scalar:
        """Product; of booleans, and."""
        element = self._same("mul", x, y)
        if element.is_float:
            return self._float(self.b.fmul(x.value, y.value), element)
        return Scalar((self.b.iand if element.is_bool else self.b.imul)(x.value, y.value), element)

    def fma(self, x: Scalar, y: Scalar, z: Scalar) -> Scalar:
        """x * y + z, for floats rounded once."""
        element = self._same("fma", x, y)
        self._same("fma", x, z)
        if not element.is_float:
            return self.add(self.mul(x, y), z)
        return self._float(self.b.fma(x.value, y.value, z.value), element)

    def div(self, x: Scalar, y: Scalar) -> Scalar:
        """Quotient; of integers truncated (0 for divisor 0)."""
        element = self._same("div", x, y)
        if element.is_float:
            return self._float(self.b.fdiv(x.value, y.value), element)
        return self._integer_division(x, y, element, quotient=True)

    def rem(self, x: Scalar, y: Scalar) -> Scalar:
        """Remainder with the dividend's sign (x for an integer divisor 0; NaN for a float one)."""
        element = self._same("rem", x, y)
        if not element.is_float:
            return self._integer_division(x, y, element, quotient=False)
        if not self.b.exact_fma:
            return self._float(self.b.frem(x.value, y.value), element)
        name, function = {
            f64: ("math.fmod.f64", remainder_f64),
            f16: ("math.fmod.f16", remainder_of_f16),
        }.get(element, ("math.fmod.f32", remainder_f32))
        return self._float(self._shared(name, function, (x.value, y.value)), element)

    def _integer_division(self, x: Scalar, y: Scalar, element: ElementType, quotient: bool) -> Scalar:
        b, kind = self.b, register_type(element)
        signed = element.kind == "int"
        operation = b.idiv if quotient else b.irem
        divisor = _constant_of(y.value)
        if divisor is not None and divisor not in (0, -1):
            return Scalar(operation(x.value, y.value, signed), element)
        zero = b.constant(kind, 0)
        by_zero = b.icmp("eq", y.value, zero)
        unsafe = by_zero
        if signed:
            negated = b.icmp("eq", y.value, b.constant(kind, -1))
            unsafe = b.ior(by_zero, negated)
        safe = b.select(unsafe, b.constant(kind, 1), y.value)
        result = operation(x.value, safe, signed)
        if quotient:
            if signed:
                result = b.select(negated, b.isub(zero, x.value), result)
            return Scalar(b.select(by_zero, zero, result), element)
        return Scalar(b.select(by_zero, x.value, result), element)

    def neg(self, x: Scalar) -> Scalar:
        """Negation; booleans stay."""
        if x.element.is_float:
            return Scalar(self.b.fneg(x.value), x.element)
        if x.element.is_bool:
            return x
        return Scalar(self.b.isub(self.b.constant(register_type(x.element), 0), x.value), x.element)

    def abs(self, x: Scalar) -> Scalar:
        """Absolute value."""
        if x.element.is_float:
            return Scalar(self.b.fabs(x.value), x.element)
        return Scalar(self.b.iabs(x.value), x.element) if x.element.kind == "int" else x

    def sign(self, x: Scalar) -> Scalar:
        """-1, 0 or 1; of floats also -0.0 and NaN, which are their own signs."""
        if x.element.is_bool:
            return x
        zero, one = self.constant(0, x.element), self.constant(1, x.element)
        positive = self.compare("GT", x, zero)
        if x.element.kind == "uint":
            return self.select(positive, one, zero)
        negative = self.compare("LT", x, zero)
        return self.select(positive, one, self.select(negative, self.constant(-1, x.element), x))

    def max(self, x: Scalar, y: Scalar) -> Scalar:
        """The larger; NaN if either is."""
        element = self._same("max", x, y)
        if element.is_float:
            return Scalar(self.b.fmax(x.value, y.value), element)
        if element.is_bool:
            return self.or_(x, y)
        return Scalar(self.b.imax(x.value, y.value, element.kind == "int"), element)

    def min(self, x: Scalar, y: Scalar) -> Scalar:
        """The smaller; NaN if either is."""
        element = self._same("min", x, y)
        if element.is_float:
            return Scalar(self.b.fmin(x.value, y.value), element)
        if element.is_bool:
            return self.and_(x, y)
        return Scalar(self.b.imin(x.value, y.value, element.kind == "int"), element)

    def pow(self, x: Scalar, y: Scalar) -> Scalar:
        """x to the power y. An integer to a negative power is 0, unless it is 1 or -1."""
        element = self._same("pow", x, y)
        return self.math("pow", x, y) if element.is_float else self._integer_pow(x, y)

    def _integer_pow(self, x: Scalar, y: Scalar) -> Scalar:
        one, zero = self.constant(1, x.element), self.constant(0, x.element)

        def step(_: Index, base: Scalar, exponent: Scalar, result: Scalar) -> tuple[Scalar, ...]:
            odd = self.compare("NE", self.and_(exponent, one), zero)
            result = self.select(odd, self.mul(result, base), result)
            return self.mul(base, base), self.shift_right_logical(exponent, one), result

        result = self.loop(x.element.bits, (x, y, one), step)[2]
        if x.element.kind != "int":
            return result
        odd = self.compare("NE", self.and_(y, one), zero)
        minus_one = self.constant(-1, x.element)
        unit = self.select(self.compare("EQ", x, minus_one), self.select(odd, minus_one, one), zero)
        inverse = self.select(self.compare("EQ", x, one), one, unit)
        return self.select(self.compare("LT", y, zero), inverse, result)

    # -- comparisons and bits ------------------------------------------------------------------------------------------
    def compare(self, direction: str, x: Scalar, y: Scalar) -> Scalar:
        """A boolean; `direction` is "EQ", "NE", "LT", "LE", "GT" or "GE". With NaN all but NE are false."""
        element = self._same("compare", x, y)
        if element.is_float:
            return Scalar(self.b.fcmp(_FLOAT_PREDICATES[direction], x.value, y.value), i1)
        predicates = _SIGNED_PREDICATES if element.kind == "int" else _UNSIGNED_PREDICATES
        return Scalar(self.b.icmp(predicates[direction], x.value, y.value), i1)

    def select(self, condition: Scalar, x: Scalar, y: Scalar) -> Scalar:
        """x where the boolean is set, else y; both are computed."""
        element = self._same("select", x, y)
        return Scalar(self.b.select(condition.value, x.value, y.value), element)

    def and_(self, x: Scalar, y: Scalar) -> Scalar:
        """Bitwise and."""
        if x.element.is_bool:  # conditions that bounds decide
            for one, other in ((x, y), (y, x)):
                known = _constant_of(one.value)
                if known is not None:
                    return other if known else one
        return Scalar(self.b.iand(x.value, y.value), self._same("and", x, y))

    def or_(self, x: Scalar, y: Scalar) -> Scalar:
        """Bitwise or."""
        return Scalar(self.b.ior(x.value, y.value), self._same("or", x, y))

    def xor(self, x: Scalar, y: Scalar) -> Scalar:
        """Bitwise exclusive or."""
        return Scalar(self.b.ixor(x.value, y.value), self._same("xor", x, y))

    def not_(self, x: Scalar) -> Scalar:
        """Bitwise complement."""
        ones = self.b.constant(x.value.type, 1 if x.element.is_bool else -1)
        return Scalar(self.b.ixor(x.value, ones), x.element)

    def shift_left(self, x: Scalar, count: Scalar) -> Scalar:
        """x shifted left; 0 for a count that is negative or not below the width."""
        return self._shift(self.b.shl, x, count)

    def shift_right(self, x: Scalar, count: Scalar) -> Scalar:
        """x shifted right: the sign comes in for signed integers, zeros for unsigned ones."""
        if x.element.kind != "int":
            return self.shift_right_logical(x, count)
        b, last = self.b, x.element.bits - 1
        limit = b.constant(register_type(x.element), last)
        return Scalar(
            b.ashr(x.value, b.imin(count.value, limit, signed=False)), self._same("shift", x, count)
        )

    def shift_right_logical(self, x: Scalar, count: Scalar) -> Scalar:
        """x shifted right, zeros coming in; 0 for a count that is negative or not below the width."""
        return self._shift(self.b.lshr, x, count)

    def _shift(self, operation: Callable[[Value, Value], Value], x: Scalar, count: Scalar) -> Scalar:
        element, b = self._same("shift", x, count), self.b
        kind, known = register_type(element), _constant_of(count.value)
        if known is not None and 0 <= known < element.bits:
            return Scalar(operation(x.value, count.value), element)
        inside = b.icmp("ult", count.value, b.constant(kind, element.bits))
        safe = b.select(inside, count.value, b.constant(kind, 0))
        return Scalar(b.select(inside, operation(x.value, safe), b.constant(kind, 0)), element)

    def popcount(self, x: Scalar) -> Scalar:
        """Number of set bits."""
        return Scalar(self.b.ctpop(x.value), x.element)

    def count_leading_zeros(self, x: Scalar) -> Scalar:
        """Number of leading zero bits; the width for 0."""
        return Scalar(self.b.ctlz(x.value), x.element)

    def mul_high(self, x: Scalar, y: Scalar) -> Scalar:
        """The high word of the product of two u32."""
        b = self.b
        wide = b.imul(b.extui(x.value, i64), b.extui(y.value, i64))
        return Scalar(b.trunci(b.lshr(wide, b.const(i64, 32)), i32), self._same("mul_high", x, y))

    # -- conversions ---------------------------------------------------------------------------------------------------
    def convert(self, x: Scalar, element: ElementType) -> Scalar:
        """x as `element`: floats truncate to integers, to booleans anything but 0 is true (NaN too)."""
        source, b = x.element, self.b
        if source is element:
            return x
        if element.is_bool:
            return self.compare("NE", x, self.constant(0, source))
        if source.is_float:
            return self._from_float(x, element)
        signed = source.kind == "int"
        if element.is_float:
            to = register_type(element)
            return self._float((b.sitofp if signed else b.uitofp)(x.value, to), element)
        if source.bits > element.bits:
            return Scalar(b.trunci(x.value, element), element)
        if source.bits == element.bits:
            return Scalar(x.value, element)
        return Scalar((b.extsi if signed else b.extui)(x.value, element), element)

    def _from_float(self, x: Scalar, element: ElementType) -> Scalar:
        b = self.b
        if not element.is_float:
            wide = i64 if element in (i64, u32) else i32
            value = b.fptosi_sat(x.value, wide)
            return Scalar(value if element.bits == wide.bits else b.trunci(value, element), element)
        source, target = register_type(x.element), register_type(element)
        if source is target:
            return self._float(x.value, element) if element is not f32 else Scalar(x.value, element)
        value = b.fpext(x.value, target) if target is f64 else b.fptrunc(x.value, target)
        return self._float(value, element)

    def bitcast(self, x: Scalar, element: ElementType) -> Scalar:
        """The same bits as another element type of the same width."""
        if x.element.bits != element.bits:
            raise TypeError(f"bitcast from {x.element} to {element}, which have different widths")
        value = self.half.narrow(x.value, x.element) if x.element in (f16, bf16) else x.value
        value = self.b.bitcast(value, element)
        return Scalar(self.half.widen(value, element) if element in (f16, bf16) else value, element)

    # -- functions -----------------------------------------------------------------------------------------------------
    def math(self, name: str, *operands: Scalar) -> Scalar:
        """A function of floats by name: "exp", "log", "tanh", "erf", "pow", ...; see `lowering.mathlib`.

        "sqrt", "floor", "ceil", "trunc" and "round_even" are operations. f16 and bf16 compute in f32.
        """
        element, b = operands[0].element, self.b
        if not element.is_float:
            raise TypeError(f"{name} is a function of floats, got {element}")
        values = tuple([x.value for x in operands])
        if name in ("sqrt", "floor", "ceil", "trunc", "round_even"):
            return self._float(getattr(b, name)(*values), element)
        kind = register_type(element).name
        function = FUNCTIONS.get((name, kind))
        if function is None:
            raise KeyError(f"no function {name} of {kind}; there are {sorted({n for n, _ in FUNCTIONS})}")
        return self._float(self._shared(f"math.{name}.{kind}", function, values), element)

    def _shared(self, name: str, function: Callable[..., Value], values: tuple[Value, ...]) -> Value:
        """Calls `function` out of line: a private function of the module, made once, that LLVM inlines."""
        b = self.b
        type: Type = values[0].type
        lanes = lanes_among(values)
        if lanes:
            values = tuple([v if isinstance(v.type, VectorType) else b.broadcast(v, lanes) for v in values])
            type = values[0].type
            name = f"{name}.x{lanes}"
        if all(f.definition.sym_name != name for f in b.functions):  # type: ignore[attr-defined]
            with (
                b.function(name, [type] * len(values), None, [type], internal=True, inline=True) as f,
                b.fast(),
            ):
                b.return_(function(b, *f.arguments))
        return b.call(name, values, [type])[0]

    # -- control -------------------------------------------------------------------------------------------------------
    def in_bounds(self, position: Index, low: Index, high: Index) -> Scalar:
        """Whether low <= position < high; a constant where bounds decide it."""
        b = self.b
        inside = decided(position, low, high)
        if inside is not None:
            return Scalar(b.constant(i1, inside), i1)
        tests = []
        if not known_nonnegative(position - low):
            tests.append(b.icmp("sge", b.index(position), b.index(low)))
        if not known_nonnegative(high - 1 - position):
            tests.append(b.icmp("slt", b.index(position), b.index(high)))
        return Scalar(tests[0] if len(tests) == 1 else b.iand(*tests), i1)

    def guarded(self, condition: Scalar, thunk: Callable[[], Scalar], otherwise: Scalar) -> Scalar:
        """`thunk()` where the condition holds, and only there; else `otherwise`."""
        b = self.b
        known = _constant_of(condition.value)
        if known is not None:
            return thunk() if known else otherwise
        if isinstance(condition.value.type, VectorType):
            saved = b.mask
            b.mask = condition.value if saved is None else b.iand(saved, condition.value)
            result = thunk()
            b.mask = saved
            return self.select(condition, result, otherwise)
        (value,) = b.if_(
            condition.value, lambda: [self._spread(thunk().value)], lambda: [self._spread(otherwise.value)]
        )
        return Scalar(value, otherwise.element)

    def loop(
        self, count: Index, init: Sequence[Scalar], body: Callable[..., Scalar | Sequence[Scalar]]
    ) -> tuple[Scalar, ...]:
        """The carried scalars after `body(i, *carried)` for each i < count; it gives the next ones."""
        values = [self._spread(x.value) for x in init]
        with self.b.for_(0, count, init=values) as loop:
            carried = [Scalar(v, x.element) for v, x in zip(loop.carried, init, strict=True)]
            following = body(loop.index, *carried)
            scalars = (following,) if isinstance(following, Scalar) else tuple(following)
            for before, after in zip(init, scalars, strict=True):
                self._same("loop", before, after)
            loop.yield_(*[self._spread(x.value) for x in scalars])
        return tuple([Scalar(v, x.element) for v, x in zip(loop.results, init, strict=True)])

    def _spread(self, value: Value) -> Value:
        """In vector code a value that crosses control flow has all lanes, whatever made it."""
        if self.b.lane is None or isinstance(value.type, VectorType):
            return value
        return self.b.broadcast(value, self.b.lanes)

    #: Index expressions' own maximum and minimum, for element functions that compute positions.
    index_max = staticmethod(maximum)
    index_min = staticmethod(minimum)


def _constant_of(value: Value) -> float | int | None:
    """The number that a value is, if it is a constant."""
    owner = value.owner
    return (
        owner.definition.value if owner is not None and isinstance(owner.definition, arith.Constant) else None
    )
