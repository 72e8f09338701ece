"""Contractions: `graph.dot_general`, and what every contraction tells the loop template.

Specification: StableHLO, `dot_general`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, Sample
from flambeau.compiler.dialects.graph.oracle import torch_einsum
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, product
from flambeau.compiler.ir.types import ElementType, TensorType, f32, i8, i32, tensor, u8

#: Element ``(batch, row, k)`` or ``(batch, k, row)`` of one side, read through the operand's accessor.
SideElement = Callable[[Any, Any, Sequence[Index], Index, Index], Any]
#: ("row" (M or N) or "depth" (K), length).
Run = tuple[str, int]
SideIndex = Callable[[Sequence[Index], Index, Index], "tuple[Index, ...]"]
#: A side's axes: of the batch, of M or N (outermost first), of K (outermost first).
SideAxes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ContractionDescription:
    """A contraction as the loop template sees it: ``out[batch, m, n] = sum over k of L[batch, m, k] * R[batch, k, n]``.

    `batch`, `m`, `n`, `k` are extents. `lhs_element(b, x, batch, m, k)` reads one element of the side that has M
    from the accessor `x` of operand number `operands[0]`; `rhs_element(b, x, batch, k, n)` one of the side that has
    N, from operand number `operands[1]`. Positions outside the operand (padding, dilation) read as zero there.
    `lhs_index(batch, m, k)` and `rhs_index(batch, k, n)` are the operands' indices where a side needs no such guard,
    else None. `result_index(batch, m, n)` is the place in the result; consecutive `n` are neighbours in memory
    wherever the result's layout allows. `inner` are the sizes of the inner digits of k, outermost first.
    `lhs_run` and `rhs_run`, for sides that are not linear in memory, say along which position neighbours are
    neighbours in memory, and for how many positions on end. `lhs_axes` and `rhs_axes`, for sides that are axes of the
    operand and nothing else, name them: such a side can be read from panels (`graph.pack_panels`).
    `accumulator` is the type of the sum, which is then converted to the result's.
    """

    batch: tuple[Index, ...]
    m: Index
    n: Index
    k: Index
    lhs_element: SideElement
    rhs_element: SideElement
    result_index: SideIndex
    accumulator: ElementType
    operands: tuple[int, int] = (0, 1)
    lhs_index: SideIndex | None = None
    rhs_index: SideIndex | None = None
    inner: tuple[int, ...] = ()
    lhs_run: Run | None = None
    rhs_run: Run | None = None
    lhs_axes: SideAxes | None = None
    rhs_axes: SideAxes | None = None


def accumulator_of(operand: ElementType, result: ElementType) -> ElementType:
    """The type in which products are summed: f32 for 16-bit floats, i32 for narrow integers, else the result's own."""
    if result.is_float:
        return f32 if result.bits < 32 else result
    return i32 if result.bits < 32 else result


def decode(position: Index, sizes: Sequence[Index]) -> tuple[Index, ...]:
    """The digits of a row-major linear position in the mixed radix `sizes`."""
    digits: list[Index] = []
    if any(size == 0 for size in sizes):
        return (0,) * len(sizes)
    for size in reversed(sizes[1:]):
        digits.append(position % size)
        position = position // size
    if sizes:
        digits.append(position)
    return tuple(reversed(digits))


def encode(index: Sequence[Index], sizes: Sequence[Index]) -> Index:
    """The row-major linear position of `index` in a tensor of shape `sizes`."""
    position: Index = 0
    for at, size in zip(index, sizes, strict=True):
        position = position * size + at
    return position


def check_result_element(op: GraphOp, operand: ElementType, result: ElementType) -> None:
    """A contraction's result may be wider than its operands, of the same kind; never narrower."""
    if operand.is_bool or result.is_bool:
        raise op.reject("booleans cannot be contracted; convert them first", actual=operand)
    kinds = ("int", "uint") if operand.is_integer else ("float",)
    if result.kind not in kinds or result.bits < operand.bits:
        raise op.reject(
            "the result's element type must be as wide as the operands', or wider",
            expected=operand,
            actual=result,
        )


