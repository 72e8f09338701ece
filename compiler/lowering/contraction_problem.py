"""What is contracted: extents, operands as element functions, and the epilogue; no schedule, no code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.contraction_emitter import Buffer, Emitter, Value
from flambeau.compiler.targets.dots import DotInstruction

Batch = Sequence[Index]
#: ``load(builder, batch, row, k)``: one element of an operand, in the accumulator's type.
Load = Callable[[Any, Batch, Index, Index], Value]
#: ``store(builder, batch, m, n, sum)``: the epilogue of one element, or of a vector of them where n holds the lane.
Store = Callable[[Any, Batch, Index, Index, Value], None]


@dataclass(frozen=True)
class Plain:
    """A matrix that simply lies in `buffer`: element (batch, row, column) at index ``at(batch, row, column)``.

    `unit_row` and `unit_depth`: the memory stride along the row and along the column (K, in an operand) is 1. Both may
    hold if one extent is 1.
    """

    buffer: Buffer
    element: ElementType
    at: Callable[[Batch, Index, Index], Sequence[Index]]
    unit_row: bool = False
    unit_depth: bool = False


#: ``touches(batch, m, n)``: the elements that the epilogue of one sum reads and writes: (buffer, index, is it written).
Touches = Callable[[Batch, Index, Index], "Sequence[tuple[Buffer, Sequence[Index], bool]]"]


@dataclass(frozen=True)
class Panels:
    """An operand that lies in `buffer` as the register tile reads it (`graph.pack_panels`): `width` rows side by side
    from index ``at(batch, panel, k, row)`` on, zeros where there are no more rows. `word`, if k counts words of short
    elements, makes a vector of words from those of the elements; `flip`: of bytes whose highest bits are inverted."""

    buffer: Buffer
    width: int
    at: Callable[[Batch, Index, Index, Index], Sequence[Index]]
    group: int = 1
    word: Callable[[Any, Value], Value] | None = None
    flip: bool = False


class WordReader(Protocol):
    """Vectors of words (`lowering.words`) of an operand that lies in memory."""

    @property
    def whole(self) -> Index:
        """How many words of a row have all their elements."""

    def one(self, b: Emitter, batch: Batch, row: Index, k: Index) -> Value:
        """A whole word."""

    def along_rows(self, b: Emitter, batch: Batch, row: Index, k: Index, lanes: int, mask: Any) -> Value:
        """Word number k of the rows from `row`, which are neighbours in memory; those in the mask, if there is one."""

    def along_depth(
        self, b: Emitter, batch: Batch, row: Index, k: Index, lanes: int, last: bool = False
    ) -> Value:
        """The words of a row from number k on, whose elements are neighbours in memory. All of them are whole; of the `last`
        ones those that are, and zeros."""


@dataclass(frozen=True)
class Operand:
    """One operand, indexed (row, k), where row is m of A and n of B.

    `plain`, if the operand simply lies in memory, gives direct access. `along` says along which of the two axes `load`
    may be asked for a vector, because it then reads consecutive memory; "" if along neither. `run` > 0: only positions
    with the same quotient by `run` may be asked for together (the pixels of a row of an image). `panels`, if the operand
    is packed already. `words`, where k counts words (`lowering.words`), reads vectors of them from `plain`.
    """

    load: Load
    plain: Plain | None = None
    along: Literal["", "row", "depth"] = ""
    run: int = 0
    panels: Panels | None = None
    words: WordReader | None = None


@dataclass(frozen=True)
class Contraction:
    """result[batch, m, n] = epilogue(sum over k of a[batch, m, k] * b[batch, n, k]).

    `partial` is memory, in the accumulator's type and with n along memory, that may hold unfinished sums (the result
    itself, usually); without it the stack or the workspace does. `inner` are the sizes of the inner digits of k, if it
    has any (kernel height and width of a convolution). `vector_store`: `store` takes vectors along n. `long_store`:
    its code is long, so it is emitted for one row, in a loop. `touches`: memory that the epilogue works on, which is asked
    for while the sums are made: short pieces of many rows, which the hardware does not foresee.
    """

    batch: tuple[Index, ...]
    m: Index
    n: Index
    k: Index
    accumulator: ElementType
    a: Operand
    b: Operand
    store: Store
    partial: Plain | None = None
    inner: tuple[int, ...] = ()
    vector_store: bool = True
    long_store: bool = False
    touches: Touches | None = None
    dot: DotInstruction | None = None


def into_buffer(emitter: Emitter, plain: Plain, accumulator: ElementType) -> Store:
    """The epilogue that writes sums to `plain` (indexed (m, n)), converted to its element type."""

    def store(builder: Any, batch: Batch, m: Index, n: Index, value: Value) -> None:
        emitter.store(emitter.cast(value, accumulator, plain.element), plain.buffer, plain.at(batch, m, n))

    return store


def plain_operand(
    emitter: Emitter,
    buffer: Buffer,
    element: ElementType,
    shape: Sequence[Index],
    axes: tuple[Sequence[int], int, int],
    accumulator: ElementType,
) -> Operand:
    """A buffer as an operand. `axes`: which of the buffer's axes are the batch's, the row and k."""
    batch_axes, row_axis, depth_axis = axes

    def at(batch: Batch, row: Index, k: Index) -> Sequence[Index]:
        position: list[Index] = [0] * len(shape)
        for axis, b in zip(batch_axes, batch, strict=True):
            position[axis] = b
        position[row_axis], position[depth_axis] = row, k
        return position

    def load(builder: Any, batch: Batch, row: Index, k: Index) -> Value:
        return emitter.cast(emitter.load(buffer, at(batch, row, k)), element, accumulator)

    def unit(axis: int) -> bool:
        return all(extent == 1 for extent in shape[axis + 1 :])

    plain = Plain(buffer, element, at, unit(row_axis), unit(depth_axis))
    along: Literal["", "row", "depth"] = "row" if plain.unit_row else "depth" if plain.unit_depth else ""
    return Operand(load, plain, along)


def exchanged(p: Contraction) -> Contraction:
    """The same with A and B, m and n exchanged: a matrix times a column as a row times a matrix."""
    return replace(
        p,
        m=p.n,
        n=p.m,
        a=p.b,
        b=p.a,
        store=lambda builder, batch, m, n, value: p.store(builder, batch, n, m, value),
        partial=None,
        touches=None,
        dot=None if p.dot is None else p.dot.swapped(),
    )


def ceil_div(a: Index, b: int) -> Index:
    """The quotient, rounded up."""
    return (a + b - 1) // b
