"""A library's tensors as object files of their own.

LLVM makes each file with a mark and zeros in it; the tensors' bytes are put there as the file is written. So they pass
through no text and no constant of LLVM, and are never all in memory a second time, whatever the format of the file is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from flambeau.compiler.targets.machine import TargetDescription, emit_object
from flambeau.runtime.abi import ALIGNMENT

Array = np.ndarray[Any, Any]

#: Bytes of tensors after which another object begins: as much memory as writing one may take. (A larger tensor takes more.)
LIMIT = 32 << 20


@dataclass
class DataObject:
    """One constant, called `label`: tensors behind one another, each from a multiple of `ALIGNMENT` on."""

    label: str
    target: TargetDescription
    arrays: list[Array] = field(default_factory=list)
    nbytes: int = 0

    def add(self, array: Array) -> int:
        """The offset of a further tensor."""
        offset = self.nbytes
        self.arrays.append(array)
        self.nbytes += _padded(array.nbytes)
        return offset

    @property
    def declaration(self) -> str:
        """What a module says that refers to it."""
        return f'@"{self.label}" = external hidden constant [{self.nbytes} x i8], align {ALIGNMENT}'

    def write(self, stream: BinaryIO) -> None:
        """The object file."""
        mark = hashlib.blake2b(self.label.encode(), digest_size=32).digest()
        types = f"<{{ [{len(mark)} x i8], [{self.nbytes - len(mark)} x i8] }}>"
        escaped = "".join([f"\\{b:02X}" for b in mark])
        content = f'<{{ [{len(mark)} x i8] c"{escaped}", [{self.nbytes - len(mark)} x i8] zeroinitializer }}>'
        text = f'@"{self.label}" = hidden constant {types} {content}, align {ALIGNMENT}\n'
        code = memoryview(emit_object(text, self.target))
        begin = code.obj.find(mark)  # type: ignore[attr-defined]
        assert begin >= 0, "an object file holds its constants as they are"
        stream.write(code[:begin])
        for part in self._parts():
            stream.write(part)
        stream.write(code[begin + self.nbytes :])

    def _parts(self) -> Iterator[Any]:
        for array in self.arrays:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            yield bytes(_padded(array.nbytes) - array.nbytes)


class DataObjects:
    """Tensors get places in objects called `prefix` and a number."""

    def __init__(self, prefix: str, target: TargetDescription) -> None:
        self.prefix, self.target = prefix, target
        self.objects: list[DataObject] = []

    def add(self, array: Array) -> str:
        """The address, in LLVM's text, of a tensor that lies in an object from now on."""
        if not self.objects or self.objects[-1].nbytes + array.nbytes > LIMIT:
            self.objects.append(DataObject(f"{self.prefix}{len(self.objects)}", self.target))
        last = self.objects[-1]
        return f'getelementptr (i8, ptr @"{last.label}", i64 {last.add(array)})'


def _padded(nbytes: int) -> int:
    """At least one unit: an object with empty tensors only has room for its mark."""
    return max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
