"""Reverse mode over graph values: what `backward`, `grad` and evaluation share. It knows nothing of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.autograd_ops import CustomGradient, StopGradient
from flambeau.compiler.ir.core import Operation, Value


class Meta:
    """What autograd keeps at a value: the printed name of its function, hooks, whose `.grad` it feeds."""

    __slots__ = ("name", "leaf", "freed", "tensor", "hooks", "retain", "function")

    def __init__(self, name: str | None = None, leaf: bool = False) -> None:
        self.name, self.leaf = name, leaf
        self.freed = False
        self.tensor: Any = None  # weak reference to the tensor whose .grad is fed
        self.hooks: dict[int, Callable[..., Any]] = {}
        self.retain: list[Any] = []
        self.function: Any = None


def meta_of(value: Value) -> Meta:
    """The value's `Meta`, made if it has none."""
    meta = value.hooks
    if not isinstance(meta, Meta):
        meta = value.hooks = Meta(meta)
    return meta


def is_leaf(value: Value) -> bool:
    """Does the history of `value` begin here?"""
    return isinstance(value.hooks, Meta) and value.hooks.leaf


FREED = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already "
    "been freed). Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). "
    "Specify retain_graph=True if you need to backward through the graph a second time or if you need to access "
    "saved tensors after calling backward."
)


def history(roots: Sequence[Value]) -> list[Operation]:
    """The operations through which derivatives flow to `roots`, operands first."""
    order: list[Operation] = []
    done: set[Operation] = set()
    stack: list[tuple[Value, bool]] = [(v, False) for v in reversed(roots)]
    while stack:
        value, visited = stack.pop()
        if is_leaf(value) or not value.requires_grad:
            continue
        operation = value.owner
        if value.hooks.__class__ is Meta and value.hooks.freed:
            raise RuntimeError(FREED)
        if operation is None or operation in done:
            continue
        if visited:
            done.add(operation)
            order.append(operation)
            continue
        stack.append((value, True))
        for operand in reversed(operation.operands):
            if operand.requires_grad:
                stack.append((operand, False))
    return order


def reverse(
    roots: Sequence[Value],
    seeds: Sequence[Value],
    visit: Callable[[Value, Value], Value] | None = None,
    python: bool = True,
) -> dict[Value, Value]:
    """The cotangent of every value that derivatives reach, from those of `roots`.

    `visit(value, cotangent)` sees each complete cotangent and may give another. With `python=False` a custom function
    is passed by (what it reads is its own affair).
    """
    order = history(roots)
    cotangents: dict[Value, Value] = {}
    for root, seed in zip(roots, seeds):
        cotangents[root] = build.add(cotangents[root], seed) if root in cotangents else seed
    for operation in reversed(order):
        arriving: list[Value | None] = [cotangents.get(r) for r in operation.results]
        if visit is not None:
            for i, result in enumerate(operation.results):
                ct = arriving[i]
                if ct is not None:
                    arriving[i] = cotangents[result] = visit(result, ct)
        if not any(ct is not None for ct in arriving):
            continue
        definition: Any = operation.definition
        if isinstance(definition, StopGradient) or (isinstance(definition, CustomGradient) and not python):
            continue
        for operand, ct in zip(
            operation.operands, definition.gradient(arriving, operation.operands, operation.results)
        ):
            if ct is None or not operand.requires_grad:
                continue
            before = cotangents.get(operand)
            cotangents[operand] = ct if before is None else build.add(before, ct)
    if visit is not None:
        for value, ct in list(cotangents.items()):
            if is_leaf(value):
                cotangents[value] = visit(value, ct)
    return cotangents
