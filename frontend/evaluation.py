"""Recording operations and evaluating what was recorded, late and by structure.

`record` makes an operation of the graph and nothing else. `evaluate` computes values: everything that is pending and
still reachable from a live storage cell is computed together, so nothing is computed twice; the executable is found by
the graph's structure, so a loop's second iteration compiles nothing.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flambeau.compiler import options
from flambeau.compiler.diagnostics import caller_location
from flambeau.compiler.dialects.graph.autograd_ops import CustomGradient, StopGradient
from flambeau.compiler.dialects.graph.constants import Constant, DimensionValue, Literal
from flambeau.compiler.dialects.graph.packing import UnpackPanels
from flambeau.compiler.dialects.graph.shape import Reshape, Slice
from flambeau.compiler.ir import interpreter
from flambeau.compiler.ir.core import Graph, Operation, Tracing, Value, create, infer_types, rebuild, untraced
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import ElementType, tensor
from flambeau.reverse import Meta, reverse

Array = np.ndarray[Any, Any]
Executable = Callable[[list[Any]], list[Any]]

#: Pending operations beyond which a graph is evaluated without being asked for.
LIMIT = 2000


class State(threading.local):
    """What a thread records: whether derivatives are, how much is pending, and into which trace (`jit`)."""

    def __init__(self) -> None:
        self.grad = True
        self.inference = False
        self.recorded = 0
        self.trace: Any = None
        self.pending: list[Any] = []  # weak references to cells whose value is not computed yet


state = State()


class Statistics:
    """Counts of compilations, structural cache hits and evaluations since the program began."""

    def __init__(self) -> None:
        self.compilations = self.hits = self.evaluations = 0

    def __repr__(self) -> str:
        return f"compilations={self.compilations}, hits={self.hits}, evaluations={self.evaluations}"


statistics = Statistics()


def stats() -> Statistics:
    """What has been compiled and evaluated so far in this process."""
    return statistics


def explain(text: str) -> None:
    """Says why something was not as quick as it could be, where FLAMBEAU_DEBUG asks for it."""
    if options.current().debug >= 1:
        print(f"flambeau: {text}", file=sys.stderr)


# -- recording -----------------------------------------------------------------------------------------------------


def record(definition: Any, *values: Value) -> Value:
    """One more operation of the user's program; its only (or first) result."""
    return record_all(definition, *values)[0]


def record_all(definition: Any, *values: Value) -> tuple[Value, ...]:
    """One more operation of the user's program: all its results. Derivatives flow if grad mode is on."""
    flows = False
    if state.grad:
        for v in values:
            if v.requires_grad:
                flows = True
                break
    if not flows and type(definition) in _PARTS and state.trace is None:
        array = known_content(values[0])
        if array is not None:
            return (_part(definition, values[0], array),)
    results = create(definition, *values, location=caller_location(), requires_grad=flows).results
    if flows:
        for r in results:
            if r.type.element.kind != "float":  # type: ignore[attr-defined]
                r.requires_grad = False
    state.recorded += 1
    return results


#: Of known content these are shown, not computed: a loop over ``data[i : i + 50]`` must not compile for every i.
_PARTS = (Slice, Reshape)


def _part(definition: Any, value: Value, array: Array) -> Value:
    (type_,) = infer_types(definition, (value.type,))
    if isinstance(definition, Slice):
        bounds = zip(definition.start_indices, definition.limit_indices, definition.strides)
        array = array[tuple([slice(*b) for b in bounds])]
    result = Value(type_)
    result.data = np.require(array, requirements="C").reshape(type_.shape)  # type: ignore[attr-defined]
    return result


Tracing.record = staticmethod(record)
not_recording = untraced


#: Values on arrays that the program has too and may write to (`from_numpy`).
shared: weakref.WeakSet[Value] = weakref.WeakSet()


def leaf(array: Array, element: ElementType) -> Value:
    """A value whose content is known. The array is C-contiguous and of the element's dtype."""
    value = Value(tensor(array.shape, element))
    value.data = array
    return value


def number(x: Any, element: ElementType) -> Value:
    """A Python number as a 0-d value: an input of the program, but for 0 and 1, which rules like to know."""
    if isinstance(x, Dim):
        return create(DimensionValue(x, element)).result
    if x == 1 or (x == 0 and (type(x) is not float or math.copysign(1.0, x) > 0)):
        return create(_literal(x, element)).result
    if state.trace is not None:  # a trace's numbers belong to its structure: its guards hold them
        return create(Constant(Literal(_cast(x, element), element))).result
    return leaf(_cast(x, element), element)


_LITERALS: dict[Any, Constant] = {}


