"""`graph.expanded_depthwise`: some features between are computed for some rows, and the depthwise windows slide over them.

A task makes a block of the features between, as register tiles of features by pixels, on the stack (which then lies in L1
or L2); then it computes the results of these features from there. Where images are large it has only some rows, and those
that neighbouring tasks read too are computed by both.
"""

from __future__ import annotations

from dataclasses import dataclass

from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.dialects.graph.expanded_depthwise import ExpandedDepthwise
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Dim, Index, maximum, minimum
from flambeau.compiler.ir.types import ElementType
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.depthwise_convolution import DepthwisePlan, FeatureEmitter, depthwise_plan
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import LONGEST, outer_product_tile
from flambeau.compiler.schedule.cpu_contraction import UNROLL, CpuShape, balanced

#: Bytes of a line of the caches.
LINE = 64
#: Bytes of the features between that a task keeps.
KEPT = 128 << 10
#: So many products are summed without a loop.
STRAIGHT = 32
#: Rows that are computed twice, in parts of all, at most.
TWICE = 0.1


@dataclass(frozen=True)
class ExpandedPlan:
    """A task computes `block` features between, for `tiles` of the depthwise convolution's tiles of rows at a time (`parts`
    times), which read `rows` rows of them. Register tiles have up to `vectors` vectors of pixels; if `halved`, half a vector
    takes half the time."""

    depthwise: DepthwisePlan
    depth: int
    block: int
    vectors: int
    tiles: int
    parts: int
    rows: int
    halved: bool


