"""The caching allocator, and buffers as NumPy arrays."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.runtime import system_memory
from flambeau.runtime.buffer import (
    HUGE_PAGE,
    Allocator,
    Buffer,
    address_of,
    all_free,
    allocate,
    as_numpy,
    from_numpy,
    is_sole,
    new_array,
    size_class,
)


@given(st.integers(0, 1 << 40))
def test_size_class_covers_and_wastes_little(nbytes: int) -> None:
    size = size_class(nbytes)
    assert size >= nbytes and size % 64 == 0
    assert size <= max(64, nbytes + 63, nbytes * (1.25 if nbytes <= 1 << 20 else 1.0625))
    assert size_class(size) == size


@pytest.mark.parametrize(
    "nbytes", [0, 1, 63, 64, 65, 1000, 4096, 100_000, HUGE_PAGE - 1, HUGE_PAGE, 9_999_999]
)
def test_alignment_and_every_byte_writable(nbytes: int) -> None:
    own = Allocator()
    buffer = own.allocate(nbytes)
    assert buffer.nbytes == nbytes and buffer.owned
    assert buffer.ptr % (HUGE_PAGE if size_class(nbytes) >= HUGE_PAGE else 64) == 0
    array = as_numpy(buffer, np.uint8, (nbytes,))
    array[:] = 255
    assert int(array.sum(dtype=np.int64)) == 255 * nbytes
    del array, buffer
    assert own.trim() == size_class(nbytes)


def test_blocks_of_a_region_are_apart_and_go_back_to_the_system() -> None:
    """Whatever the order and the thread in which they end."""
    sizes = [size_class(n) for n in (70_000, 300_000, 1_600_000, 65_536, 900_000)]

    def fill(number: int) -> None:
        rng = np.random.default_rng(number)
        live: list[tuple[int, int, int]] = []
        for step in range(200):
            if live and rng.random() < 0.45:
                ptr, size, mark = live.pop(int(rng.integers(len(live))))
                assert (ctypes.c_char * size).from_address(ptr).raw == bytes([mark]) * size
                system_memory.free(ptr, size)
                continue
            size, mark = int(rng.choice(sizes)), (number * 50 + step) % 251
            ptr = system_memory.allocate(size)
            assert ptr and ptr % 64 == 0
            ctypes.memset(ptr, mark, size)
            live.append((ptr, size, mark))
        for ptr, size, mark in live:
            assert (ctypes.c_char * size).from_address(ptr).raw == bytes([mark]) * size
            system_memory.free(ptr, size)

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_freed_block_of_a_region_has_no_pages() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    size = size_class(1 << 20)
    blocks = [system_memory.allocate(size) for _ in range(64)]
    for ptr in blocks:
        ctypes.memset(ptr, 1, size)
    full = resident()
    for ptr in blocks[::2]:  # every other one, so that no region is empty
        system_memory.free(ptr, size)
    assert full - resident() > 24 * size
    for ptr in blocks[1::2]:
        system_memory.free(ptr, size)
    assert full - resident() > 56 * size


def test_freed_blocks_are_reused_by_class() -> None:
    own = Allocator()
    first = own.allocate(1000)
    ptr = first.ptr
    del first
    assert own.allocate(1020).ptr == ptr  # the same class, 1024
    a, b = own.allocate(5000), own.allocate(5000)
    assert a.ptr != b.ptr
    assert own.stats().system_allocations == 3


def test_counters() -> None:
    own = Allocator()
    buffers = [own.allocate(64) for _ in range(10)]
    assert own.stats().live_bytes == own.stats().peak_bytes == 640
    del buffers
    stats = own.stats()
    assert (stats.live_bytes, stats.peak_bytes, stats.cached_bytes) == (0, 640, 640)
    own.reset_peak()
    assert own.stats().peak_bytes == 0
    assert own.trim() == 640 and own.stats().cached_bytes == 0


def test_cache_is_bounded() -> None:
    own = Allocator(cache_limit=1 << 20)
    buffers = [own.allocate(100_000) for _ in range(50)]
    del buffers
    assert 0 < own.stats().cached_bytes <= 1 << 20
    own.allocate(4 << 20)
    assert own.stats().cached_bytes <= 1 << 20


def test_views_keep_the_buffer() -> None:
    own = Allocator()
    array = as_numpy(own.allocate(4096), np.float32, (4, 8), offset=64)
    array[...] = 1.5
    gc.collect()
    other = own.allocate(4096)
    assert other.ptr + 64 != array.ctypes.data
    assert own.stats().live_bytes == 2 * 4096
    part = array[1]
    del array
    assert own.stats().live_bytes == 2 * 4096 and part.sum() == 12.0
    del part
    assert own.stats().live_bytes == 4096


@pytest.mark.parametrize(
    "dtype", [np.float64, np.int8, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_views_of_every_kind_of_type(dtype: type) -> None:
    array = as_numpy(allocate(1024), dtype, (3, 5))
    array[...] = np.ones((3, 5), dtype)
    assert array.dtype == np.dtype(dtype) and array.shape == (3, 5) and array.flags.c_contiguous
    assert array.astype(np.float32).sum() == 15


def test_scalar_and_empty_views() -> None:
    assert as_numpy(allocate(4), np.float32, ()).shape == ()
    assert as_numpy(allocate(0), np.float32, (0, 3)).shape == (0, 3)


def test_view_larger_than_buffer_is_refused() -> None:
    with pytest.raises(TypeError):
        as_numpy(allocate(64), np.float32, (17,))


def test_borrowed_memory_lives_with_the_buffer() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = from_numpy(array)
    assert not buffer.owned and buffer.ptr == array.ctypes.data and buffer.nbytes == 24
    del array
    gc.collect()
    assert as_numpy(buffer, np.float32, (6,)).tolist() == [0, 1, 2, 3, 4, 5]
    again = Buffer.borrow(buffer.ptr, 24, buffer)
    assert again.owner is buffer
    with pytest.raises(ValueError, match="C-contiguous"):
        from_numpy(np.zeros((4, 4))[:, ::2])


def test_arrays_that_nobody_else_has() -> None:
    arrays = [new_array((4, 8), np.dtype(np.float32)), np.empty(3)]
    assert all_free(arrays) and is_sole(arrays, 0, 0) and not is_sole(arrays, 1, 0)
    for hold in (
        lambda a: a,
        lambda a: a[1:],
        lambda a: a.T,
        lambda a: memoryview(a),
        lambda a: a.base,
    ):
        held = hold(arrays[0])
        assert not all_free(arrays), type(held)
        assert not is_sole(arrays, 0, 0)
        del held
        assert all_free(arrays)
    borrowed = [as_numpy(from_numpy(np.zeros(4)), np.dtype(np.float64), (4,))]
    assert not is_sole(borrowed, 0, 0)


def test_impossible_requests() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        allocate(-100_000)
    with pytest.raises(ValueError, match="at least 0"):
        allocate(-1000)
    with pytest.raises(MemoryError, match="the system has no"):
        allocate(1 << 60)


def test_threads_share_the_allocator() -> None:
    own = Allocator()
    wrong: list[int] = []

    def work(tag: int) -> None:
        for _ in range(2000):
            held = [own.allocate(256) for _ in range(4)]
            views = [as_numpy(buffer, np.int64, (32,)) for buffer in held]
            for view in views:
                view[:] = tag
            if any((view != tag).any() for view in views):
                wrong.append(tag)

    workers = [threading.Thread(target=work, args=(tag,)) for tag in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert own.stats().live_bytes == 0
    assert own.stats().cached_bytes == 256 * own.stats().system_allocations


def test_allocation_cost(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged."""
    own = Allocator()
    own.allocate(4096)
    start = time.perf_counter()
    for _ in range(20_000):
        own.allocate(4096)
    cost = (time.perf_counter() - start) / 20_000
    assert own.stats().system_allocations == 1
    with capsys.disabled():
        print(f"\nallocate and free: {cost * 1e6:.2f} us")


def test_addresses_of_arrays() -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for array in (
        base,
        base[1:],
        base[:, 2],
        base.T,
        base[2, 3],
        np.empty((0, 3)),
        np.zeros(()),
        np.zeros(5)[3:3],
    ):
        view = np.asarray(array)
        assert address_of(view) == view.__array_interface__["data"][0]


def test_the_heap_may_be_trimmed_at_any_time() -> None:
    kept = np.arange(1 << 16)
    del_me = [bytes(1000) for _ in range(1000)]
    del del_me
    system_memory.trim_heap()
    assert kept.sum() == (1 << 16) * ((1 << 16) - 1) // 2


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="blocks share regions on Linux only")
def test_equal_blocks_start_at_different_places_in_a_page() -> None:
    """Or arrays that are walked through together meet in the same few sets of the caches."""
    allocator = Allocator()
    blocks = [allocator.allocate(1 << 20) for _ in range(7)]
    places = [b.ptr % 4096 for b in blocks]
    assert sum(one == other for one, other in pairwise(places)) <= 1  # one may begin a region
    assert not any(place % system_memory.ALIGNMENT for place in places)
