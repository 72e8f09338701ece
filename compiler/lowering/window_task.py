"""What kernels of sliding windows share: where the windows are, and walking along a row of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import i1
from flambeau.compiler.lowering.context import LoweringContext, definition_of, tensor_of
from flambeau.compiler.lowering.elements import Scalar

Position = tuple[Index, ...]


@dataclass(frozen=True)
class Windows:
    """`counts` windows of `sizes` over the last axes of a tensor, whose extents are `shape` there and `lead` before.

    Tap t of window o lies at ``o * stride + t * dilation - low``.
    """

    lead: tuple[Index, ...]
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Axes but the last."""
        return len(self.shape) - 1

    def reach(self, axis: int) -> int:
        """From the first window's first tap to the last one's last, inclusive."""
        return (
            (self.counts[axis] - 1) * self.strides[axis] + (self.sizes[axis] - 1) * self.dilations[axis] + 1
        )

    def taps(self) -> int:
        count = 1
        for n in self.sizes:
            count *= n
        return count


class Task:
    """A kernel of windows: what reading and adding share."""

    def __init__(self, ctx: LoweringContext, operation: Operation, windows: Windows) -> None:
        self.ctx, self.w, self.made = ctx, windows, operation.results[0]
        self.operands = operation.operands
        self.op = definition_of(operation)
        self.result = tensor_of(self.made)

    def padded(self, extent: int) -> int:
        """Elements of a line on the stack: vectors start anywhere in it."""
        lanes = self.ctx.lanes
        return -(-extent // lanes) * lanes + 2 * lanes

    def along(self, extent: int, body: Callable[[Index], None]) -> None:
        """``body(position)`` for a row's positions, which contain the lane."""
        b, lanes = self.ctx.b, self.ctx.lanes
        if extent == 1:
            body(0)
            return
        whole = extent // lanes * lanes
        if whole:
            with b.for_(0, whole, lanes) as loop, b.lanes_of(lanes) as lane:
                body(loop.index + lane)
        if extent > whole:
            with b.lanes_of(lanes, extent - whole) as lane:
                body(whole + lane)

    def fill(self, buffer: Value, count: int, value: Scalar) -> None:
        b, lanes = self.ctx.b, self.ctx.lanes
        spread = b.broadcast(value.value, lanes)
        with b.for_(0, count, lanes) as loop:
            b.vstore(spread, buffer, (loop.index,))

    def inside(self, positions: Sequence[Index], extents: Sequence[int], body: Callable[[], None]) -> None:
        """`body` where every position exists."""
        e = self.ctx.e
        tests = [e.in_bounds(at, 0, n) for at, n in zip(positions, extents, strict=True)]
        condition = e.constant(1, i1)
        for test in tests:
            condition = e.and_(condition, test)
        self.ctx.b.if_(condition.value, lambda: body())

    def store(self, index: Position, scalar: Scalar) -> None:
        """The result's element, through the epilogue."""
        self.ctx.finish(self.made, index, self.ctx.e.convert(scalar, self.result.element))
