"""Recording operations and evaluating what was recorded, late and by structure.

`record` makes an operation of the graph and nothing else. `evaluate` computes values: everything that is pending and
still reachable from a live storage cell is computed together, so nothing is computed twice; the executable is found by
the graph's structure, so a loop's second iteration compiles nothing.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flambeau.compiler import options
from flambeau.compiler.diagnostics import caller_location
from flambeau.compiler.dialects.graph.autograd_ops import StopGradient
from flambeau.compiler.dialects.graph.constants import Constant, DimensionValue, Literal
from flambeau.compiler.dialects.graph.packing import UnpackPanels
from flambeau.compiler.dialects.graph.shape import Reshape, Slice
from flambeau.compiler.ir.core import Tracing, Value, create, infer_types
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import ElementType, tensor
from flambeau.planning import Route, follow, planned, statistics
from flambeau.reverse import Meta
from flambeau.tape import Step, state

Array = np.ndarray[Any, Any]

#: Pending operations beyond which a graph is evaluated without being asked for.
LIMIT = 2000
#: Sets of wanted values that one step of a walk remembers.
ROUTES = 32


# -- recording -----------------------------------------------------------------------------------------------------


def record(definition: Any, *values: Value) -> Value:
    """One more operation of the user's program; its only (or first) result."""
    return record_all(definition, *values)[0]


def record_all(definition: Any, *values: Value) -> tuple[Value, ...]:
    """One more operation of the user's program: all its results. Derivatives flow if grad mode is on."""
    now = state.now
    flows = False
    if now.grad:
        for v in values:
            if v.requires_grad:
                flows = True
                break
    results: tuple[Value, ...]
    if now.trace is not None:  # the trace's operations are looked at, all of them
        results = create(definition, *values, location=caller_location(), requires_grad=flows).results
    else:
        if not flows and type(definition) in _PARTS:
            array = known_content(values[0])
            if array is not None:
                return (_part(definition, values[0], array),)
        results = now.apply_all(definition, values, flows)
    if flows:
        for r in results:
            if r.type.element.kind != "float":  # type: ignore[attr-defined]
                r.requires_grad = False
    return results


#: Of known content these are shown, not computed: a loop over ``data[i : i + 50]`` must not compile for every i.
_PARTS = (Slice, Reshape)


def _part(definition: Any, value: Value, array: Array) -> Value:
    (type_,) = infer_types(definition, (value.type,))
    if isinstance(definition, Slice):
        bounds = zip(definition.start_indices, definition.limit_indices, definition.strides)
        array = array[tuple([slice(*b) for b in bounds])]
    result = Value(type_)
    if not array.flags.c_contiguous:
        array = array.copy()
    result.data = array.reshape(type_.shape)  # type: ignore[attr-defined]
    return result


Tracing.record = staticmethod(record)


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
    if (type(x) is float or type(x) is int) and element.is_float and element.bits >= 32 and -1e38 < x < 1e38:
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


def begin_history(value: Value, meta: Meta) -> None:
    """Makes a value that nobody else knows a leaf of autograd's graph."""
    value.requires_grad, value.hooks = True, meta
    if value.data is None and state.trace is None:
        state.now.lead(("leaf", value.number - state.now.base))


# -- evaluating ----------------------------------------------------------------------------------------------------


def note(cell: Any) -> None:
    """Remember that `cell` waits for its value."""
    now = state.now
    now.pending.append(weakref.ref(cell))
    if now.recorded > LIMIT and now.trace is None:
        sync()


def sync() -> None:
    """Compute everything that is pending."""
    evaluate(())


def content(value: Value) -> Array:
    """The value as an array, computed if it was not yet."""
    while (array := value.data) is None:  # again, where another thread has just released it (`weights`)
        if type(value.definition) is StopGradient and state.trace is None:
            value.data = content(value.sources[0])  # the same memory, as `detach` promises
            value.owner = None
        else:
            evaluate((value,))
    return array  # type: ignore[no-any-return]


def known_content(value: Value) -> Array | None:
    """The content, if it is known or a released weight's: what shows a part of it shares its memory."""
    array, definition = value.data, value.definition
    if array is not None or definition is None:
        return array  # type: ignore[no-any-return]
    if type(definition) is StopGradient:
        (origin,) = value.sources
        return None if known_content(origin) is None else content(value)
    return content(value) if is_released(value) else None


def is_released(value: Value) -> bool:
    """Is it a weight whose content is kept in another layout only (`weights`)?"""
    return isinstance(value.definition, UnpackPanels) and value.data is None


def unpacked(value: Value) -> Array:
    """The content of a released weight, which stays released."""
    owner = value.owner
    if owner is None:  # another thread wanted it for longer
        return content(value)
    copy = create(owner.definition, *owner.operands).result
    compute([copy])
    return copy.data  # type: ignore[no-any-return]


def evaluate(values: Sequence[Value]) -> None:
    """Compute `values` and every pending value that a live tensor holds."""
    now = state.now
    if now.trace is not None:
        raise TraceError("a value was observed while a function is being compiled")
    wanted = [v for v in values if v.data is None]
    for reference in now.pending:
        cell = reference()
        if cell is not None and cell.value.data is None:
            wanted.append(cell.value)
    step, base, count = now.step, now.base, now.count
    now.forget()
    if wanted:
        compute(list(dict.fromkeys(wanted)) if len(wanted) > 1 else wanted, step, base, count)


class TraceError(RuntimeError):
    """A traced function asked for a value that only exists when it runs."""


def compute(wanted: list[Value], step: Step | None = None, base: int = 0, count: int = 0) -> None:
    """Compute exactly `wanted` (and what their derivatives will read), none of which has data. They were recorded in the
    walk that ended at `step`, or found otherwise."""
    route: Route | None = None
    key: tuple[Any, ...] = ()
    if step is not None:
        numbers: list[Any] = [options.current().code]
        for value in wanted:
            number = value.number - base
            if not 0 <= number < count:
                step = None
                break
            numbers.append(~number if value.requires_grad else number)
        else:
            key = tuple(numbers)
            route = step.routes.get(key)
    if route is not None:
        try:
            targets = follow(route.path, wanted.copy())
        except (IndexError, AttributeError):  # another thread has computed a part of it meanwhile
            route = None
        else:
            arrays = [targets[i].data for i in route.leaves]
            plan, kept = route.plan, [targets[i] for i in route.kept]
            for array in arrays:
                if array is None:  # released since (`weights`), or computed then and not yet now
                    route = None
    if route is None:
        plan, leaves, arrays, kept = planned(wanted)
        if step is not None:
            if len(step.routes) >= ROUTES:
                step.routes.clear()
            step.routes[key] = Route(plan, wanted, leaves, kept)
    else:
        statistics.hits += 1
    statistics.evaluations += 1
    targets = wanted + kept
    contents = plan.executable(
        arrays
    )  # held to the end: what somebody holds is not released (`weights`) meanwhile
    for value, data in zip(targets, contents):
        value.data = data
    for value in targets:
        meta = value.hooks
        if not value.requires_grad or (meta.__class__ is Meta and (meta.leaf or meta.freed)):
            value.owner = None
