"""From a list of samples to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flambeau.creation import as_tensor, tensor
from flambeau.dtypes import float64
from flambeau.joining import stack
from flambeau.tensor import Tensor


def default_convert(data: Any) -> Any:
    """NumPy arrays inside become tensors; everything else stays."""
    if isinstance(data, np.ndarray) and data.dtype.kind not in "SUO":
        return as_tensor(data)
    if isinstance(data, Mapping):
        return {key: default_convert(value) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*[default_convert(x) for x in data])
    if isinstance(data, (list, tuple)):
        return [default_convert(x) for x in data]
    return data


def default_collate(batch: Sequence[Any]) -> Any:
    """Samples as one: tensors, arrays and numbers stacked; dictionaries, tuples and lists by their entries.

    TypeError for other things, RuntimeError for lists of different lengths.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return stack(list(batch))
    if isinstance(first, np.ndarray) and first.dtype.kind not in "SUO":
        return as_tensor(np.stack(batch))
    if isinstance(first, np.generic) and first.dtype.kind not in "SUO":
        return as_tensor(np.array(batch))
    if isinstance(first, float):
        return tensor(batch, dtype=float64)
    if isinstance(first, int):
        return tensor(batch)
    if isinstance(first, (str, bytes)):
        return batch
    if isinstance(first, Mapping):
        return {key: default_collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*[default_collate(list(entries)) for entries in zip(*batch)])
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        return [default_collate(list(entries)) for entries in zip(*batch)]
    raise TypeError(
        "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {type(first).__module__}.{type(first).__name__}"
    )


__all__ = ["default_collate", "default_convert"]
