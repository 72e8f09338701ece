"""Packing: an operand's block, rewritten so that the register tile reads it in order.

A panel holds `width` rows (of A: along M; of B: along N) for each k: element (row, k) lies at ``k * width + row``.
Rows past the operand's end hold zeros, so the tile needs no masks while it multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter, Value
from flambeau.compiler.lowering.microkernel import transpose

Load = Callable[[Emitter, Sequence[Index], Index, Index], Value]


@dataclass(frozen=True)
class Plain:
    """An operand that simply lies in `buffer`: element (batch, row, k) at index ``at(batch, row, k)``.

    `unit_row` and `unit_depth` say along which of the two the index's memory stride is 1 (both, if one extent is 1).
    """

    buffer: Buffer
    element: ElementType
    at: Callable[[Sequence[Index], Index, Index], Sequence[Index]]
    unit_row: bool = False
    unit_depth: bool = False


@dataclass(frozen=True)
class Panel:
    """Where a packed panel goes: `buffer` (one-dimensional), from `start`, `width` rows."""

    buffer: Buffer
    start: Index
    width: int


@dataclass(frozen=True)
class Operand:
    """One operand, turned so that its first axis (M or N) is called row: `load` gives any element in any type;
    `plain`, if it is so, gives the packer and the tile direct access."""

    load: Load
    plain: Plain | None = None


def pack_panel(
    b: Emitter,
    operand: Operand,
    batch: Sequence[Index],
    panel: Panel,
    row: Index,
    rows: Index,
    first: Index,
    depth: Index,
    accumulator: ElementType,
    lanes: int,
    inner: Sequence[int] = (),
) -> None:
    """Pack rows [row, row + min(width, rows)) and k in [first, first + depth) of `operand`.

    `rows` is what is left of the operand. `inner` are the sizes of the inner digits of k (for a convolution: kernel
    height and width): where they divide the block, the loop over k is a nest over the digits, and the divisions in
    the element function disappear.
    """
    if operand.plain is not None and operand.plain.unit_row:
        _pack_rows(b, operand.plain, batch, panel, row, rows, first, depth, accumulator, lanes)
        return
    if operand.plain is not None and operand.plain.unit_depth and lanes > 1:
        _pack_transposed(b, operand, operand.plain, batch, panel, row, rows, first, depth, accumulator, lanes)
        return
    _pack_elements(b, operand, batch, panel, row, rows, 0, first, depth, accumulator, inner, lanes)


def _is_full(width: int, rows: Index) -> bool:
    return isinstance(rows, int) and rows >= width


def _pack_rows(
    b: Emitter,
    plain: Plain,
    batch: Sequence[Index],
    panel: Panel,
    row: Index,
    rows: Index,
    first: Index,
    depth: Index,
    accumulator: ElementType,
    lanes: int,
) -> None:
    """Rows are neighbours in memory: copy vectors."""
    width = panel.width

    def copy(full: bool) -> None:
        starts = range(0, width, lanes)
        if full:
            masks = [None if width - s >= lanes else b.mask(width - s, lanes) for s in starts]
        else:
            masks = [b.mask(minimum(rows, width) - s, lanes) for s in starts]
        stores = [None if width - s >= lanes else b.mask(width - s, lanes) for s in starts]

        def one(k: Index, _: list[Value]) -> None:
            for s, read, write in zip(starts, masks, stores, strict=True):
                x = b.vector_load(plain.buffer, plain.at(batch, row + s, first + k), lanes, read)
                b.vector_store(b.cast(x, accumulator), panel.buffer, (panel.start + k * width + s,), write)

        b.for_(0, depth, 1, one)

    if isinstance(rows, int):
        copy(_is_full(width, rows))
        return
    b.if_equal(minimum(rows, width), width, lambda: copy(True), lambda: copy(False))


def _pack_transposed(
    b: Emitter,
    operand: Operand,
    plain: Plain,
    batch: Sequence[Index],
    panel: Panel,
    row: Index,
    rows: Index,
    first: Index,
    depth: Index,
    accumulator: ElementType,
    lanes: int,
) -> None:
    """K runs along memory: squares of `lanes` x `lanes` are transposed in registers."""
    width = panel.width
    whole = depth // lanes * lanes
    valid = width if _is_full(width, rows) else minimum(rows, width)

    for start in range(0, width, lanes):
        height = min(lanes, width - start)
        write = None if height == lanes else b.mask(height, lanes)
        # Rows that do not exist are read from a row that does and are blanked by the store of zeros below.
        clamped = [
            row + (minimum(start + r, valid - 1) if not isinstance(valid, int) else min(start + r, valid - 1))
            for r in range(height)
        ]
        zeros = [b.zero(accumulator, lanes)] * (lanes - height)
        keep = None if isinstance(valid, int) and valid >= start + height else b.mask(valid - start, lanes)

        def square(
            k: Index,
            _: list[Value],
            clamped: list[Index] = clamped,
            zeros: list[Value] = zeros,
            write: Value | None = write,
            keep: Value | None = keep,
            start: int = start,
        ) -> None:
            read = [b.vector_load(plain.buffer, plain.at(batch, r, first + k), lanes) for r in clamped]
            turned = transpose(b, [b.cast(x, accumulator) for x in read] + zeros)
            for u, x in enumerate(turned):
                at = (panel.start + (k + u) * width + start,)
                if keep is not None:
                    b.vector_store(b.zero(accumulator, lanes), panel.buffer, at, write)
                    b.vector_store(x, panel.buffer, at, keep)
                else:
                    b.vector_store(x, panel.buffer, at, write)

        b.for_(0, whole, lanes, square)
    if depth - whole != 0:
        _pack_elements(b, operand, batch, panel, row, rows, whole, first, depth, accumulator, (), lanes)


def _pack_elements(
    b: Emitter,
    operand: Operand,
    batch: Sequence[Index],
    panel: Panel,
    row: Index,
    rows: Index,
    skip: Index,
    first: Index,
    depth: Index,
    accumulator: ElementType,
    inner: Sequence[int],
    lanes: int,
) -> None:
    """Any element function, for k from `skip`. The row is the outer loop: what depends on it alone is computed once."""
    width = panel.width
    if not _is_full(width, rows):
        starts = range(0, width, lanes)
        masks = [None if width - s >= lanes else b.mask(width - s, lanes) for s in starts]

        def blank(k: Index, _: list[Value]) -> None:
            for s, write in zip(starts, masks, strict=True):
                b.vector_store(
                    b.zero(accumulator, lanes), panel.buffer, (panel.start + k * width + s,), write
                )

        b.for_(skip, depth, 1, blank)

    digits = 1
    for size in inner:
        digits *= size
    nested = digits > 1 and skip == 0 and depth % digits == 0 and first % digits == 0

    def one_row(r: Index, _: list[Value]) -> None:
        def one(k: Index) -> None:
            x = b.cast(operand.load(b, batch, row + r, first + k), accumulator)
            b.store(x, panel.buffer, (panel.start + k * width + r,))

        def nest(k: Index, sizes: Sequence[int]) -> None:
            if not sizes:
                one(k)
                return
            b.for_(0, sizes[0], 1, lambda d, _: nest(k * sizes[0] + d, sizes[1:]))

        if nested:
            b.for_(0, depth // digits, 1, lambda outer, _: nest(outer, inner))
            return
        b.for_(skip, depth, 1, lambda k, _: one(k))

    b.for_(0, width if _is_full(width, rows) else minimum(rows, width), 1, one_row)
