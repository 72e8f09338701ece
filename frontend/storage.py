"""Storage cells and views: PyTorch's aliasing on immutable graph values.

A cell holds the current value. A view is a chain of definitions applied to it; writing through a view puts the written
value back with the chain's inverse. A detached alias is a cell with a parent: the same content, another history.
"""

from __future__ import annotations

import weakref
from sys import getrefcount
from typing import Any

from flambeau import evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.autograd_ops import GradientOf
from flambeau.compiler.dialects.graph.shape import BroadcastInDim, Reshape, Slice, Transpose
from flambeau.compiler.ir.core import Value, apply, untraced
from flambeau.compiler.ir.types import i1
from flambeau.evaluation import record, state
from flambeau.recent import Recent
from flambeau.replay import Replay, replay_of
from flambeau.reverse import Meta, is_leaf, meta_of
from flambeau.runtime.buffer import copied, is_sole

Chain = tuple[Any, ...]


class Cell:
    """One tensor's memory: its value now, how often it was written, and for a detached alias whose memory it is."""

    __slots__ = ("value", "version", "parent", "seen", "leaf", "through", "__weakref__")

    def __init__(self, value: Value, parent: Cell | None = None) -> None:
        self.value = value
        self.version = 0
        self.parent = parent
        self.seen: Value | None = None  # the parent's value of which `value` is the detached form
        self.leaf: Meta | None = None
        self.through: Chain | None = None  # of which part of the parent this is, if not all
        if state.trace is not None:
            state.trace.makes(self)
        if parent is None and value.data is None:
            evaluation.note(self)

    def read(self) -> Value:
        """The value now."""
        return here(self)._read()

    def _read(self) -> Value:
        if self.parent is None:
            return self.value
        base = self.parent.read()
        if base is self.seen:
            return self.value
        shown = base if self.through is None else apply_chain(self.through, base)
        if shown.requires_grad or self.leaf is not None:
            shown = evaluation.stop_gradient(shown)
        if self.leaf is not None:
            evaluation.begin_history(shown, self.leaf)
        self.value = shown  # before `seen`, which tells other threads that it is there
        self.seen = base
        return shown

    def write(self, new: Value, recorded: bool = True) -> None:
        """Replace the value. Unless the write is `recorded` by autograd, the history stays as it was."""
        own = here(self)
        if state.trace is not None:
            state.trace.writes(own)
        own._write(new, recorded)

    def _write(self, new: Value, recorded: bool) -> None:
        self.version += 1
        if self.parent is not None:
            whole = new
            if self.through is not None:
                whole = write_through(self.through, self.parent.read(), new)
            self.parent.write(whole, False)
            if new.requires_grad and recorded:
                self.value, self.seen = new, here(self.parent).value
            return
        old = self.value
        if old.requires_grad and not (recorded and new.requires_grad):
            if is_leaf(old):
                new = evaluation.stop_gradient(new)
                evaluation.begin_history(new, old.hooks)
            elif new is not old:
                source = old
                new = record(GradientOf(recorded), evaluation.stop_gradient(new), source)
                new.requires_grad = True
        elif new.requires_grad and not recorded:
            new = evaluation.stop_gradient(new)
        self.value = new
        if new.data is None:
            evaluation.note(self)

    def become_leaf(self, meta: Meta) -> None:
        """From now on the content is a leaf of autograd's graph."""
        own = here(self)
        if own is not self:
            own.become_leaf(meta)
            return
        value = evaluation.stop_gradient(self._read())
        evaluation.begin_history(value, meta)
        self.value = value
        self.leaf = meta if self.parent is not None else None
        if self.parent is not None:
            self.seen = self.parent.read()
        elif self.value.data is None:
            evaluation.note(self)


def here(cell: Cell) -> Cell:
    """The cell that this thread reads and writes for `cell`: a trace has its own."""
    return cell if state.trace is None else state.trace.cell(cell)  # type: ignore[no-any-return]


