"""Calling a compiled entry: pointers in, a status out, with as little Python in between as can be.

The entry's signature is in `flambeau.runtime.abi`: `i32 entry(ptr args, ptr dims, ptr arena, ptr pool)`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flambeau.runtime import threads
from flambeau.runtime.abi import Status
from flambeau.runtime.buffer import Allocator, Buffer, address_of, size_class
from flambeau.runtime.buffer import allocator as default_allocator
from flambeau.runtime.caller import ARENA, caller

Array = np.ndarray[Any, Any]

Sizes = Sequence[int] | Callable[[Sequence[int]], Sequence[int]]
"""Bytes of each output: fixed, or a function of the symbolic dimensions' values."""

_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
# Arenas up to this size stay with their executor; larger ones are shared, through the allocator.
_KEPT_ARENA = 64 << 10


class ExecutionError(RuntimeError):
    """A compiled entry reported a failure; `status` tells which."""

    def __init__(self, status: int, name: str) -> None:
        self.status = status
        known = status in Status._value2member_map_
        super().__init__(f"{name}: {Status(status).message if known else f'unknown status {status}'}")


class _Frame:
    """The argument arrays of one call in flight, and a small arena. Frames are reused, never shared."""

    __slots__ = ("args", "args_address", "dims", "dims_address", "arena", "keep")

    def __init__(self, n_args: int, n_dims: int, arena_bytes: int, allocator: Allocator) -> None:
        self.args = (ctypes.c_uint64 * max(n_args, 1))()
        self.dims = (ctypes.c_int64 * max(n_dims, 1))()
        self.args_address = ctypes.addressof(self.args)
        self.dims_address = ctypes.addressof(self.dims)
        self.keep = allocator.allocate(arena_bytes) if arena_bytes else None
        self.arena = 0 if self.keep is None else self.keep.ptr


class _Record:
    """What `caller.call` reads beside the arrays: one call in flight has it, and a small arena. `token` and `pool` say what
    is in it."""

    __slots__ = ("words", "token", "pool", "keep")

    def __init__(
        self, address: int, n_inputs: int, pointers: Sequence[int], token: object, pool: int
    ) -> None:
        self.words = np.array([address, n_inputs, 0, pool, len(pointers), *pointers], np.uint64)
        self.token, self.pool = token, pool
        self.keep: Buffer | None = None


