"""The thread pool, as LLVM IR text: no global state, re-entrant, nothing needed but libc and pthreads.

`pool_ir(triple)` gives a module that defines (signatures in `flambeau.runtime.abi`):

    ptr  @fb_pool_create(i32 threads)      threads counts the caller's; null for <= 1, or if none can be started
    void @fb_pool_destroy(ptr pool)        joins the workers; nothing may be running on the pool
    i64  @fb_pool_threads(ptr pool)        upper bound of the `worker` numbers that a body sees; 1 for null
    void @fb_parallel_for(ptr pool, ptr fn, ptr ctx, i64 n)

`fb_parallel_for` calls `fn(ctx, begin, end, worker)` for disjoint ranges that cover [0, n); a thread runs any number of
them, one after the other, all with its own number. Which thread runs what depends on how the system schedules them, so a
body's results must not depend on the ranges' borders, and nothing that it adds up may outlive a range. Where the workers
cannot be had (the pool is null, they run another thread's job, the call comes from inside one of their bodies, or the
process is the child of a fork, which has no workers) the caller runs `fn(ctx, 0, n, 0)`. n <= 0 calls nothing.

Shares. [0, n) is cut into units, `UNITS` for each thread if n has as many. Each thread begins with an equal share of
neighbouring units, claims an eighth of what it has left at a time, and when it has nothing left, takes half of
another's share from the back. So a thread that comes late, or shares its CPU with somebody else, costs no more than what it
has in hand; one that never comes costs nothing, since the caller does it all.

Protocol. The word is `counter << 17 | parts << 1 | open`. A caller owns the pool while `busy` is 1 (compare and
exchange; never waited for). It writes the job and the shares and opens it. A worker whose number is below `parts`
enters: it adds one to `active`, and works if the word is still the one that it saw. When the caller finds nothing left to
claim, it closes the job and waits for `active` to become 0. Word and `active` are sequentially consistent: either
the worker sees that the job is closed, or the caller sees the worker. So the job is stable while it is read.

Sleep. Workers spin on the word for about 200 microseconds, offering the CPU to others sixteen times meanwhile (a thread
that has work may be waiting for it), then sleep on a condition variable; `sleepers` and the word are sequentially
consistent, so either the caller sees the sleeper or the sleeper sees the job. Waking costs the caller some microseconds
and takes some tens: it starts alone, and wakes the workers once the rest of the job would take it `WORTHWHILE` longer, or
once the jobs that it did alone, one soon after the other (`MEMORY`), add up to `DEBT`. The caller waits for `active` as the
workers do for the word (`waiting`, `done`).

Placement (Linux). After a pause the system may wake a worker on its caller's CPU, and leave it there for long: two
threads are then slower than one. So workers are kept off the CPU that the caller is on, whenever that is another than
before. Nothing else about their CPUs is touched: they have those that their creator had, or that somebody chose for them
since; nothing is done to the caller, to other threads, or with more than `PLACED` threads.
"""

from __future__ import annotations

import functools
from pathlib import Path
from string import Template

LINK_ONCE = "linkonce_odr hidden"
"""Linkage of functions to be merged into a module that calls them (dropped where it does not)."""

WEAK = "weak_odr hidden"
"""Linkage of functions that are always emitted: for the pool as an object file of its own."""

EXTERNAL = ""
"""Ordinary linkage: for the JIT, which looks the functions up by name."""

# Field numbers of %fb.pool.
_FIELDS = {
    "word": 0,
    "fn": 1,
    "ctx": 2,
    "n": 3,
    "units": 4,
    "active": 6,
    "waiting": 7,
    "busy": 9,
    "threads": 10,
    "pid": 11,
    "cpu": 12,
    "debt": 13,
    "ended": 14,
    "sleepers": 16,
    "mutex": 18,
    "work": 19,
    "done": 20,
}

UNITS = 64
WORTHWHILE = 40_000  # ns
DEBT = 100_000
MEMORY = 200_000
PLACED = 32
MAX_THREADS = 1024

# Spins before a thread sleeps: about 200 microseconds at the usual length of each architecture's pause.
_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()", 8192),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)", 65536),
}
# CLOCK_MONOTONIC; 1 on Linux.
_MONOTONIC = {"darwin": 6, "macos": 6, "freebsd": 4, "netbsd": 3, "openbsd": 3}
_NO_PLACEMENT = "define internal void @fb_pool_place(ptr %pool) nounwind {\n  ret void\n}"
_PTHREAD_ARCHITECTURES = ("x86_64", "aarch64", "riscv64", "powerpc64le", "s390x", "loongarch64")


def has_threads(triple: str) -> bool:
    """Whether the pool can run workers on this target: 64-bit Linux, macOS and the BSDs. Elsewhere (Windows,
    WebAssembly, 32-bit systems, bare metal) `fb_pool_create` returns null and every loop runs on the caller's thread.
    """
    return _architecture(triple) in _PTHREAD_ARCHITECTURES and _is_unix(triple)


def pool_ir(triple: str, linkage: str = LINK_ONCE) -> str:
    """The pool's LLVM IR module for a target triple; `linkage` is one of LINK_ONCE, WEAK, EXTERNAL."""
    head = f'target triple = "{triple}"\n'
    if not has_threads(triple):
        return head + _template("pool_inline.ll").substitute(linkage=linkage)
    declaration, pause, spins = _PAUSE.get(_architecture(triple), ("", "", 65536))
    values = {
        **_FIELDS,
        "linkage": linkage,
        "pause_declaration": declaration,
        "pause": pause,
        "spins": spins,
        "yield_mask": spins // 16 - 1,
        "max_threads": MAX_THREADS,
        "units_each": UNITS,
        "worthwhile": WORTHWHILE,
        "debt_limit": DEBT,
        "memory": MEMORY,
        "placed": PLACED,
        "monotonic": next((n for system, n in _MONOTONIC.items() if system in triple), 1),
        "sig_setmask": 2 if "linux" in triple else 3,  # <signal.h>: 2 on Linux, 3 on macOS and the BSDs
    }
    # Android's libc got these functions late.
    placement = _template("pool_placement.ll").substitute(values) if _places(triple) else _NO_PLACEMENT
    return head + _template("pool.ll").substitute(values, placement=placement)


@functools.cache
def _template(name: str) -> Template:
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _architecture(triple: str) -> str:
    name = triple.split("-", 1)[0].lower()
    return {"arm64": "aarch64", "amd64": "x86_64", "ppc64le": "powerpc64le"}.get(name, name)


def _places(triple: str) -> bool:
    return "linux" in triple and "android" not in triple


def _is_unix(triple: str) -> bool:
    return any(system in triple for system in ("linux", "darwin", "macos", "freebsd", "netbsd", "openbsd"))
