"""`repr` of tensors, as PyTorch prints them (the rules of its `_tensor_str.py`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flambeau import dtypes


class _Options:
    precision, threshold, edgeitems, linewidth = 4, 1000, 3, 80
    sci_mode: bool | None = None


options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: int | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """How tensors print: digits, elements before the middle is left out, elements at the edges, line width."""
    profiles = {"default": (4, 1000, 3, 80), "short": (2, 1000, 2, 80), "full": (4, math.inf, 3, 80)}
    if profile is not None:
        options.precision, options.threshold, options.edgeitems, options.linewidth = profiles[profile]  # type: ignore[assignment]
    for name, value in (
        ("precision", precision),
        ("threshold", threshold),
        ("edgeitems", edgeitems),
        ("linewidth", linewidth),
    ):
        if value is not None:
            setattr(options, name, value)
    options.sci_mode = sci_mode


class _Formatter:
    """One width and style for all the elements of a tensor."""

    def __init__(self, array: np.ndarray[Any, Any], floating: bool) -> None:
        self.floating, self.integral, self.scientific, self.width = floating, True, False, 1
        flat = array.reshape(-1)
        if not floating:
            self.width = max([1, *(len(str(x)) for x in flat.tolist())])
            return
        good = flat[np.isfinite(flat) & (flat != 0)]
        if good.size == 0:
            return
        magnitude = np.abs(good)
        low, high = float(magnitude.min()), float(magnitude.max())
        self.integral = bool((good == np.ceil(good)).all())
        self.scientific = high / low > 1000.0 or high > 1.0e8 or low < 1.0e-4
        if options.sci_mode is not None:
            self.scientific = options.sci_mode
        self.width = max([1, *(len(self(x)) for x in good.tolist())])  # zeros and NaN do not count

    def __call__(self, x: Any) -> str:
        if not self.floating:
            text = str(x)
        elif self.scientific:
            text = f"{x:.{options.precision}e}"
        elif self.integral:
            text = f"{x:.0f}"
            if math.isfinite(x):
                text += "."
        else:
            text = f"{x:.{options.precision}f}"
        return text.rjust(self.width)


def _vector(array: np.ndarray[Any, Any], indent: int, summarise: bool, formatter: _Formatter) -> str:
    length = formatter.width + 2
    per_line = max(1, math.floor((options.linewidth - indent) / length))
    edge = options.edgeitems
    if summarise and not edge:
        data = ["..."]
    elif summarise and array.shape[0] > 2 * edge:
        shown = array.tolist()
        data = [*map(formatter, shown[:edge]), " ...", *map(formatter, shown[-edge:])]
    else:
        data = [formatter(x) for x in array.tolist()]
    lines = [data[i : i + per_line] for i in range(0, len(data), per_line)] or [[]]
    return "[" + (",\n" + " " * (indent + 1)).join(", ".join(line) for line in lines) + "]"


def _nested(array: np.ndarray[Any, Any], indent: int, summarise: bool, formatter: _Formatter) -> str:
    if array.ndim == 0:
        return formatter(array.tolist())
    if array.ndim == 1:
        return _vector(array, indent, summarise, formatter)
    edge = options.edgeitems
    if summarise and array.shape[0] > 2 * edge:
        rows = [_nested(a, indent + 1, summarise, formatter) for a in array[:edge]]
        rows += (
            ["..."] + [_nested(a, indent + 1, summarise, formatter) for a in array[-edge:]]
            if edge
            else ["..."]
        )
    else:
        rows = [_nested(a, indent + 1, summarise, formatter) for a in array]
    return "[" + ("," + "\n" * (array.ndim - 1) + " " * (indent + 1)).join(rows) + "]"


def _edges(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What a summary shows."""
    edge = options.edgeitems
    for d in range(array.ndim):
        if array.shape[d] > 2 * edge:
            keep = [*range(edge), *range(array.shape[d] - edge, array.shape[d])]
            array = np.take(array, keep, axis=d)
    return array


def content(array: np.ndarray[Any, Any], floating: bool, indent: int) -> str:
    """The elements between brackets."""
    if array.dtype.kind not in "biuf" or (array.dtype.itemsize == 2 and floating):
        array = array.astype(np.float32)
    summarise = array.size > options.threshold
    shown = array.astype(np.float64) if floating else array
    formatter = _Formatter(_edges(shown) if summarise else shown, floating)
    return _nested(shown, indent, summarise, formatter)


def text(tensor: Any) -> str:
    """``tensor([...], dtype=..., grad_fn=...)`` as PyTorch prints it."""
    from_detached = tensor.detach()
    array = from_detached.numpy()
    prefix = "tensor("
    suffixes = []
    name = tensor.dtype.name
    if array.size == 0:
        if array.ndim != 1:
            suffixes.append(f"size={tuple(array.shape)}")
        if name != _default_name():
            suffixes.append(f"dtype={tensor.dtype}")
        body = "[]"
    else:
        if name not in (_default_name(), "int64", "bool"):
            suffixes.append(f"dtype={tensor.dtype}")
        body = content(array, tensor.dtype.is_floating_point, len(prefix))
    function = tensor.grad_fn
    if function is not None:
        suffixes.append(f"grad_fn=<{function.name()}>")
    elif tensor.requires_grad:
        suffixes.append("requires_grad=True")
    out = _with_suffixes(prefix + body, suffixes, len(prefix))
    return f"Parameter containing:\n{out}" if type(tensor).__name__ == "Parameter" else out


def _default_name() -> str:
    return dtypes.get_default_dtype().name


def _with_suffixes(out: str, suffixes: list[str], indent: int) -> str:
    parts = [out]
    last = len(out) - out.rfind("\n") + 1
    for suffix in suffixes:
        if last + len(suffix) + 2 > options.linewidth:
            parts.append(",\n" + " " * indent + suffix)
            last = indent + len(suffix)
        else:
            parts.append(", " + suffix)
            last += len(suffix) + 2
    return "".join([*parts, ")"])
