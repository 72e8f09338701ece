"""Running a function once to see its graph: arguments become parameters, tensors that it reads or changes too."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flambeau import evaluation, planning
from flambeau.compiler.diagnostics import FlambeauError, Location, is_internal
from flambeau.compiler.ir.core import Graph, Value, rebuild
from flambeau.compiler.ir.dims import Index, dim
from flambeau.compiler.ir.types import TensorType, tensor
from flambeau.evaluation import state
from flambeau.storage import Cell
from flambeau.tensor import Tensor, new_tensor, read
from flambeau.tracing import Trace

Array = np.ndarray[Any, Any]


class ExportError(FlambeauError, RuntimeError):
    """A function cannot be exported; the message says why and what helps."""


@dataclass
class Captured:
    """A captured content: the parameter that stands for it, whose cell it is (None: a constant, or a number that
    `label` names), and the cell's value after the call (None: unchanged)."""

    cell: Cell | None
    parameter: Value
    content: Array
    after: Value | None = None
    label: str | None = None


@dataclass
class Capture:
    """A function's graph: parameters are inputs, weights, state; results are outputs and the state's successors.

    `outputs` is the function's result with a number in place of each tensor.
    """

    graph: Graph
    inputs: list[Value]
    weights: list[Captured]
    state: list[Captured]
    outputs: Any
    output_count: int


class _Trace(Trace):
    """What `state.trace` is meanwhile: puts a parameter in place of the content of every older cell that is touched."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: dict[Cell, tuple[Value, Value]] = {}  # content before, parameter
        self.arguments: dict[Cell, Value] = {}
        self.born: weakref.WeakKeyDictionary[Cell, Value] = (
            weakref.WeakKeyDictionary()
        )  # written: content at first
        self.numbers: list[Captured] = []

    def cell(self, cell: Cell) -> Cell:
        return cell if cell in self.arguments else super().cell(cell)

    def placeholder(self, cell: Cell) -> Value:
        old = cell.value
        parameter = Value(old.type)
        parameter.requires_grad, parameter.hooks = old.requires_grad, old.hooks
        self.cells[cell] = old, parameter
        return parameter

    def writes(self, cell: Cell) -> None:
        if cell in self.created and cell.parent is None and cell.value.data is not None:
            self.born.setdefault(cell, cell.value)  # an optimizer's state, say, if it outlives the call

    def provide(self, source: Callable[[], Any], element: Any, type: Any) -> Value:
        """A Python number that each call reads anew (a learning rate): state that runs leave as it is."""
        value = Value(type)
        label = getattr(source, "__name__", "")
        content = evaluation.array_of(source(), element)
        self.numbers.append(
            Captured(None, value, content, value, label if label.isidentifier() else "number")
        )
        return value

    def restore(self) -> None:
        """What was made and outlives the run is as it was at first."""
        for cell, value in self.born.items():
            cell.value, cell.version = value, 0


def settled(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    dynamic: Mapping[int, Mapping[int, str]],
    name: str,
) -> Capture:
    """`capture`, repeated for functions with state until two graphs are equal: a first step may differ from the others.

    Raises ExportError where every call gives another graph.
    """
    found = capture(function, arguments, dynamic, name)
    if not found.state:
        return found
    for _ in range(3):
        before, found = found, capture(function, arguments, dynamic, name)
        if found.graph == before.graph:
            return found
    raise ExportError(
        f"{name}: every call gives another graph. A Python number that the function counts up or computes is "
        "fixed when it is exported: keep it in a tensor, or make it an argument"
    )


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
    state.trace = trace
    try:
        found = function(*given)
        results: list[Value] = []
        outputs = _numbered(found, results)
        # A state's successor is what its cell holds now.
        captured = [
            Captured(cell, parameter, _array(old), _other(trace.cell(cell).value, parameter))
            for cell, (old, parameter) in trace.cells.items()
        ]
        if any(cell.value is not value for cell, value in trace.arguments.items()):
            raise ExportError(
                f"{name}: the function changes an argument in place; return the new tensor instead"
            )
        captured += _new_state(trace, found, name)
    except evaluation.TraceError as error:
        raise ExportError(
            f"{name}: the function looks at a tensor's content (item(), print, if, float, numpy) while it is exported; "
            "there is no content yet. Compute with tensors (where, masks), or do it outside the function.",
            _users_place(error),
        ) from None
    finally:
        state.trace = None
        trace.restore()
        state.now.forget()
    return _assemble(inputs, [*captured, *trace.numbers], results, outputs, name)


def _other(after: Value, before: Value) -> Value | None:
    return None if after is before else after


def _users_place(error: BaseException) -> Location | None:
    """The innermost line of the user's program that an error came through."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if not is_internal(trace.tb_frame.f_code.co_filename):
            found = Location(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found


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
    trace.arguments[cell] = cell.value
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
        cells = [found._cell]
        while cells[-1].parent is not None:  # a detached tensor keeps what it was detached from
            cells.append(cells[-1].parent)
        return cells
    if isinstance(found, dict):
        found = list(found.values())
    return [c for v in found for c in _cells(v)] if isinstance(found, list | tuple) else []


def _new_state(trace: _Trace, found: Any, name: str) -> list[Captured]:
    """Tensors that the call made and left behind. Those that began with known content are state (an optimizer's,
    in its first step); ExportError for others: every run of the library would make them anew."""
    allowed = set(_cells(found)) | {g._cell for _, _, g in trace.gradients.values() if g is not None}
    if any(True for _ in trace.born) or _computed(trace, allowed):
        gc.collect()  # what is left only in cycles is not state
    count = _computed(trace, allowed)
    if count:
        raise ExportError(
            f"{name}: the function makes {count} tensor{'s' if count > 1 else ''} that outlive it. Return them, or "
            "make them before exporting (by calling the function once, where it makes them the first time only)."
        )
    born = [c for c in list(trace.born) if c not in allowed]
    return [Captured(c, trace.born[c], _array(trace.born[c]), c.value) for c in born]


def _computed(trace: _Trace, allowed: set[Cell]) -> int:
    return sum(
        c.parent is None and c.value.data is None and c not in allowed and c not in trace.born
        for c in list(trace.created)
    )


def _array(value: Value) -> Array:
    array = evaluation.unpacked(value) if evaluation.is_released(value) else np.asarray(value.data)
    return np.require(array, requirements="C")


def _assemble(
    inputs: list[Value], captured: list[Captured], results: list[Value], outputs: Any, name: str
) -> Capture:
    changed = [c for c in captured if c.after is not None]
    finals = [c.after for c in changed if c.after is not None]
    weights = _needed([c for c in captured if c.after is None], [*results, *finals])
    weights += _constants([*results, *finals], {*inputs, *[c.parameter for c in captured]}, name)
    parameters = [*inputs, *[c.parameter for c in weights], *[c.parameter for c in changed]]
    with planning.not_recording():
        graph = rebuild(Graph(parameters, [*results, *finals], name), planning.without_python)
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
    for value in _reachable(results):
        if value in known:
            continue
        if value.data is not None:
            found.append(Captured(None, value, _array(value)))
        elif value.owner is None:  # a parameter of another trace
            raise ExportError(f"{name}: a value of type {value.type} has no content and is no input")
    return found
