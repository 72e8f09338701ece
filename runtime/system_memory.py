"""Blocks from the operating system: small ones from the C library, others on huge pages where the system has them.

A block of 2 MiB and more is mapped, and starts with a huge page. Those from `SHARED` on lie side by side in regions of huge
pages, or a network's weights would be thousands of ordinary pages, whose addresses the CPU looks up in tables again and again.
A region goes back to the system with its last block, and a block's own pages as soon as it is freed.
"""

from __future__ import annotations

import ctypes
import mmap
import os

ALIGNMENT = 64
HUGE_PAGE = 2 << 20
#: Bytes between the places in a page where blocks start. Without them arrays of equal sizes, as an optimizer walks through them
#: together, have their lines in the same few sets of the caches. Pairs of lines stay together.
STAGGER = 20 * ALIGNMENT
#: Blocks of this size and more, but less than a huge page, share regions of `REGION` bytes (on Linux).
SHARED = 64 << 10
REGION = 4 * HUGE_PAGE + 4 * HUGE_PAGE // SHARED * STAGGER

if os.name == "nt":
    _msvcrt = ctypes.CDLL("msvcrt")
    _msvcrt._aligned_malloc.restype = ctypes.c_void_p
    _msvcrt._aligned_malloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    _msvcrt._aligned_free.argtypes = [ctypes.c_void_p]

    def allocate(size: int) -> int:
        """Address of `size` bytes, or 0."""
        return _msvcrt._aligned_malloc(size, ALIGNMENT) or 0

    def free(ptr: int, size: int) -> None:
        """Gives back what `allocate(size)` returned."""
        _msvcrt._aligned_free(ptr)

    def trim_heap() -> None:
        """Gives back what the C library's heap keeps of memory that was freed, where the library can."""

else:
    _libc = ctypes.CDLL(None, use_errno=True)
    _posix_memalign = _libc.posix_memalign
    _posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
    _free = _libc.free
    _free.argtypes = [ctypes.c_void_p]
    _free.restype = None
    _malloc_trim = getattr(_libc, "malloc_trim", None)  # glibc only
    if _malloc_trim is not None:
        _malloc_trim.argtypes = [ctypes.c_size_t]
    _mmap = _libc.mmap
    _mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    _mmap.restype = ctypes.c_void_p
    _munmap = _libc.munmap
    _munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _madvise = _libc.madvise
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _MAP_FAILED = ctypes.c_void_p(-1).value
    _ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only
    _PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
    _FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

    def allocate(size: int) -> int:
        """Address of `size` bytes, or 0."""
        if size >= HUGE_PAGE:
            return _map(size)
        if size >= SHARED and _ADVICE is not None:
            return _carve(size)
        out = ctypes.c_void_p()
        return (out.value or 0) if _posix_memalign(ctypes.byref(out), ALIGNMENT, size) == 0 else 0

    def free(ptr: int, size: int) -> None:
        """Gives back what `allocate(size)` returned."""
        if size >= HUGE_PAGE:
            _munmap(ptr, _mapped(size))
        elif ptr in _regions:
            _regions.pop(ptr).give_back(ptr, size)
        else:
            _free(ptr)

    def trim_heap() -> None:
        """Gives back what the C library's heap keeps of memory that was freed, where the library can."""
        if _malloc_trim is not None:
            _malloc_trim(0)

    class _Region:
        """A mapping that blocks share. There are no locks, since finalisers free blocks: whoever carves has taken the region
        out of `_open`, and each list's `append` and `pop` is uninterrupted."""

        __slots__ = ("base", "full", "live", "used")

        def __init__(self, base: int) -> None:
            self.base = [base]  # whoever takes it out unmaps the region
            self.used, self.full = 0, False
            self.live: list[None] = []  # one for each block

        def give_back(self, ptr: int, size: int) -> None:
            """Ends a block."""
            start = (ptr + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
            stop = (ptr + size) & -mmap.PAGESIZE
            if stop > start:
                _madvise(start, stop - start, mmap.MADV_DONTNEED)
            self.live.pop()
            self.unmap_if_done()

        def unmap_if_done(self) -> None:
            """Gives the region back if it has no block and will have none."""
            if self.full and not self.live:
                try:
                    base = self.base.pop()
                except IndexError:  # another thread does it
                    return
                _munmap(base, REGION)

    #: Of each block in a region; regions with room that nobody is carving at the moment.
    _regions: dict[int, _Region] = {}
    _open: list[_Region] = []

    def _carve(size: int) -> int:
        try:
            region = _open.pop()
        except IndexError:
            region = None
        if region is None or region.used + size > REGION:
            if region is not None:
                region.full = True
                region.unmap_if_done()
            base = _map(REGION)
            if not base:
                return 0
            region = _Region(base)
        ptr = region.base[0] + region.used
        region.used += size + STAGGER
        region.live.append(None)
        _regions[ptr] = region
        _open.append(region)
        return ptr

    def _mapped(size: int) -> int:
        return (size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE

    def _map(size: int) -> int:
        length = _mapped(size)
        base = _mmap(None, length + HUGE_PAGE, _PROTECTION, _FLAGS, -1, 0)
        if base is None or base == _MAP_FAILED:
            return 0
        ptr: int = (base + HUGE_PAGE - 1) & -HUGE_PAGE
        head, tail = ptr - base, base + HUGE_PAGE - ptr
        if head:
            _munmap(base, head)
        if tail:
            _munmap(ptr + length, tail)
        if _ADVICE is not None:
            _madvise(ptr, length, _ADVICE)  # a refusal only means ordinary pages
        return ptr
