"""Tensors that a module trains or keeps."""

from __future__ import annotations

import numpy as np

from flambeau import dtypes, evaluation
from flambeau.storage import Cell
from flambeau.tensor import Tensor, read


class Parameter(Tensor):
    """A tensor that, assigned to a module, is one of its parameters.

    It starts with the content of `data` in a storage cell of its own: writing to `data` later does not change it.
    RuntimeError if `data` is not floating and `requires_grad` is asked for.
    """

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        if data is None:
            element = dtypes.get_default_dtype().element
            value = evaluation.leaf(np.empty(0, element.numpy), element)
        else:
            value = read(data)
            if value.requires_grad:
                value = evaluation.stop_gradient(value)
        self._cell, self._chain = Cell(value), None
        self._base = self._cached = self._grad = None
        if requires_grad:
            self.requires_grad_()

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class Buffer(Tensor):
    """A tensor that, assigned to a module, is one of its buffers; `persistent` ones belong to its state dict."""

    persistent: bool

    def __init__(self, data: Tensor, *, persistent: bool = True) -> None:
        self._cell, self._chain = data._cell, data._chain
        self._base = self._cached = self._grad = None
        self.persistent = persistent


__all__ = ["Buffer", "Parameter"]
