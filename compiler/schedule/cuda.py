"""Loops and reductions over a CUDA grid, as loop-level operations.

Every pattern works for any launch: `grid_stride` for any number of blocks and threads, reductions for blocks of whole
warps up to 1024 threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flambeau.compiler.dialects.loops import gpu
from flambeau.compiler.ir.builder import Loop, LoopBuilder
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType

WARP = 32
MAX_THREADS = 1024

Combine = Callable[[Value, Value], Value]


def thread(b: LoopBuilder) -> Index:
    """The thread's number in its block."""
    return b.symbol(b.value(gpu.ThreadId("x")), 0, MAX_THREADS - 1, "thread")


def block(b: LoopBuilder) -> Index:
    """The block's number in the grid."""
    return b.symbol(b.value(gpu.BlockId("x")), 0, None, "block")


def block_size(b: LoopBuilder) -> Index:
    """Threads in a block."""
    return b.symbol(b.value(gpu.BlockDim("x")), 1, MAX_THREADS, "threads")


def grid_size(b: LoopBuilder) -> Index:
    """Blocks in the grid."""
    return b.symbol(b.value(gpu.GridDim("x")), 1, None, "blocks")


@contextmanager
def grid_stride(b: LoopBuilder, count: Index) -> Iterator[Loop]:
    """Each position in [0, count) in exactly one thread of the grid; neighbours in neighbouring threads."""
    threads = block_size(b)
    with b.for_(block(b) * threads + thread(b), count, grid_size(b) * threads) as loop:
        yield loop


@contextmanager
def block_stride(b: LoopBuilder, count: Index, init: list[Value]) -> Iterator[Loop]:
    """Each position in [0, count) in exactly one thread of this block, with carried values."""
    with b.for_(thread(b), count, block_size(b), init) as loop:
        yield loop


def warp_reduce(b: LoopBuilder, value: Value, combine: Combine) -> Value:
    """`value` combined over the 32 threads of the warp, in each of them; words of 32 or 64 bits."""
    offset = WARP // 2
    while offset:
        value = combine(value, b.value(gpu.Shuffle("xor", offset), value))
        offset //= 2
    return value


def block_reduce(
    b: LoopBuilder, value: Value, element: ElementType, identity: Value, combine: Combine
) -> Value:
    """`value` combined over the block, in each of its threads. All of them must call it."""
    partial = b.shared((WARP,), element)
    position = thread(b)
    warps = block_size(b) // WARP
    value = warp_reduce(b, value, combine)
    lane = position % WARP
    first = b.icmp("eq", b.index(lane), b.index(0))
    b.if_(first, lambda: b.store(value, partial, [position // WARP]))
    b.emit(gpu.Barrier())
    inside = b.icmp("slt", b.index(lane), b.index(warps))
    (mine,) = b.if_(inside, lambda: [b.load(partial, [lane])], lambda: [identity])
    total = warp_reduce(b, mine, combine)
    b.emit(gpu.Barrier())  # so that a later reduction does not overwrite what is still read
    return total
