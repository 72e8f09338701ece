"""A workload as a list of ATen operations, free of PyTorch: what its process writes and JAX's reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ref:
    """The value of another operation, a parameter or an input, in an operation's arguments."""

    name: str


@dataclass(frozen=True)
class Program:
    """What JAX runs. `nodes`: (name, operation, arguments, named arguments). `wanted`: the input whose gradient is asked
    for; `optimizer`: its name and options, where it is a training step. `gradients`: of an update without a network."""

    nodes: tuple[tuple[str, str, Any, Any], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, Any]  # arrays by name: parameters, which training changes
    constants: dict[str, Any]  # and buffers
    wanted: int | None = None
    optimizer: tuple[str, dict[str, Any]] | None = None
    gradients: tuple[Any, ...] = ()
