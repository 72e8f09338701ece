"""Arithmetic of sliding windows, shared by convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.compiler.ir.dims import Index, known_nonnegative


def dilated(size: Index, dilation: int) -> Index:
    """The extent of `size` elements with ``dilation - 1`` gaps between neighbours; 0 of 0."""
    return 0 if size == 0 else (size - 1) * dilation + 1


def padded_window(size: Index, padding: tuple[Index, Index], dilation: int) -> Index:
    """The extent of a dimension after dilation and padding."""
    return dilated(size, dilation) + padding[0] + padding[1]


def window_count(
    size: Index,
    window: Index,
    stride: int,
    padding: tuple[Index, Index],
    base_dilation: int,
    window_dilation: int,
) -> Index:
    """How many windows fit; 0 if the window is larger than the padded dimension.

    StableHLO, `reduce_window`: ``is_empty_window ? 0 : floor((padded - dilated window) / stride) + 1``.
    """
    rest = padded_window(size, padding, base_dilation) - dilated(window, window_dilation)
    if isinstance(rest, int) and rest < 0:
        return 0
    return rest // stride + 1


def window_position(
    b: Any, position: Index, low: Index, high: Index, dilation: int, size: Index
) -> tuple[Index, list[Any]]:
    """Where a position of the padded, dilated dimension lies in the operand, and the conditions for it to be there."""
    conditions: list[Any] = []
    at = position - low
    if dilation > 1:
        # Shifted by a multiple of the dilation so that the division sees no negative number.
        shift = -(-low // dilation) if isinstance(low, int) and low > 0 else 0
        moved = at + shift * dilation
        if moved % dilation != 0:
            conditions.append(b.in_bounds(moved % dilation, 0, 1))
        at = moved // dilation - shift
    bounded_below = known_nonnegative(at)
    # The last window ends within the padded operand, so without padding above there is nothing to check above.
    if not bounded_below or not (isinstance(high, int) and high <= 0):
        conditions.append(b.in_bounds(at, 0, size))
    return at, conditions


def spread_and_pad(
    x: np.ndarray[Any, Any], dilation: Sequence[int], padding: Sequence[tuple[Any, Any]], fill: Any
) -> np.ndarray[Any, Any]:
    """`x` with `fill` between its elements and around it; negative padding cuts."""
    shape = [max(0, (n - 1) * d + 1) for n, d in zip(x.shape, dilation, strict=True)]
    spread = np.full(shape, fill, x.dtype)
    spread[tuple([slice(None, None, d) for d in dilation])] = x
    spread = np.pad(spread, [(max(0, low), max(0, high)) for low, high in padding], constant_values=fill)
    cuts = [
        slice(max(0, -low), n - max(0, -high)) for n, (low, high) in zip(spread.shape, padding, strict=True)
    ]
    return spread[tuple(cuts)]
