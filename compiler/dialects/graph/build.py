"""Functions that make graph values: what gradients, decompositions, passes and importers are written in.

Every function takes and gives `Value`s, infers types, and applies the operation's own `fold`, so `add(x, 0)` is `x`.
Binary functions also take Python numbers, and broadcast scalars (rank 0) to the other operand's shape.
Operations are looked up by name, because the families' gradients import this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.dialects.graph.constants import Constant, DimensionValue, Iota, Literal
from flambeau.compiler.ir.core import Value, apply, create
from flambeau.compiler.ir.dims import Dim, Index, product
from flambeau.compiler.ir.opdef import REGISTRY
from flambeau.compiler.ir.types import ElementType, TensorType, from_numpy, i1, i64

Number: TypeAlias = "int | float | bool"
Operand: TypeAlias = "Value | int | float | bool"


def op(name: str, **attributes: Any) -> GraphOp:
    """The definition called ``graph.<name>`` with these attributes."""
    if not attributes:
        return _plain(name)
    cls: Any = REGISTRY[f"graph.{name}"]
    definition: GraphOp = cls(**attributes)
    return definition


@cache
def _plain(name: str) -> GraphOp:
    cls: Any = REGISTRY[f"graph.{name}"]
    definition: GraphOp = cls()
    return definition


def make(definition: GraphOp, *operands: Value) -> Value:
    """Apply an operation with one result, or what it folds to."""
    folded = definition.fold(*operands)
    if isinstance(folded, Value):
        return folded
    return apply(definition, *operands)


# -- what a value is -----------------------------------------------------------------------------------------------


def type_of(x: Value) -> TensorType:
    """The tensor type of `x`."""
    found = x.type
    assert isinstance(found, TensorType)
    return found


def shape_of(x: Value) -> tuple[Index, ...]:
    """The shape of `x`."""
    return type_of(x).shape


def element_of(x: Value) -> ElementType:
    """The element type of `x`."""
    return type_of(x).element


def splat_value(x: Value) -> Any:
    """The number that every element of `x` is known to be (seen through broadcasts and reshapes), or None."""
    while (definition := x.definition) is not None:
        if isinstance(definition, Constant):
            return definition.literal.splat
        if definition.name not in ("graph.broadcast_in_dim", "graph.reshape", "graph.transpose"):
            return None
        x = x.sources[0]
    return None


def type_from_numpy(array: Any) -> ElementType:
    """The element type of a NumPy array."""
    return from_numpy(array.dtype)


def is_splat(x: Value, number: Number) -> bool:
    """Is every element of `x` known to be `number`?"""
    found = splat_value(x)
    return found is not None and bool(found == number)


def normal_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front. IndexError if it is out of range."""
    if not -rank <= axis < rank:
        raise IndexError(f"dimension {axis} is out of range for rank {rank}")
    return axis % rank


