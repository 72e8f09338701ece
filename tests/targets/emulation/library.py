"""An exported library in the emulator, as `flambeau.runtime.library.Library` is one in this process."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np

from flambeau.runtime import abi
from flambeau.runtime.library import LibraryError, dtype_of, extent_of
from tests.targets.emulation.emulator import Emulator

Array = np.ndarray[Any, Any]


class EmulatedLibrary:
    """The library `path`, named as its file, with a handle. Arrays lie at addresses that are aligned to an element and no more.

    `threads` and `weights` as in `Library`.
    """

    def __init__(self, path: Path, architecture: str, threads: int = 1, weights: Path | None = None) -> None:
        self.name, self.emulator = path.stem, Emulator(path, architecture)
        self.signature: dict[str, Any] = json.loads(ctypes.string_at(self._call("signature")))
        out = self.emulator.heap.allocate(8)
        file = self.signature.get("weights_file")
        more = [] if file is None else [self._put(bytes(weights or path.with_name(file)) + b"\0")]
        self._check(self._call("create", out, threads, *more))
        self._handle = ctypes.c_uint64.from_address(out).value

    def _call(self, what: str, *arguments: int) -> int:
        return self.emulator.call(f"{self.name}_{what}", *arguments)

    def _check(self, status: int) -> None:
        if status & 0xFFFFFFFF != abi.Status.OK:
            message = ctypes.string_at(self._call("error", status & 0xFFFFFFFF))
            raise LibraryError(f"{self.name}: {message.decode()}")

    def _put(self, content: bytes, offset: int = 0) -> int:
        address = self.emulator.heap.allocate(len(content), offset=offset)
        ctypes.memmove(address, content, len(content))
        return address

    def __call__(self, *inputs: Array) -> list[Array]:
        """The outputs for these inputs, which have to fit."""
        sizes = {
            extent: actual
            for entry, array in zip(self.signature["inputs"], inputs, strict=True)
            for extent, actual in zip(entry["shape"], array.shape, strict=True)
            if isinstance(extent, str)
        }
        given = [self._put(a.tobytes(), offset=a.itemsize) for a in inputs]
        outputs = [
            (dtype_of(e["dtype"]), [extent_of(d, sizes) for d in e["shape"]])
            for e in self.signature["outputs"]
        ]
        taken = [
            self.emulator.heap.allocate(dtype.itemsize * int(np.prod(shape)), offset=dtype.itemsize)
            for dtype, shape in outputs
        ]
        numbers = [sizes[s] for s in self.signature["symbols"]]
        self._check(self._call("run", self._handle, *numbers, *given, *taken))
        for address, array in zip(given, inputs, strict=True):
            assert ctypes.string_at(address, array.nbytes) == array.tobytes(), "an input was written"
        found = [self._take(a, dtype, shape) for a, (dtype, shape) in zip(taken, outputs, strict=True)]
        for address in (*given, *taken):
            self.emulator.heap.free(address)
        return found

    def _take(self, address: int, dtype: np.dtype[Any], shape: list[int]) -> Array:
        content = ctypes.string_at(address, dtype.itemsize * int(np.prod(shape)))
        return np.frombuffer(content, dtype).reshape(shape).copy()

    def get(self, name: str) -> Array:
        """A copy of one tensor of the state."""
        entry = next(e for e in self.signature["state"] if e["name"] == name)
        dtype = dtype_of(entry["dtype"])
        size = dtype.itemsize * int(np.prod(entry["shape"]))
        label, to = self._put(name.encode() + b"\0"), self.emulator.heap.allocate(size)
        self._check(self._call("get", self._handle, label, to, size))
        return self._take(to, dtype, entry["shape"])

    def close(self) -> None:
        """Destroys the handle, which had better give back all its memory."""
        self._call("destroy", self._handle)
        assert not self.emulator.c.kept
