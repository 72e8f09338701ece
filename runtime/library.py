"""Loading an exported library: a Python callable with NumPy arrays, from the file alone."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flambeau.runtime import abi

Array = np.ndarray[Any, Any]


class LibraryError(RuntimeError):
    """A library cannot be loaded, or one of its functions reported a failure."""


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype that a signature calls `name`."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def extent_of(extent: int | str, sizes: dict[str, int]) -> int:
    """The value of a signature's extent: a number, or an expression of sizes."""
    if isinstance(extent, int):
        return extent
    if extent in sizes:
        return sizes[extent]
    text = extent.replace("floordiv", "//").replace("mod", "%")
    return int(eval(text, {"__builtins__": {}, "max": max, "min": min}, dict(sizes)))


class Library:
    """An exported library with a handle of its own. Calling it takes and gives NumPy arrays; thread-safe.

    `signature` is what the library says of itself. A training step's state is read and written with `get` and `set`.
    `weights`: the file with the weights of a library that does not embed them; by default the one that was written with
    it, in the same folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int = 1,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = Path(path).resolve()
        if not self.path.is_file():
            raise LibraryError(f"{path}: no such file")
        try:
            self._library = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise LibraryError(f"{path}: not a loadable library: {error}") from None
        self.name = self._find_name()
        self.signature: dict[str, Any] = json.loads(self._function("signature", ctypes.c_char_p)())
        if self.signature["abi"] != abi.VERSION:
            raise LibraryError(
                f"{path}: built for interface version {self.signature['abi']}, this is {abi.VERSION}"
            )
        self._run = self._function("run", ctypes.c_int32)
        self._error = self._function("error", ctypes.c_char_p)
        self._handle = ctypes.c_void_p()
        self._lock = threading.Lock()
        given = [ctypes.byref(self._handle), ctypes.c_int32(threads), *self._weights(weights)]
        status = self._function("create", ctypes.c_int32)(*given)
        if status == abi.Status.WEIGHTS_UNREADABLE:
            raise LibraryError(
                f"{self.name}: {os.fsdecode(given[2].value)}: missing, damaged, or of another library"
            )
        self._check(status)

    def _weights(self, given: str | os.PathLike[str] | None) -> list[Any]:
        """`create`'s argument for the weights, if it takes one."""
        file = self.signature.get("weights_file")
        if file is None:
            if given is not None:
                raise LibraryError(f"{self.path}: its weights are embedded; it reads no file")
            return []
        path = Path(given) if given is not None else self.path.with_name(file)
        return [ctypes.c_char_p(os.fsencode(path))]

    def _find_name(self) -> str:
        """The library's functions start with its name, which is the file's unless that was renamed."""
        for stem in (self.path.stem, self.path.stem.removeprefix("lib")):
            if hasattr(self._library, f"{stem}_signature"):
                return stem
        content = self.path.read_bytes()
        start = content.find(b'{"abi": ')
        if start >= 0:
            try:
                text = content[start : content.index(b"\0", start)].decode()
                name = str(json.loads(text)["name"])
            except (ValueError, KeyError):
                name = ""
            if name and hasattr(self._library, f"{name}_signature"):
                return name
        raise LibraryError(f"{self.path}: not a library that Flambeau exported")

    def _function(self, what: str, result: Any) -> Any:
        function = getattr(self._library, f"{self.name}_{what}")
        function.restype = result
        return function

    def _check(self, status: int) -> None:
        if status:
            raise LibraryError(f"{self.name}: {self._error(ctypes.c_int32(status)).decode()}")

    def __call__(self, *inputs: Any) -> Any:
        """The outputs for these inputs: one array, or a tuple. Raises TypeError or ValueError where they do not fit."""
        expected = self.signature["inputs"]
        if len(inputs) != len(expected):
            names = ", ".join(e["name"] for e in expected)
            raise TypeError(f"{self.name} takes {len(expected)} inputs ({names}), got {len(inputs)}")
        sizes: dict[str, int] = {}
        arrays = [self._input(entry, given, sizes) for entry, given in zip(expected, inputs, strict=True)]
        outputs = [
            np.empty([extent_of(d, sizes) for d in e["shape"]], dtype_of(e["dtype"]))
            for e in self.signature["outputs"]
        ]
        numbers = [ctypes.c_int64(sizes[s]) for s in self.signature["symbols"]]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, *outputs)]
        with self._lock:
            self._check(self._run(self._handle, *numbers, *pointers))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _input(self, entry: dict[str, Any], given: Any, sizes: dict[str, int]) -> Array:
        dtype = dtype_of(entry["dtype"])
        array = np.asarray(given)
        if array.dtype != dtype:
            raise TypeError(f"{self.name}: input {entry['name']}: expected {dtype}, got {array.dtype}")
        if array.ndim != len(entry["shape"]):
            raise ValueError(
                f"{self.name}: input {entry['name']}: expected shape {entry['shape']}, got {list(array.shape)}"
            )
        for expected, actual in zip(entry["shape"], array.shape, strict=True):
            known = (
                sizes.setdefault(expected, actual)
                if isinstance(expected, str) and expected.isidentifier()
                else expected
            )
            if isinstance(known, int) and known != actual:
                raise ValueError(
                    f"{self.name}: input {entry['name']}: expected shape {entry['shape']}, got {list(array.shape)}"
                )
        return np.ascontiguousarray(array)

    def _state(self, name: str) -> dict[str, Any]:
        for entry in self.signature["state"]:
            if entry["name"] == name:
                found: dict[str, Any] = entry
                return found
        names = ", ".join(e["name"] for e in self.signature["state"]) or "none"
        raise KeyError(f"{self.name} has no state {name!r}; there is {names}")

    def get(self, name: str) -> Array:
        """A copy of one tensor of the state. KeyError if there is none of this name."""
        entry = self._state(name)
        array = np.empty(entry["shape"], dtype_of(entry["dtype"]))
        self._access("get", name, array)
        return array

    def set(self, name: str, value: Any) -> None:
        """Replaces one tensor of the state. KeyError, TypeError or ValueError where it does not fit."""
        array = self._input(self._state(name), value, {})
        self._access("set", name, array)

    def _access(self, what: str, name: str, array: Array) -> None:
        function = self._function(what, ctypes.c_int32)
        with self._lock:
            self._check(
                function(
                    self._handle,
                    ctypes.c_char_p(name.encode()),
                    ctypes.c_void_p(array.ctypes.data),
                    ctypes.c_size_t(array.nbytes),
                )
            )

    def close(self) -> None:
        """Frees the handle; the object cannot be used any more."""
        if self._handle:
            destroy = self._function("destroy", None)
            destroy(self._handle)
            self._handle = ctypes.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def __repr__(self) -> str:
        return f"<flambeau library {self.name} ({self.signature['kind']}) from {self.path}>"


def load(
    path: str | os.PathLike[str], threads: int = 1, weights: str | os.PathLike[str] | None = None
) -> Library:
    """Load an exported library. Raises LibraryError for anything that is not one, or if its weights cannot be read."""
    return Library(path, threads, weights)
