"""What compiled code and the runtime agree on: names, signatures, status codes. The compiler imports nothing else from
the runtime.

Entry of a compiled executable:

    i32 entry(ptr args, ptr dims, ptr arena, ptr pool)

- `args`: array of pointers, the inputs' data in order, then the outputs';
- `dims`: array of i64, the symbolic dimensions' values in the order of their first appearance (null if there are none);
- `arena`: scratch memory of at least the plan's size, aligned to `ALIGNMENT` (null if the size is 0);
- `pool`: a thread pool (`fb_pool_create`) or null for the caller's thread alone.

It returns a `Status`. It keeps no state and may run on several threads at once with different arenas.

Body of a parallel loop, called by `fb_parallel_for(pool, fn, ctx, n)` with disjoint ranges that cover [0, n):

    void body(ptr ctx, i64 begin, i64 end, i64 worker)        0 <= worker < fb_pool_threads(pool)
"""

from __future__ import annotations

from enum import IntEnum

from flambeau.runtime.native.pool import EXTERNAL, LINK_ONCE, MAX_THREADS, WEAK, has_threads, pool_ir

__all__ = [
    "ALIGNMENT",
    "DECLARATIONS",
    "ENTRY_SIGNATURE",
    "EXTERNAL",
    "LINK_ONCE",
    "MAX_THREADS",
    "NATIVE_FUNCTIONS",
    "PARALLEL_FOR",
    "PROFILE",
    "POOL_CREATE",
    "POOL_DESTROY",
    "POOL_THREADS",
    "VERSION",
    "WEAK",
    "Status",
    "has_threads",
    "pool_ir",
]

VERSION = 1
"""Raised when anything on this page changes; part of every cache key."""

ALIGNMENT = 64
"""Alignment in bytes of every buffer that the runtime allocates, and of the arena: a cache line, a 512-bit vector."""

ENTRY_SIGNATURE = "i32 (ptr, ptr, ptr, ptr)"
POOL_CREATE = "fb_pool_create"
POOL_DESTROY = "fb_pool_destroy"
POOL_THREADS = "fb_pool_threads"
PARALLEL_FOR = "fb_parallel_for"

PROFILE = "flambeau_profile"
"""Where an entry that profiles counts: two 64-bit numbers for each kernel call, its runs and its nanoseconds."""

DECLARATIONS: dict[str, str] = {
    POOL_CREATE: "declare ptr @fb_pool_create(i32)",
    POOL_DESTROY: "declare void @fb_pool_destroy(ptr)",
    POOL_THREADS: "declare i64 @fb_pool_threads(ptr)",
    PARALLEL_FOR: "declare void @fb_parallel_for(ptr, ptr, ptr, i64)",
}
"""LLVM declarations of the native functions that generated code may call."""

NATIVE_FUNCTIONS = tuple(DECLARATIONS)


class Status(IntEnum):
    """What an entry, or a function of an exported library, returns."""

    OK = 0
    INVALID_ARGUMENT = 1  # a null pointer, or a handle of another model
    BAD_SHAPE = 2  # a dimension that breaks a constraint of the program
    OUT_OF_MEMORY = 3
    CPU_UNSUPPORTED = 4  # the library needs instructions that this CPU lacks
    INDEX_OUT_OF_RANGE = 5  # a gather, scatter or class index outside its tensor
    WEIGHTS_UNREADABLE = 6  # the weights file beside the library is missing or damaged
    ABI_MISMATCH = 7  # the library was built for another ABI version
    INTERNAL = 8

    @property
    def message(self) -> str:
        """The code's meaning, for people."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.OK: "ok",
    Status.INVALID_ARGUMENT: "invalid argument: a null pointer, or a handle of another model",
    Status.BAD_SHAPE: "a dimension breaks a constraint of the program",
    Status.OUT_OF_MEMORY: "out of memory",
    Status.CPU_UNSUPPORTED: "this CPU lacks instructions that the library was built for",
    Status.INDEX_OUT_OF_RANGE: "an index lies outside its tensor",
    Status.WEIGHTS_UNREADABLE: "the weights file is missing or damaged",
    Status.ABI_MISMATCH: "the library was built for another version of the runtime's interface",
    Status.INTERNAL: "internal error",
}