def normal_axes(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """`axes` sorted and counted from the front; all of them for None."""
    if axes is None:
        return tuple(range(rank))
    if isinstance(axes, int):
        axes = (axes,)
    return tuple(sorted({normal_axis(a, rank) for a in axes}))


# -- values without operands ---------------------------------------------------------------------------------------


def literal(array: Any, element: ElementType | None = None) -> Value:
    """A constant from a NumPy array or nested lists."""
    return create(Constant(Literal(array, element))).result


def constant(value: Number, element: ElementType, shape: Sequence[Index] = ()) -> Value:
    """A tensor of `shape` with every element `value`: a scalar literal, broadcast."""
    scalar = create(Constant(Literal(value, element))).result
    return scalar if len(shape) == 0 else broadcast_in_dim(scalar, shape, ())


def full_like(x: Value, value: Number, element: ElementType | None = None) -> Value:
    """`value` in the shape of `x`, and its element type unless another is given."""
    return constant(value, element or element_of(x), shape_of(x))


def zeros_like(x: Value) -> Value:
    """Zeros in the shape and element type of `x`."""
    return full_like(x, 0)


def ones_like(x: Value) -> Value:
    """Ones in the shape and element type of `x`."""
    return full_like(x, 1)


def zeros(type: TensorType) -> Value:
    """Zeros of a type."""
    return constant(0, type.element, type.shape)


def iota(shape: Sequence[Index], element: ElementType = i64, dimension: int = 0) -> Value:
    """Each element its index along `dimension`."""
    return create(Iota(tuple(shape), element, dimension)).result


def dimension_value(value: Index, element: ElementType) -> Value:
    """The scalar that a dimension expression is: a constant where it is a number."""
    if not isinstance(value, Dim):
        return constant(value, element)
    return create(DimensionValue(value, element)).result


# -- shape ---------------------------------------------------------------------------------------------------------


def broadcast_in_dim(x: Value, shape: Sequence[Index], dimensions: Sequence[int]) -> Value:
    """`x` with its axis `i` at axis ``dimensions[i]`` of `shape`, repeated along the others and where it has size 1."""
    return make(op("broadcast_in_dim", shape=tuple(shape), dimensions=tuple(dimensions)), x)


def broadcast_to(x: Value, shape: Sequence[Index]) -> Value:
    """NumPy's broadcast: trailing axes align."""
    offset = len(shape) - type_of(x).rank
    return broadcast_in_dim(x, shape, range(offset, len(shape)))


def broadcast_along(x: Value, shape: Sequence[Index], axis: int) -> Value:
    """A vector repeated so that it runs along `axis` of `shape`."""
    return broadcast_in_dim(x, shape, (normal_axis(axis, len(shape)),))


def expand_reduced(x: Value, shape: Sequence[Index], reduced: Sequence[int]) -> Value:
    """Undo a reduction's shape: `x`, which lacks the axes `reduced` of `shape`, repeated along them."""
    return broadcast_in_dim(x, shape, [i for i in range(len(shape)) if i not in reduced])


def reshape(x: Value, shape: Sequence[Index]) -> Value:
    """The same elements in row-major order."""
    return make(op("reshape", shape=tuple(shape)), x)


def expand_dims(x: Value, axis: int) -> Value:
    """A new axis of size 1 at `axis` of the result."""
    shape = list(shape_of(x))
    shape.insert(normal_axis(axis, len(shape) + 1), 1)
    return reshape(x, shape)


def squeeze(x: Value, axes: int | Sequence[int]) -> Value:
    """Without the given axes, whose size is 1."""
    dropped = normal_axes(axes, type_of(x).rank)
    return reshape(x, [d for i, d in enumerate(shape_of(x)) if i not in dropped])


def transpose(x: Value, permutation: Sequence[int]) -> Value:
    """Axis `i` of the result is axis ``permutation[i]`` of `x`."""
    return make(op("transpose", permutation=tuple(permutation)), x)


def swap_axes(x: Value, a: int, b: int) -> Value:
    """`x` with two axes exchanged."""
    rank = type_of(x).rank
    order = list(range(rank))
    a, b = normal_axis(a, rank), normal_axis(b, rank)
    order[a], order[b] = b, a
    return transpose(x, order)


def slice(
    x: Value, start: Sequence[Index], limit: Sequence[Index], strides: Sequence[int] | None = None
) -> Value:
    """Elements ``start, start + stride, …`` below `limit`, an entry an axis."""
    steps = tuple(strides) if strides is not None else (1,) * len(start)
    return make(op("slice", start_indices=tuple(start), limit_indices=tuple(limit), strides=steps), x)


def slice_axis(x: Value, axis: int, start: Index, limit: Index, stride: int = 1) -> Value:
    """A slice along one axis."""
    shape = shape_of(x)
    axis = normal_axis(axis, len(shape))
    starts: list[Index] = [0] * len(shape)
    limits, strides = list(shape), [1] * len(shape)
    starts[axis], limits[axis], strides[axis] = start, limit, stride
    return slice(x, starts, limits, strides)


def pad(
    x: Value,
    low: Sequence[Index],
    high: Sequence[Index],
    interior: Sequence[int] | None = None,
    value: Number = 0,
) -> Value:
    """`value` before, behind and (`interior`) between the elements; negative `low` and `high` cut."""
    rank = type_of(x).rank
    inside = tuple(interior) if interior is not None else (0,) * rank
    cut = [tuple(-p if isinstance(p, int) and p < 0 else 0 for p in side) for side in (low, high)]
    grow = [tuple(0 if isinstance(p, int) and p < 0 else p for p in side) for side in (low, high)]
    x = make(op("pad", low=grow[0], high=grow[1], interior=inside, value=value), x)
    if not any(cut[0]) and not any(cut[1]):
        return x
    return slice(x, cut[0], [d - c for d, c in zip(shape_of(x), cut[1])])


def concatenate(values: Sequence[Value], dimension: int) -> Value:
    """The operands one behind the other along `dimension`."""
    return make(op("concatenate", dimension=normal_axis(dimension, type_of(values[0]).rank)), *values)


def reverse(x: Value, dimensions: int | Sequence[int]) -> Value:
    """Elements in reverse order along the given axes."""
    return make(op("reverse", dimensions=normal_axes(dimensions, type_of(x).rank)), x)


# -- pointwise -----------------------------------------------------------------------------------------------------


def pair(x: Operand, y: Operand) -> tuple[Value, Value]:
    """Both as values of one shape: numbers become constants, scalars are broadcast."""
    if not isinstance(x, Value):
        if not isinstance(y, Value):
            raise TypeError("one operand at least must be a graph value")
        return full_like(y, x), y
    if not isinstance(y, Value):
        return x, full_like(x, y)
    if shape_of(x) != shape_of(y):
        if type_of(x).rank == 0:
            x = broadcast_to(x, shape_of(y))
        elif type_of(y).rank == 0:
            y = broadcast_to(y, shape_of(x))
    return x, y


def binary(name: str, x: Operand, y: Operand) -> Value:
    """``graph.<name>`` of two operands; see `pair`."""
    return make(op(name), *pair(x, y))


def unary(name: str, x: Value) -> Value:
    """``graph.<name>`` of one operand."""
    return make(op(name), x)


def add(x: Operand, y: Operand) -> Value:
    """x + y"""
    return binary("add", x, y)


def sub(x: Operand, y: Operand) -> Value:
    """x - y"""
    return binary("subtract", x, y)


def mul(x: Operand, y: Operand) -> Value:
    """x * y"""
    return binary("multiply", x, y)


def div(x: Operand, y: Operand) -> Value:
    """x / y; integers truncate towards zero."""
    return binary("divide", x, y)


def rem(x: Operand, y: Operand) -> Value:
    """Remainder with the sign of `x` (C's fmod)."""
    return binary("remainder", x, y)


def pow(x: Operand, y: Operand) -> Value:
    """x to the power of y"""
    return binary("power", x, y)


def maximum(x: Operand, y: Operand) -> Value:
    """The larger; NaN wins."""
    return binary("maximum", x, y)


def minimum(x: Operand, y: Operand) -> Value:
    """The smaller; NaN wins."""
    return binary("minimum", x, y)


def atan2(y: Operand, x: Operand) -> Value:
    """The angle of the point (x, y)."""
    return binary("atan2", y, x)


def neg(x: Value) -> Value:
    """-x"""
    return unary("negate", x)


def abs(x: Value) -> Value:
    """|x|"""
    return unary("abs", x)


def sign(x: Value) -> Value:
    """-1, 0 or 1"""
    return unary("sign", x)


def exp(x: Value) -> Value:
    """e to the power of x"""
    return unary("exponential", x)


def expm1(x: Value) -> Value:
    """exp(x) - 1, accurate near 0"""
    return unary("exponential_minus_one", x)


def log(x: Value) -> Value:
    """Natural logarithm"""
    return unary("log", x)


def log1p(x: Value) -> Value:
    """log(1 + x), accurate near 0"""
    return unary("log_plus_one", x)


def sqrt(x: Value) -> Value:
    """Square root"""
    return unary("sqrt", x)


def rsqrt(x: Value) -> Value:
    """1 / sqrt(x)"""
    return unary("rsqrt", x)


def sin(x: Value) -> Value:
    """Sine"""
    return unary("sine", x)


def cos(x: Value) -> Value:
    """Cosine"""
    return unary("cosine", x)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent"""
    return unary("tanh", x)


def logistic(x: Value) -> Value:
    """1 / (1 + exp(-x)), PyTorch's sigmoid"""
    return unary("logistic", x)


def erf(x: Value) -> Value:
    """Error function"""
    return unary("erf", x)


def floor(x: Value) -> Value:
    """The greatest integer not above x"""
    return unary("floor", x)


def trunc(x: Value) -> Value:
    """x without its fraction"""
    return unary("truncate", x)


def square(x: Value) -> Value:
    """x * x"""
    return mul(x, x)


def reciprocal(x: Value) -> Value:
    """1 / x"""
    return div(1, x)


def floor_div(x: Operand, y: Operand) -> Value:
    """Quotient rounded down (Python's //)."""
    x, y = pair(x, y)
    if element_of(x).is_float:
        return div(sub(x, floor_mod(x, y)), y)
    quotient = div(x, y)
    below = and_(ne(rem(x, y), 0), ne(lt(x, 0), lt(y, 0)))
    return sub(quotient, convert(below, element_of(x)))


def floor_mod(x: Operand, y: Operand) -> Value:
    """Remainder with the sign of `y` (Python's %)."""
    x, y = pair(x, y)
    rest = rem(x, y)
    crossed = and_(ne(rest, 0), ne(lt(rest, 0), lt(y, 0)))
    return select(crossed, add(rest, y), rest)


# -- comparison, logic, conversion ---------------------------------------------------------------------------------


def compare(x: Operand, y: Operand, direction: str) -> Value:
    """i1: does `x` stand in `direction` (EQ NE LT LE GT GE) to `y`? Every comparison with NaN but NE is false."""
    return make(op("compare", direction=direction.upper()), *pair(x, y))


def eq(x: Operand, y: Operand) -> Value:
    """x == y"""
    return compare(x, y, "EQ")


def ne(x: Operand, y: Operand) -> Value:
    """x != y"""
    return compare(x, y, "NE")


def lt(x: Operand, y: Operand) -> Value:
    """x < y"""
    return compare(x, y, "LT")


def le(x: Operand, y: Operand) -> Value:
    """x <= y"""
    return compare(x, y, "LE")


def gt(x: Operand, y: Operand) -> Value:
    """x > y"""
    return compare(x, y, "GT")


def ge(x: Operand, y: Operand) -> Value:
    """x >= y"""
    return compare(x, y, "GE")


def and_(x: Operand, y: Operand) -> Value:
    """Bitwise and; logical on i1."""
    return binary("and", x, y)


def or_(x: Operand, y: Operand) -> Value:
    """Bitwise or; logical on i1."""
    return binary("or", x, y)


def xor(x: Operand, y: Operand) -> Value:
    """Bitwise exclusive or; logical on i1."""
    return binary("xor", x, y)


def not_(x: Value) -> Value:
    """Bitwise complement; logical on i1."""
    return unary("not", x)


def select(condition: Value, x: Operand, y: Operand) -> Value:
    """`x` where `condition` (i1), else `y`; scalars and numbers are broadcast."""
    x, y = pair(x, y)
    shape = shape_of(condition) if type_of(x).rank == 0 else shape_of(x)
    return make(
        op("select"), *(broadcast_to(v, shape) if type_of(v).rank == 0 else v for v in (condition, x, y))
    )


def clamp(low: Operand, x: Value, high: Operand) -> Value:
    """`x` limited to [low, high] (StableHLO's order of operands)."""
    return make(op("clamp"), pair(low, x)[0], x, pair(high, x)[0])


def convert(x: Value, element: ElementType) -> Value:
    """`x` in another element type: floats round to nearest even, float to integer truncates, non-zero is true."""
    return make(op("convert", element=element), x)


def is_nan(x: Value) -> Value:
    """i1: is it NaN?"""
    return ne(x, x)


def is_finite(x: Value) -> Value:
    """i1: neither infinite nor NaN?"""
    return lt(abs(x), math.inf)


# -- reductions ----------------------------------------------------------------------------------------------------


def reduce(x: Value, kind: str, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
    """Reduce the given axes (all for None) by `kind`: sum, prod, max, min, any or all."""
    dimensions = normal_axes(axes, type_of(x).rank)
    result = make(op("reduce", dimensions=dimensions, kind=kind), x)
    if not keepdims:
        return result
    return reshape(result, [1 if i in dimensions else d for i, d in enumerate(shape_of(x))])


def reduce_sum(x: Value, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
    """Sum over axes."""
    return reduce(x, "sum", axes, keepdims)


def reduce_max(x: Value, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
    """Largest over axes; NaN wins."""
    return reduce(x, "max", axes, keepdims)


def reduce_min(x: Value, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
    """Smallest over axes; NaN wins."""
    return reduce(x, "min", axes, keepdims)


def reduce_mean(x: Value, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
    """Mean over axes; the count may be symbolic."""
    total = reduce_sum(x, axes, keepdims)
    dimensions = normal_axes(axes, type_of(x).rank)
    count = product([shape_of(x)[a] for a in dimensions])
    return div(total, dimension_value(count, element_of(x)))


def sum_to(x: Value, shape: Sequence[Index]) -> Value:
    """Undo NumPy's broadcast to `x`'s shape from `shape`: sums what was repeated."""
    extra = type_of(x).rank - len(shape)
    axes = list(range(extra))
    axes += [i + extra for i, d in enumerate(shape) if d == 1 and shape_of(x)[i + extra] != 1]
    return reshape(reduce_sum(x, axes), shape) if axes else reshape(x, shape)


def arg_reduce(x: Value, kind: str, dimension: int) -> Value:
    """i64 index of the largest ("argmax") or smallest ("argmin") along `dimension`, which goes; the first of ties."""
    return make(op("arg_reduce", dimension=normal_axis(dimension, type_of(x).rank), kind=kind), x)


def cumulative(x: Value, dimension: int, kind: str = "sum", reverse: bool = False) -> Value:
    """Running sum, prod, max or min along `dimension`, from the end with `reverse`."""
    return make(
        op("cumulative", dimension=normal_axis(dimension, type_of(x).rank), kind=kind, reverse=reverse), x
    )


# -- indexing and sorting ------------------------------------------------------------------------------------------


def gather(x: Value, indices: Sequence[Value], axes: Sequence[int], position: int = 0) -> Value:
    """``x[i1, :, i2]`` and the like: see `graph.gather`."""
    return make(op("gather", axes=tuple(axes), position=position), x, *indices)


def scatter(
    x: Value,
    updates: Value,
    indices: Sequence[Value],
    axes: Sequence[int],
    position: int = 0,
    kind: str = "add",
) -> Value:
    """`x` with `updates` combined into ``x[i1, :, i2]``: see `graph.scatter`."""
    return make(op("scatter", axes=tuple(axes), position=position, kind=kind), x, updates, *indices)


def _along(index: Value, dimension: int) -> list[Value]:
    shape, element = shape_of(index), element_of(index)
    return [index if a == dimension else iota(shape, element, a) for a in range(len(shape))]


def take_along(x: Value, index: Value, dimension: int) -> Value:
    """torch.gather: ``out[i][j] = x[index[i][j]][j]`` for dimension 0; `index` has the rank of `x`."""
    axis = normal_axis(dimension, type_of(x).rank)
    return gather(x, _along(index, axis), range(type_of(x).rank))


def scatter_along(x: Value, index: Value, updates: Value, dimension: int, kind: str = "add") -> Value:
    """torch.scatter: ``x[index[i][j]][j]`` combined with ``updates[i][j]`` for dimension 0."""
    axis = normal_axis(dimension, type_of(x).rank)
    return scatter(x, updates, _along(index, axis), range(type_of(x).rank), 0, kind)


def dynamic_slice(x: Value, starts: Sequence[Value], sizes: Sequence[Index]) -> Value:
    """A box of `sizes` at run-time `starts` (an integer scalar an axis, clamped so that the box fits)."""
    return make(op("dynamic_slice", slice_sizes=tuple(sizes)), x, *starts)


def dynamic_update_slice(x: Value, update: Value, starts: Sequence[Value]) -> Value:
    """`x` with the box at `starts` replaced by `update`; starts are clamped so that the box fits."""
    return make(op("dynamic_update_slice"), x, update, *starts)


def sort(x: Value, dimension: int = -1, descending: bool = False) -> tuple[Value, Value]:
    """(sorted values, i64 indices into `x`) along `dimension`; stable; NaN counts as largest."""
    axis = normal_axis(dimension, type_of(x).rank)
    values, indices = create(op("sort", dimension=axis, descending=descending), x).results
    return values, indices


def one_hot(index: Value, classes: Index, element: ElementType) -> Value:
    """A new last axis of size `classes`: 1 where it counts to `index`, else 0."""
    shape = (*shape_of(index), classes)
    counted = iota(shape, element_of(index), len(shape) - 1)
    hot = eq(broadcast_in_dim(index, shape, range(len(shape) - 1)), counted)
    return convert(hot, element) if element is not i1 else hot


# -- contraction ---------------------------------------------------------------------------------------------------


def dot_general(
    x: Value,
    y: Value,
    contracting: tuple[Sequence[int], Sequence[int]],
    batch: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> Value:
    """Batched contraction; the result's axes are batch, the free axes of `x`, the free axes of `y`."""
    return make(
        op(
            "dot_general",
            lhs_batching_dimensions=tuple(batch[0]),
            rhs_batching_dimensions=tuple(batch[1]),
            lhs_contracting_dimensions=tuple(contracting[0]),
            rhs_contracting_dimensions=tuple(contracting[1]),
        ),
        x,
        y,
    )


def matmul(x: Value, y: Value) -> Value:
    """Matrix product over the last two axes; leading axes are batch axes and must be equal."""
    rank = type_of(x).rank
    lead = tuple(range(rank - 2))
    return dot_general(x, y, ((rank - 1,), (rank - 2,)), (lead, lead))