class Replacements:
    """Cells that a tensor has left for another (``p.data = new``): who captured one has to look at the tensor again."""

    def __init__(self) -> None:
        self.count = 0
        self.cells: weakref.WeakSet[Cell] = weakref.WeakSet()

    def note(self, cell: Cell) -> None:
        """A tensor has just left `cell`."""
        self.count += 1
        self.cells.add(cell)


replacements = Replacements()


def apply_chain(chain: Chain, value: Value) -> Value:
    """The view's value. Whether derivatives flow is decided by the base alone, whatever the grad mode is now."""
    before = state.grad
    state.grad = value.requires_grad
    try:
        for definition in chain:
            value = record(definition, value)
        return value
    finally:
        state.grad = before


class _Write(Replay):
    """`write_through`, recorded in one step."""

    __slots__ = ()


_WRITES: Recent[Any, _Write] = Recent(1024)


def write_through(chain: Chain, base: Value, new: Value, uniform: bool = False) -> Value:
    """`base` with the part that `chain` shows replaced by `new`; `uniform` says that its elements are all equal."""
    now = state.now
    if now.trace is not None:
        return _written(chain, base, new, uniform)
    flows = now.grad and base.requires_grad, now.grad and new.requires_grad
    key = chain, base.type, new.type, uniform, flows
    known = _WRITES.get(key)
    if known is None:
        inputs = Value(base.type, None, 0, flows[0]), Value(new.type, None, 0, flows[1])
        with untraced():
            result = _written(chain, *inputs, uniform)
        if result in inputs:  # of a part without elements, or of all
            return base if result is inputs[0] else new
        known = _WRITES[key] = _Write(inputs, [result], any(flows))
    return known.record((base, new), now)[0]


def write_now(cell: Cell, chain: Chain, new: Value) -> bool:
    """Writes through `chain` at once, where histories and traces do not matter and the content is known, or is
    itself a write that waits: a loop that writes here and there must not compile for each place. The content is written over
    where nobody else can see it. False if nothing was done."""
    if state.trace is not None or cell.parent is not None or cell.value.requires_grad or new.requires_grad:
        return False
    if not isinstance(chain[0], Slice) or len(chain) > 2 or not isinstance(chain[-1], Slice | Reshape):
        return False
    if cell.value.data is None:
        if not isinstance(replay_of(cell.value), _Write):
            return False
        evaluation.evaluate((cell.value,))
    source = evaluation.content(new)
    arrays = [cell.value.data]
    if getrefcount(cell.value) == 2 and is_sole(arrays, 0, 1) and arrays[0].flags.writeable:
        array = arrays[0]
    else:
        array = copied(arrays[0])
    part = array
    for step in chain:
        if isinstance(step, Slice):
            bounds = zip(step.start_indices, step.limit_indices, step.strides)
            part = part[tuple([slice(*b) for b in bounds])]
    part[...] = source.reshape(part.shape)
    value = Value(cell.value.type)
    value.data = array
    cell.value = value
    cell.version += 1
    return True


def _written(chain: Chain, base: Value, new: Value, uniform: bool) -> Value:
    if uniform and any(isinstance(definition, BroadcastInDim) for definition in chain):
        return _fill_through(chain, base, new)
    stages = [base]
    for definition in chain[:-1]:
        stages.append(apply(definition, stages[-1]))
    for definition, under in zip(reversed(chain), reversed(stages)):
        new = _inverse(definition, under, new)
    return new


def _fill_through(chain: Chain, base: Value, new: Value) -> Value:
    """The same for equal elements and a chain that repeats some: an element is written if it is shown anywhere."""
    shapes = [build.shape_of(base)]
    value = base
    for definition in chain[:-1]:
        value = apply(definition, value)
        shapes.append(build.shape_of(value))
    shown = build.constant(True, i1, build.shape_of(new))
    for definition, shape in zip(reversed(chain), reversed(shapes)):
        if isinstance(definition, BroadcastInDim):
            kept = [axis for axis, n in zip(definition.dimensions, shape) if n == definition.shape[axis]]
            repeated = [axis for axis in range(len(definition.shape)) if axis not in kept]
            shown = build.reshape(build.reduce(shown, "any", repeated), shape)
        else:
            shown = _inverse(definition, build.constant(False, i1, shape), shown)
    rank = len(build.shape_of(new))
    first = build.reshape(build.slice(new, [0] * rank, [1] * rank), ())
    return build.select(shown, build.broadcast_to(first, shapes[0]), base)


