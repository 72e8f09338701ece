"""`graph.winograd_kernel`: the transform of a convolution's kernel."""

from __future__ import annotations

from math import gcd

from flambeau.compiler.dialects.graph.winograd import TILE, WinogradKernel
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.contraction_emitter import LoopEmitter
from flambeau.compiler.lowering.microkernel import transpose

TAPS = 9


def lower_winograd_kernel(ctx: LoweringContext, operation: Operation, workspace: Value | None) -> None:
    """Emit it: a vector of output features at a time, all 16 positions of it together."""
    op: WinogradKernel = definition_of(operation)
    w, result = operation.operands[0], operation.results[0]
    element = tensor_of(w).element
    lanes = gcd(op.columns, max(2, ctx.target.vector_bits // element.bits))
    blocks, _, channels, columns = tensor_of(result).shape
    features = tensor_of(w).shape[op.output_feature]
    as_it_lies = (op.output_feature, op.input_feature, op.spatial) == (0, 1, (2, 3)) and w in ctx.memory
    even = isinstance(features, int) and features % op.columns == 0
    squares = as_it_lies and even and isinstance(channels, int) and channels % lanes == 0
    step = lanes if squares else 1
    extents = (blocks, columns // lanes, channels // step)
    across = (op.input_feature, op.output_feature, op.spatial) == (0, 1, (2, 3)) and w in ctx.memory
    kernel = _Kernel(ctx, operation, lanes)
    with ctx.rows(extents, 64 * blocks * columns * channels) as (block, vector, chunk):
        if squares:
            kernel.square(block, vector, chunk * lanes)
        elif across and even and lanes >= TAPS:
            kernel.write(block, vector, chunk, kernel.turned(block, vector, chunk))
        else:
            kernel.write(block, vector, chunk, kernel.gathered(block, vector, chunk, even))


class _Kernel:
    """Reads vectors of output features, and writes their transforms."""

    def __init__(self, ctx: LoweringContext, operation: Operation, lanes: int) -> None:
        self.ctx, self.b, self.lanes = ctx, ctx.b, lanes
        self.op: WinogradKernel = definition_of(operation)
        self.w, result = operation.operands[0], operation.results[0]
        self.out = ctx.memory[result]
        self.element = tensor_of(self.w).element
        self.features = tensor_of(self.w).shape[self.op.output_feature]
        self.half = self.b.broadcast(self.b.constant(self.element, 0.5), lanes)

    def gathered(self, block: Index, vector: Index, c: Index, even: bool) -> list[Value]:
        """The nine taps of one channel; zeros for features that do not exist."""
        op, b, ctx, lanes = self.op, self.b, self.ctx, self.lanes
        first = block * op.columns + vector * lanes
        taps = []
        with b.lanes_of(lanes, None if even else self.features - first) as lane:
            mask, zero = b.lane_mask(), LoopEmitter(b).zero(self.element, lanes)
            for y in range(3):
                for x in range(3):
                    value = ctx.spread(ctx.read(self.w, op.index(first + lane, c, y, x)).value)
                    taps.append(b.select(mask, value, zero))
        return taps

    def turned(self, block: Index, vector: Index, c: Index) -> list[Value]:
        """The nine taps of one channel whose features lie on end, each with its window: a square transposed in registers."""
        b, lanes, op = self.b, self.lanes, self.op
        first, mask = block * op.columns + vector * lanes, b.create_mask(TAPS, lanes)
        rows = [b.vload(self.ctx.memory[self.w], (c, first + i, 0, 0), lanes, mask) for i in range(lanes)]
        taps = transpose(LoopEmitter(b), rows)
        down, right = ([2, 1, 0] if flipped else [0, 1, 2] for flipped in op.reversal)
        return [taps[3 * y + x] for y in down for x in right]

    def square(self, block: Index, vector: Index, first: Index) -> None:
        """As many channels as a vector has lanes, where features are rows in memory: squares transposed in registers."""
        b, lanes, op = self.b, self.lanes, self.op
        rows = self.ctx.memory[self.w]
        feature = block * op.columns + vector * lanes
        scratch = b.alloca((lanes * TAPS * lanes,), self.element)
        emitter = LoopEmitter(b)

        def turn(piece: Index, _: list[Value]) -> None:
            flat = b.flat(rows)
            width = tensor_of(self.w).shape[1] * TAPS
            at = [(feature + i) * width + first * TAPS + piece * lanes for i in range(lanes)]
            turned = transpose(emitter, [b.vload(flat, (place,), lanes) for place in at])
            for number, value in enumerate(turned):
                b.vstore(value, scratch, ((piece * lanes + number) * lanes,))

        def channel(c: Index, _: list[Value]) -> None:
            def tap(y: int, x: int) -> Value:
                y, x = (
                    2 - place if turned else place for place, turned in zip((y, x), op.reversal, strict=True)
                )
                return b.vload(scratch, ((c * TAPS + 3 * y + x) * lanes,), lanes)

            self.write(block, vector, first + c, [tap(y, x) for y in range(3) for x in range(3)])

        emitter.for_(0, TAPS, 1, turn)
        emitter.for_(0, lanes, 1, channel)

    def write(self, block: Index, vector: Index, c: Index, taps: list[Value]) -> None:
        """The transform of nine taps."""
        down = [self._spread(taps[x::3]) for x in range(3)]
        for y in range(TILE):
            for x, value in enumerate(self._spread([column[y] for column in down])):
                self.b.vstore(value, self.out, (block, y * TILE + x, c, vector * self.lanes))

    def _spread(self, g: list[Value]) -> list[Value]:
        """One dimension of the transform: three elements to four."""
        b = self.b
        ends, middle = b.fmul(b.fadd(g[0], g[2]), self.half), b.fmul(g[1], self.half)
        return [g[0], b.fadd(ends, middle), b.fsub(ends, middle), g[2]]
