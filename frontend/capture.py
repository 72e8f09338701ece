"""Running a function once to see its graph: arguments become parameters, tensors that it reads or changes too."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flambeau import evaluation
from flambeau.compiler.diagnostics import FlambeauError
from flambeau.compiler.ir.core import Graph, Value, rebuild
from flambeau.compiler.ir.dims import Index, dim
from flambeau.compiler.ir.types import TensorType, tensor
from flambeau.evaluation import state
from flambeau.storage import Cell
from flambeau.tensor import Tensor, new_tensor, read

Array = np.ndarray[Any, Any]


class ExportError(FlambeauError, RuntimeError):
    """A function cannot be exported; the message says why and what helps."""


@dataclass
class Captured:
    """A captured cell: the parameter that stands for it, its content, and its value after the call (None: unchanged)."""

    cell: weakref.ref[Cell]
    parameter: Value
    content: Array
    after: Value | None


@dataclass
class Capture:
    """A function's graph: parameters are inputs, then weights, then state; results outputs, then the state's successors.

    `outputs` is the function's result with a number in place of each tensor.
    """

    graph: Graph
    inputs: list[Value]
    weights: list[Captured]
    state: list[Captured]
    outputs: Any
    output_count: int


class _Trace:
    """What `state.trace` is meanwhile: replaces the content of every cell that is touched by a parameter."""

    def __init__(self) -> None:
        self.cells: dict[int, tuple[weakref.ref[Cell], Value, Value, int]] = {}
        self.aliases: dict[int, tuple[weakref.ref[Cell], Value, Value | None]] = {}
        self.gradients: list[tuple[Tensor, Any]] = []
        self.arguments: list[tuple[Cell, Value]] = []

    def reads(self, cell: Cell) -> None:
        key = id(cell)
        if cell.parent is not None:
            if key not in self.aliases or self.aliases[key][0]() is not cell:
                self.aliases[key] = (weakref.ref(cell), cell.value, cell.seen)
            return
        known = self.cells.get(key)
        if known is not None and known[0]() is cell:
            return
        old = cell.value
        if old.data is None:  # made in here: everything older was computed before the trace began
            return
        parameter = Value(old.type)
        parameter.requires_grad, parameter.hooks = old.requires_grad, old.hooks
        if known is not None:  # another cell at the address of one that is gone
            self.cells[-len(self.cells) - 1] = known
        self.cells[key] = (weakref.ref(cell), old, parameter, cell.version)
        cell.value = parameter

    writes = reads

    def sets_grad(self, tensor: Tensor) -> None:
        if all(known is not tensor for known, _ in self.gradients):
            self.gradients.append((tensor, tensor._grad))

    def restore(self) -> None:
        """Everything outside is as it was."""
        for tensor_, gradient in self.gradients:
            tensor_._grad = gradient
        for reference, value, seen in self.aliases.values():
            alias = reference()
            if alias is not None:
                alias.value, alias.seen = value, seen
        for reference, value, _, version in self.cells.values():
            cell = reference()
            if cell is not None:
                cell.value, cell.version = value, version


def capture(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    dynamic: Mapping[int, Mapping[int, str]],
    name: str,
) -> Capture:
    """Run `function` on symbolic arguments and give its graph. Tensors and arrays among `arguments` become inputs.

    `dynamic` gives names to axes of arguments. Raises ExportError where the function needs values, and what the
    function itself raises. Everything that the function changes is changed back.
    """
    if state.trace is not None:
        raise ExportError("export cannot be called while another function is being compiled")
    evaluation.sync()
    trace = _Trace()
    inputs: list[Value] = []
    given = [_symbolic(a, dynamic.get(i, {}), inputs, trace) for i, a in enumerate(arguments)]
    survivors: list[Cell] = []
    state.trace = trace
    try:
        found = function(*given)
        results: list[Value] = []
        outputs = _numbered(found, results)
        # Before anything is put back: a state's successor is what its cell holds now.
        finals = {key: _now(entry) for key, entry in trace.cells.items()}
        gradients = {id(t._grad._cell) for t, _ in trace.gradients if t._grad is not None}
        returned = set(map(id, _cells(found)))
        survivors = _alive(state.pending)
        if survivors:  # perhaps only in a cycle that nobody refers to
            survivors.clear()
            gc.collect()
            survivors = _alive(state.pending)
        if any(cell.value is not value for cell, value in trace.arguments):
            raise ExportError(f"{name}: the function changes an argument in place; return the new tensor instead")
    except evaluation.TraceError:
        raise ExportError(
            f"{name}: the function looks at a tensor's content (item(), print, if, float, numpy) while it is exported; "
            "there is no content yet. Compute with tensors (where, masks), or do it outside the function."
        ) from None
    finally:
        state.trace = None
        trace.restore()
        state.pending.clear()
        state.recorded = 0
    given.clear()
    captured = []
    for key, (reference, old, parameter, _) in trace.cells.items():
        after = finals[key]
        alive = reference() is not None
        changed = alive and after is not None and after is not parameter
        captured.append(Captured(reference, parameter, _array(old), after if changed else None))
    _refuse_new_state(survivors, trace, returned | gradients, {id(c) for c in _held(trace)}, name)
    return _assemble(inputs, captured, results, outputs, name)


def _alive(references: Sequence[weakref.ref[Cell]]) -> list[Cell]:
    return [c for c in (r() for r in references) if c is not None]


def _held(trace: _Trace) -> list[Cell]:
    return [c for c in (reference() for reference, *_ in trace.cells.values()) if c is not None]


def _now(entry: tuple[weakref.ref[Cell], Value, Value, int]) -> Value | None:
    cell = entry[0]()
    return None if cell is None else cell.value


def _symbolic(argument: Any, axes: Mapping[int, str], inputs: list[Value], trace: _Trace) -> Any:
    if isinstance(argument, np.ndarray | np.generic):
        from flambeau.creation import as_tensor

        argument = as_tensor(np.array(argument))
    if isinstance(argument, list | tuple) and not axes:
        return type(argument)(_symbolic(a, axes, inputs, trace) for a in argument)
    if not isinstance(argument, Tensor):
        return argument
    type_ = read(argument).type
    assert isinstance(type_, TensorType)
    shape: list[Index] = list(type_.shape)
    for axis, symbol in axes.items():
        shape[axis] = dim(symbol)
    value = Value(tensor(shape, type_.element))
    cell = Cell(value)
    inputs.append(value)
    made = new_tensor(cell)
    if argument.requires_grad:
        made.requires_grad_()
    trace.arguments.append((cell, cell.value))
    return made


def _numbered(found: Any, results: list[Value]) -> Any:
    """`found` with numbers for tensors, whose values go to `results`."""
    if isinstance(found, Tensor):
        results.append(read(found))
        return len(results) - 1
    if isinstance(found, dict):
        return {k: _numbered(v, results) for k, v in found.items()}
    if isinstance(found, list | tuple):
        return [_numbered(v, results) for v in found]
    if found is None:
        return None
    raise ExportError(
        f"an exported function returns tensors, or tuples, lists and dicts of them; got {type(found).__name__}"
    )


def _cells(found: Any) -> list[Cell]:
    if isinstance(found, Tensor):
        return [found._cell]
    if isinstance(found, dict):
        found = list(found.values())
    return [c for v in found for c in _cells(v)] if isinstance(found, list | tuple) else []


def _refuse_new_state(
    survivors: Sequence[Cell], trace: _Trace, allowed: set[int], known: set[int], name: str
) -> None:
    """Tensors that the call made and left behind would be made anew by every run of the library."""
    local = {id(c) for c, _ in trace.arguments}
    left = [c for c in survivors if id(c) not in allowed and id(c) not in known and id(c) not in local]
    if len(left) == 0:
        return
    count = len(left)
    left.clear()
    raise ExportError(
        f"{name}: the function makes {count} tensors that outlive it (as an optimizer does in its first step). "
        "Call it once before exporting it, so that they are there."
    )


def _array(value: Value) -> Array:
    return np.require(np.asarray(value.data), requirements="C")


def _assemble(
    inputs: list[Value], captured: list[Captured], results: list[Value], outputs: Any, name: str
) -> Capture:
    changed = [c for c in captured if c.after is not None]
    finals = [c.after for c in changed if c.after is not None]
    weights = _needed([c for c in captured if c.after is None], [*results, *finals])
    weights += _constants([*results, *finals], {*inputs, *[c.parameter for c in captured]}, name)
    parameters = [*inputs, *[c.parameter for c in weights], *[c.parameter for c in changed]]
    with evaluation.not_recording():
        graph = rebuild(Graph(parameters, [*results, *finals], name), evaluation._without_python)
    return Capture(graph, inputs, weights, changed, outputs, len(results))


def _needed(captured: list[Captured], results: Sequence[Value]) -> list[Captured]:
    used = _reachable(results)
    return [c for c in captured if c.parameter in used]


def _reachable(results: Sequence[Value]) -> dict[Value, None]:
    """Every value that `results` need, in a fixed order, not going past known contents."""
    seen: dict[Value, None] = {}
    stack = list(results)
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen[value] = None
        if value.owner is not None and value.data is None:
            stack.extend(value.owner.operands)
    return seen


def _constants(results: Sequence[Value], known: set[Value], name: str) -> list[Captured]:
    """Known contents that the graph refers to without a cell: tensors made from data inside the function."""
    found = []
    nothing = weakref.ref(_Gone())
    for value in _reachable(results):
        if value in known:
            continue
        if value.data is not None:
            found.append(Captured(nothing, value, _array(value), None))  # type: ignore[arg-type]
        elif value.owner is None:  # a parameter of another trace
            raise ExportError(f"{name}: a value of type {value.type} has no content and is no input")
    return found


class _Gone:
    __slots__ = ("__weakref__",)
