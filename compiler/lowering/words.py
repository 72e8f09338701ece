"""Contractions of short elements in words: operands and products for the instructions of `targets.dots`.

A contraction over k elements becomes one over ceil(k / group) words, whose operands are words in containers of the
accumulator's type and whose product is the instruction: schemes, tiles and packing stay as they are. Elements past the
end of K are zeros in the last word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.ir.scalar_builder import lanes_among
from flambeau.compiler.ir.types import ElementType, VectorType, bf16, i32
from flambeau.compiler.lowering.contraction_emitter import Emitter
from flambeau.compiler.lowering.contraction_problem import Batch, Contraction, Operand, Plain, ceil_div
from flambeau.compiler.targets.dots import DotInstruction


@dataclass(frozen=True)
class PlainWords:
    """Words of an operand that lies in memory as `plain`, of which K has `depth` elements. `flip` as in
    `DotInstruction`, of A; 0 for B."""

    plain: Plain
    depth: Index
    accumulator: ElementType
    dot: DotInstruction
    flip: int

    @property
    def whole(self) -> Index:
        """How many words of a row have all their elements."""
        return self.depth // self.dot.group

    def one(self, b: Emitter, batch: Batch, row: Index, k: Index) -> Value:
        """A whole word."""
        builder: LoopBuilder = b.builder
        return builder.extract(self.along_depth(b, batch, row, k, 1), 0)

    def along_rows(self, b: Emitter, batch: Batch, row: Index, k: Index, lanes: int, mask: Any) -> Value:
        """Word number k of the rows from `row`, which are neighbours in memory; those in the mask, if there is one."""

        def part(at: Index) -> Value:
            x = b.vector_load(self.plain.buffer, self.plain.at(batch, row, at), lanes, mask)
            wide: Value = b.cast(x, self.plain.element, self.accumulator)
            return wide

        return joined(b.builder, part, k, self.depth, self.accumulator, self.dot, self.flip)

    def along_depth(
        self, b: Emitter, batch: Batch, row: Index, k: Index, lanes: int, last: bool = False
    ) -> Value:
        """The words of a row from number k on, whose elements are neighbours in memory. All of them are whole; of the `last`
        ones those that are, and zeros."""
        dot, first = self.dot, k * self.dot.group
        mask = b.mask(self.depth - first, lanes * dot.group) if last else None
        x = b.vector_load(self.plain.buffer, self.plain.at(batch, row, first), lanes * dot.group, mask)
        return word_of(b, x, self.plain.element, self.accumulator, dot, self.flip)


def in_words(p: Contraction) -> Contraction:
    """The contraction `p`, which has an instruction for its elements, over words."""
    assert p.dot is not None
    dot, k = p.dot, ceil_div(p.k, p.dot.group)

    def operand(x: Operand, flip: int) -> Operand:
        def load(builder: Any, batch: Batch, row: Index, at: Index) -> Value:
            return joined(
                builder, lambda e: x.load(builder, batch, row, e), at, p.k, p.accumulator, dot, flip
            )

        # Words along K are made of neighbours in memory; other element functions give theirs one by one.
        along = x.along if x.along == "row" else ""
        if x.plain is None or x.plain.element.bits > dot.piece.bits:
            return replace(x, load=load, plain=None, along=along)
        plain, reader = x.plain, PlainWords(x.plain, p.k, p.accumulator, dot, flip)
        return replace(
            x,
            load=load,
            along=along,
            plain=replace(plain, at=lambda batch, row, at: plain.at(batch, row, at * dot.group)),
            words=reader,
        )

    return replace(p, k=k, a=operand(p.a, dot.flip), b=operand(p.b, 0), inner=())


def word_of(
    b: Emitter, x: Value, element: ElementType, accumulator: ElementType, dot: DotInstruction, flip: int = 0
) -> Value:
    """The words that a vector of elements is, those of a word side by side."""
    if dot.piece.bits > element.bits:
        x = b.cast(x, element, dot.piece)
    builder: LoopBuilder = b.builder
    return _flipped(builder, builder.vector_bitcast(x, i32), flip, accumulator)


def joined(
    b: LoopBuilder,
    part: Callable[[Index], Value],
    k: Index,
    depth: Index,
    accumulator: ElementType,
    dot: DotInstruction,
    flip: int,
) -> Value:
    """Word number k of the elements ``part(e)``, each in the accumulator's type, of which there are `depth`."""
    word = None
    bits = dot.piece.bits
    for number in range(dot.group):
        at = k * dot.group + number
        # Only the last word may have fewer elements, and it has the first.
        some = number > 0 and (not isinstance(depth, int) or number >= depth % dot.group > 0)
        x = _low_bits(b, part(minimum(at, depth - 1) if some else at), dot)
        if some:
            exists = b.icmp("slt", b.index(at), b.index(depth))
            x = b.iand(x, b.select(exists, b.const("i32", -1), b.const("i32", 0)))
        if number:
            x = b.shl(x, b.const("i32", bits * number))
        word = x if word is None else b.ior(word, x)
    assert word is not None
    return _flipped(b, word, flip, accumulator)


def _low_bits(b: LoopBuilder, x: Value, dot: DotInstruction) -> Value:
    """An element's bits in the lower end of an i32; `x` is an i32, or the f32 that a bf16 is."""
    if dot.piece.is_float:
        return b.lshr(b.bitcast(x, "i32"), b.const("i32", 16))
    return b.iand(x, b.const("i32", (1 << dot.piece.bits) - 1))


def _flipped(b: LoopBuilder, word: Value, flip: int, accumulator: ElementType) -> Value:
    if flip:
        word = b.ixor(word, b.const("i32", flip - (1 << 32) if flip >> 31 else flip))
    return word if accumulator is i32 else b.bitcast(word, accumulator)


def multiply_add(
    b: LoopBuilder, x: Value, y: Value, sums: Value, dot: DotInstruction, accumulator: ElementType
) -> Value:
    """The sums and, in each lane, the products of the words x of A and y of B."""
    lanes = lanes_among([sums])
    first, second = (y, x) if dot.exchanged else (x, y)
    pieces = [b.vector_bitcast(v, dot.piece) for v in (first, second)]
    type = VectorType.get((lanes,), accumulator)
    if dot.accumulates:
        return b.call_intrinsic(dot.intrinsic, type, sums, *pieces)
    return b.iadd(b.call_intrinsic(dot.intrinsic, type, *pieces), sums)


def ones(b: LoopBuilder, lanes: int) -> Value:
    """Words of bytes that are 1, as A: their products with B are the sums of B's elements."""
    return b.broadcast(b.const("i32", 0x01010101), lanes)


def narrowed(b: LoopBuilder, x: Value, dot: DotInstruction) -> Value:
    """A vector of sums rounded to bf16, in f32 registers, as `lowering.half` rounds but for subnormal numbers."""
    lanes = lanes_among([x])
    short = b.call_intrinsic(dot.narrowing, VectorType.get((lanes,), bf16), x)
    bits = b.extui(b.bitcast(short, "i16"), "i32")
    return b.bitcast(b.shl(bits, b.const("i32", 16)), "f32")
