"""Weights and first state beside a library, as a safetensors file whose header the library knows by heart.

The library takes any file with exactly its tensors (names, types, shapes, order), whatever their contents are, so weights
can be replaced without compiling again. Format: https://github.com/huggingface/safetensors: the header's length as a
little-endian u64, the header in JSON, the tensors one behind the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class WeightsFile:
    """What a library knows of the file: its `name`, its `header` (with the length before it), how many bytes follow, and at
    which of them each tensor begins."""

    name: str
    header: bytes
    data_bytes: int
    offsets: Mapping[str, int]

    @staticmethod
    def write(path: str | os.PathLike[str], name: str, tensors: Mapping[str, Array]) -> WeightsFile:
        """Writes the tensors to `path`, which will be called `name`. OSError if that fails."""
        from safetensors.numpy import save_file

        save_file({label: np.require(a, requirements="C") for label, a in tensors.items()}, path)
        with open(path, "rb") as stream:
            length = stream.read(8)
            header = stream.read(int.from_bytes(length, "little"))
        described = json.loads(header)
        data_bytes = Path(path).stat().st_size - 8 - len(header)
        offsets = {label: int(described[label]["data_offsets"][0]) for label in tensors}
        return WeightsFile(name, length + header, data_bytes, offsets)
