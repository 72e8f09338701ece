"""What the contraction template needs of a loop builder.

Sizes and positions are `Index`: numbers or `Dim` expressions over loop variables, so that the template computes
with them in plain Python and constants fold before any operation is made. Values (scalars, vectors, masks, buffers)
are opaque. The operations are those of `scf`, `memref`, `vector` and `arith`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType

Value: TypeAlias = Any
Buffer: TypeAlias = Any
Body: TypeAlias = "Callable[[Index, list[Value]], Sequence[Value] | None]"


class Emitter(Protocol):
    """Emits loop-level operations in order, at one insertion point."""

    def for_(
        self, low: Index, high: Index, step: int, body: Body, carried: Sequence[Value] = ()
    ) -> list[Value]:
        """`scf.for`; `body(position, carried)` returns the carried values of the next iteration."""

    def parallel(self, extents: Sequence[Index], body: Callable[[list[Index]], None]) -> None:
        """`scf.parallel` from 0 by 1 over each extent; iterations are independent."""

    def if_equal(
        self, a: Index, b: Index, then: Callable[[], None], otherwise: Callable[[], None] | None = None
    ) -> None:
        """`scf.if` without results, on a == b."""

    def load(self, buffer: Buffer, at: Sequence[Index]) -> Value: ...
    def store(self, value: Value, buffer: Buffer, at: Sequence[Index]) -> None: ...
    def vector_load(
        self, buffer: Buffer, at: Sequence[Index], lanes: int, mask: Value | None = None
    ) -> Value:
        """Consecutive elements from `at`; lanes whose mask is unset are not read and give zero."""

    def vector_store(
        self, value: Value, buffer: Buffer, at: Sequence[Index], mask: Value | None = None
    ) -> None: ...
    def mask(self, count: Index, lanes: int) -> Value:
        """`vector.create_mask`: the first `count` lanes are set (none if it is negative, all if it is larger)."""

    def splat(self, scalar: Value, lanes: int) -> Value: ...
    def zero(self, element: ElementType, lanes: int = 0) -> Value:
        """A zero vector, or a scalar if `lanes` is 0."""

    def multiply_add(self, x: Value, y: Value, z: Value) -> Value:
        """x * y + z: rounded once for floats, wrapping for integers."""

    def add(self, x: Value, y: Value) -> Value: ...
    def reduce_add(self, x: Value) -> Value:
        """The sum of a vector's lanes, reassociated."""

    def shuffle(self, x: Value, y: Value, lanes: Sequence[int]) -> Value: ...
    def cast(self, x: Value, element: ElementType) -> Value:
        """A scalar or a vector converted to `element` (exactly, or rounded to nearest)."""

    def alloca(self, shape: Sequence[int], element: ElementType) -> Buffer:
        """A buffer on the stack, aligned to 64 bytes, that lives as long as the innermost parallel iteration."""
