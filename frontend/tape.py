"""What a thread records: values whose operations are made when somebody asks, and the way through all that it recorded.

A program that repeats records the same operations on values that came about in the same way. So the recorder walks a tree
whose edges are recorded operations, their operands numbered in the order in which they came up: being at the same `Step`
again means to have recorded the same graph. What is known of a step (types, the executable of what is wanted then, the
derivative) is found there without looking at the graph, and, in a loop's second iteration, nothing but the walk is done.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import Any

from flambeau.compiler.diagnostics import _INTERNAL, FlambeauError, Location, is_internal
from flambeau.compiler.dialects.graph.autograd_ops import CustomGradient
from flambeau.compiler.ir.core import Operation, Value, infer_types
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import Type
from flambeau.reverse import is_leaf

#: A place in the user's program: a code object and the instruction in it, or (file, line), or None.
Place = Any

#: Numbers that one walk may give to values, and steps that all walks together may leave behind.
NUMBERS, STEPS = 1 << 16, 1 << 15
#: The number of values that are made from a recorded one (`replay`) and that no way leads to from there.
INSIDE = -2


def caller_place() -> Place:
    """Where the nearest frame outside this package is."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        internal = _INTERNAL.get(code.co_filename)
        if not (is_internal(code.co_filename) if internal is None else internal):
            return code, frame.f_lasti
        frame = frame.f_back
    return None


def location_of(place: Place) -> Any:
    """(file, line) of a place."""
    if place is None or not isinstance(place[0], CodeType):
        return place
    code, instruction = place
    for start, end, line in code.co_lines():
        if start <= instruction < end:
            return code.co_filename, line or code.co_firstlineno
    return code.co_filename, code.co_firstlineno


class Rule:
    """What makes a recorded value of its sources, where that is several operations."""

    __slots__ = ("types",)
    types: tuple[Type, ...]

    def operation(self, value: Recorded) -> Operation:
        """The operation that makes `value`, which becomes its result; others below it as needed."""
        raise NotImplementedError


_owner = Value.owner  # type: ignore[misc]
_owner_of, _set_owner = _owner.__get__, _owner.__set__  # type: ignore[attr-defined]


class Recorded(Value):
    """A value that the user's program made. It knows of what and by which rule; its operation, which most values never
    need, is made when somebody asks for its owner. (So values refer to their sources alone, and are freed with the last
    reference.)

    `step` is where the walk was when it was recorded, if derivatives flow and all of its history was recorded in one walk.
    """

    __slots__ = ("rule", "sources", "place", "step")
    rule: OpDef | Rule | None
    sources: tuple[Value, ...]
    step: Step | None

    @property
    def owner(self) -> Operation | None:  # type: ignore[override]
        made: Operation | None = _owner_of(self)
        rule = self.rule
        if made is None and rule is not None:
            if isinstance(rule, Rule):
                made = rule.operation(self)
            else:
                made = Operation(rule, self.sources, (), location_of(self.place), results=(self,))
            _set_owner(self, made)
        return made

    @owner.setter
    def owner(self, operation: Operation | None) -> None:
        self.step = None
        if operation is None:  # its history is over
            self.rule, self.sources = None, ()
        else:
            self.rule, self.sources = operation.definition, operation.operands
        _set_owner(self, operation)

    @property
    def definition(self) -> OpDef | None:
        """None where several operations make it of its sources: they are none of its operation's operands."""
        rule = self.rule
        return None if isinstance(rule, Rule) else rule


_new = object.__new__


def recorded(type: Type, rule: OpDef | Rule, sources: tuple[Value, ...], place: Place) -> Recorded:
    """A value without a number through which no derivative flows."""
    value: Recorded = _new(Recorded)
    value.type, value.index, value.number = type, 0, -1
    value.data, value.hooks, value.requires_grad = None, None, False
    value.rule, value.sources, value.place, value.step = rule, sources, place, None
    _set_owner(value, None)
    return value


class Step:
    """Where a walk is: the operation that was recorded last gave values of `types`.

    `whole` says that the walk has met no value whose history began before it. `place` is where the operation was recorded
    the first time (another line may record the same later; to look for it would cost more than the rest). `routes`: by
    what is wanted, how it is computed (the evaluator's). `derivatives`: how the value is differentiated, by what is given
    and asked for (the autograd engine's).
    """

    __slots__ = ("edges", "types", "whole", "place", "routes", "derivatives")

    def __init__(self, types: tuple[Type, ...], whole: bool = True, place: Place = None) -> None:
        self.edges: dict[Any, Step] = {}
        self.types, self.whole, self.place = types, whole, place
        self.routes: dict[Any, Any] = {}
        self.derivatives: dict[Any, Any] = {}


class _Tree:
    """The root of all walks. It is planted anew when it has grown too large; walks under way end in the old one."""

    def __init__(self) -> None:
        self.root, self.steps = Step(()), 0

    def grow(self, step: Step, key: tuple[Any, ...], types: tuple[Type, ...], whole: bool) -> Step:
        self.steps += 1
        if self.steps > STEPS:
            self.root, self.steps = Step(()), 0
        return step.edges.setdefault(key, Step(types, whole, location_of(caller_place())))


tree = _Tree()
_walks = itertools.count(1)


