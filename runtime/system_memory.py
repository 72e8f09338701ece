"""Blocks from the operating system: from the C library, or mapped and aligned to huge pages from 2 MiB on."""

from __future__ import annotations

import ctypes
import mmap
import os

ALIGNMENT = 64
HUGE_PAGE = 2 << 20

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
        out = ctypes.c_void_p()
        return (out.value or 0) if _posix_memalign(ctypes.byref(out), ALIGNMENT, size) == 0 else 0

    def free(ptr: int, size: int) -> None:
        """Gives back what `allocate(size)` returned."""
        if size >= HUGE_PAGE:
            _munmap(ptr, _mapped(size))
        else:
            _free(ptr)

    def trim_heap() -> None:
        """Gives back what the C library's heap keeps of memory that was freed, where the library can."""
        if _malloc_trim is not None:
            _malloc_trim(0)

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
