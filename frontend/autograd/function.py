"""`Function`: an operation whose derivative is written in Python."""

from __future__ import annotations

from typing import Any

from flambeau.autograd.modes import set_grad_enabled
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.autograd_ops import CustomGradient
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import record_all, state
from flambeau.storage import Cell
from flambeau.tensor import Tensor, new_tensor, read, wrap


class FunctionContext:
    """What `forward` leaves for `backward`."""

    def __init__(self) -> None:
        self._saved: tuple[Any, ...] = ()
        self._non_differentiable: tuple[Any, ...] = ()
        self.needs_input_grad: tuple[bool, ...] = ()
        self.materialize_grads = True

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self._saved = tensors

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return self._saved

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self._non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize_grads = value

    def mark_dirty(self, *tensors: Tensor) -> None:
        raise NotImplementedError("mark_dirty: write in-place functions as functions of new tensors")


class Function:
    """Subclass with static methods `forward(ctx, *args)` and `backward(ctx, *grads)`; call `apply`."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("You must implement the forward function for custom autograd.Function.")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            "You must implement either the backward or vjp method for your custom autograd.Function"
        )

    vjp = backward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """For `forward` without a ctx: stores what `backward` needs."""

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`; its results' gradients come from `backward`."""
        ctx = FunctionContext()
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        recording = state.grad and any(ctx.needs_input_grad)
        with set_grad_enabled(False):
            if cls.setup_context is not Function.setup_context:
                output = cls.forward(*args, **kwargs)
                cls.setup_context(ctx, args, output)
            else:
                output = cls.forward(ctx, *args, **kwargs)
        if not recording:
            return output
        outputs = list(output) if isinstance(output, (tuple, list)) else [output]
        results = [o for o in outputs if isinstance(o, Tensor)]
        inputs = [a for a in args if isinstance(a, Tensor)]
        values = [read(r) for r in results]

        def gradient(cotangents: tuple[Value | None, ...]) -> list[Value | None]:
            return _call_backward(cls, ctx, args, values, cotangents)

        made = record_all(CustomGradient(gradient, len(values)), *values, *(read(i) for i in inputs))
        tensors = []
        for result, value in zip(results, made):
            if any(result is t for t in ctx._non_differentiable):
                value.requires_grad = False
            if value.requires_grad:
                value.hooks = f"{cls.__name__}Backward"
            tensor = new_tensor(Cell(value))
            tensors.append(tensor)
        ctx._saved = tuple(_replaced(s, results, tensors) for s in ctx._saved)
        remaining = iter(tensors)
        final = [next(remaining) if isinstance(o, Tensor) else o for o in outputs]
        return type(output)(final) if isinstance(output, (tuple, list)) else final[0]


def _replaced(saved: Any, results: list[Tensor], tensors: list[Tensor]) -> Any:
    """An output saved in `forward` is, in `backward`, the output that has the history."""
    for before, after in zip(results, tensors):
        if saved is before:
            return after
    return saved


def _call_backward(
    cls: type[Function],
    ctx: FunctionContext,
    args: tuple[Any, ...],
    values: list[Value],
    cotangents: tuple[Value | None, ...],
) -> list[Value | None]:
    grads = []
    for value, ct in zip(values, cotangents):
        if ct is None:
            grads.append(wrap(build.zeros_like(value)) if ctx.materialize_grads else None)
        else:
            grads.append(wrap(ct))
    found = cls.backward(ctx, *grads)
    found = found if isinstance(found, tuple) else (found,)
    while len(found) > len(args) and found[-1] is None:
        found = found[:-1]
    if len(found) != len(args):
        raise RuntimeError(
            f"function {cls.__name__}Backward returned an incorrect number of gradients (expected "
            f"{len(args)}, got {len(found)})"
        )
    result: list[Value | None] = []
    for arg, gradient in zip(args, found):
        if not isinstance(arg, Tensor):
            continue
        if gradient is None or not arg.requires_grad:
            result.append(None)
            continue
        value = read(gradient)
        if value.type is not read(arg).type:
            if tuple(gradient.shape) != tuple(arg.shape):
                raise RuntimeError(
                    f"Function {cls.__name__}Backward returned an invalid gradient at index {len(result)} - got "
                    f""
                    f"{list(gradient.shape)} but expected shape compatible with {list(arg.shape)}"
                )
            value = build.convert(value, build.element_of(read(arg)))
        result.append(value)
    return result
