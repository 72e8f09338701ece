"""The end of a `blocked_convolution`: finished pixels are transposed in registers, so that the epilogue sees rows of them."""

from __future__ import annotations

from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index, minimum
from flambeau.compiler.lowering.blocked_problem import BlockedProblem
from flambeau.compiler.lowering.blocked_tile import LINE
from flambeau.compiler.lowering.elements import Scalar
from flambeau.compiler.lowering.microkernel import transpose


class TaskResults:
    """What a task has computed: the features of `block` of `image`, from the pixel `place` on."""

    def __init__(self, problem: BlockedProblem, block: Index, image: Index, place: tuple[Index, ...]) -> None:
        self.problem, self.block, self.image, self.place = problem, block, image, place

    def store(self, totals: Value, extents: tuple[Index, Index], skip: tuple[Index, Index]) -> None:
        """Its rows and columns of sums through the epilogue, but for images and rows that another task has (`skip` of each):
        whole rows are one."""
        height, width = extents
        p, b, tile = self.problem, self.problem.b, self.problem.tile
        scratch = b.alloca((tile.block * tile.lanes,), p.accumulator)
        together = tile.strip == p.space[-1] == p.pitch

        def one_image(i: Index, _: list[Value]) -> None:
            start = i * (tile.down * p.pitch)
            if together:
                count = (height - skip[1]) * p.space[-1]
                self._pixels(totals, scratch, start + skip[1] * p.pitch, count, self.image + i, skip[1])
                return

            def row(y: Index, _: list[Value]) -> None:
                self._pixels(totals, scratch, start + y * p.pitch, width, self.image + i, y)

            b.for_(skip[1], height, 1, row)

        b.for_(skip[0], tile.images, 1, one_image)

    def _pixels(
        self, totals: Value, scratch: Value, start: Index, count: Index, image: Index, y: Index
    ) -> None:
        """`count` pixels from row `y` of the task on, all features of them: a vector of pixels at a time."""
        p, b, tile = self.problem, self.problem.b, self.problem.tile
        first = self.block * tile.block
        features = (
            tile.block if p.op.features % tile.block == 0 else minimum(p.op.features - first, tile.block)
        )

        def turn(v: Index, at: Index) -> None:
            vectors = [
                b.vector_load(totals, ((start + at + n) * tile.block + v * tile.lanes,), tile.lanes)
                for n in range(tile.lanes)
            ]
            for f, x in enumerate(transpose(b, vectors)):
                b.vector_store(x, scratch, ((v * tile.lanes + f) * tile.lanes,))

        def chunk(at: Index, some: Index | None) -> None:
            b.for_(0, tile.vectors, 1, lambda v, _: turn(v, at))

            def feature(f: Index, _: list[Value]) -> None:
                if count == 1:
                    self._lanes(scratch, f * tile.lanes, image, first + f, y, 0)
                    return
                with b.lanes_of(tile.lanes, some) as lane:
                    self._lanes(scratch, f * tile.lanes + lane, image, first + f, y, at + lane)

            b.for_(0, features, 1, feature)

        whole = count // tile.lanes * tile.lanes
        b.for_(0, whole, tile.lanes, lambda at, _: chunk(at, None))
        if count != whole:
            rest = count - whole
            b.if_equal(minimum(rest, 1), 1, lambda: chunk(whole, rest))

    def _lanes(self, scratch: Value, source: Index, image: Index, feature: Index, y: Index, x: Index) -> None:
        p, ctx = self.problem, self.problem.ctx
        total = Scalar(ctx.b.load(scratch, (source,)), p.accumulator)
        at = p.index(image, feature, self.place, y, x)
        ctx.finish(p.made, at, ctx.e.convert(total, p.result.element))

    def fetch(self, turn: Index, turns: int) -> None:
        """Ask for what the epilogue reads and writes, such as the other operand of a sum: of `turns` times, each time (number
        `turn`) for its share."""
        p, tile = self.problem, self.problem.tile
        line = max(1, LINE // p.result.element.itemsize)
        lines = -(-tile.strip * tile.down // line)
        each = -(-tile.block * lines // turns)

        def ask(n: Index, _: list[Value]) -> None:
            at = minimum(turn * each + n, tile.block * lines - 1)
            feature = minimum(self.block * tile.block + at // lines, p.op.features - 1)
            pixel = minimum(at % lines * line, tile.strip * tile.down - 1)
            index = p.index(self.image, feature, self.place, 0, pixel)
            for buffer, where, written in p.ctx.touched(p.made, index):
                p.b.prefetch(buffer, where, written, locality=2)

        p.b.for_(0, each, 1, ask)
