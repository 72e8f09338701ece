"""Names for the tensors that an exported function captured: as in the state dictionaries of what it refers to."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

from flambeau.random import default_generator
from flambeau.storage import Cell
from flambeau.tensor import Tensor


def state_names(function: Any, arguments: Sequence[Any] = ()) -> dict[int, str]:
    """Names by the identity of tensors' cells: ``0.weight``, ``0.weight.exp_avg``, ``0.weight.grad``, ``scale``.

    Looks at the modules, optimizers and tensors that the function is, gets, closes over or names as globals. A module's
    name leads where there are several.
    """
    referred = _referred(function, arguments)
    modules = {label: o for label, o in referred.items() if hasattr(o, "named_parameters")}
    names: dict[int, str] = {}
    for label, module in modules.items():
        prefix = f"{label}." if len(modules) > 1 and label else ""
        for tables in (module.named_parameters(), module.named_buffers()):
            for key, tensor in tables:
                _name(names, tensor, f"{prefix}{key}")
    for label, found in referred.items():
        if isinstance(found, Tensor):
            _name(names, found, label)
        elif hasattr(found, "param_groups"):
            _name_optimizer(names, found)
    generator = getattr(default_generator, "_cell", None)
    if generator is not None:
        names.setdefault(id(generator), "generator")
    return names


def _root(cell: Cell) -> Cell:
    while cell.parent is not None:
        cell = cell.parent
    return cell


def _name(names: dict[int, str], tensor: Tensor, name: str) -> None:
    names.setdefault(id(_root(tensor._cell)), name)
    if tensor._grad is not None:
        names.setdefault(id(_root(tensor._grad._cell)), f"{name}.grad")


def _name_optimizer(names: dict[int, str], optimizer: Any) -> None:
    for parameter, entries in getattr(optimizer, "state", {}).items():
        if not isinstance(parameter, Tensor) or not hasattr(entries, "items"):
            continue
        owner = names.get(id(_root(parameter._cell)), "parameter")
        for key, tensor in entries.items():
            if isinstance(tensor, Tensor):
                _name(names, tensor, f"{owner}.{key}")
    for number, group in enumerate(optimizer.param_groups):
        for key, tensor in group.items():
            if isinstance(tensor, Tensor):
                _name(names, tensor, f"group{number}.{key}")


def _referred(function: Any, arguments: Sequence[Any]) -> dict[str, Any]:
    """What a function can reach by name, nearest first."""
    found: dict[str, Any] = {}
    if hasattr(function, "named_parameters"):
        found[""] = function
    if isinstance(function, types.MethodType):
        found["self"] = function.__self__
        function = function.__func__
    for number, argument in enumerate(arguments):
        if hasattr(argument, "named_parameters"):
            found[f"argument{number}"] = argument
    wrapped = getattr(function, "__wrapped__", None)
    for candidate in (function, wrapped):
        if not isinstance(candidate, types.FunctionType):
            continue
        for name, cell in zip(candidate.__code__.co_freevars, candidate.__closure__ or ()):
            try:
                found.setdefault(name, cell.cell_contents)
            except ValueError:  # not set yet
                continue
        for name in candidate.__code__.co_names:
            if name in candidate.__globals__:
                found.setdefault(name, candidate.__globals__[name])
    return found