def _inverse(definition: Any, base: Value, new: Value) -> Value:
    shape = build.shape_of(base)
    if isinstance(definition, Reshape):
        return build.reshape(new, shape)
    if isinstance(definition, Transpose):
        order = definition.permutation
        return build.transpose(new, [order.index(i) for i in range(len(order))])
    if isinstance(definition, Slice):
        return _put_slice(definition, base, new)
    if isinstance(definition, BroadcastInDim):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
            "Please clone() the tensor before performing the operation."
        )
    raise TypeError(f"{definition.name} is not a view")


def _put_slice(definition: Slice, base: Value, new: Value) -> Value:
    shape = build.shape_of(base)
    inner = build.shape_of(new)
    if inner == shape:
        return new
    if any(d == 0 for d in inner):
        return base
    low = definition.start_indices
    interior = [s - 1 for s in definition.strides]
    high = [d - (lo + (n - 1) * s + 1) for d, lo, n, s in zip(shape, low, inner, definition.strides)]
    spread = build.pad(new, low, high, interior)
    inside = build.pad(build.constant(True, i1, inner), low, high, interior, False)
    return build.select(inside, spread, base)


def strides_of(
    chain: Chain | None, base_shape: tuple[Any, ...], shape: tuple[Any, ...]
) -> tuple[list[int], int]:
    """(strides in elements, offset) that PyTorch's tensor would have."""
    strides, offset, now = contiguous_strides(base_shape), 0, tuple(base_shape)
    for definition in chain or ():
        if isinstance(definition, Transpose):
            strides = [strides[p] for p in definition.permutation]
            now = tuple(now[p] for p in definition.permutation)
        elif isinstance(definition, Slice):
            offset += sum(lo * s for lo, s in zip(definition.start_indices, strides))
            strides = [s * step for s, step in zip(strides, definition.strides)]
            now = tuple(
                -(-(hi - lo) // step)
                for lo, hi, step in zip(
                    definition.start_indices, definition.limit_indices, definition.strides
                )
            )
        elif isinstance(definition, BroadcastInDim):
            spread = [0] * len(definition.shape)
            for axis, d in enumerate(definition.dimensions):
                spread[d] = 0 if now[axis] == 1 and definition.shape[d] != 1 else strides[axis]
            strides, now = spread, tuple(definition.shape)
        else:
            strides = view_strides(now, strides, definition.shape) or contiguous_strides(definition.shape)
            now = tuple(definition.shape)
    return strides, offset


def contiguous_strides(shape: tuple[Any, ...]) -> list[int]:
    """Row-major strides in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size if not isinstance(size, int) or size > 1 else 1
    return strides[::-1]


def view_strides(shape: tuple[Any, ...], strides: list[int], new: tuple[Any, ...]) -> list[int] | None:
    """Strides of a reshape that copies nothing, or None if there is no such (ATen's computeStride)."""
    if any(not isinstance(d, int) for d in (*shape, *new)) or 0 in shape:
        return contiguous_strides(new)
    if not shape:
        return [1] * len(new)
    result = [0] * len(new)
    at = len(new) - 1
    base = strides[-1]
    have = want = 1
    for d in range(len(shape) - 1, -1, -1):
        have *= shape[d]
        if d == 0 or (shape[d - 1] != 1 and strides[d - 1] != have * base):
            while at >= 0 and (want < have or new[at] == 1):
                result[at] = want * base
                want *= new[at]
                at -= 1
            if want != have:
                return None
            if d > 0:
                base = strides[d - 1]
                have = want = 1
    return result if at == -1 else None


__all__ = [
    "Cell",
    "Chain",
    "apply_chain",
    "contiguous_strides",
    "here",
    "meta_of",
    "replacements",
    "strides_of",
    "view_strides",
    "write_through",
]
