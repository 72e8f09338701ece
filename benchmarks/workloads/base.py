"""The shape of a workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Workload:
    """`setup(m)` gives what is timed, for the module `m` (torch or flambeau): a function or network of the tensors of
    `arrays()`, a `Gradient` of one, a training `Step`, or an optimizer's `Update`.

    `work` counts operations of arithmetic, `traffic` bytes that must move at least, `read` those of them that are read; the
    larger share of the machine's limits is reported; `arithmetic` says of which peak. `tolerance`: of the result, relative to
    the largest exact element. `dtype`: what the arrays of floats become first, if not float32. `eager`: not compiled, because
    the dynamic way is what the workload is about.
    """

    name: str
    arrays: Callable[[], list[Array]]
    setup: Callable[[Any], Any]
    work: float = 0
    traffic: float = 0
    tolerance: float = 1e-4
    dtype: str = ""
    eager: bool = False
    arithmetic: str = "f32"
    read: float = 0

    @property
    def group(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_model(self) -> bool:
        """Whole networks, whose peak memory is measured too, in a fresh process each."""
        return self.group in ("inference", "training")


@dataclass(frozen=True)
class Gradient:
    """The gradient of `function` in its argument number `wanted`; the last argument is the result's cotangent."""

    function: Callable[..., Any]
    wanted: int

    def bound(self, m: Any) -> Callable[..., Any]:
        """It as a function for torch or flambeau."""
        function, wanted = self.function, self.wanted

        def gradient(*given: Any) -> Any:
            with m.enable_grad():
                arguments = list(given[:-1])
                arguments[wanted] = arguments[wanted].detach().requires_grad_()
                return m.autograd.grad(function(*arguments), arguments[wanted], given[-1])[0]

        return gradient


@dataclass(frozen=True)
class Step:
    """A training step: `loss(net, *inputs)`, its gradient, the optimizer's update. Gives the loss."""

    net: Any
    loss: Callable[..., Any]
    optimizer: Any

    def bound(self, m: Any) -> Callable[..., Any]:
        net, loss_of, optimizer = self.net, self.loss, self.optimizer

        def step(*inputs: Any) -> Any:
            optimizer.zero_grad()
            loss = loss_of(net, *inputs)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step


@dataclass(frozen=True)
class Update:
    """An optimizer's update of parameters that have gradients. Gives the first parameter."""

    parameters: list[Any]
    optimizer: Any

    def bound(self, m: Any) -> Callable[..., Any]:
        parameters, optimizer = self.parameters, self.optimizer

        def step() -> Any:
            optimizer.step()
            return parameters[0].detach()

        return step


def normal(*shapes: tuple[int, ...]) -> Callable[[], list[Array]]:
    """Arrays of standard normal numbers, the same at every call."""

    def make() -> list[Array]:
        rng = np.random.default_rng(0)
        return [rng.standard_normal(s).astype(np.float32) for s in shapes]

    return make


#: Numbers that weights are made of, again and again: prime, so that the rows of a matrix differ; few, so that making
#: weights costs neither the time nor the memory that we want to measure.
_NUMBERS = 65521


def fill(module: Any, m: Any) -> Any:
    """The same weights in every process: normal, with a deviation of 1 / sqrt(inputs); offsets are zero, scales one."""
    numbers = np.random.default_rng(1).standard_normal(_NUMBERS).astype(np.float32)
    with m.no_grad():
        for number, (name, p) in enumerate(module.named_parameters()):
            shape = tuple(p.shape)
            if len(shape) < 2:
                values = np.full(shape, 0.0 if "bias" in name else 1.0, np.float32)
            else:
                scale = np.float32(1 / np.sqrt(np.prod(shape[1:])))
                values = np.resize(np.roll(numbers, 101 * number) * scale, shape)
            p.copy_(m.from_numpy(values))
    return module
