"""Sequences of different lengths: padded, and packed as PyTorch packs them (all first steps, all second steps, ...)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flambeau.creation import as_tensor, from_numpy, full
from flambeau.joining import cat, stack
from flambeau.tensor import Tensor


class _Packed(NamedTuple):
    data: Any
    batch_sizes: Any
    sorted_indices: Any
    unsorted_indices: Any


class PackedSequence(_Packed):
    """The steps of all sequences, longest sequence first: `data` (sum of lengths, …), `batch_sizes` (T) how many have each.

    `sorted_indices` says which sequence is where, `unsorted_indices` undoes it; both None if the sequences came sorted.
    """

    def __new__(
        cls, data: Any, batch_sizes: Any = None, sorted_indices: Any = None, unsorted_indices: Any = None
    ) -> PackedSequence:
        if batch_sizes is None:
            raise ValueError("batch_sizes should not be None")
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    @property
    def is_cuda(self) -> bool:
        return False

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The same with `data` converted, as `Tensor.to`."""
        return PackedSequence(self.data.to(*args, **kwargs), *self[1:])


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes another; None for None."""
    if permutation is None:
        return None
    return from_numpy(np.argsort(permutation.numpy(), kind="stable"))


def _places(batch_sizes: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which (step, sequence) exists, (T, N), and of those that do the row in the packed data."""
    sizes = np.asarray(batch_sizes.numpy())
    exists = np.arange(sizes[0])[None, :] < sizes[:, None]
    rows = np.full(exists.shape, int(sizes.sum()))
    rows[exists] = np.arange(int(sizes.sum()))
    return exists, rows


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Pack (T, N, …), or (N, T, …) with `batch_first`, of which sequence n has `lengths[n]` steps.

    With `enforce_sorted` the lengths must not increase. RuntimeError for lengths that do not fit.
    """
    sizes = np.asarray(lengths.numpy() if isinstance(lengths, Tensor) else lengths, np.int64)
    x: Any = input.transpose(0, 1) if batch_first else input
    if sizes.ndim != 1 or len(sizes) != x.shape[1]:
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {sizes.size} (batch_size={x.shape[1]})"
        )
    if sizes.size == 0 or sizes.min() <= 0:
        raise RuntimeError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
        )
    if sizes.max() > x.shape[0]:
        raise RuntimeError(f"Expected lengths of at most {x.shape[0]}, got {int(sizes.max())}")
    order = None
    if not enforce_sorted:
        order = from_numpy(np.argsort(-sizes, kind="stable"))
        sizes = sizes[order.numpy()]
        x = x.index_select(1, order)
    elif np.any(np.diff(sizes) > 0):
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass "
            "`enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this requirement"
        )
    steps = int(sizes[0])
    exists = np.arange(steps)[:, None] < sizes[None, :]
    rows = np.flatnonzero(exists)
    flat = x[:steps].reshape(steps * x.shape[1], *x.shape[2:])
    return PackedSequence(flat.index_select(0, from_numpy(rows)), from_numpy(exists.sum(1)), order, None)


def _padded(data: Any, rows: np.ndarray[Any, Any], value: float) -> Any:
    """(T, N, …): the rows of `data`, and behind its end `value`."""
    padding = full((1, *data.shape[1:]), value, dtype=data.dtype)
    chosen = cat([data, padding], 0).index_select(0, from_numpy(rows.reshape(-1)))  # type: ignore[attr-defined]
    return chosen.reshape(*rows.shape, *data.shape[1:])


def pad_packed(sequence: PackedSequence) -> tuple[Tensor, Tensor]:
    """(T, N, …) with zeros behind the ends, in the packed order, and which steps exist (T, N)."""
    exists, rows = _places(sequence.batch_sizes)
    return _padded(sequence.data, rows, 0.0), from_numpy(exists)


def repack(padded: Tensor, like: PackedSequence) -> PackedSequence:
    """A padded (T, N, …) in the packed order, packed as `like` is."""
    exists, _ = _places(like.batch_sizes)
    flat: Any = padded.reshape(exists.size, *padded.shape[2:])  # type: ignore[attr-defined]
    return PackedSequence(flat.index_select(0, from_numpy(np.flatnonzero(exists))), *like[1:])


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The sequences padded to the longest one (or to `total_length`), in their first order, and their lengths."""
    exists, rows = _places(sequence.batch_sizes)
    if total_length is not None:
        if total_length < len(rows):
            raise ValueError(
                "Expected total_length to be at least the length of the longest sequence in input, but got "
                f"total_length={total_length} and max sequence length being {len(rows)}"
            )
        more = np.full((total_length - len(rows), rows.shape[1]), int(exists.sum()))
        rows = np.concatenate([rows, more])
    padded, lengths = _padded(sequence.data, rows, padding_value), from_numpy(exists.sum(0))
    if sequence.unsorted_indices is not None:
        padded = padded.index_select(1, sequence.unsorted_indices)
        lengths = lengths.index_select(0, sequence.unsorted_indices)  # type: ignore[attr-defined]
    return padded.transpose(0, 1) if batch_first else padded, lengths


def pad_sequence(
    sequences: Any, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Tensors (L, …) of different lengths as one (T, N, …), or (N, T, …) with `batch_first`."""
    if not isinstance(sequences, Iterable):
        raise RuntimeError(
            f"pad_sequence: Expected iterable for input sequences, but got arg of type: {type(sequences)}"
        )
    if padding_side not in ("left", "right"):
        raise RuntimeError(f"padding_side must be one of left or right, got {padding_side}")
    listed: list[Any] = list(sequences)
    longest = max(s.shape[0] for s in listed)
    found = []
    for s in listed:
        if s.shape[0] < longest:
            padding = full((longest - s.shape[0], *s.shape[1:]), padding_value, dtype=s.dtype)
            s = cat([s, padding] if padding_side == "right" else [padding, s], 0)
        found.append(s)
    return stack(found, 0 if batch_first else 1)


def pack_sequence(sequences: Sequence[Any], enforce_sorted: bool = True) -> PackedSequence:
    """Pack tensors (L, …) of different lengths."""
    return pack_padded_sequence(
        pad_sequence(sequences), [s.shape[0] for s in sequences], False, enforce_sorted
    )


def unpad_sequence(padded_sequences: Any, lengths: Any, batch_first: bool = False) -> list[Tensor]:
    """The sequences of which a padded tensor was made."""
    rows = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [rows[i, :length] for i, length in enumerate(as_tensor(lengths).tolist())]  # type: ignore[attr-defined]


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences of which a packed one was made."""
    return unpad_sequence(*pad_packed_sequence(packed_sequences, batch_first=True), batch_first=True)
