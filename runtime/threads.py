"""The process's thread pools: how many threads compiled code uses, and the pool handle that it is given.

A pool is the native one of `flambeau.runtime.native.pool`, compiled by the engine at first use. Pools are
kept, asleep, when the number of threads changes (another Python thread may be running on one) and are found
again when the number comes back.
"""

from __future__ import annotations

import ctypes
import os
import threading

from flambeau.runtime import abi
from flambeau.runtime.cpus import available_cpus
from flambeau.runtime.engine import default_engine

_lock = threading.Lock()
_pools: dict[int, int] = {}  # number of threads → address of its pool
_threads = 0  # 0: not chosen yet
_pool: int | None = None  # the chosen pool's address, 0 for a single thread; None: not made yet


def num_threads() -> int:
    """Threads that a parallel loop may use, the caller's included: `available_cpus()` unless set."""
    return _threads or min(available_cpus(), abi.MAX_THREADS)


def set_num_threads(threads: int) -> None:
    """Sets `num_threads()` for calls that start from now on; 1 keeps every loop on its caller's thread.

    Raises ValueError unless 1 <= threads <= MAX_THREADS.
    """
    if not isinstance(threads, int) or not 1 <= threads <= abi.MAX_THREADS:
        raise ValueError(f"set_num_threads: expected an integer from 1 to {abi.MAX_THREADS}, got {threads!r}")
    global _threads, _pool
    with _lock:
        _threads, _pool = threads, None


def default_pool() -> int:
    """What to pass as `pool` to an entry: a pool of `num_threads()` threads, made at the first call; 0 for one."""
    pool = _pool
    return _make_default() if pool is None else pool


def native_symbols() -> dict[str, int]:
    """Addresses of the native functions (`abi.NATIVE_FUNCTIONS`), for `Engine.add_object(symbols=...)`."""
    return default_engine().native_symbols()


def create_pool(threads: int) -> int:
    """A pool of its own (0 for one thread). Whoever creates it destroys it."""
    address = default_engine().native().address(abi.POOL_CREATE)
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int32)(address)(threads) or 0


def destroy_pool(pool: int) -> None:
    """Joins the pool's threads and frees it. Nothing may be running on it. 0 is allowed."""
    address = default_engine().native().address(abi.POOL_DESTROY)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(pool)


def _make_default() -> int:
    global _pool
    with _lock:
        threads = num_threads()
        pool = _pools.get(threads)
        if pool is None:  # a single thread needs no native code either
            pool = _pools[threads] = create_pool(threads) if threads > 1 else 0
        _pool = pool
    return pool


def _forget_pools() -> None:
    """A forked child has none of its parent's threads: it makes pools of its own. (The native code would run loops on a
    parent's pool on one thread, so addresses that are still about do no harm.)"""
    global _lock, _pool
    _lock = threading.Lock()
    _pools.clear()
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