class Executor:
    """One compiled entry, ready to call; re-entrant, from any number of threads.

    `address` is the entry's; `n_inputs`, `n_dims` and `output_bytes` (its length, or `n_outputs` where it is a
    function) fix the layout of the argument arrays; `arena_bytes` is the plan's peak, a number or a function
    of the dimensions. `keep` holds what the code needs alive (its LoadedModule).
    """

    __slots__ = (
        "address",
        "allocator",
        "arena_bytes",
        "keep",
        "n_dims",
        "n_inputs",
        "n_outputs",
        "name",
        "output_bytes",
        "parallel",
        "_arena_class",
        "_entry",
        "_frames",
        "_pack_args",
        "_pack_dims",
        "_records",
    )

    def __init__(
        self,
        address: int,
        n_inputs: int,
        output_bytes: Sizes,
        arena_bytes: int | Callable[[Sequence[int]], int] = 0,
        *,
        n_dims: int = 0,
        n_outputs: int | None = None,
        parallel: bool = True,
        keep: Any = None,
        name: str = "entry",
        allocator: Allocator = default_allocator,
    ) -> None:
        if n_outputs is None:
            if callable(output_bytes):
                raise ValueError("Executor: n_outputs is needed where output_bytes is a function")
            n_outputs = len(output_bytes)
        self.address, self.name, self.keep, self.allocator = address, name, keep, allocator
        self.n_inputs, self.n_outputs, self.n_dims = n_inputs, n_outputs, n_dims
        self.output_bytes, self.arena_bytes = output_bytes, arena_bytes
        self.parallel = parallel
        # 0: none, or kept in the frame; -1: depends on the dimensions; else taken from the allocator for each call.
        self._arena_class = -1
        if not callable(arena_bytes):
            self._arena_class = size_class(arena_bytes) if arena_bytes > _KEPT_ARENA else 0
        self._entry = _ENTRY(address)
        self._pack_args = struct.Struct(f"={n_inputs + n_outputs}Q").pack_into
        self._pack_dims = struct.Struct(f"={n_dims}q").pack_into
        self._frames: list[_Frame] = []
        self._records: list[_Record] = []

    def __call__(self, input_ptrs: Sequence[int], dims: Sequence[int], output_ptrs: Sequence[int]) -> int:
        """Runs the entry on the process's thread pool; returns its `Status`. The caller keeps all memory alive.

        Raises struct.error if the number of pointers or dimensions is not the declared one.
        """
        # A frame of one's own rather than thread-local arrays: a signal handler may call in the middle of this call.
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = self._new_frame()
        self._pack_args(frame.args, 0, *input_ptrs, *output_ptrs)
        if self.n_dims:
            self._pack_dims(frame.dims, 0, *dims)
        pool = threads._pool if self.parallel else 0
        if pool is None:
            pool = threads.default_pool()
        size = self._arena_class
        if size == 0:
            status: int = self._entry(frame.args_address, frame.dims_address, frame.arena, pool)
        else:
            status = self._call_with_arena(frame, size, dims, pool)
        self._frames.append(frame)
        return status

    def run(self, input_ptrs: Sequence[int], dims: Sequence[int] = ()) -> list[Buffer]:
        """Allocates the outputs and calls. Raises ExecutionError unless the entry returns OK."""
        sizes = self.output_bytes
        allocate = self.allocator.allocate
        outputs = [allocate(size) for size in (sizes(dims) if callable(sizes) else sizes)]
        status = self(input_ptrs, dims, [buffer.ptr for buffer in outputs])
        if status:
            raise ExecutionError(status, self.name)
        return outputs

    def call_on(
        self, inputs: Sequence[Array], pointers: Sequence[int], token: object, outputs: Sequence[Array]
    ) -> None:
        """Runs an entry without dimensions on arrays, where `pointers` are its inputs behind `inputs`; `token` is another
        one whenever they are others. Raises ExecutionError unless it returns OK."""
        call = caller()
        if call is None:
            addresses = [address_of(a) for a in inputs]
            self.check(self([*addresses, *pointers], (), [address_of(a) for a in outputs]))
            return
        pool = threads._pool if self.parallel else 0
        if pool is None:
            pool = threads.default_pool()
        # A record of one's own: another thread, or a signal handler, may call in the middle of this call.
        try:
            record = self._records.pop()
            if record.token is not token or record.pool != pool:
                record = self._record(len(inputs), pointers, token, pool)
        except IndexError:
            record = self._record(len(inputs), pointers, token, pool)
        size = self._arena_class
        if size == 0:
            status = call(record.words, *inputs, *outputs)
        else:
            record.words[ARENA] = arena = self.allocator.acquire(size)
            try:
                status = call(record.words, *inputs, *outputs)
            finally:
                self.allocator.release(arena, size)
        self._records.append(record)
        if status:
            raise ExecutionError(status, self.name)

    def _record(self, n_inputs: int, pointers: Sequence[int], token: object, pool: int) -> _Record:
        assert isinstance(self.arena_bytes, int)
        record = _Record(self.address, n_inputs, pointers, token, pool)
        if self._arena_class == 0 and self.arena_bytes:
            record.keep = self.allocator.allocate(self.arena_bytes)
            record.words[ARENA] = record.keep.ptr
        return record

    def check(self, status: int) -> None:
        """Raises ExecutionError unless `status` is OK."""
        if status:
            raise ExecutionError(status, self.name)

    def _new_frame(self) -> _Frame:
        kept = self.arena_bytes if not callable(self.arena_bytes) and self._arena_class == 0 else 0
        return _Frame(self.n_inputs + self.n_outputs, self.n_dims, kept, self.allocator)

    def _call_with_arena(self, frame: _Frame, size: int, dims: Sequence[int], pool: int) -> int:
        if size < 0:
            assert callable(self.arena_bytes)
            size = size_class(self.arena_bytes(dims))
        arena = self.allocator.acquire(size)
        try:
            status: int = self._entry(frame.args_address, frame.dims_address, arena, pool)
            return status
        finally:
            self.allocator.release(arena, size)
