"""Arithmetic of `LoopBuilder`: one method for each scalar operation, on scalars and on vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flambeau.compiler.dialects.loops import arith, llvm, math, vector, x86vector
from flambeau.compiler.dialects.loops.base import LoopOp, is_float, signless
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import ElementType, IndexType, Type, VectorType, element_type
from flambeau.compiler.ir.types import index as index_type

if TYPE_CHECKING:
    TypeName = str | Type


class ScalarBuilder:
    """The scalar half of `LoopBuilder`, which gives `value`, `constant` and `index`."""

    def __init__(self, fma: bool, avx512: bool) -> None:
        #: `fma` rounds once.
        self.exact_fma = fma
        #: The target has the instructions of `scale` and `table`.
        self.avx512 = avx512
        #: The fast-math flags of the float operations made from now on.
        self.fastmath: tuple[str, ...] = ("contract",)

    if TYPE_CHECKING:

        def value(self, definition: LoopOp, *operands: Value, to: Type | None = None) -> Value: ...
        def constant(self, type: Type, value: float | int) -> Value: ...
        def index(self, expression: Any) -> Value: ...

    @contextmanager
    def fast(self, *flags: str) -> Iterator[None]:
        """Inside, float operations carry these flags: ("reassoc", "contract") for sums, none for exact code."""
        saved, self.fastmath = self.fastmath, flags
        try:
            yield
        finally:
            self.fastmath = saved

    def const(self, type: TypeName, value: float | int) -> Value:
        """A number of a type, or of the type that MLIR calls so."""
        return self.constant(_type(type), value)

    # -- widening ------------------------------------------------------------------------------------------------
    def broadcast(self, scalar: Value, lanes: int) -> Value:
        """A vector with `scalar` in every lane."""
        owner = scalar.owner
        if owner is not None and isinstance(owner.definition, arith.Constant):
            return self.constant(_vector_of(lanes, scalar.type), owner.definition.value)
        return self.value(vector.Broadcast(lanes), scalar)

    def _same(self, *values: Value) -> tuple[Value, ...]:
        """The operands with scalars widened, if there is a vector among them."""
        first = values[0].type
        if all(v.type is first for v in values):
            return values
        lanes = lanes_among(values)
        if lanes == 0:
            return values
        return tuple([v if isinstance(v.type, VectorType) else self.broadcast(v, lanes) for v in values])

    def _binary(self, definition: LoopOp, x: Value, y: Value) -> Value:
        if x.type is not y.type:
            x, y = self._same(x, y)
        return self.value(definition, x, y)

    def _cast(self, definition: LoopOp, x: Value, type: TypeName) -> Value:
        to = _type(type)
        if isinstance(x.type, VectorType) and not isinstance(to, VectorType):
            to = VectorType.get(x.type.shape, to)  # type: ignore[arg-type]
        return x if to is x.type else self.value(definition, x, to=to)

    # -- floats --------------------------------------------------------------------------------------------------
    def fadd(self, x: Value, y: Value) -> Value:
        return self._binary(arith.AddF(self.fastmath), x, y)

    def fsub(self, x: Value, y: Value) -> Value:
        return self._binary(arith.SubF(self.fastmath), x, y)

    def fmul(self, x: Value, y: Value) -> Value:
        return self._binary(arith.MulF(self.fastmath), x, y)

    def fdiv(self, x: Value, y: Value) -> Value:
        return self._binary(arith.DivF(self.fastmath), x, y)

    def frem(self, x: Value, y: Value) -> Value:
        """C's fmod. Targets without the instruction call libm."""
        return self._binary(arith.RemF(), x, y)

    def fneg(self, x: Value) -> Value:
        return self.value(arith.NegF(), x)

    def fabs(self, x: Value) -> Value:
        return self.value(math.AbsF(), x)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x * y + z, rounded once if `exact_fma`."""
        x, y, z = self._same(x, y, z)
        if not self.exact_fma:
            return self.fadd(self.fmul(x, y), z)
        return self.value(vector.Fma() if isinstance(x.type, VectorType) else math.Fma(), x, y, z)

    def scale(self, x: Value, n: Value) -> Value:
        """x times two to the power floor(n), n a float, rounded once; where `avx512`."""
        return self._binary(x86vector.Scale(), x, n)

    def table(self, entries: Sequence[float], position: Value) -> Value:
        """One of 16 f32 numbers, by the last four bits of an i32; where `avx512`."""
        return self.value(x86vector.Table(tuple(entries)), position)

    def bounded(self, x: Value, limit: float, unsigned: bool = False) -> Value:
        """x if its magnitude is less than the limit, else the limit with the sign of x, if any; where `avx512`."""
        return self.value(x86vector.Range(limit, unsigned), x)

    def sqrt(self, x: Value) -> Value:
        return self.value(math.Sqrt(), x)

    def floor(self, x: Value) -> Value:
        return self.value(math.Floor(), x)

    def ceil(self, x: Value) -> Value:
        return self.value(math.Ceil(), x)

    def round_even(self, x: Value) -> Value:
        return self.value(math.RoundEven(), x)

    def trunc(self, x: Value) -> Value:
        return self.value(math.Trunc(), x)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self._binary(math.CopySign(), magnitude, sign)

    def fmax(self, x: Value, y: Value) -> Value:
        """The larger; NaN if either is."""
        return self._binary(arith.MaximumF(), x, y)

    def fmin(self, x: Value, y: Value) -> Value:
        """The smaller; NaN if either is."""
        return self._binary(arith.MinimumF(), x, y)

    def fcmp(self, predicate: str, x: Value, y: Value) -> Value:
        return self._binary(arith.CmpF(predicate), x, y)

    # -- integers ------------------------------------------------------------------------------------------------
    def iadd(self, x: Value, y: Value) -> Value:
        return self._binary(arith.AddI(), x, y)

    def isub(self, x: Value, y: Value) -> Value:
        return self._binary(arith.SubI(), x, y)

    def imul(self, x: Value, y: Value) -> Value:
        return self._binary(arith.MulI(), x, y)

    def idiv(self, x: Value, y: Value, signed: bool = True) -> Value:
        """Truncated quotient; undefined for divisor 0 and for the least number by -1."""
        return self._binary(arith.DivSI() if signed else arith.DivUI(), x, y)

    def irem(self, x: Value, y: Value, signed: bool = True) -> Value:
        """Remainder with the dividend's sign; undefined where `idiv` is."""
        return self._binary(arith.RemSI() if signed else arith.RemUI(), x, y)

    def imax(self, x: Value, y: Value, signed: bool = True) -> Value:
        return self._binary(arith.MaxSI() if signed else arith.MaxUI(), x, y)

    def imin(self, x: Value, y: Value, signed: bool = True) -> Value:
        return self._binary(arith.MinSI() if signed else arith.MinUI(), x, y)

    def iabs(self, x: Value) -> Value:
        return self.value(math.AbsI(), x)

    def iand(self, x: Value, y: Value) -> Value:
        return self._binary(arith.AndI(), x, y)

    def ior(self, x: Value, y: Value) -> Value:
        return self._binary(arith.OrI(), x, y)

    def ixor(self, x: Value, y: Value) -> Value:
        return self._binary(arith.XOrI(), x, y)

    def shl(self, x: Value, y: Value) -> Value:
        return self._binary(arith.ShLI(), x, y)

    def lshr(self, x: Value, y: Value) -> Value:
        return self._binary(arith.ShRUI(), x, y)

    def ashr(self, x: Value, y: Value) -> Value:
        return self._binary(arith.ShRSI(), x, y)

    def ctlz(self, x: Value) -> Value:
        return self.value(math.CountLeadingZeros(), x)

    def cttz(self, x: Value) -> Value:
        return self.value(math.CountTrailingZeros(), x)

    def ctpop(self, x: Value) -> Value:
        return self.value(math.CountPopulation(), x)

    def icmp(self, predicate: str, x: Value, y: Value) -> Value:
        return self._binary(arith.CmpI(predicate), x, y)

    and1 = iand
    or1 = ior

    def not1(self, x: Value) -> Value:
        """Negation of an i1 or of a mask."""
        return self.ixor(x, self.constant(x.type, 1))

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        """x where the condition is set, else y; lane by lane for a mask."""
        if x.type is not y.type:
            x, y = self._same(x, y)
        if isinstance(condition.type, VectorType) and not isinstance(x.type, VectorType):
            lanes = int(condition.type.shape[0])  # type: ignore[arg-type]
            x, y = self.broadcast(x, lanes), self.broadcast(y, lanes)
        return self.value(arith.Select(), condition, x, y)

    # -- conversions (to a type, or to its name) -------------------------------------------------------------------
    def bitcast(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.Bitcast(), x, type)

    def fptosi(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.FPToSI(), x, type)

    def fptoui(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.FPToUI(), x, type)

    def fptosi_sat(self, x: Value, type: TypeName) -> Value:
        """Truncated; out of range the nearest integer that there is, 0 for NaN."""
        return self._cast(arith.FPToSISat(), x, type)

    def sitofp(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.SIToFP(), x, type)

    def uitofp(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.UIToFP(), x, type)

    def fpext(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.ExtF(), x, type)

    def fptrunc(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.TruncF(), x, type)

    def trunci(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.TruncI(), x, type)

    def extsi(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.ExtSI(), x, type)

    def extui(self, x: Value, type: TypeName) -> Value:
        return self._cast(arith.ExtUI(), x, type)

    def index_cast(self, x: Value, type: TypeName) -> Value:
        """Between index and integers."""
        return self._cast(arith.IndexCast(), x, type)

    # -- vectors ---------------------------------------------------------------------------------------------------
    def vector_reduce(self, kind: str, x: Value) -> Value:
        """One scalar from all lanes: "add", "mul", "maximumf", "minimumf", "maxsi", ... ; sums are reassociated."""
        flags = ("reassoc",) if is_float(x.type) and kind in ("add", "mul") else ()
        return self.value(vector.Reduction(kind, flags), x)

    def extract(self, x: Value, position: int | Value) -> Value:
        """One lane of a vector."""
        if isinstance(position, Value):
            return self.value(vector.Extract(), x, position)
        return self.value(vector.Extract(position), x)

    def insert(self, scalar: Value, x: Value, position: int | Value) -> Value:
        """The vector with one lane replaced."""
        if isinstance(position, Value):
            return self.value(vector.Insert(), scalar, x, position)
        return self.value(vector.Insert(position), scalar, x)

    def shuffle(self, x: Value, y: Value, lanes: Sequence[int]) -> Value:
        """Lanes by number from x, then y."""
        return self.value(vector.Shuffle(tuple(lanes)), x, y)

    def vector_bitcast(self, x: Value, element: TypeName) -> Value:
        """A vector's bits as a vector of `element`."""
        assert isinstance(x.type, VectorType) and isinstance(x.type.shape[0], int)
        to = _type(element)
        bits = x.type.shape[0] * x.type.element.bits
        return self._cast(vector.BitCast(), x, _vector_of(bits // to.bits, to))  # type: ignore[attr-defined]

    def call_intrinsic(self, name: str, type: Type, *operands: Value) -> Value:
        """LLVM's intrinsic of this name, which has no effects."""
        return self.value(llvm.CallIntrinsic(name), *operands, to=type)

    def create_mask(self, count: Any, lanes: int) -> Value:
        """The first `count` lanes are set: none if it is negative, all if it is larger than `lanes`."""
        return self.value(vector.CreateMask(lanes), self.index(count))


def lanes_among(values: Sequence[Value]) -> int:
    """The number of lanes of the vectors among the values; 0 if all are scalars."""
    return next((int(v.type.shape[0]) for v in values if isinstance(v.type, VectorType)), 0)  # type: ignore[arg-type]


def _type(type: TypeName) -> Type:
    if isinstance(type, Type):
        return signless(type) if isinstance(type, ElementType) else type
    return index_type if type == "index" else signless(element_type(type))


def _vector_of(lanes: int, scalar: Type) -> VectorType:
    if not isinstance(scalar, ElementType | IndexType):
        raise TypeError(f"no vectors of {scalar}")
    return VectorType.get((lanes,), scalar)  # type: ignore[arg-type]
