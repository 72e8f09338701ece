"""Grad mode, inference mode and anomaly mode: context managers that are decorators too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flambeau.evaluation import state


class _Mode:
    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return wrapped

    def _again(self) -> Any:
        return type(self)()

    def __enter__(self) -> Any:
        raise NotImplementedError

    def __exit__(self, *_: Any) -> None:
        raise NotImplementedError


class _Grad(_Mode):
    enabled = False

    def __enter__(self) -> Any:
        self._before = state.grad
        state.grad = self.enabled
        return self

    def __exit__(self, *_: Any) -> None:
        state.grad = self._before


class no_grad(_Grad):
    """Inside, operations record no history."""

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        made = super().__new__(cls)
        return made if function is None else made(function)


class enable_grad(no_grad):
    """Inside, operations record their history, even within `no_grad`."""

    enabled = True


class set_grad_enabled(_Grad):
    """Switches recording on or off, at once or as a context manager."""

    def __init__(self, mode: bool) -> None:
        self.enabled = mode
        self._before = state.grad
        state.grad = mode

    def __enter__(self) -> Any:
        state.grad = self.enabled
        return self

    def _again(self) -> Any:
        return set_grad_enabled(self.enabled)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        state.grad = self._before
        return super().__call__(function)


class inference_mode(_Grad):
    """Like `no_grad`."""

    def __new__(cls, mode: Any = True) -> Any:
        made = super().__new__(cls)
        return made(mode) if callable(mode) else made

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> Any:
        self._saved = state.inference
        self._before = state.grad
        state.inference = self.mode
        state.grad = state.grad and not self.mode
        return self

    def __exit__(self, *_: Any) -> None:
        state.inference = self._saved
        state.grad = self._before

    def _again(self) -> Any:
        return inference_mode(self.mode)


def is_grad_enabled() -> bool:
    """Is history recorded?"""
    return state.grad


def is_inference_mode_enabled() -> bool:
    """Is this inside `inference_mode`?"""
    return state.inference
