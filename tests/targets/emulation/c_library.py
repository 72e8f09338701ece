"""The C library that emulated code sees: the functions that an exported library may import, over the emulator's memory.

Threads cannot be had: `pthread_create` says EAGAIN, as a system does that has no more of them.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

GUARD = 64
_GUARD_BYTES, _FRESH, _FREED = b"\xc5" * GUARD, 0xA5, 0xA6


class MemoryFault(AssertionError):
    """Emulated code wrote beside a block, or freed what is none."""


class Heap:
    """Blocks between `begin` and `end`, each between bytes that nobody may change. Freed memory is not used again."""

    def __init__(self, begin: int, end: int) -> None:
        self._next, self._end = begin, end
        self.blocks: dict[int, int] = {}

    def allocate(self, size: int, alignment: int = 64, offset: int = 0) -> int:
        """The address, `offset` behind an aligned one, of `size` bytes that have no meaning yet."""
        start = -(-(self._next + GUARD) // alignment) * alignment + offset
        if start + size + GUARD > self._end:
            raise MemoryError(f"the emulator has no {size} bytes left")
        self._next = start + size + GUARD
        ctypes.memmove(start - GUARD, _GUARD_BYTES, GUARD)
        ctypes.memset(start, _FRESH, size)
        ctypes.memmove(start + size, _GUARD_BYTES, GUARD)
        self.blocks[start] = size
        return start

    def free(self, address: int) -> None:
        if address not in self.blocks:
            raise MemoryFault(f"free: {address:#x} is not the address of a block")
        self.check(address)
        ctypes.memset(address, _FREED, self.blocks.pop(address))

    def check(self, address: int) -> None:
        """MemoryFault if the bytes around a block are not what they were."""
        size = self.blocks[address]
        for side, start in (("before", address - GUARD), ("behind", address + size)):
            if ctypes.string_at(start, GUARD) != _GUARD_BYTES:
                raise MemoryFault(f"bytes {side} a block of {size} were overwritten")


@dataclass
class CLibrary:
    """A method for each function of C's, which takes integers, pointers among them, and returns one."""

    heap: Heap
    threads_wanted: int = 0

    def __post_init__(self) -> None:
        self._files: dict[int, BinaryIO] = {}
        #: Blocks that were asked for and not given back.
        self.kept: set[int] = set()

    def function(self, name: str) -> Callable[..., int]:
        found: Callable[..., int] | None = getattr(self, f"c_{name}", None)
        if found is None:
            raise NotImplementedError(f"emulated code called {name}")
        return found

    def c_aligned_alloc(self, alignment: int, size: int) -> int:
        block = self.heap.allocate(size, alignment)
        self.kept.add(block)
        return block

    def c_posix_memalign(self, out: int, alignment: int, size: int) -> int:
        ctypes.c_uint64.from_address(out).value = self.c_aligned_alloc(alignment, size)
        return 0

    def c_free(self, block: int) -> int:
        if block:
            self.heap.free(block)
            self.kept.discard(block)
        return 0

    def c_memcpy(self, to: int, source: int, size: int) -> int:
        if max(to, source) < min(to, source) + size and to != source:
            raise MemoryFault("memcpy: the blocks overlap")
        return self.c_memmove(to, source, size)

    def c_memmove(self, to: int, source: int, size: int) -> int:
        ctypes.memmove(to, source, size)
        return to

    def c_memset(self, to: int, byte: int, size: int) -> int:
        ctypes.memset(to, byte & 0xFF, size)
        return to

    def c_memcmp(self, one: int, other: int, size: int) -> int:
        a, b = ctypes.string_at(one, size), ctypes.string_at(other, size)
        return (a > b) - (a < b)

    c_bcmp = c_memcmp  # what LLVM makes of memcmp where only equality is asked for

    def c_strcmp(self, one: int, other: int) -> int:
        a, b = ctypes.string_at(one), ctypes.string_at(other)
        return (a > b) - (a < b)

    def c_getpid(self) -> int:
        return 1

    def c_pthread_mutex_init(self, mutex: int, attributes: int) -> int:
        return 0

    c_pthread_cond_init = c_pthread_mutex_init

    def c_pthread_attr_init(self, attributes: int) -> int:
        return 0

    c_pthread_attr_destroy = c_pthread_mutex_destroy = c_pthread_cond_destroy = c_sigfillset = (
        c_pthread_attr_init
    )

    def c_pthread_attr_setstacksize(self, attributes: int, size: int) -> int:
        return 0

    def c_pthread_sigmask(self, how: int, mask: int, old: int) -> int:
        return 0

    def c_pthread_create(self, thread: int, attributes: int, start: int, argument: int) -> int:
        self.threads_wanted += 1
        return errno.EAGAIN

    def c_fopen(self, path: int, mode: int) -> int:
        try:
            file = open(ctypes.string_at(path), "rb")  # noqa: SIM115  fclose closes it
        except OSError:
            return 0
        self._files[number := len(self._files) + 1] = file
        return number

    def c_fread(self, to: int, size: int, count: int, file: int) -> int:
        found = self._files[file].read(size * count)
        ctypes.memmove(to, found, len(found))
        return len(found) // size

    def c_fgetc(self, file: int) -> int:
        found = self._files[file].read(1)
        return found[0] if found else -1

    def c_fclose(self, file: int) -> int:
        self._files[file].close()
        return 0
