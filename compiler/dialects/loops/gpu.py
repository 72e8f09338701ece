"""`gpu`: positions in the grid and communication between threads of a block."""

from __future__ import annotations

from flambeau.compiler.dialects.loops.base import LoopOp
from flambeau.compiler.ir.types import Type, index


class _Position(LoopOp):
    """`dimension` is "x", "y" or "z"."""

    pure = True
    dimension: str = "x"

    def infer(self, *operands: Type) -> Type:
        return index


class ThreadId(_Position):
    """The thread's position in its block."""

    name = "gpu.thread_id"


class BlockId(_Position):
    """The block's position in the grid."""

    name = "gpu.block_id"


class BlockDim(_Position):
    """Threads in a block."""

    name = "gpu.block_dim"


class GridDim(_Position):
    """Blocks in the grid."""

    name = "gpu.grid_dim"


class Barrier(LoopOp):
    """Waits for all threads of the block; what they wrote before is seen after."""

    name = "gpu.barrier"


class Shuffle(LoopOp):
    """The operand of another lane of the warp: `mode` "xor", "up", "down" or "idx" by `offset`."""

    name = "gpu.shuffle"
    mode: str = "xor"
    offset: int = 1

    def infer(self, *operands: Type) -> Type:
        return operands[0]
