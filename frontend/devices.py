"""Devices: where tensors live. Tensors of this version live on the CPU."""

from __future__ import annotations

from typing import Any


class device:
    """A device by type and index: ``device("cpu")``, ``device("cuda:0")``, ``device("cuda", 1)``."""

    __slots__ = ("type", "index")

    def __init__(self, type: Any, index: int | None = None) -> None:
        if isinstance(type, device):
            type, index = type.type, type.index if index is None else index
        elif isinstance(type, int):
            type, index = "cuda", type
        elif ":" in type:
            if index is not None:
                raise RuntimeError(
                    f"type (string) must not include an index because index was passed explicitly: {type}"
                )
            type, _, number = type.partition(":")
            if not number.isdigit():
                raise RuntimeError(f"Invalid device string: '{type}:{number}'")
            index = int(number)
        if type not in ("cpu", "cuda"):
            raise RuntimeError(f"Expected one of cpu, cuda device type at start of device string: {type}")
        self.type, self.index = type, index

    def __repr__(self) -> str:
        return f"device(type='{self.type}'" + (f", index={self.index})" if self.index is not None else ")")

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))


cpu = device("cpu")


class cuda:
    """CUDA, as far as a program asks about it: there is none here."""

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 0

    @staticmethod
    def synchronize(device: Any = None) -> None:
        check(globals()["device"]("cuda"))

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Seeds no generator: there is no CUDA device."""


def check(where: Any) -> device:
    """`where` as a device on which tensors can be; the CPU for None. RuntimeError for CUDA."""
    if where is None:
        return cpu
    found = where if isinstance(where, device) else device(where)
    if found.type != "cpu":
        raise RuntimeError(f"tensors on '{found}' are not available: Flambeau evaluates on 'cpu' here")
    return cpu
