"""Gradients of a convolution's kernel, directly: for each tap of the window, a product of the cotangent with the shifted input.

As one product with im2col, each input element would be packed once a tap, and the padding around small images multiplied.
Here both operands are packed once, pixel by pixel with neighbouring features side by side; a tap's sum then runs over those
pixels that have an input under the tap, some images or rows of pixels at a time, which stay in the cache for all taps.
Vectors run along the input's features. The window lies innermost in the result, so a task's sums are transposed on the
stack before they leave through the epilogue, in long runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph.contraction import accumulator_of, decode
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Operation
from flambeau.compiler.ir.dims import Index, maximum, minimum
from flambeau.compiler.ir.types import ElementType, TensorType
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import Buffer, LoopEmitter, Value
from flambeau.compiler.lowering.contraction_packing import Packer, Panel
from flambeau.compiler.lowering.contraction_problem import Operand, ceil_div
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import transpose
from flambeau.compiler.schedule.cpu_contraction import CpuShape, balanced, register_tile

#: Pixels whose products are summed before their sum joins the others: the rounding error grows with the root of their number.
#: The operands' parts of them are in L2.
PIXELS = 512
#: Windows with more taps than this have long code.
TAPS = 36
#: Pixels whose products are written out one after the other; more are a loop.
UNROLLED = 8
#: Bytes that are asked for together.
LINE = 64


@dataclass(frozen=True)
class GradientPlan:
    """`rows` features of the cotangent by `vectors * lanes` of the input, for each of `window` taps.

    `counts` are the cotangent's pixels, `sizes` the input's. Sums go over `together` images, and `band` rows of the cotangent,
    at a time.
    """

    images: Index
    features: int
    channels: int
    window: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    lanes: int
    rows: int
    vectors: int
    together: int
    band: int

    @property
    def block(self) -> int:
        """The input's features of a task."""
        return self.vectors * self.lanes

    @property
    def taps(self) -> int:
        return _size(self.window)

    @property
    def at_once(self) -> bool:
        """Is everything summed at a time?"""
        return isinstance(self.images, int) and self.images <= self.together and self.band == self.counts[0]

    @property
    def input_elements(self) -> Index:
        """Elements of the packed input; the packed cotangent follows."""
        return self.images * (-(-self.channels // self.block) * self.block * _size(self.sizes))

    @property
    def workspace_elements(self) -> Index:
        """Of both, and a vector that the last masked store may touch."""
        cotangent = -(-self.features // self.rows) * self.rows * _size(self.counts)
        return self.input_elements + self.images * cotangent + self.lanes


def is_kernel_gradient(op: Convolution, x: TensorType, g: TensorType) -> bool:
    """Is the convolution the gradient of a kernel, of the input `x` and the cotangent `g`, as `Convolution.vjp` writes it, of
    known sizes, none of them 0?"""
    result, rank = op.infer(x, g), op.spatial_rank
    last = tuple(range(2, rank + 2))
    if (
        rank == 0
        or op.feature_group_count > 1
        or (op.output_feature, op.output_batch, *op.output_spatial) != (0, 1, *last)
        or op.input_spatial != last
        or op.kernel_spatial != last
        or any(op.window_reversal)
        or any(d > 1 for d in op.lhs_dilation)
    ):
        return False
    extents = (*result.shape, *x.shape[2:], *g.shape[2:], *[low for low, _ in op.padding])
    return all(isinstance(n, int) for n in extents) and 0 not in (*x.shape, *g.shape, *result.shape)


def gradient_plan(op: Convolution, x: TensorType, g: TensorType, cpu: CpuShape) -> GradientPlan | None:
    """How to compute the gradient of a kernel, of the input `x` and the cotangent `g`; None for other convolutions."""
    if op.batch_group_count > 1 or not is_kernel_gradient(op, x, g):
        return None
    result = op.infer(x, g)
    features, channels, *window = numbers_of(result.shape)
    counts = numbers_of(g.shape[2:])
    accumulator = accumulator_of(x.element, result.element)
    lanes = max(1, cpu.vector_bits // accumulator.bits)
    if not 2 <= _size(window) <= TAPS or channels < lanes:
        return None
    rows, vectors = register_tile(cpu, lanes)
    if channels < vectors * lanes:
        vectors = 1
    divisors = [n for n in range(6, rows + 1) if features % n == 0]
    rows = divisors[-1] if divisors else min(8, features)
    together = max(1, PIXELS // _size(counts))
    band = balanced(counts[0], max(1, PIXELS // _size(counts[1:])))
    return GradientPlan(
        x.shape[op.input_feature], features, channels, tuple(window), tuple(counts),
        tuple(numbers_of(x.shape[2:])), lanes, rows, vectors, together, band,
    )  # fmt: skip


def pixel_index(
    type: TensorType, image_axis: int, feature_axis: int
) -> Callable[[Sequence[Index], Index, Index], tuple[Index, ...]]:
    """``index(batch, row, k)`` of an operand whose rows are features and whose k counts pixels; an image is a batch."""
    sizes = type.shape[2:]

    def index(batch: Sequence[Index], row: Index, k: Index) -> tuple[Index, ...]:
        found: list[Index] = [0, 0, *decode(k, sizes)]
        found[image_axis], found[feature_axis] = batch[0], row
        return tuple(found)

    return index


def _size(extents: Sequence[int]) -> int:
    count = 1
    for n in extents:
        count *= n
    return count


def numbers_of(extents: Sequence[Index]) -> list[int]:
    return [n for n in extents if isinstance(n, int)]


def lower_kernel_gradient(
    ctx: LoweringContext,
    operation: Operation,
    plan: GradientPlan,
    operands: tuple[Operand, Operand],
    workspace: Buffer,
) -> None:
    """Emit the gradient and its epilogue. `operands`: the input and the cotangent, as `pixel_index` indexes them."""
    _Gradient(ctx, operation, plan, workspace).emit(*operands)


class _Gradient:
    def __init__(
        self, ctx: LoweringContext, operation: Operation, plan: GradientPlan, workspace: Buffer
    ) -> None:
        self.ctx, self.plan, self.workspace, self.made = ctx, plan, workspace, operation.results[0]
        self.op: Convolution = definition_of(operation)
        self.result = tensor_of(self.made)
        self.accumulator: ElementType = accumulator_of(
            tensor_of(operation.operands[0]).element, self.result.element
        )
        self.b = LoopEmitter(ctx.b, ctx.e.half)

    def emit(self, x: Operand, g: Operand) -> None:
        p = self.plan
        self._pack(x, 0, p.channels, p.block, _size(p.sizes))
        self._pack(g, p.input_elements, p.features, p.rows, _size(p.counts))
        self.b.parallel([ceil_div(p.features, p.rows), ceil_div(p.channels, p.block)], self._task)

    def _pack(self, operand: Operand, start: Index, rows: int, width: int, pixels: int) -> None:
        packer = Packer(self.b, operand, self.accumulator, self.plan.lanes)
        images = self.plan.images

        def panel(at: list[Index]) -> None:
            block, image = at
            left = width if rows % width == 0 else rows - block * width
            offset = start + (block * images + image) * (pixels * width)
            packer.pack([image], Panel(self.workspace, offset, width, block * width, left, 0, pixels))

        self.b.parallel([ceil_div(rows, width), images], panel)

    def _task(self, at: list[Index]) -> None:
        p, b = self.plan, self.b
        first, channel = at[0] * p.rows, at[1] * p.block
        sums = b.alloca((p.taps * p.rows * p.block,), self.accumulator)
        # Each vector of the transposed window is stored whole, over the start of the next.
        line = b.alloca((p.block * p.taps + p.lanes,), self.accumulator)
        taps = list(itertools.product(*[range(n) for n in p.window]))

        def some(image: Index, row: Index) -> None:
            for number, tap in enumerate(taps):
                if p.at_once:
                    self._ask_ahead(first, channel, number)
                for place, total in enumerate(self._tap(at[0], at[1], tap, image, row)):
                    r, v = divmod(place, p.vectors)
                    where = ((number * p.rows + r) * p.block + v * p.lanes,)
                    if not p.at_once:
                        total = b.add(b.vector_load(sums, where, p.lanes), total, self.accumulator)
                    b.vector_store(total, sums, where)

        if p.at_once:
            some(0, 0)
        else:
            zero = b.zero(self.accumulator, p.lanes)
            b.for_(0, p.taps * p.rows * p.block, p.lanes, lambda i, _: b.vector_store(zero, sums, (i,)))
            b.for_(
                0,
                p.images,
                p.together,
                lambda image, _: b.for_(0, p.counts[0], p.band, lambda row, _: some(image, row)),
            )
            for number in range(p.taps):
                self._ask_ahead(first, channel, number)
        rows = p.rows if p.features % p.rows == 0 else minimum(p.features - first, p.rows)
        b.for_(0, rows, 1, lambda r, _: self._row(sums, line, first, r, channel))

    def _ask_ahead(self, first: Index, channel: Index, tap: int) -> None:
        """Ask for a tap's share of the memory that the epilogue works on: short pieces of many rows, which the hardware
        does not foresee."""
        p, b = self.plan, self.b
        step = LINE // self.result.element.itemsize
        lines = -(-p.block * p.taps // step)
        share = range(lines * tap // p.taps, lines * (tap + 1) // p.taps)

        def row(r: Index, _: list[Value]) -> None:
            for line in share:
                index = (first + r, *decode(channel * p.taps + line * step, self.result.shape[1:]))
                for buffer, at, written in self.ctx.touched(self.made, index):
                    b.prefetch(buffer, at, written, 2)

        b.for_(0, p.rows, 1, row)

    # -- sums ----------------------------------------------------------------------------------------------------------
    def _tap(self, block: Index, column: Index, tap: Sequence[int], image: Index, row: Index) -> list[Value]:
        """The register tile of one tap: the sum over the images from `image` and the rows from `row`, of the pixels that
        have an input there."""
        p, op, b = self.plan, self.op, self.b
        ranges: list[tuple[int, int]] = []
        shifts: list[int] = []
        for s, t in enumerate(tap):
            low, dilation = op.padding[s][0], op.rhs_dilation[s]
            assert isinstance(low, int)
            shift = t * op.window_strides[s] - low
            begin = max(0, -(shift // dilation))
            end = min(p.counts[s], (p.sizes[s] - 1 - shift) // dilation + 1)
            ranges.append((begin, max(begin, end)))
            shifts.append(shift)
        left_start, right_start = p.input_elements, 0

        def step(image: Index, pixel: Sequence[Index], sums: list[Value]) -> list[Value]:
            left: Index = 0
            right: Index = 0
            for s, o in enumerate(pixel):
                left = left * p.counts[s] + o
                right = right * p.sizes[s] + o * op.rhs_dilation[s] + shifts[s]
            a = left_start + ((block * p.images + image) * _size(p.counts) + left) * p.rows
            c = right_start + ((column * p.images + image) * _size(p.sizes) + right) * p.block
            columns = [b.vector_load(self.workspace, (c + v * p.lanes,), p.lanes) for v in range(p.vectors)]
            out: list[Value] = []
            for r in range(p.rows):
                scalar = b.splat(b.load(self.workspace, (a + r,)), p.lanes)
                for v, x in enumerate(columns):
                    out.append(b.multiply_add(scalar, x, sums[r * p.vectors + v], self.accumulator))
            return out

        def pixels(image: Index, place: list[Index], sums: list[Value]) -> list[Value]:
            rest = ranges[len(place) :]
            if not rest:
                return step(image, place, sums)
            begin, end = rest[0]
            if not place and p.band < p.counts[0]:
                low, high = maximum(begin, row), minimum(end, row + p.band)
                return b.for_(low, high, 1, lambda o, carried: pixels(image, [o], carried), sums)
            if _size([high - low for low, high in rest]) <= UNROLLED:
                for o in range(begin, end):
                    sums = pixels(image, [*place, o], sums)
                return sums
            return b.for_(begin, end, 1, lambda o, carried: pixels(image, [*place, o], carried), sums)

        start = [b.zero(self.accumulator, p.lanes)] * (p.rows * p.vectors)
        if _size([end - begin for begin, end in ranges]) == 0:
            return start
        last = p.images if p.at_once else minimum(image + p.together, p.images)
        return b.for_(image, last, 1, lambda i, carried: pixels(i, [], carried), start)

    # -- the result ----------------------------------------------------------------------------------------------------
    def _row(self, sums: Buffer, line: Buffer, first: Index, r: Index, channel: Index) -> None:
        """All taps of one feature of the cotangent and a block of the input's, which are neighbours in the result."""
        p, ctx = self.plan, self.ctx
        zero = self.b.zero(self.accumulator, p.lanes)
        for v in range(p.vectors):
            read = [
                self.b.vector_load(sums, ((t * p.rows + r) * p.block + v * p.lanes,), p.lanes)
                for t in range(p.taps)
            ]
            read += [zero] * (-p.taps % p.lanes)
            starts = range(0, p.taps, p.lanes)
            squares = [transpose(self.b, read[start : start + p.lanes]) for start in starts]
            for number in range(p.lanes):
                for start, square in zip(starts, squares, strict=True):
                    at = (v * p.lanes + number) * p.taps + start
                    self.b.vector_store(square[number], line, (at,))
        extent: Index = p.block * p.taps
        even = p.channels % p.block == 0
        if not even:
            extent = minimum(p.channels - channel, p.block) * p.taps
        whole = extent // p.lanes * p.lanes

        def chunk(start: Index, count: Index | None) -> None:
            with ctx.b.lanes_of(p.lanes, count) as lane:
                position = channel * p.taps + start + lane
                index = (first + r, *decode(position, self.result.shape[1:]))
                total = Scalar(ctx.b.load(line, (start + lane,)), self.accumulator)
                ctx.finish(self.made, index, ctx.e.convert(total, self.result.element))

        self.b.for_(0, whole, p.lanes, lambda start, _: chunk(start, None))
        if extent - whole != 0:
            self.b.for_(whole, extent, p.lanes, lambda start, _: chunk(start, extent - start))
