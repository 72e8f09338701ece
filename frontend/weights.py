"""Weights in the layouts that compiled functions read: shared between functions, and kept in place of the originals.

A function that reads a weight only in another layout needs the weight's own memory no more. If nobody else can see that
memory, it is given back, and the value becomes what a pending one is: a computation, here the layout's inverse. Whoever
wants its content (a program that prints it, an operation, a function that reads another layout) has it computed, bit for
bit, like any other pending value. A write replaces the value, as always.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from flambeau import evaluation
from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Operation, Value, create
from flambeau.evaluation import content
from flambeau.planning import not_recording
from flambeau.runtime.buffer import allocator, is_sole

#: Fewer bytes than this are not worth giving back.
LEAST = 1 << 16

#: What values are in layouts, as long as somebody uses that.
_forms: weakref.WeakKeyDictionary[Value, dict[GraphOp, weakref.ref[Value]]] = weakref.WeakKeyDictionary()


def hold(executable: Any, values: Sequence[Value]) -> Any:
    """The last parameters of `executable` (of `planning.compiled`) for the calls to come: `values`, prepared.

    One weight after the other, so that there is never more than one of them twice.
    """
    by_weight: dict[int, list[Any]] = {}
    for layout in executable.layouts:
        by_weight.setdefault(layout.weight, []).append(layout)
    forms: dict[int, Value] = {}
    released = 0
    for number, layouts in by_weight.items():
        for layout in layouts:
            forms[layout.result] = laid_out(values[number], layout.definition)
        if number not in executable.reads:
            released += release(values[number], layouts[0].definition, forms[layouts[0].result])
    if released:
        allocator.trim()  # memory of other sizes than weights and layouts have: nobody will ask for it
    arrays = [content(v) if n in executable.reads else None for n, v in enumerate(values)]
    held = executable.hold(arrays, [content(forms[layout.result]) for layout in executable.layouts])
    if forms:
        held.keep.extend(forms.values())
    return held


def laid_out(value: Value, layout: GraphOp) -> Value:
    """`value` in a layout: what another function has of it, or made now."""
    known = _forms.setdefault(value, {})
    reference = known.get(layout)
    form = None if reference is None else reference()
    if form is None:
        with not_recording():
            form = create(layout, value).result
        evaluation.compute([form])
        known[layout] = weakref.ref(form)
    return form


def release(value: Value, layout: GraphOp, form: Value) -> int:
    """Give back the memory of `value`, which is `form` in `layout`, if nobody else can see it. The bytes given back."""
    inverse = layout.inverse(value.type)  # type: ignore[arg-type]
    seen = [value.data]
    if inverse is None or seen[0] is None or seen[0].nbytes < LEAST or not is_sole(seen, 0, 1):
        return 0
    operation = Operation(inverse, (form,), [value.type])
    operation.results = (value,)
    # In this order, since other threads may be reading: a value without content has an owner.
    value.index, value.owner = 0, operation
    value.data = None
    bytes_: int = seen[0].nbytes
    return bytes_
