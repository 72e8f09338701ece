"""Sort kernels: long lines by their digits (`radix.py`), short ones by bottom-up merge sort; stable.

D. E. Knuth, "The Art of Computer Programming", volume 3, section 5.2.4: natural merges of runs of equal length.
"""

from __future__ import annotations

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, i8, i64
from flambeau.compiler.ir.types import index as index_type
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.radix import RadixSort, layout_of
from flambeau.compiler.passes.plan import aligned


def sort_workspace(ctx: LoweringContext, operation: Operation) -> Index:
    """Bytes: two lines of keys and of positions for every line, and the counts of digits."""
    type = tensor_of(operation.operands[0])
    layout = layout_of(type, definition_of(operation).dimension)
    if layout is not None:
        return layout.bytes
    keys, places = _sizes(type.size, type.element)
    return (keys + places) * 2


def _sizes(count: Index, element: ElementType) -> tuple[Index, Index]:
    return aligned(count * element.itemsize), aligned(count * i64.itemsize)


def lower_sort(ctx: LoweringContext, operation: Operation, workspace: Value | None) -> None:
    """Emit a sort along an axis: lines are copied to the workspace, sorted between two buffers, and copied out."""
    operand = operation.operands[0]
    keys_out, places_out = operation.results
    definition = definition_of(operation)
    type = tensor_of(operand)
    axis = definition.dimension
    extent = type.shape[axis]
    others = tuple(d for a, d in enumerate(type.shape) if a != axis)
    b, e = ctx.b, ctx.e
    if workspace is None:  # nothing to sort
        return
    layout = layout_of(type, axis)
    if layout is not None:
        radix = RadixSort(ctx, operation, layout, workspace)
        with ctx.rows(others, type.size * 64) as row:
            line: Index = 0
            for size, position in zip(others, row, strict=True):
                line = line * size + position
            radix.emit(line, lambda place: (*row[:axis], place, *row[axis:]))
        return
    keys_size, places_size = _sizes(type.size, type.element)
    total = (keys_size + places_size) * 2
    from_pointer = b.from_pointer(workspace, (total,), i8)
    offsets = (0, keys_size, keys_size + places_size, keys_size * 2 + places_size)
    kinds = (type.element, i64, type.element, i64)
    ka, pa, kb, pb = (
        b.view(from_pointer, offset, (type.size,), kind, 64)
        for offset, kind in zip(offsets, kinds, strict=True)
    )
    with ctx.rows(others, type.size * 64) as row:

        def at(place: Index) -> tuple[Index, ...]:
            return (*row[:axis], place, *row[axis:])

        line = 0
        for size, position in zip(others, row, strict=True):
            line = line * size + position
        base = line * extent

        with b.for_(0, extent) as loop:
            e.store(ctx.read(operand, at(loop.index)), ka, [base + loop.index])
            e.store(e.index_to_scalar(loop.index, i64), pa, [base + loop.index])
        ctx.forget()
        limit = b.index(extent)

        def merge_pass(width: Value) -> None:
            """Runs of `width` in (ka, pa) become runs twice as long in (kb, pb), which are copied back."""
            double = b.iadd(width, width)
            stride = b.symbol(double, 1, None)
            with b.for_(0, (extent + stride - 1) // stride) as run:
                start = b.imul(b.index(run.index), double)
                middle = b.imin(b.iadd(start, width), limit)
                end = b.imin(b.iadd(start, double), limit)
                _merge(ctx, operation, (ka, pa, kb, pb), base, start, middle, end)
            with b.for_(0, extent) as loop:
                e.store(e.load(kb, [base + loop.index]), ka, [base + loop.index])
                e.store(e.load(pb, [base + loop.index]), pa, [base + loop.index])

        def body(width: Value) -> list[Value]:
            merge_pass(width)
            return [b.iadd(width, width)]

        b.while_([b.constant(index_type, 1)], lambda width: b.icmp("slt", width, limit), body)
        ctx.forget()
        with b.for_(0, extent) as loop:
            if keys_out in ctx.memory:
                e.store(e.load(ka, [base + loop.index]), ctx.memory[keys_out], at(loop.index))
            if places_out in ctx.memory:
                e.store(e.load(pa, [base + loop.index]), ctx.memory[places_out], at(loop.index))


def _merge(
    ctx: LoweringContext,
    operation: Operation,
    buffers: tuple[Value, Value, Value, Value],
    base: Index,
    start: Value,
    middle: Value,
    end: Value,
) -> None:
    """Merge [start, middle) and [middle, end). The right run's head goes first only if it must."""
    b, e = ctx.b, ctx.e
    ka, pa, kb, pb = buffers
    definition = definition_of(operation)
    with b.for_(b.symbol(start, 0, None), b.symbol(end, 0, None), init=[start, middle]) as out:
        left, right = out.carried
        has_left = b.icmp("slt", left, middle)
        has_right = b.icmp("slt", right, end)

        def compare() -> list[Value]:
            x = e.load(ka, [base + b.symbol(right, 0, None)])
            y = e.load(ka, [base + b.symbol(left, 0, None)])
            return [definition.before(e, x, y).value]

        both = b.iand(has_left, has_right)
        (first,) = b.if_(both, compare, lambda: [has_right])
        source = b.symbol(b.select(first, right, left), 0, None)
        e.store(e.load(ka, [base + source]), kb, [base + out.index])
        e.store(e.load(pa, [base + source]), pb, [base + out.index])
        one = b.index(1)
        out.yield_(b.select(first, left, b.iadd(left, one)), b.select(first, b.iadd(right, one), right))