class DotGeneral(GraphOp):
    """Products summed over the contracting dimensions, for each index of the batching dimensions.

    The result's dimensions are: batching, then the left operand's free ones, then the right operand's, each in the
    operand's order. Both operands have one element type; `element` (the operands' type if None; StableHLO's preferred
    element type) may be wider, as in i8 x i8 -> i32 or bf16 x bf16 -> f32. Where it is given, bytes may be signed on one
    side and unsigned on the other. 16-bit floats are summed in f32.
    Specification: StableHLO, `dot_general`.
    """

    name = "graph.dot_general"
    schedule_family: ClassVar[str] = "contraction"
    lhs_batching_dimensions: tuple[int, ...] = ()
    rhs_batching_dimensions: tuple[int, ...] = ()
    lhs_contracting_dimensions: tuple[int, ...] = ()
    rhs_contracting_dimensions: tuple[int, ...] = ()
    element: ElementType | None = None

    def _free(self, rank: int, left: bool) -> tuple[int, ...]:
        taken = (
            self.lhs_batching_dimensions + self.lhs_contracting_dimensions
            if left
            else self.rhs_batching_dimensions + self.rhs_contracting_dimensions
        )
        return tuple([d for d in range(rank) if d not in taken])

    def infer(self, *operands: TensorType) -> TensorType:
        if len(operands) != 2:
            raise self.reject("wrong number of operands", expected=2, actual=len(operands))
        lhs, rhs = operands
        bytes_of_two_kinds = self.element is not None and {lhs.element, rhs.element} == {i8, u8}
        if lhs.element is not rhs.element and not bytes_of_two_kinds:
            raise self.reject("operands must have one element type", expected=lhs.element, actual=rhs.element)
        for side, x, dims in (
            ("lhs", lhs, self.lhs_batching_dimensions + self.lhs_contracting_dimensions),
            ("rhs", rhs, self.rhs_batching_dimensions + self.rhs_contracting_dimensions),
        ):
            if len(set(dims)) != len(dims) or any(not 0 <= d < x.rank for d in dims):
                raise self.reject(
                    f"{side} dimensions must be distinct and within its rank {x.rank}", actual=dims
                )
        for what, left, right in (
            ("batching", self.lhs_batching_dimensions, self.rhs_batching_dimensions),
            ("contracting", self.lhs_contracting_dimensions, self.rhs_contracting_dimensions),
        ):
            if len(left) != len(right):
                raise self.reject(f"as many {what} dimensions on both sides", expected=left, actual=right)
            for d, e in zip(left, right, strict=True):
                if lhs.shape[d] != rhs.shape[e]:
                    raise self.reject(
                        f"{what} dimensions must have equal sizes: lhs {d} of {lhs} and rhs {e} of {rhs}",
                        expected=lhs.shape[d],
                        actual=rhs.shape[e],
                    )
        result = self.element or lhs.element
        check_result_element(self, lhs.element, result)
        return tensor(
            [lhs.shape[d] for d in self.lhs_batching_dimensions + self._free(lhs.rank, True)]
            + [rhs.shape[d] for d in self._free(rhs.rank, False)],
            result,
        )

    def contraction(self, lhs_type: TensorType, rhs_type: TensorType) -> ContractionDescription:
        """What the contraction template needs; the free dimensions of a side are one linear position."""
        lhs_free, rhs_free = self._free(lhs_type.rank, True), self._free(rhs_type.rank, False)
        m_sizes = [lhs_type.shape[d] for d in lhs_free]
        n_sizes = [rhs_type.shape[d] for d in rhs_free]
        # The order of the digits of k is free: take that in which the right operand lies in memory.
        pairs = sorted(
            zip(self.lhs_contracting_dimensions, self.rhs_contracting_dimensions, strict=True),
            key=lambda pair: pair[1],
        )
        k_sizes = [lhs_type.shape[d] for d, _ in pairs]

        def place(rank: int, *parts: tuple[Sequence[int], Sequence[Index]]) -> tuple[Index, ...]:
            index: list[Index] = [0] * rank
            for dims, values in parts:
                for d, value in zip(dims, values, strict=True):
                    index[d] = value
            return tuple(index)

        def lhs_index(batch: Sequence[Index], m: Index, k: Index) -> tuple[Index, ...]:
            free, contracted = decode(m, m_sizes), decode(k, k_sizes)
            return place(
                lhs_type.rank,
                (self.lhs_batching_dimensions, batch),
                (lhs_free, free),
                ([d for d, _ in pairs], contracted),
            )

        def rhs_index(batch: Sequence[Index], k: Index, n: Index) -> tuple[Index, ...]:
            free, contracted = decode(n, n_sizes), decode(k, k_sizes)
            return place(
                rhs_type.rank,
                (self.rhs_batching_dimensions, batch),
                (rhs_free, free),
                ([e for _, e in pairs], contracted),
            )

        return ContractionDescription(
            batch=tuple([lhs_type.shape[d] for d in self.lhs_batching_dimensions]),
            m=product(m_sizes),
            n=product(n_sizes),
            k=product(k_sizes),
            lhs_element=lambda b, x, batch, m, k: x(lhs_index(batch, m, k)),
            rhs_element=lambda b, x, batch, k, n: x(rhs_index(batch, k, n)),
            result_index=lambda batch, m, n: (*batch, *decode(m, m_sizes), *decode(n, n_sizes)),
            accumulator=accumulator_of(lhs_type.element, self.element or lhs_type.element),
            lhs_index=lhs_index,
            rhs_index=rhs_index,
            lhs_axes=(self.lhs_batching_dimensions, lhs_free, tuple([d for d, _ in pairs])),
            rhs_axes=(self.rhs_batching_dimensions, rhs_free, tuple([e for _, e in pairs])),
        )

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        lhs, rhs = operands
        d = self.contraction(lhs.type, rhs.type)
        batches, rows = (
            len(self.lhs_batching_dimensions),
            len(self.lhs_batching_dimensions) + len(self._free(lhs.type.rank, True)),
        )
        m_sizes = [lhs.type.shape[axis] for axis in self._free(lhs.type.rank, True)]
        n_sizes = [rhs.type.shape[axis] for axis in self._free(rhs.type.rank, False)]
        batch, m, n = index[:batches], encode(index[batches:rows], m_sizes), encode(index[rows:], n_sizes)
        return sum_of_products(
            b,
            d,
            lambda k: d.lhs_element(b, lhs, batch, m, k),
            lambda k: d.rhs_element(b, rhs, batch, k, n),
            self.element or lhs.type.element,
        )

    def vjp(self, ct: Value, lhs: Value, rhs: Value, *, result: Value) -> tuple[Value, Value]:
        """Each side's cotangent is `ct` contracted with the other side over that side's free dimensions, transposed
        into the operand's order."""
        ct = build.convert(ct, lhs.type.element)  # type: ignore[attr-defined]
        return self._side(ct, lhs, rhs, True), self._side(ct, rhs, lhs, False)

    def _side(self, ct: Value, x: Value, y: Value, left: bool) -> Value:
        x_rank, y_rank = x.type.rank, y.type.rank  # type: ignore[attr-defined]
        x_batch, x_contract = (
            (self.lhs_batching_dimensions, self.lhs_contracting_dimensions)
            if left
            else (self.rhs_batching_dimensions, self.rhs_contracting_dimensions)
        )
        y_batch, y_contract = (
            (self.rhs_batching_dimensions, self.rhs_contracting_dimensions)
            if left
            else (self.lhs_batching_dimensions, self.lhs_contracting_dimensions)
        )
        x_free, y_free = self._free(x_rank, left), self._free(y_rank, not left)
        batches = len(x_batch)
        # ct is (batch, lhs free, rhs free): y's free dimensions come last if x is the left side, else in the middle.
        first = batches + (len(x_free) if left else 0)
        ct_contract = tuple(range(first, first + len(y_free)))
        # The result is to be x again: batch, x free and x contracted dimensions, in x's own order. Of the two orders of
        # the operands, take the one after which nothing moves, if there is one.
        order = sorted(range(len(y_contract)), key=lambda at: y_contract[at])
        contracted = [x_contract[at] for at in order]
        forward, backward = [*x_batch, *x_free, *contracted], [*x_batch, *contracted, *x_free]
        if backward == list(range(x_rank)):
            return build.dot_general(y, ct, (y_free, ct_contract), (y_batch, range(batches)))
        grad = build.dot_general(ct, y, (ct_contract, y_free), (range(batches), y_batch))
        return build.transpose(grad, [forward.index(d) for d in range(x_rank)])

    def reference(self, *operands: np.ndarray[Any, Any]) -> Any:
        lhs, rhs = operands
        wide = numpy_accumulator(lhs.dtype, self.element)
        lhs_free, rhs_free = self._free(lhs.ndim, True), self._free(rhs.ndim, False)
        shape = [lhs.shape[d] for d in self.lhs_batching_dimensions + lhs_free] + [
            rhs.shape[d] for d in rhs_free
        ]
        batch = [lhs.shape[d] for d in self.lhs_batching_dimensions]
        depth = int(np.prod([lhs.shape[d] for d in self.lhs_contracting_dimensions], dtype=np.int64))
        m = int(np.prod([lhs.shape[d] for d in lhs_free], dtype=np.int64))
        n = int(np.prod([rhs.shape[d] for d in rhs_free], dtype=np.int64))
        left = lhs.transpose(
            self.lhs_batching_dimensions + lhs_free + self.lhs_contracting_dimensions
        ).reshape(*batch, m, depth)
        right = rhs.transpose(
            self.rhs_batching_dimensions + self.rhs_contracting_dimensions + rhs_free
        ).reshape(*batch, depth, n)
        out = np.matmul(left.astype(wide), right.astype(wide)).reshape(shape)
        return out.astype(self.element.numpy if self.element else lhs.dtype)

    def samples(self) -> Iterable[Sample]:
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray[Any, Any]:
            return rng.standard_normal(shape)

        plain = DotGeneral((), (), (1,), (0,))
        yield Sample(plain, (normal(3, 5), normal(5, 4)), lambda a, b: a @ b)
        yield Sample(
            plain, (normal(7, 33).astype(np.float32), normal(33, 17).astype(np.float32)), lambda a, b: a @ b
        )
        yield Sample(plain, (normal(1, 5), normal(5, 1)), lambda a, b: a @ b, note="1 x 1")
        yield Sample(plain, (normal(3, 0), normal(0, 2)), lambda a, b: a @ b, note="empty sum")
        yield Sample(DotGeneral((), (), (1,), (1,)), (normal(3, 5), normal(4, 5)), lambda a, b: a @ b.T)
        yield Sample(
            DotGeneral((), (), (0,), (0,)), (normal(5), normal(5)), lambda a, b: a @ b, note="vectors"
        )
        yield Sample(DotGeneral((), (), (), ()), (normal(3), normal(2)), lambda a, b: a[:, None] * b)
        yield Sample(
            DotGeneral((0,), (0,), (2,), (1,)), (normal(2, 3, 4), normal(2, 4, 5)), lambda a, b: a @ b
        )
        yield Sample(
            DotGeneral((2, 0), (0, 3), (1, 4), (4, 1)),
            (normal(2, 3, 4, 2, 5), normal(4, 5, 3, 2, 3)),
            lambda a, b: torch_einsum("axbcy,byfax->bacf", a, b),
            note="every kind of dimension, permuted",
        )
        yield Sample(
            DotGeneral((), (), (1,), (0,), i32),
            (rng.integers(-99, 99, (3, 40)).astype(np.int8), rng.integers(-99, 99, (40, 2)).astype(np.int8)),
            lambda a, b: a.int() @ b.int(),
        )
        yield Sample(
            DotGeneral((), (), (1,), (1,), i32),
            (rng.integers(0, 255, (5, 41)).astype(np.uint8), rng.integers(-99, 99, (3, 41)).astype(np.int8)),
            lambda a, b: a.int() @ b.int().T,
            note="bytes of two kinds",
        )
        yield Sample(
            plain, (rng.integers(-9, 9, (3, 4)), rng.integers(-9, 9, (4, 2))), lambda a, b: a @ b, note="i64"
        )


def sum_of_products(
    b: Any,
    d: ContractionDescription,
    left: Callable[[Index], Any],
    right: Callable[[Index], Any],
    result: ElementType,
) -> Any:
    """One element of a contraction by a loop over k: the element function of contractions that are not tiled."""

    def step(k: Index, total: Any) -> Any:
        return b.add(total, b.mul(b.convert(left(k), d.accumulator), b.convert(right(k), d.accumulator)))

    (total,) = b.loop(d.k, (b.constant(0, d.accumulator),), step)
    return b.convert(total, result)


def numpy_accumulator(dtype: Any, element: ElementType | None) -> Any:
    """The NumPy type in which `reference` sums."""
    if element is not None and element.is_integer:
        return element.numpy
    return np.float32 if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype
