"""Memory: buffers, and the caching allocator behind them.

Sizes are rounded up to classes (at most 25 % above the request, 6 % of large ones); a freed block goes to its class's free list
and the next buffer of that class takes it, so a training loop allocates from the system in its first iteration
only.

There are no locks here. Blocks are freed by `Buffer.__del__`, which the garbage collector may run at any point of any
thread, inside the allocator too, where a lock would deadlock. `list.pop`, `list.append` and `+=` of a local to
an attribute are each uninterrupted under the interpreter's lock, and nothing more is asked of them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from sys import getrefcount
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from flambeau.runtime import system_memory
from flambeau.runtime.system_memory import HUGE_PAGE

#: Bytes from which on there are more size classes.
LARGE = 1 << 20


@dataclass(frozen=True)
class MemoryStats:
    """Bytes in buffers now and at most so far, bytes held in the free lists, and where blocks came from."""

    live_bytes: int
    peak_bytes: int
    cached_bytes: int
    system_allocations: int


def size_class(nbytes: int) -> int:
    """The size that a request is rounded up to: multiples of 64 up to 512 bytes, then four steps to a power of two, from
    1 MiB on sixteen."""
    if nbytes <= 512:
        return (nbytes + 63) & -64 or 64
    step = 1 << ((nbytes - 1).bit_length() - (3 if nbytes <= LARGE else 5))
    return (nbytes + step - 1) & -step


class Allocator:
    """Blocks of memory by size class, aligned to 64 bytes, those of 2 MiB and more to 2 MiB (huge pages where
    the system has them). At most `cache_limit` bytes are kept for reuse.
    """

    __slots__ = ("_free", "cache_limit", "live_bytes", "peak_bytes", "cached_bytes", "system_allocations")

    def __init__(self, cache_limit: int | None = None) -> None:
        self._free: dict[int, list[int]] = {}
        self.cache_limit = _default_cache_limit() if cache_limit is None else cache_limit
        self.live_bytes = self.peak_bytes = self.cached_bytes = self.system_allocations = 0

    def allocate(self, nbytes: int) -> Buffer:
        """A buffer of at least `nbytes`, its contents arbitrary. Raises MemoryError, or ValueError if negative."""
        if nbytes <= 512:
            size = (nbytes + 63) & -64 or 64
        else:
            step = 1 << ((nbytes - 1).bit_length() - (3 if nbytes <= LARGE else 5))
            size = (nbytes + step - 1) & -step
        try:
            ptr = self._free[size].pop()
            self.cached_bytes -= size
        except (KeyError, IndexError):
            ptr = self._from_system(size, nbytes)
        live = self.live_bytes = self.live_bytes + size
        if live > self.peak_bytes:
            self.peak_bytes = live
        block: Any = (_types.get(size) or _block_type(size)).from_address(ptr)
        block.ptr, block.nbytes, block._allocator = ptr, nbytes, self
        found: Buffer = block
        return found

    def acquire(self, size: int) -> int:
        """A bare block of `size` bytes, a size class; give it back with `release`. For arenas."""
        try:
            ptr = self._free[size].pop()
            self.cached_bytes -= size
        except (KeyError, IndexError):
            ptr = self._from_system(size, size)
        live = self.live_bytes = self.live_bytes + size
        if live > self.peak_bytes:
            self.peak_bytes = live
        return ptr

    def release(self, ptr: int, size: int) -> None:
        """Takes back a block of size class `size`."""
        self.live_bytes -= size
        if self.cached_bytes + size > self.cache_limit:
            system_memory.free(ptr, size)
            return
        try:
            self._free[size].append(ptr)
        except KeyError:
            self._free.setdefault(size, []).append(ptr)
        self.cached_bytes += size

    def trim(self) -> int:
        """Gives every cached block back to the system; returns their bytes."""
        freed = 0
        for size, blocks in list(self._free.items()):
            while blocks:
                try:
                    ptr = blocks.pop()
                except IndexError:  # another thread took the last one
                    break
                self.cached_bytes -= size
                system_memory.free(ptr, size)
                freed += size
        return freed

    def stats(self) -> MemoryStats:
        """A snapshot of the counters."""
        return MemoryStats(self.live_bytes, self.peak_bytes, self.cached_bytes, self.system_allocations)

    def reset_peak(self) -> None:
        """Starts measuring the peak anew."""
        self.peak_bytes = self.live_bytes

    def _from_system(self, size: int, nbytes: int) -> int:
        if nbytes < 0:
            raise ValueError(f"allocate: expected a size of at least 0 bytes, got {nbytes}")
        ptr = system_memory.allocate(size)
        if not ptr:
            self.trim()  # what other sizes hold may be what is missing
            ptr = system_memory.allocate(size)
        if not ptr:
            raise MemoryError(
                f"allocate: the system has no {nbytes} bytes; {self.live_bytes} bytes are in live buffers"
            )
        self.system_allocations += 1
        return ptr


class Buffer:
    """`nbytes` bytes of memory at address `ptr`, owned (given back with the last reference) or borrowed."""

    __slots__ = ()

    ptr: int
    nbytes: int
    owned: ClassVar[bool]
    """Whether the memory is the allocator's, and so may be reused in place by whoever holds the last reference."""

    @staticmethod
    def borrow(ptr: int, nbytes: int, owner: Any) -> Borrowed:
        """A buffer over somebody else's memory, which stays as long as `owner` does."""
        return Borrowed(ptr, nbytes, owner)

    def __repr__(self) -> str:
        kind = "owned" if self.owned else "borrowed"
        return f"Buffer(ptr={self.ptr:#x}, nbytes={self.nbytes}, {kind})"


class Borrowed(Buffer):
    """A buffer whose memory `owner` keeps alive: a NumPy array, a mapped file, a DLPack capsule."""

    __slots__ = ("ptr", "nbytes", "owner", "__weakref__")

    owned = False

    def __init__(self, ptr: int, nbytes: int, owner: Any) -> None:
        self.ptr, self.nbytes, self.owner = ptr, nbytes, owner

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"data": (self.ptr, False), "shape": (self.nbytes,), "typestr": "|u1", "version": 3}


class _Owned(Buffer):
    """A block of an allocator. Its classes, one for each size, are arrays of ctypes as well: NumPy's arrays rest on them
    directly, which takes a quarter of the time that the array interface takes."""

    __slots__ = ()

    owned = True
    size: ClassVar[int]
    _allocator: Allocator
    if TYPE_CHECKING:  # ctypes has it

        @classmethod
        def from_address(cls, address: int) -> _Owned: ...

    def __del__(self) -> None:
        self._allocator.release(self.ptr, self.size)


_types: dict[int, type[_Owned]] = {}


def _block_type(nbytes: int) -> type[_Owned]:
    """The class of blocks of a size class."""

    class Block(_Owned, ctypes.c_char * nbytes):  # type: ignore[misc]
        __slots__ = ("ptr", "nbytes", "_allocator")

        size = nbytes

    return _types.setdefault(nbytes, Block)


def as_numpy(buffer: Buffer, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> np.ndarray[Any, Any]:
    """A writable, C-contiguous array of `dtype` and `shape` over the buffer from byte `offset` on; keeps the buffer.

    Raises TypeError (from NumPy) if the buffer's memory (of an owned one, its size class) is too small.
    """
    # Bytes first: `dtype` may be one that the array interface has no code for (bfloat16, float8).
    memory: Any = buffer if buffer.owned else np.asarray(buffer)
    return np.ndarray(shape, dtype, memory, offset)


def new_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array in a new buffer of the process's allocator, its contents arbitrary."""
    memory: Any = allocate(dtype.itemsize * prod(shape))
    return np.ndarray(shape, dtype, memory)


def is_sole(arrays: Sequence[np.ndarray[Any, Any]], number: int, holders: int) -> bool:
    """Is `arrays[number]` all of a buffer's memory that anybody can see, and held by nobody but the list and `holders` more?

    Then whoever holds it may overwrite it. False for borrowed memory, for any array that a view was made of, and for views.
    """
    # The expressions put one more reference on the stack; local variables would count, in some versions of Python only.
    if getrefcount(arrays[number]) != holders + 2 or getrefcount(arrays[number].base) != 2:
        return False
    return isinstance(arrays[number].base, _Owned)


def all_free(arrays: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Does nobody but the list have any of these arrays, or sees their memory? Then it may be overwritten."""
    for number in range(len(arrays)):
        if getrefcount(arrays[number]) != 2:
            return False
        if arrays[number].base is not None and getrefcount(arrays[number].base) != 2:
            return False
    return True


def _address_reader() -> Callable[[np.ndarray[Any, Any]], int]:
    """`address_of`. NumPy's binary interface has the data pointer first behind the object's head, where reading it takes a
    tenth of a microsecond; the public ways to it take 1.8, which is most of what calling a small program costs."""
    word, head = ctypes.c_size_t.from_address, object.__basicsize__

    def from_object(array: np.ndarray[Any, Any]) -> int:
        return word(id(array) + head).value

    def from_interface(array: np.ndarray[Any, Any]) -> int:
        address: int = array.__array_interface__["data"][0]
        return address

    if sys.implementation.name != "cpython":
        return from_interface
    samples = (np.zeros(3, np.uint8), np.zeros((2, 2))[1:])
    return from_object if all(from_object(a) == from_interface(a) for a in samples) else from_interface


address_of = _address_reader()
"""The address of an array's first element."""

READS_POINTERS = address_of.__name__ == "from_object"
"""Whether an array's data pointer is where NumPy's binary interface has it."""


def from_numpy(array: np.ndarray[Any, Any]) -> Buffer:
    """A buffer that borrows a C-contiguous array's memory. Raises ValueError for any other layout."""
    if not array.flags.c_contiguous:
        raise ValueError(
            f"from_numpy: expected a C-contiguous array, got strides {array.strides} of {array.shape}"
        )
    return Borrowed(address_of(array), array.nbytes, array)


def _default_cache_limit() -> int:
    """A quarter of the machine's memory, at most 4 GiB."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        physical = 4 << 30
    return min(physical // 4, 4 << 30)


allocator = Allocator()
"""The process's allocator."""

allocate = allocator.allocate

#: Bytes up to which an array's memory is NumPy's own: quicker to come by where no page has to be kept for reuse.
SMALL = 1 << 14


def copied(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same content in memory of its own, C-contiguous."""
    if array.nbytes <= SMALL:
        return array.copy()
    copy = new_array(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


__all__ = [
    "HUGE_PAGE",
    "SMALL",
    "Allocator",
    "Buffer",
    "MemoryStats",
    "address_of",
    "all_free",
    "allocate",
    "allocator",
    "as_numpy",
    "copied",
    "from_numpy",
    "is_sole",
    "new_array",
    "size_class",
]
