"""Names of an exported function's inputs and outputs: those of its parameters and of what it returns, as C identifiers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from flambeau.tensor import Tensor

#: Words that a C compiler would not take as a parameter's name.
RESERVED = frozenset(
    """
    alignas alignof and asm auto bool break case catch char class const constexpr continue default
    delete do double else enum explicit export extern false float for friend goto if inline int int64_t
    long mutable namespace new not operator or private protected public register restrict return short
    signed size_t sizeof static struct switch template this throw true try typedef typename union
    unsigned using virtual void volatile while xor handle
    """.split()  # noqa: SIM905  seventy words read better as text
)


def identifier(text: str) -> str:
    """`text` as a C identifier."""
    found = re.sub(r"\W", "_", text, flags=re.ASCII)
    if not found.strip("_"):
        return "model"
    return f"m_{found}" if found[0].isdigit() else found


def argument_names(function: Any, count: int) -> list[str]:
    """The names of the first `count` positional parameters."""
    called = getattr(function, "forward", function)
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return [f"input{i}" for i in range(count)]
    names: list[str] = []
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}{i}" for i in range(count - len(names))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    return (names + [f"input{i}" for i in range(len(names), count)])[:count]


def input_names(labels: Sequence[str], arguments: Sequence[Any]) -> list[str]:
    def names(label: str, argument: Any) -> list[str]:
        if isinstance(argument, Tensor | np.ndarray | np.generic):
            return [label]
        if isinstance(argument, list | tuple):
            return [n for i, a in enumerate(argument) for n in names(f"{label}{i}", a)]
        return []

    return [n for label, argument in zip(labels, arguments) for n in names(label, argument)]


def output_names(outputs: Any) -> list[str]:
    """A name for each tensor of the result, in the tensors' order."""
    if isinstance(outputs, int):
        return ["output"]
    found: list[tuple[int, str]] = []

    def visit(part: Any, label: str) -> None:
        if isinstance(part, int):
            found.append((part, label))
        elif part is not None:
            items = part.items() if isinstance(part, dict) else enumerate(part)
            for key, inner in items:
                visit(
                    inner, str(key) if isinstance(part, dict) and not label else f"{label or 'output'}{key}"
                )

    visit(outputs, "")
    return [label for _, label in sorted(found)]


def unique(text: str, used: set[str]) -> str:
    """A C identifier that is in nobody else's use."""
    name = identifier(text)
    if name in RESERVED:
        name += "_"
    chosen, number = name, 1
    while chosen in used:
        chosen, number = f"{name}_{number}", number + 1
    used.add(chosen)
    return chosen
