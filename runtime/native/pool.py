"""The thread pool, as LLVM IR text: no global state, re-entrant, nothing needed but libc and pthreads.

`pool_ir(triple)` gives a module that defines (signatures in `flambeau.runtime.abi`):

    ptr  @fb_pool_create(i32 threads)      threads counts the caller's; null for <= 1, or if none can be started
    void @fb_pool_destroy(ptr pool)        joins the workers; nothing may be running on the pool
    i64  @fb_pool_threads(ptr pool)        upper bound of the `worker` numbers that a body sees; 1 for null
    void @fb_parallel_for(ptr pool, ptr fn, ptr ctx, i64 n)

`fb_parallel_for` cuts [0, n) into min(n, threads) contiguous chunks and calls `fn(ctx, begin, end, worker)` once for
each; the caller itself runs chunk 0. The cut depends on n and the number of threads only, so results that depend on it
are the same on every run. Where the workers cannot be had (they run another thread's job, or the call comes from inside
one of their bodies, or the process is the child of a fork, which has no workers), the caller runs the very same chunks
one after the other. A null pool is one chunk, `fn(ctx, 0, n, 0)`. n <= 0 calls nothing.

Protocol. The epoch word is `counter << 16 | parts`. A caller owns the pool while `busy` is 1 (compare and
exchange; never waited for). It writes the job, sets `pending` to the number of workers with a chunk, and
publishes a new epoch. A worker whose number is below `parts` has a chunk in that epoch, and the caller does
not return before it is done, so the job is stable while it is read; the others never read it. Workers spin on
the epoch for some tens of microseconds, offering the CPU to others sixteen times meanwhile (a thread that has
work may be waiting for it: with more threads than CPUs, five times faster than without), then sleep on a
condition variable; `sleepers` and the epoch are sequentially consistent, so either the publisher sees the
sleeper or the sleeper sees the epoch. The caller waits for `pending` in the same way (`waiting`, `done`).
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

# Field numbers of %fb.pool. Words written by different threads lie on different cache lines.
_FIELDS = {
    "epoch": 0,
    "pending": 2,
    "waiting": 3,
    "fn": 5,
    "ctx": 6,
    "n": 7,
    "busy": 9,
    "threads": 10,
    "pid": 11,
    "sleepers": 13,
    "mutex": 15,
    "work": 16,
    "done": 17,
}

MAX_THREADS = 1024

# Spins before a thread sleeps: some tens of microseconds at the usual length of each architecture's pause.
_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()", 2048),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)", 16384),
}
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
    declaration, pause, spins = _PAUSE.get(_architecture(triple), ("", "", 16384))
    values = {
        **_FIELDS,
        "linkage": linkage,
        "pause_declaration": declaration,
        "pause": pause,
        "spins": spins,
        "yield_mask": spins // 16 - 1,
        "max_threads": MAX_THREADS,
        "sig_setmask": 2 if "linux" in triple else 3,  # <signal.h>: 2 on Linux, 3 on macOS and the BSDs
    }
    return head + _template("pool.ll").substitute(values)


@functools.cache
def _template(name: str) -> Template:
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _architecture(triple: str) -> str:
    name = triple.split("-", 1)[0].lower()
    return {"arm64": "aarch64", "amd64": "x86_64", "ppc64le": "powerpc64le"}.get(name, name)


def _is_unix(triple: str) -> bool:
    return any(system in triple for system in ("linux", "darwin", "macos", "freebsd", "netbsd", "openbsd"))
