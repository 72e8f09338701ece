"""The derivative of a value, made once for all values that came about in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Value
from flambeau.planning import follow, not_recording, path_to
from flambeau.replay import Replay
from flambeau.reverse import Meta, history, is_leaf, reverse
from flambeau.tape import Recorded, Recorder

#: Derivatives that one step of a walk remembers for each way of asking (they differ in what is asked for).
REMEMBERED = 4


class Derivative:
    """A graph from forward values to gradients, and how these values are found from the root.

    The gradients are those of `wanted`, or of all leaves. `path` leads to the values (`planning.path_to`) from the root
    and the seed, if one is given; `interior`, `leaves`, `ends` and `inputs` are positions in it: values that derivatives
    flow through, those where the history begins, those whose gradients are asked for, and what the graph reads. A gradient
    is a number of the graph's results, or of an input that is the gradient itself (negative: ~number).

    KeyError if derivatives do not reach one of `wanted`.
    """

    __slots__ = ("replay", "path", "interior", "leaves", "ends", "inputs", "gradients")

    def __init__(
        self, root: Value, seed: Value | None, wanted: Sequence[Value] | None, differentiable: bool
    ) -> None:
        through = [r for operation in history([root]) for r in operation.results if r.requires_grad]
        starts = [root]
        if seed is not None:
            starts.append(Value(seed.type))
            starts[1].requires_grad = seed.requires_grad
        with not_recording():
            cotangents = reverse([root], starts[1:] or [build.ones_like(root)])
        leaves = [v for v in cotangents if is_leaf(v)]
        ends = leaves if wanted is None else list(wanted)
        gradients = [cotangents[v] for v in ends]
        read = _read(gradients, starts[1:])
        # What another derivative's graph has inside (`Replay`) has no number: nobody can see it, or ask for it.
        through = [v for v in through if v.number >= 0]
        self.path, places = path_to([*through, *leaves, *ends, *read], starts, past_content=True)
        self.interior = [places[v] for v in through]
        self.leaves = [places[v] for v in leaves]
        self.ends = [places[v] for v in ends]
        self.inputs = [places[v] for v in read]
        made = [v for v in dict.fromkeys(gradients) if v not in read]
        self.replay = Replay(read, made, differentiable) if made else None
        self.gradients = [~read.index(v) if v in read else made.index(v) for v in gradients]

    def of(
        self, root: Value, seed: Value | None, wanted: Sequence[Value] | None, now: Recorder
    ) -> list[tuple[Value, Value]] | None:
        """The values asked for and their gradients, recorded. None if these are others than at first, or if somebody
        wants to see what happens between them and the root."""
        try:
            values = follow(self.path, [root] if seed is None else [root, seed])
        except (IndexError, AttributeError):  # a part of the history is gone: it was computed meanwhile
            return None
        ends = [values[i] for i in self.ends]
        if wanted is not None:
            for end, value in zip(ends, wanted):
                if end is not value:
                    return None
        for i in self.interior:
            meta = values[i].hooks
            if meta.__class__ is Meta and (meta.hooks or meta.retain or meta.freed or meta.leaf):
                return None
        for i in self.leaves:
            meta = values[i].hooks
            if meta.__class__ is not Meta or not meta.leaf or meta.hooks or meta.retain or meta.function:
                return None
        inputs = tuple([values[i] for i in self.inputs])
        made = self.replay.record(inputs, now) if self.replay is not None else []
        return [(end, inputs[~r] if r < 0 else made[r]) for end, r in zip(ends, self.gradients)]


def known_gradients(
    root: Value, seed: Value | None, wanted: Sequence[Value] | None, now: Recorder
) -> list[tuple[Value, Value]] | None:
    """The values of `wanted` (None: all leaves) and their gradients, by the kept derivative of `root`; None where only its
    history tells. `seed` is the root's cotangent, of its type (None: ones). Derivatives flow on if grad mode is on."""
    if root.__class__ is not Recorded or root.step is None or now.trace is not None:
        return None
    asked: Any = (None if seed is None else (seed.type, seed.requires_grad), now.grad)
    if wanted is not None:
        asked = (*asked, len(wanted))
    known: list[Derivative] = root.step.derivatives.setdefault(asked, [])
    for derivative in known:
        found = derivative.of(root, seed, wanted, now)
        if found is not None:
            return found
    if len(known) >= REMEMBERED:
        return None
    try:
        derivative = Derivative(root, seed, wanted, now.grad)
    except KeyError:
        return None
    found = derivative.of(root, seed, wanted, now)
    if found is not None:
        known.append(derivative)
    return found


def _read(gradients: list[Value], seeds: list[Value]) -> list[Value]:
    """Where what was made for the gradients ends: forward values, and the seed."""
    found: dict[Value, None] = {}
    read: list[Value] = []
    stack = list(reversed(gradients))
    while stack:
        value = stack.pop()
        if value in found:
            continue
        found[value] = None
        if value.number >= 0 or value.data is not None or value in seeds:
            read.append(value)
        elif value.owner is not None:
            stack.extend(reversed(value.owner.operands))
    return read