def _literal(x: Any, element: ElementType) -> Constant:
    found = _LITERALS.get((x, element))
    if found is None:
        found = _LITERALS[x, element] = Constant(Literal(x, element))
    return found


def scalar_provider(source: Callable[[], Any], element: ElementType) -> Value:
    """A 0-d value that a compiled function asks of `source` anew at every call (a learning "
    "rate, a step count)."""
    if state.trace is not None:
        return state.trace.provide(source, element, tensor((), element))  # type: ignore[no-any-return]
    return leaf(array_of(source(), element), element)


def array_of(x: Any, element: ElementType) -> Array:
    """A Python number as a 0-d array of an element type."""
    return _cast(x, element)


def _cast(x: Any, element: ElementType) -> Array:
    kind = element.numpy
    if type(x) is float and -1e38 < x < 1e38 and element.bits >= 32 and element.is_float:
        return np.array(x, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(x).astype(kind)


def stop_gradient(value: Value) -> Value:
    """The same content, independent for autograd."""
    array = value.data
    if array is not None:
        result = Value(value.type)
        result.data = array
        return result
    result = record(StopGradient(), value)
    result.requires_grad = False
    return result


# -- evaluating ----------------------------------------------------------------------------------------------------


def note(cell: Any) -> None:
    """Remember that `cell` waits for its value."""
    state.pending.append(weakref.ref(cell))
    if state.recorded > LIMIT and state.trace is None:
        sync()


def sync() -> None:
    """Compute everything that is pending."""
    evaluate(())


def content(value: Value) -> Array:
    """The value as an array, computed if it was not yet."""
    while (array := value.data) is None:  # again, where another thread has just released it (`weights`)
        owner = value.owner
        if owner is not None and type(owner.definition) is StopGradient and state.trace is None:
            value.data = content(owner.operands[0])  # the same memory, as `detach` promises
            value.owner = None
        else:
            evaluate((value,))
    return array  # type: ignore[no-any-return]


def known_content(value: Value) -> Array | None:
    """The content, if it is known or a released weight's: what shows a part of it shares its memory."""
    array, owner = value.data, value.owner
    if array is not None or owner is None:
        return array  # type: ignore[no-any-return]
    if type(owner.definition) is StopGradient:
        (origin,) = owner.operands
        return None if known_content(origin) is None else content(value)
    return content(value) if is_released(value) else None


def is_released(value: Value) -> bool:
    """Is it a weight whose content is kept in another layout only (`weights`)?"""
    owner = value.owner
    return owner is not None and isinstance(owner.definition, UnpackPanels) and value.data is None


def unpacked(value: Value) -> Array:
    """The content of a released weight, which stays released."""
    owner = value.owner
    if owner is None:  # another thread wanted it for longer
        return content(value)
    copy = create(owner.definition, *owner.operands).result
    compute([copy])
    return copy.data  # type: ignore[no-any-return]


class _Plan:
    __slots__ = ("executable", "kept")

    def __init__(self, executable: Executable, kept: tuple[int, ...]) -> None:
        self.executable, self.kept = executable, kept


_PLANS: dict[Any, _Plan] = {}


def evaluate(values: Sequence[Value]) -> None:
    """Compute `values` and every pending value that a live tensor holds."""
    if state.trace is not None:
        raise TraceError("a value was observed while a function is being compiled")
    wanted = [v for v in values if v.data is None]
    for reference in state.pending:
        cell = reference()
        if cell is not None and cell.value.data is None:
            wanted.append(cell.value)
    state.pending.clear()
    state.recorded = 0
    if wanted:
        compute(list(dict.fromkeys(wanted)))


class TraceError(RuntimeError):
    """A traced function asked for a value that only exists when it runs."""


def compute(wanted: list[Value]) -> None:
    """Compute exactly `wanted` (and what their derivatives will read), none of which has data."""
    key, numbers, leaves, contents = structure(wanted)
    plan = _PLANS.get(key)
    if plan is None:
        statistics.compilations += 1
        plan = _PLANS[key] = _plan(wanted, numbers, leaves)
    else:
        statistics.hits += 1
    statistics.evaluations += 1
    by_number = list(numbers)
    targets = wanted + [by_number[i] for i in plan.kept]
    for value, data in zip(targets, plan.executable(contents)):
        value.data = data
    for value in targets:
        meta = value.hooks
        if not value.requires_grad or (isinstance(meta, Meta) and (meta.leaf or meta.freed)):
            value.owner = None


def structure(wanted: Sequence[Value]) -> tuple[Any, dict[Value, int], list[Value], list[Array]]:
    """The graph below `wanted` as a hashable key, its values in a fixed order, its leaves (known values), and their
    contents: as they are seen here, since another thread may release one (`weights`) or compute one."""
    numbers: dict[Value, int] = {}
    leaves: list[Value] = []
    contents: list[Array] = []
    parts: list[Any] = []
    done: set[Operation] = set()
    stack: list[Any] = [(v, 0) for v in reversed(wanted)]
    while stack:
        value, visited = stack.pop()
        if value in numbers:
            continue
        array = value.data
        operation = value.owner
        if array is None and operation is None:
            array = value.data  # computed in between
            if array is None:
                raise RuntimeError(f"a value without content was observed: {value!r}")
        if array is not None or operation is None:
            numbers[value] = len(numbers)
            leaves.append(value)
            contents.append(array)
            parts.append(value.type)
            continue
        if operation in done:  # another result of an operation that is numbered already
            continue
        if not visited:
            stack.append((value, 1))
            for operand in reversed(operation.operands):
                if operand not in numbers:
                    stack.append((operand, 0))
            continue
        done.add(operation)
        definition = operation.definition
        kind = CustomGradient if type(definition) is CustomGradient else definition
        parts.append((kind, tuple([numbers[v] for v in operation.operands]), value.requires_grad))
        for result in operation.results:
            numbers[result] = len(numbers)
    return (tuple(parts), tuple([numbers[v] for v in wanted])), numbers, leaves, contents


def _plan(wanted: list[Value], numbers: dict[Value, int], leaves: list[Value]) -> _Plan:
    kept = _read_by_derivatives(wanted, numbers)
    with not_recording():
        graph = Graph(leaves, wanted + kept)
        # Parameters of their own: a leaf that requires grad keeps its history, which the compiler must not see.
        graph = rebuild(graph, without_python, [Value(v.type) for v in leaves])
        executable = compiled(graph)
    return _Plan(executable, tuple([numbers[v] for v in kept]))


def without_python(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
    if isinstance(operation.definition, CustomGradient):
        return operands[: operation.definition.results]
    return None


def _read_by_derivatives(wanted: list[Value], numbers: dict[Value, int]) -> list[Value]:
    """Pending values that the derivative of `wanted` reads: kept, lest `backward` computes "
    "the forward again."""
    roots = [v for v in wanted if v.requires_grad and v.owner is not None and not _freed(v)]
    if not roots:
        return []
    inside = set(numbers)
    roots = [v for v in roots if v in inside]
    with not_recording():
        try:
            seeds = [Value(v.type) for v in roots]
            cotangents = reverse(roots, seeds, python=False)
        except Exception:  # an operation without a derivative: backward will say so, observing need not
            return []
        stop = inside | set(seeds)
        gradient = Graph((), [ct for v, ct in cotangents.items() if _is_leaf(v)])
        read: dict[Value, None] = {}
        stack = list(gradient.results)
        seen: set[Value] = set()
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in stop:
                if value in inside and value.data is None and value not in wanted:
                    read[value] = None
            elif value.owner is not None:
                stack.extend(value.owner.operands)
    return [v for v in sorted(read, key=numbers.__getitem__) if not isinstance(v.owner.definition, Constant)]  # type: ignore[union-attr]


def _freed(value: Value) -> bool:
    return isinstance(value.hooks, Meta) and value.hooks.freed


def _is_leaf(value: Value) -> bool:
    return value.owner is None or (isinstance(value.hooks, Meta) and value.hooks.leaf)


def compiled(graph: Graph, weights: int = 0) -> Any:
    """The switch between compiled code and the interpreter; the compiler loads when it is first needed.

    The last `weights` parameters keep their content from call to call: `weights.hold` takes it, and calls give what that
    returns as a second argument.
    """
    if options.current().interpret:
        return Interpreted(graph)
    from flambeau.execution import ArrayExecutable, DynamicExecutable

    static = all(isinstance(d, int) for p in graph.parameters for d in p.type.shape)  # type: ignore[attr-defined]
    return ArrayExecutable(graph, weights) if static else DynamicExecutable(graph, weights)


class Interpreted:
    """A graph run by the operations' own NumPy rules: slow, and independent of code generation."""

    overwrites = ()
    layouts = ()

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reads = range(len(graph.parameters))

    def hold(self, arrays: list[Any], laid_out: list[Any]) -> list[Any]:
        return arrays

    def __call__(self, arrays: list[Any], held: Sequence[Any] = (), into: Any = None) -> list[Any]:
        with not_recording():
            found = interpreter.evaluate(self.graph, [*arrays, *held])
        return [np.require(a, requirements="C").reshape(a.shape) for a in found]