def expanded_plan(definition: ExpandedDepthwise, cpu: CpuShape) -> ExpandedPlan | None:
    """How to run both at once; None if they should run one after the other."""
    first, second = definition.convolutions
    point, depth = first.definition, second.definition
    assert isinstance(point, Convolution) and isinstance(depth, Convolution)
    x, w = (tensor_of(v) for v in first.operands)
    between, v = tensor_of(first.results[0]), tensor_of(second.operands[1])
    if not (_plain(point, (0, 1)) and _plain(depth, None)) or any(p != (0, 0) for p in point.padding):
        return None
    same = {t.element for t in (x, w, between, v, tensor_of(second.results[0]))}
    plan = depthwise_plan(depth, between, v, cpu)
    if len(same) != 1 or plan is None or plan.multiplier != 1:
        return None
    channels = x.shape[1]
    if isinstance(channels, Dim) or channels > LONGEST or isinstance(x.shape[-1], Dim):
        return None
    most, vectors = (8, 3) if cpu.registers > 16 else (4, 2)
    if channels <= plan.lanes:
        most = (
            most * 3 // 4
        )  # more of the time goes into beginning and ending tiles, which few sums make short
    block = next((n for n in range(most, most // 2 - 1, -1) if plan.features % n == 0), 0)
    height, width = plan.rows.size, plan.columns.size
    if block == 0 or height * width < plan.lanes:
        return None
    row = block * width * x.element.itemsize
    cut = _parts(plan, KEPT // row)
    if cut is None:
        return None
    tiles, parts, rows = cut
    vectors = balanced(rows * width // plan.lanes, vectors)
    return ExpandedPlan(plan, channels, block, vectors, tiles, parts, rows, cpu.halved)


def _parts(plan: DepthwisePlan, most: int) -> tuple[int, int, int] | None:
    """Tiles of rows at a time, how many times, and rows that they read: no more than `most`."""
    count = sum(span.count for span in plan.down)
    height, tile = plan.rows.size, plan.down[0].size

    def read(tiles: int) -> int:
        start, stop = plan.rows.rows_read(tiles * tile)
        return min(stop - start, height)

    if height <= most:
        return count, 1, height
    cuts = [
        (tiles, -(-count // tiles), read(tiles)) for tiles in range(count - 1, 0, -1) if read(tiles) <= most
    ]
    best = min(cuts, key=lambda cut: cut[1] * cut[2], default=None)
    return best if best is not None and best[1] * best[2] <= (1 + TWICE) * height else None


def _plain(op: Convolution, kernel: tuple[int, int] | None) -> bool:
    """Batch, features, rows, columns; of the kernel, output feature and input feature first."""
    order = (0, 1, 2, 3)
    return (
        op.spatial_rank == 2
        and (op.input_batch, op.input_feature, *op.input_spatial) == order
        and (op.output_batch, op.output_feature, *op.output_spatial) == order
        and kernel in (None, (op.kernel_output_feature, op.kernel_input_feature))
        and all(d == 1 for d in op.lhs_dilation)
        and op.batch_group_count == 1
    )


def lower_expanded_depthwise(ctx: LoweringContext, operation: Operation, plan: ExpandedPlan) -> None:
    """Emit both convolutions, what lies between, and the epilogue."""
    definition: ExpandedDepthwise = definition_of(operation)
    for parameter, operand in zip(definition.body.parameters, operation.operands, strict=True):
        ctx.overrides[parameter] = lambda at, operand=operand: ctx.read(operand, at)  # type: ignore[misc]
    images = tensor_of(operation.results[0]).shape[0]
    blocks = plan.depthwise.features // plan.block
    work = (
        images * plan.parts * plan.depthwise.features * plan.rows * plan.depthwise.columns.size * plan.depth
    )
    with ctx.rows((images, plan.parts, blocks), work) as (image, part, block):
        _Task(ctx, operation, plan, image, part, block * plan.block).emit()


@dataclass(frozen=True)
class _Pixels:
    """Register tiles side by side, `count` of them, of `vectors` vectors of `lanes` pixels, of which `exist`; from the task's
    pixel number `first` on."""

    count: int
    first: int
    vectors: int
    lanes: int
    exist: int


class _Task:
    """A block of the features between, from `feature` on, for some rows of an image."""

    def __init__(
        self,
        ctx: LoweringContext,
        operation: Operation,
        plan: ExpandedPlan,
        image: Index,
        part: Index,
        feature: Index,
    ) -> None:
        self.ctx, self.plan, self.operation = ctx, plan, operation
        self.image, self.feature = image, feature
        self.first, self.second = definition_of(operation).convolutions
        self.element: ElementType = tensor_of(operation.results[0]).element
        self.b = LoopEmitter(ctx.b, ctx.e.half)
        self.width = plan.depthwise.columns.size
        count = sum(span.count for span in plan.depthwise.down)
        begin = part * plan.tiles
        self.tiles = None if plan.parts == 1 else (begin, minimum(begin + plan.tiles, count))
        #: The first of the rows between that the task computes.
        self.top: Index = 0
        if plan.parts > 1:
            rows = plan.depthwise.rows
            top = begin * plan.depthwise.down[0].size * rows.stride - rows.low
            self.top = minimum(maximum(top, 0), rows.size - plan.rows)

    def emit(self) -> None:
        plan, b = self.plan, self.b
        lanes = plan.depthwise.lanes
        pitch = -(-plan.rows * self.width // lanes) * lanes
        between = b.alloca((plan.block, pitch), self.element)
        for tiles in self._tiles():

            def tile(t: Index, _: list[Value], tiles: _Pixels = tiles) -> None:
                self._expand(between, tiles.first + t * tiles.vectors * tiles.lanes, tiles)

            if tiles.count == 1:
                tile(0, [])
            else:
                b.for_(0, tiles.count, 1, tile)
        self.ctx.forget()
        depthwise = self.second.definition
        assert isinstance(depthwise, Convolution)

        def feature(f: Index, _: list[Value]) -> None:
            def place(row: Index, column: Index) -> tuple[Index, ...]:
                return f, (row - self.top) * self.width + column

            FeatureEmitter(
                self.ctx,
                plan.depthwise,
                depthwise,
                (self.second.operands[1], self.operation.results[0]),
                (self.image, self.feature + f),
                (between, place),
            ).emit(self.tiles)

        b.for_(0, plan.block, 1, feature)

    def _tiles(self) -> list[_Pixels]:
        """Register tiles for all of the pixels, of which whole vectors come first."""
        plan, lanes = self.plan, self.plan.depthwise.lanes
        whole, rest = divmod(plan.rows * self.width, lanes)
        found: list[_Pixels] = []
        first = 0
        count = -(-whole // plan.vectors)
        smaller = count * plan.vectors - whole
        for number, vectors in ((count - smaller, plan.vectors), (smaller, plan.vectors - 1)):
            if number:
                found.append(_Pixels(number, first, vectors, lanes, lanes))
                first += number * vectors * lanes
        if rest:
            few = plan.halved and rest <= lanes // 2
            found.append(_Pixels(1, first, 1, lanes // 2 if few else lanes, rest))
        return found

    def _fetch(self, step: Index) -> None:
        """Asks for a part of the next block's kernel, which lies behind this one's."""
        kernel = self.operation.operands[1]
        if kernel not in self.ctx.memory:
            return
        line = LINE // self.element.itemsize
        for n in range(-(-self.plan.block * UNROLL // line)):
            at = (self.feature + self.plan.block, step * self.plan.block * UNROLL + n * line, 0, 0)
            self.b.prefetch(self.ctx.memory[kernel], at)

    def _expand(self, between: Value, pixel: Index, tiles: _Pixels) -> None:
        """A register tile of the features between, from the task's pixel number `pixel` on."""
        ctx, plan, b, vectors, lanes = self.ctx, self.plan, self.b, tiles.vectors, tiles.lanes
        x = ctx.memory[self.operation.operands[0]]
        kernel = self.first.operands[1]
        count = None if tiles.exist == lanes else tiles.exist
        mask = None if count is None else b.mask(count, lanes)

        def weight(r: int, k: Index) -> Value:
            return ctx.read(kernel, (self.feature + r, k, 0, 0)).value

        def pixels(v: int, k: Index) -> Value:
            at = self.top * self.width + pixel + v * lanes
            return b.vector_load(x, (self.image, k, 0, at), lanes, mask)

        # A loop of few iterations would take as long to begin and to end.
        unroll = plan.depth if plan.depth <= STRAIGHT else UNROLL
        sums = outer_product_tile(
            b, self.element, lanes, plan.block, vectors, plan.depth, weight, pixels, unroll, self._fetch
        )
        for v in range(vectors):
            with b.lanes_of(lanes, count) as lane:
                at = self.top * self.width + pixel + v * lanes + lane
                for r in range(plan.block):
                    place = (self.image, self.feature + r, at // self.width, at % self.width)
                    shape = tensor_of(self.first.results[0]).shape
                    index = tuple([0 if n == 1 else i for n, i in zip(shape, place, strict=True)])
                    with ctx.known(self.first.results[0], index, Scalar(sums[r * vectors + v], self.element)):
                        made = ctx.read(self.second.operands[0], index)
                    ctx.b.store(made.value, between, (r, pixel + v * lanes + lane))
