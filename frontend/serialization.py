"""`save` and `load`: tensors in nested containers, in one safetensors file.

The file is an ordinary safetensors file (https://github.com/huggingface/safetensors): the tensors are its entries and
the containers around them are JSON in its metadata. Nothing in it is code, so loading a stranger's file is safe. A state
dictionary's entries keep their names, so other programs can read the weights.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flambeau import devices, dtypes, evaluation
from flambeau.compiler.ir.types import from_numpy
from flambeau.creation import from_array
from flambeau.nn.parameter import Parameter
from flambeau.tensor import Size, Tensor, snapshot

_KEY = "flambeau"
_VERSION = 1
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16",
    "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_DTYPES = {code: dtypes.by_name(name) for name, code in _NAMES.items()}


class _Writer:
    def __init__(self) -> None:
        self.entries: dict[str, Tensor] = {}
        self.names: dict[int, str] = {}

    def tensor(self, t: Tensor, path: str) -> dict[str, Any]:
        name = self.names.get(id(t))
        if name is None:
            name, n = path or "tensor", 1
            while name in self.entries or name == "__metadata__":
                name, n = f"{path}#{n}", n + 1
            self.names[id(t)] = name
            self.entries[name] = t
        kind: dict[str, Any] = {"tensor": name}
        if isinstance(t, Parameter):
            kind["parameter"] = True
        if t.requires_grad:
            kind["requires_grad"] = True
        return kind

    def node(self, x: Any, path: str) -> Any:
        """`x` as JSON: plain values are themselves; everything else is an object with one telling key."""
        if isinstance(x, Tensor):
            return self.tensor(x, path)
        if x is None or isinstance(x, (bool, str)):
            return x
        if isinstance(x, (int, np.integer)):
            return int(x)
        if isinstance(x, (float, np.floating)):
            # JSON has no infinities, and a hexadecimal float is exact.
            return {"float": float(x).hex()}
        if isinstance(x, np.ndarray):
            return {"array": self.tensor(from_array(*_contiguous(x)), path)["tensor"]}
        if isinstance(x, dtypes.dtype):
            return {"dtype": x.name}
        if isinstance(x, devices.device):
            return {"device": str(x)}
        if isinstance(x, Mapping):
            kind = "ordered" if isinstance(x, OrderedDict) else "dict"
            return {kind: [[self.node(k, path), self.node(v, _below(path, k))] for k, v in x.items()]}
        if isinstance(x, Size):
            return {"size": list(x)}
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            raise TypeError(
                f"save: at {path or 'the top'}: a named tuple ({type(x).__name__}) would lose its type"
            )
        for container, kind in ((list, "list"), (tuple, "tuple"), (set, "set")):
            if type(x) is container:
                return {kind: [self.node(y, _below(path, i)) for i, y in enumerate(x)]}
        raise TypeError(
            f"save: at {path or 'the top'}: tensors, numbers, strings, dtypes and containers of them can be saved, not "
            f"{type(x).__name__} (save a module's or an optimizer's state_dict())"
        )


def _contiguous(array: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    return np.require(array, requirements="C"), from_numpy(array.dtype)


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _entry(t: Tensor) -> np.ndarray[Any, Any]:
    return np.require(snapshot(t), requirements="C").reshape(tuple(t.shape))


def save(obj: Any, f: str | os.PathLike[str] | BinaryIO) -> None:
    """Write `obj` (a tensor, or nested dictionaries, lists and tuples with tensors, numbers and strings) to `f`.

    A path is written atomically: readers see the old file or the whole new one. A tensor that occurs twice is stored
    once. TypeError for what has no place in such a file; OSError where the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes  # imported late: `import flambeau` stays quick

    writer = _Writer()
    structure = writer.node(obj, "")
    evaluation.sync()
    header = {_KEY: json.dumps({"version": _VERSION, "root": structure}, separators=(",", ":"))}
    content = to_bytes({name: _entry(t) for name, t in writer.entries.items()}, header)
    if not isinstance(f, (str, os.PathLike)):
        f.write(content)
        return
    target = Path(f)
    import tempfile  # takes two milliseconds, which every program's start would pay

    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent or ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _mode(target: Path) -> int:
    """The permissions of the file to be replaced, or those of a file that `open` would make."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


class _Reader:
    def __init__(self, entries: dict[str, dict[str, Any]]) -> None:
        self.entries = entries
        self.made: dict[tuple[str, bool], Tensor] = {}

    def tensor(self, name: str, parameter: bool = False, requires_grad: bool = False) -> Tensor:
        if (name, parameter) in self.made:
            return self.made[name, parameter]
        entry = self.entries[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(
                f"load: tensor {name!r} has dtype {entry['dtype']}, which Flambeau does not have"
            )
        array = np.frombuffer(bytearray(entry["data"]), dtype.numpy).reshape(entry["shape"])
        found = from_array(array, dtype.element)
        if parameter:
            found = Parameter(found, requires_grad)
        elif requires_grad:
            found.requires_grad_()
        self.made[name, parameter] = found
        return found

    def value(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            return self.tensor(node["tensor"], node.get("parameter", False), node.get("requires_grad", False))
        ((kind, x),) = node.items()
        if kind == "float":
            return float.fromhex(x)
        if kind == "array":
            return np.array(snapshot(self.tensor(x)))
        if kind == "dtype":
            return dtypes.by_name(x)
        if kind == "device":
            return devices.device(x)
        if kind == "size":
            return Size(x)
        if kind in ("dict", "ordered"):
            return (dict if kind == "dict" else OrderedDict)((self.value(k), self.value(v)) for k, v in x)
        return {"list": list, "tuple": tuple, "set": set}[kind](self.value(y) for y in x)


def load(f: str | os.PathLike[str] | BinaryIO, map_location: Any = None, *, weights_only: bool = True) -> Any:
    """Read what `save` wrote; any other safetensors file gives a dictionary of tensors by name.

    A shared library (.so, .dylib, .dll) that `export` or the command line made gives a callable on NumPy arrays.
    ValueError if it is neither, or damaged. `weights_only` is accepted and always so: a file holds no code.
    """
    devices.check(map_location)
    if isinstance(f, (str, os.PathLike)) and os.fspath(f).endswith((".so", ".dylib", ".dll")):
        from flambeau.runtime.library import load as load_library

        return load_library(f)
    from safetensors import SafetensorError, deserialize

    if isinstance(f, (str, os.PathLike)):
        content, where = Path(f).read_bytes(), os.fspath(f)
    else:
        content, where = f.read(), getattr(f, "name", "the stream")
    try:
        entries = dict(deserialize(content))
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"load: {where} is not a safetensors file: {error}") from None
    reader = _Reader(entries)
    if _KEY not in header:
        return {name: reader.tensor(name) for name in entries}
    try:
        described = json.loads(header[_KEY])
        if described["version"] > _VERSION:
            raise ValueError(f"load: {where} was written by a newer Flambeau (format {described['version']})")
        return reader.value(described["root"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"load: {where} is damaged: its structure does not fit its tensors ({error!r})"
        ) from None


__all__ = ["load", "save"]
