"""The innermost tile of a contraction: accumulators in registers, fed by K steps of an outer product.

A tile is `rows` x `vectors` accumulators. A step loads `vectors` vectors of B, broadcasts each of `rows` scalars of A
and multiplies and adds. The accumulators are carried through the loop over K, so they never touch memory. Where an
instruction multiplies by a lane of a vector (NEON's `fmla v, v, v.s[1]`), elements of A that are neighbours are loaded
together (`LaneVectors`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.contraction_emitter import Emitter, Value

#: Products that are summed one after the other before their sum joins the others, and the most.
CHAIN = 128
LONGEST = 160

ScalarAt = Callable[[int, Index], Value]
VectorAt = Callable[[int, Index], Value]
ProductSum = Callable[[Value, Value, Value], Value]


@dataclass(frozen=True)
class LaneVectors:
    """Neighbouring elements of A: the vector ``at(row, k)`` has those of a step's rows from `row` on, or, `along_depth`, those
    of one row from k on."""

    at: VectorAt
    along_depth: bool


def outer_product_tile(
    b: Emitter,
    element: ElementType,
    lanes: int,
    rows: int,
    vectors: int,
    depth: Index,
    a_at: ScalarAt,
    b_at: VectorAt,
    unroll: int = 4,
    meanwhile: Callable[[Index], None] | None = None,
    length: int = 0,
    product: ProductSum | None = None,
    start: list[Value] | None = None,
    neighbours: LaneVectors | None = None,
) -> list[Value]:
    """Accumulators, row by row, of sum over k < `depth` of a_at(row, k) * b_at(vector, k).

    Floats are summed in chains (of `length`, if it is given), whose sums are then added: the error grows with the root of a
    chain's length times that of the depth, rather than with the depth. ``meanwhile(i)`` emits what else to do in iteration i
    of the loop over k. ``product(a, b, sum)`` is the sum and the product, if these are not numbers of `element`. `start`:
    what sums of integers start from; zeros if None. `neighbours`: for A's elements whose neighbours are in the tile too.
    """
    words = product is not None
    if product is None:
        product = lambda x, y, z: b.multiply_add(x, y, z, element)  # noqa: E731

    def lane(x: Value, number: int) -> Value:
        return b.shuffle(x, x, [number] * lanes)

    def row_at(k: Index) -> Callable[[int], Value]:
        """From a row to its element, in all lanes; made when it is multiplied, so that x86 needs no register for it."""
        if neighbours is None or neighbours.along_depth:
            return lambda r: b.splat(a_at(r, k), lanes)
        found = [neighbours.at(r, k) for r in range(0, rows, lanes)]
        return lambda r: lane(found[r // lanes], r % lanes)

    def step(k: Index, sums: list[Value], row: Callable[[int], Value] | None = None) -> list[Value]:
        columns = [b_at(v, k) for v in range(vectors)]
        row, out = row or row_at(k), []
        for r in range(rows):
            left = row(r)
            out += [product(left, columns[v], sums[r * vectors + v]) for v in range(vectors)]
        return out

    def steps(k: Index, sums: list[Value]) -> list[Value]:
        """As many as a vector has lanes."""
        assert neighbours is not None
        found = [neighbours.at(r, k) for r in range(rows)]
        for u in range(lanes):
            sums = step(k + u, sums, lambda r, u=u: lane(found[r], u))  # type: ignore[misc]
        return sums

    zeros = start or [b.zero(element, lanes)] * (rows * vectors)

    def chain(start: Index, count: Index) -> list[Value]:
        also = None if meanwhile is None else lambda i: meanwhile(start // unroll + i)
        if neighbours is None or not neighbours.along_depth or unroll % lanes:
            return unrolled(b, count, unroll, lambda k, sums: step(start + k, sums), zeros, also)
        groups = count // lanes
        sums = unrolled(
            b, groups, unroll // lanes, lambda g, sums: steps(start + g * lanes, sums), zeros, also
        )
        whole = groups * lanes
        if not isinstance(count, int):
            return b.for_(whole, count, 1, lambda k, sums: step(start + k, sums), sums)
        return unrolled(b, count - whole, lanes, lambda k, sums: step(start + whole + k, sums), sums)

    def added(start: Index, count: Index, totals: list[Value]) -> list[Value]:
        return [b.add(x, y, element) for x, y in zip(totals, chain(start, count), strict=True)]

    # Products of bf16 have few digits, so the sums of a block of K are as good as those of a chain.
    if words or not element.is_float or (isinstance(depth, int) and depth <= (length or LONGEST)):
        return chain(0, depth)
    length = length or chain_length(depth, unroll)
    if not isinstance(depth, int):
        return b.for_(0, depth, length, lambda k, t: added(k, minimum(length, depth - k), t), zeros)
    whole = depth // length * length
    totals = b.for_(0, whole, length, lambda k, t: added(k, length, t), zeros)
    return totals if whole == depth else added(whole, depth - whole, totals)


def chain_length(depth: Index, unroll: int) -> int:
    """How many products are summed in a row: about CHAIN, a multiple of `unroll`, and a divisor of the depth if there is
    such a one."""
    if not isinstance(depth, int):
        return CHAIN
    near = sorted(range(CHAIN // 2, LONGEST + 1, unroll), key=lambda n: (abs(n - CHAIN), n))
    return next((n for n in near if depth % n == 0), CHAIN)


def dot_tile(
    b: Emitter,
    element: ElementType,
    lanes: int,
    rows: int,
    columns: int,
    depth: Index,
    a_at: Callable[[int, Index, Value | None], Value],
    b_at: Callable[[int, Index, Value | None], Value],
    unroll: int = 2,
    whole: Index | None = None,
    product: ProductSum | None = None,
) -> list[Value]:
    """Scalars, row by row, of sum over k of a(row, k) * b(column, k); the functions give vectors along k, masked.

    Vectors are read without a mask for k below `whole`. `product` as in `outer_product_tile`."""
    multiply = product or (lambda x, y, z: b.multiply_add(x, y, z, element))

    def step(at: Index, sums: list[Value], mask: Value | None = None) -> list[Value]:
        right = [b_at(c, at, mask) for c in range(columns)]
        out = []
        for r in range(rows):
            left = a_at(r, at, mask)
            out += [multiply(left, right[c], sums[r * columns + c]) for c in range(columns)]
        return out

    sums = [b.zero(element, lanes)] * (rows * columns)
    blocks = (depth if whole is None else whole) // lanes
    sums = unrolled(b, blocks, unroll, lambda block, s: step(block * lanes, s), sums)
    rest = depth - blocks * lanes
    if rest != 0:
        sums = step(blocks * lanes, sums, b.mask(rest, lanes))
    return [b.reduce_add(s) for s in sums]


def unrolled(
    b: Emitter,
    count: Index,
    unroll: int,
    step: Callable[[Index, list[Value]], list[Value]],
    carried: list[Value],
    meanwhile: Callable[[Index], None] | None = None,
) -> list[Value]:
    """`carried` after `step(i, carried)` for each i < `count`, `unroll` steps an iteration, in each of which
    ``meanwhile(number of the iteration)`` is done too."""
    if isinstance(count, int) and count <= unroll:
        for i in range(count):
            carried = step(i, carried)
        return carried

    def several(i: Index, sums: list[Value]) -> list[Value]:
        if meanwhile is not None:
            meanwhile(i // unroll)
        for u in range(unroll):
            sums = step(i + u, sums)
        return sums

    whole = count // unroll * unroll
    carried = b.for_(0, whole, unroll, several, carried)
    if isinstance(count, int):
        for i in range(count - count % unroll, count):
            carried = step(i, carried)
        return carried
    return b.for_(whole, count, 1, lambda i, sums: step(i, sums), carried)


def transpose(b: Emitter, vectors: list[Value]) -> list[Value]:
    """The transpose of a square of vectors, by log2(lanes) rounds of two-operand shuffles."""
    lanes = len(vectors)
    half = lanes // 2
    while half:
        turned = list(vectors)
        low = [lanes + (q ^ half) if q & half else q for q in range(lanes)]
        high = [lanes + q if q & half else q | half for q in range(lanes)]
        for i in range(lanes):
            if i & half:
                continue
            turned[i] = b.shuffle(vectors[i], vectors[i | half], low)
            turned[i | half] = b.shuffle(vectors[i], vectors[i | half], high)
        vectors, half = turned, half // 2
    return vectors
