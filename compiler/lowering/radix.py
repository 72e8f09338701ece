"""Sorting long lines by the digits of their keys, least significant first; stable.

Each element becomes an unsigned number in the same order (`_key`), and moves together with its position: keys of up to
32 bits share an i64 with it. One walk over the line counts all digits; then a walk for each digit moves every element
to its place. D. E. Knuth, "The Art of Computer Programming", volume 3, section 5.2.5: sorting by distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Dim, Index
from flambeau.compiler.ir.types import ElementType, TensorType, f32, i8, i32, i64
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.passes.plan import aligned

#: Shorter lines are merged. A digit has this many bits: the ends of 256 runs and their counts fit L1.
LEAST = 256
DIGIT = 8
BUCKETS = 1 << DIGIT

At = Callable[[Index], tuple[Index, ...]]


@dataclass(frozen=True)
class Layout:
    """Where the workspace has what, in bytes. `packed`: key and position share an i64."""

    packed: bool
    bits: int
    count: ElementType
    buffers: tuple[tuple[Index, ElementType], ...]
    counts: Index
    bytes: Index

    @property
    def passes(self) -> int:
        return -(-self.bits // DIGIT)


def layout_of(type: TensorType, axis: int) -> Layout | None:
    """How to sort lines along `axis`; None for lines that merging suits better."""
    extent = type.shape[axis]
    if not isinstance(extent, Dim) and extent < LEAST:
        return None
    small = not isinstance(extent, Dim) and extent < 1 << 31
    bits = (
        8
        if type.element.is_bool
        else 32
        if type.element.is_float and type.element.bits < 32
        else type.element.bits
    )
    packed = small and bits <= 32
    count = i32 if small else i64
    kinds = [i64] * 2 if packed else [i64, i64, i64, i64]
    offset: Index = 0
    buffers = []
    for kind in kinds:
        buffers.append((offset, kind))
        offset = offset + aligned(type.size * kind.itemsize)
    lines: Index = 1
    for a, d in enumerate(type.shape):
        lines = lines if a == axis else lines * d
    passes = -(-bits // DIGIT)
    size = offset + aligned(lines * (passes * BUCKETS * count.itemsize))
    return Layout(packed, bits, count, tuple(buffers), offset, size)


class RadixSort:
    """The loops that sort one line."""

    def __init__(self, ctx: LoweringContext, operation: Operation, layout: Layout, workspace: Value) -> None:
        self.ctx, self.operation, self.layout = ctx, operation, layout
        self.type = tensor_of(operation.operands[0])
        b, size = ctx.b, self.type.size
        memory = b.from_pointer(workspace, (layout.bytes,), i8)
        self.buffers = [b.view(memory, offset, (size,), kind, 64) for offset, kind in layout.buffers]
        total = (layout.bytes - layout.counts) // layout.count.itemsize
        self.counts = b.view(memory, layout.counts, (total,), layout.count, 64)

    def emit(self, line: Index, at: At) -> None:
        """Sort the line whose number is `line`; `at` gives an element's index."""
        ctx, b, e, layout = self.ctx, self.ctx.b, self.ctx.e, self.layout
        extent = self.type.shape[definition_of(self.operation).dimension]
        base, counts = line * extent, line * (layout.passes * BUCKETS)
        one = b.constant(layout.count, 1)
        with b.for_(0, layout.passes * BUCKETS) as bucket:
            b.store(b.constant(layout.count, 0), self.counts, (counts + bucket.index,))
        half = len(self.buffers) // 2
        source, target = self.buffers[:half], self.buffers[half:]
        with b.for_(0, extent) as loop:
            key = self._key(ctx.read(self.operation.operands[0], at(loop.index)))
            place = e.index_to_scalar(loop.index, i64).value
            record = [b.ior(b.shl(key, b.constant(i64, 32)), place)] if layout.packed else [key, place]
            for value, buffer in zip(record, source, strict=True):
                b.store(value, buffer, (base + loop.index,))
            for number in range(layout.passes):
                bucket_at = (counts + number * BUCKETS + self._digit(record, number),)
                b.store(b.iadd(b.load(self.counts, bucket_at), one), self.counts, bucket_at)
        ctx.forget()
        for number in range(layout.passes):
            first = counts + number * BUCKETS
            with b.for_(0, BUCKETS, init=[b.constant(layout.count, 0)]) as bucket:
                here = b.load(self.counts, (first + bucket.index,))
                b.store(bucket.carried[0], self.counts, (first + bucket.index,))
                bucket.yield_(b.iadd(bucket.carried[0], here))
            with b.for_(0, extent) as loop:
                record = [b.load(buffer, (base + loop.index,)) for buffer in source]
                bucket_at = (first + self._digit(record, number),)
                place = b.load(self.counts, bucket_at)
                b.store(b.iadd(place, one), self.counts, bucket_at)
                to = b.symbol(b.index_cast(place, "index"), 0, extent - 1)
                for value, buffer in zip(record, target, strict=True):
                    b.store(value, buffer, (base + to,))
            source, target = target, source
        self._write(source, base, extent, at)

    def _write(self, source: list[Value], base: Index, extent: Index, at: At) -> None:
        """Positions, and the elements that lie there: keys do not tell -0.0 from 0.0, or one NaN from another."""
        ctx, b, e = self.ctx, self.ctx.b, self.ctx.e
        keys_out, places_out = self.operation.results
        ctx.forget()
        with b.for_(0, extent) as loop:
            place = b.load(source[-1], (base + loop.index,))
            if self.layout.packed:
                place = b.iand(place, b.constant(i64, (1 << 32) - 1))
            if places_out in ctx.memory:
                e.store(Scalar(place, i64), ctx.memory[places_out], at(loop.index))
            if keys_out in ctx.memory:
                origin = b.symbol(b.index_cast(place, "index"), 0, extent - 1)
                e.store(
                    ctx.read(self.operation.operands[0], at(origin)), ctx.memory[keys_out], at(loop.index)
                )

    def _digit(self, record: list[Value], number: int) -> Index:
        b = self.ctx.b
        shift = number * DIGIT + (32 if self.layout.packed else 0)
        digit = b.iand(b.lshr(record[0], b.constant(i64, shift)), b.constant(i64, BUCKETS - 1))
        return b.symbol(b.index_cast(digit, "index"), 0, BUCKETS - 1)

    def _key(self, x: Scalar) -> Value:
        """The element as an i64 of which the low `bits` are, unsigned, in the order of the sort."""
        b, e, bits = self.ctx.b, self.ctx.e, self.layout.bits
        if x.element.is_float:
            key = self._float_key(x)
        elif x.element.is_bool or x.element.kind == "uint":
            key = e.convert(x, i64).value
        else:
            key = b.ixor(
                e.convert(x, i64).value, b.constant(i64, -(1 << 63) if bits == 64 else 1 << (bits - 1))
            )
        if definition_of(self.operation).descending:
            key = b.ixor(key, b.constant(i64, -1))
        return key if bits == 64 else b.iand(key, b.constant(i64, (1 << bits) - 1))

    def _float_key(self, x: Scalar) -> Value:
        """Negative numbers with all bits turned, others with the sign's; NaN is the largest, -0.0 is 0.0."""
        b, e = self.ctx.b, self.ctx.e
        if self.layout.bits == 32:
            x = Scalar(x.value, f32)  # halves are f32 in registers
        whole = i32 if self.layout.bits == 32 else i64
        zero = b.constant(x.element, 0.0)
        value = b.select(b.fcmp("oeq", x.value, zero), zero, x.value)
        signed = b.bitcast(value, whole)
        sign = b.ashr(signed, b.constant(whole, self.layout.bits - 1))  # all ones if negative
        key = b.ixor(signed, b.ior(sign, b.constant(whole, -(1 << (self.layout.bits - 1)))))
        key = b.select(b.fcmp("uno", value, value), b.constant(whole, -1), key)
        return e.convert(Scalar(key, whole), i64).value if whole is i32 else key


__all__ = ["Layout", "RadixSort", "layout_of"]