class Recorder:
    """What one thread records: whether derivatives are, into which trace (`jit`), what is pending, and the walk.

    `step` is None when the walk has lost its way (an operand that it did not see being made): then values are recorded all
    the same, and found by their structure. Values of this walk have `base` ≤ number < `base + count`; no other walk, of
    any thread, gives these numbers.
    """

    __slots__ = ("grad", "inference", "trace", "pending", "recorded", "step", "base", "count")

    def __init__(self) -> None:
        self.grad = True
        self.inference = False
        self.trace: Any = None
        self.pending: list[Any] = []  # weak references to cells whose value is not computed yet
        self.restart()

    def restart(self) -> None:
        """Begin a new walk."""
        self.recorded = 0  # operations
        self.step: Step | None = tree.root
        self.base = next(_walks) * NUMBERS
        self.count = 0

    def forget(self) -> None:
        """Nothing is pending any more."""
        self.pending.clear()
        self.restart()

    def apply(self, rule: OpDef | Rule, sources: tuple[Value, ...], flows: bool) -> Value:
        """One more value, made by `rule`: its only (or first) result. Raises TypeInferenceError."""
        return self.apply_all(rule, sources, flows)[0]

    def apply_all(self, rule: OpDef | Rule, sources: tuple[Value, ...], flows: bool) -> tuple[Value, ...]:
        """The same, for any number of results."""
        step = self.walk(rule, sources, flows)
        if step is None:
            place, types = caller_place(), self.types(rule, sources)
        else:
            place, types = step.place, step.types
        self.recorded += 1
        number = -1
        if step is not None:
            number = self.base + self.count
            self.count += len(types)
        if len(types) != 1:
            assert isinstance(rule, OpDef)
            results = Operation(rule, sources, types, location_of(place), (), flows).results
            for i, result in enumerate(results):
                result.number = number if step is None else number + i
            return results
        value: Recorded = _new(Recorded)
        value.type, value.index, value.number = types[0], 0, number
        value.data, value.hooks, value.requires_grad = None, None, flows
        value.rule, value.sources, value.place = rule, sources, place
        value.step = step if flows and step is not None and step.whole else None
        _set_owner(value, None)
        return (value,)

    def apply_pair(self, rule: OpDef | Rule, x: Value, y: Value, flows: bool) -> Value:
        """`apply` for two sources, of which the walk has seen the first: most of what programs do, in one frame."""
        step, base, count = self.step, self.base, self.count
        a, b = x.number - base, y.number - base
        if step is None or not 0 <= a < count:
            return self.apply(rule, (x, y), flows)
        if 0 <= b < count:
            found = step.edges.get((rule, flows, a, b))
        elif y.data is not None and not y.requires_grad:
            found = step.edges.get((rule, flows, a, y.type))
            if found is not None:
                y.number = base + count
                count += 1
        else:
            found = None
        if found is None or count > NUMBERS - 64:
            return self.apply(rule, (x, y), flows)
        self.step, self.count = found, count + 1
        self.recorded += 1
        value: Recorded = _new(Recorded)
        value.type, value.index, value.number = found.types[0], 0, base + count
        value.data, value.hooks, value.requires_grad = None, None, flows
        value.rule, value.sources, value.place = rule, (x, y), found.place
        value.step = found if flows and found.whole else None
        _set_owner(value, None)
        return value

    def walk(self, rule: Any, sources: Sequence[Value], flows: bool) -> Step | None:
        """The next step; sources that are new to the walk get numbers. The results' numbers are the caller's to give."""
        step = self.step
        if step is None:
            return None
        base, count = self.base, self.count
        key: list[Any] = [rule, flows]
        whole = step.whole
        for value in sources:
            number = value.number - base
            if 0 <= number < count:
                key.append(number)
                continue
            if value.data is not None:
                if value.requires_grad:
                    leaf = is_leaf(value)
                    whole = whole and leaf
                    key.append((value.type, leaf))
                else:
                    key.append(value.type)
            elif value.definition is not None and not value.sources:
                key.append(value.definition)
            else:  # made elsewhere: by a pass, in another thread, before the last evaluation
                self.step = None
                return None
            value.number = base + count
            count += 1
        if count > NUMBERS - 64 or type(rule) is CustomGradient:
            self.step = None
            return None
        self.count = count
        edge = tuple(key)
        found = step.edges.get(edge)
        if found is None:
            try:
                found = tree.grow(step, edge, self.types(rule, sources), whole)
            except BaseException:
                self.step = None  # numbers were given for nothing
                raise
        self.step = found
        return found

    def lead(self, key: Any) -> None:
        """Something else has happened that what comes later depends on."""
        if self.step is not None:
            edge = ("event", key)
            self.step = self.step.edges.get(edge) or tree.grow(self.step, edge, (), self.step.whole)

    def types(self, rule: Any, sources: Sequence[Value]) -> tuple[Type, ...]:
        """What `rule` gives of these sources. Raises TypeInferenceError."""
        if not isinstance(rule, OpDef):
            return rule.types  # type: ignore[no-any-return]
        try:
            return infer_types(rule, tuple([v.type for v in sources]))
        except FlambeauError as error:
            location = location_of(caller_place())
            if location is None or error.location is not None:
                raise
            raise type(error)(error.message, Location(*location)) from None


class State(threading.local):
    """The thread's recorder."""

    def __init__(self) -> None:
        self.now = Recorder()

    @property
    def grad(self) -> bool:
        return self.now.grad

    @grad.setter
    def grad(self, enabled: bool) -> None:
        self.now.grad = enabled

    @property
    def inference(self) -> bool:
        return self.now.inference

    @inference.setter
    def inference(self, enabled: bool) -> None:
        self.now.inference = enabled

    @property
    def trace(self) -> Any:
        return self.now.trace

    @trace.setter
    def trace(self, trace: Any) -> None:
        self.now.trace = trace

    @property
    def pending(self) -> list[Any]:
        return self.now.pending

    @pending.setter
    def pending(self, pending: list[Any]) -> None:
        self.now.pending = pending


state = State()
