"""Backward hooks of modules: identities around a module's inputs and outputs that see the gradients pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flambeau.autograd import Function
from flambeau.tensor import Tensor

Hook = Callable[..., Any]


class _Seen:
    """What one call of a module learns during backward."""

    def __init__(self, module: Any, before: Sequence[Hook], after: Sequence[Hook]) -> None:
        self.module, self.before, self.after = module, tuple(before), tuple(after)
        self.arguments = 0
        self.positions: list[int] = []
        self.outgoing: tuple[Any, ...] = ()

    def enter(self, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        """The outputs' gradients arrive."""
        for hook in self.before:
            replaced = hook(self.module, gradients)
            if replaced is not None:
                gradients = replaced if isinstance(replaced, tuple) else (replaced,)
        self.outgoing = gradients
        if not self.positions:  # no input takes a gradient: there is nothing to wait for
            for hook in self.after:
                hook(self.module, (None,) * self.arguments, gradients)
        return gradients

    def leave(self, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs' gradients leave."""
        whole: list[Any] = [None] * self.arguments
        for position, gradient in zip(self.positions, gradients):
            whole[position] = gradient
        now = tuple(whole)
        for hook in self.after:
            replaced = hook(self.module, now, self.outgoing)
            if replaced is not None:
                now = replaced if isinstance(replaced, tuple) else (replaced,)
        return tuple([now[p] for p in self.positions])


class _Around(Function):
    """The identity on several tensors; `seen` is told of the gradients."""

    @staticmethod
    def forward(ctx: Any, told: Callable[[tuple[Any, ...]], tuple[Any, ...]], *tensors: Tensor) -> Any:
        ctx.told = told
        # A function's results must be new tensors: its inputs themselves would be taken for written in place.
        return tuple([t.view_as(t) for t in tensors])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (None, *ctx.told(gradients))


def call_with_backward_hooks(
    module: Any, forward: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any],
    before: Sequence[Hook], after: Sequence[Hook],
) -> Any:  # fmt: skip
    """`forward(*arguments, **options)`, with `before` (pre) and `after` hooks called during backward."""
    seen = _Seen(module, before, after)
    seen.arguments = len(arguments)
    given = list(arguments)
    if after:
        seen.positions = [i for i, a in enumerate(given) if isinstance(a, Tensor) and a.requires_grad]
        if seen.positions:
            passed = _Around.apply(seen.leave, *[given[i] for i in seen.positions])
            for i, tensor in zip(seen.positions, passed):
                given[i] = tensor
    result = forward(*given, **options)
    outputs = result if isinstance(result, tuple) else (result,)
    flowing = [i for i, r in enumerate(outputs) if isinstance(r, Tensor) and r.requires_grad]
    if not flowing:
        return result
    passed = _Around.apply(seen.enter, *[outputs[i] for i in flowing])
    replaced = list(outputs)
    for i, tensor in zip(flowing, passed):
        replaced[i] = tensor
    return tuple(replaced) if isinstance(result, tuple) else replaced[0]
