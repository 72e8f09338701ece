"""Weights and first state beside a library, as a safetensors file whose header the library knows by heart.

The library takes any file with exactly its tensors (names, types, shapes, order), whatever their contents are, so weights
can be replaced without compiling again. Format: https://github.com/huggingface/safetensors: the header's length as a
little-endian u64, the header in JSON, the tensors one behind the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class WeightsFile:
    """The file's `content`, its `header` (with the length before it), and where each tensor's bytes start after it."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        from safetensors.numpy import save

        self.content: bytes = save({name: np.ascontiguousarray(a) for name, a in tensors.items()})
        length = 8 + int.from_bytes(self.content[:8], "little")
        self.header = self.content[:length]
        self.data_bytes = len(self.content) - length
        described = json.loads(self.header[8:])
        self.offsets = {name: int(described[name]["data_offsets"][0]) for name in tensors}
