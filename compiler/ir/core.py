"""Values, operations, regions and graphs.

Graph level: an `Operation` is frozen when it is made and a `Graph` is (parameters, results); its order is derived.
Loop level: a `Block` holds operations in order, and operations may have regions. Both use these classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flambeau.compiler.diagnostics import FlambeauError, Location
from flambeau.compiler.ir.opdef import OpDef
from flambeau.compiler.ir.types import FunctionType, Type


class Value:
    """An SSA value. `owner` is the operation that makes it, or None for a parameter, a block argument or a leaf.

    `data` belongs to whoever evaluates graphs: the concrete content (a runtime buffer) once it is known.
    `requires_grad` belongs to autograd: whether derivatives flow through this value. `hooks` likewise.
    `number` belongs to whoever records a program: which of its values this is.
    """

    __slots__ = ("type", "owner", "index", "data", "requires_grad", "hooks", "number", "__weakref__")

    def __init__(
        self, type: Type, owner: Operation | None = None, index: int = 0, requires_grad: bool = False
    ) -> None:
        self.type = type
        self.owner = owner
        self.index = index
        self.data: Any = None
        self.requires_grad = requires_grad
        self.hooks: Any = None
        self.number = -1

    @property
    def definition(self) -> OpDef | None:
        """The definition of the operation that makes it, if one does."""
        owner = self.owner
        return None if owner is None else owner.definition

    @property
    def sources(self) -> tuple[Value, ...]:
        """What it was recorded from; for most values, its operation's operands."""
        owner = self.owner
        return () if owner is None else owner.operands

    def __repr__(self) -> str:
        return f"<{self.owner.definition.name if self.owner else 'value'}: {self.type}>"


class Operation:
    """A node: a definition applied to operands. `location` is (file, line), a `Location` or None."""

    __slots__ = ("definition", "operands", "results", "regions", "_location")
    results: tuple[Value, ...]

    def __init__(
        self,
        definition: OpDef,
        operands: Sequence[Value],
        result_types: Sequence[Type],
        location: Any = None,
        regions: Sequence[Region] = (),
        requires_grad: bool = False,
        results: tuple[Value, ...] = (),
    ) -> None:
        self.definition = definition
        self.operands = tuple(operands)
        if results:  # values that exist already and get their operation late
            self.results = results
        elif len(result_types) == 1:
            self.results = (Value(result_types[0], self, 0, requires_grad),)
        else:
            self.results = tuple([Value(t, self, i, requires_grad) for i, t in enumerate(result_types)])
        self._location = location
        self.regions = tuple(regions)

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    @property
    def location(self) -> Location | None:
        if self._location is None or isinstance(self._location, Location):
            return self._location
        return Location(*self._location)

    def __repr__(self) -> str:
        return f"<{self.definition!r} {', '.join(map(str, (v.type for v in self.operands)))}>"


class Block:
    """Ordered operations with arguments."""

    __slots__ = ("arguments", "operations")

    def __init__(self, argument_types: Iterable[Type] = ()) -> None:
        self.arguments = tuple([Value(t, None, i) for i, t in enumerate(argument_types)])
        self.operations: list[Operation] = []


class Region:
    """A list of blocks; ours have exactly one."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)

    @property
    def block(self) -> Block:
        (block,) = self.blocks
        return block


_INFERRED: dict[tuple[Any, ...], tuple[Type, ...]] = {}
_REMEMBERED = 1 << 14


def infer_types(definition: OpDef, operand_types: tuple[Type, ...]) -> tuple[Type, ...]:
    """The result types of `definition` on operands of these types; remembered, because types are interned."""
    key = (definition, operand_types)
    found = _INFERRED.get(key)
    if found is None:
        inferred = definition.infer(*operand_types)
        if len(_INFERRED) >= _REMEMBERED:
            _INFERRED.clear()
        found = _INFERRED[key] = inferred if isinstance(inferred, tuple) else (inferred,)
    return found


def create(
    definition: OpDef, *operands: Value, location: Any = None, requires_grad: bool = False
) -> Operation:
    """Make a graph operation: infers its types. A TypeInferenceError gets `location`."""
    try:
        types = infer_types(definition, tuple([v.type for v in operands]))
    except FlambeauError as error:
        if location is not None and error.location is None:
            place = location if isinstance(location, Location) else Location(*location)
            raise type(error)(error.message, place) from None
        raise
    return Operation(definition, operands, types, location, (), requires_grad)


class Tracing(threading.local):
    """Whom `apply` asks to make operations: the frontend while a user's program records, nobody inside passes.

    A recorder gives the new operation the user's place and says whether derivatives flow through it.
    """

    record: Callable[..., Value] | None = None


tracing = Tracing()


def apply(definition: OpDef, *operands: Value) -> Value:
    """Make a graph operation with one result and return that. For passes, decompositions and vjps.

    Its location is the first operand's, unless a recorder is at work (`Tracing`).
    """
    record = tracing.record
    if record is not None:
        return record(definition, *operands)
    location = next((v.owner._location for v in operands if v.owner is not None), None)
    return create(definition, *operands, location=location).result


def apply_all(definition: OpDef, *operands: Value) -> tuple[Value, ...]:
    """As `apply`, for an operation with several results."""
    first = tracing.record(definition, *operands) if tracing.record is not None else None
    if first is not None and first.owner is not None:
        return first.owner.results
    location = next((v.owner._location for v in operands if v.owner is not None), None)
    return create(definition, *operands, location=location).results


@contextmanager
def untraced() -> Iterator[None]:
    """Inside, operations are made by passes and not by the user's program: no recorder gives them the caller's place."""
    recorder, tracing.record = tracing.record, None
    try:
        yield
    finally:
        tracing.record = recorder


class Graph:
    """A function of the graph level: parameters, results, and everything that the results depend on."""

    __slots__ = ("name", "parameters", "results", "_order", "_key")

    def __init__(self, parameters: Sequence[Value], results: Sequence[Value], name: str = "main") -> None:
        self.name = name
        self.parameters = tuple(parameters)
        self.results = tuple(results)
        self._order: tuple[Operation, ...] | None = None
        self._key: tuple[Any, ...] | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Every operation that the results need, operands before users; deterministic."""
        if self._order is None:
            self._order = tuple(topological(self.results, set(self.parameters)))
        return self._order

    @property
    def type(self) -> FunctionType:
        return FunctionType.get(tuple(p.type for p in self.parameters), tuple(r.type for r in self.results))

    def key(self) -> tuple[Any, ...]:
        """The structure as a hashable value: equal keys mean equal graphs up to names and locations."""
        if self._key is None:
            number: dict[Value, int] = {p: i for i, p in enumerate(self.parameters)}
            parts: list[Any] = [tuple(p.type for p in self.parameters)]
            for operation in self.operations:
                parts.append((operation.definition, tuple([number[v] for v in operation.operands])))
                for value in operation.results:
                    number[value] = len(number)
            parts.append(tuple([number[r] for r in self.results]))
            self._key = tuple(parts)
        return self._key

    def __hash__(self) -> int:
        return hash(self.key())

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Graph) and self.key() == other.key())

    def __repr__(self) -> str:
        return f"Graph{self.key()!r}"  # the same in every process: a graph may be an operation's attribute


def topological(results: Sequence[Value], stop: set[Value]) -> list[Operation]:
    """Operations below `results`, operands first, not going past `stop`; iterative, since graphs are deep."""
    order: list[Operation] = []
    done: set[Operation] = set()
    for root in results:
        if root in stop or root.owner is None:
            continue
        stack: list[tuple[Operation, int]] = [(root.owner, 0)]
        while stack:
            operation, position = stack.pop()
            if operation in done:
                continue
            operands = operation.operands
            while position < len(operands):
                value = operands[position]
                position += 1
                owner = value.owner
                if owner is not None and owner not in done and value not in stop:
                    stack.append((operation, position))
                    stack.append((owner, 0))
                    break
            else:
                done.add(operation)
                order.append(operation)
    return order


Replace = Callable[[Operation, tuple[Value, ...]], "Sequence[Value] | None"]


def rebuild(graph: Graph, replace: Replace | None = None, parameters: Sequence[Value] | None = None) -> Graph:
    """A copy of `graph` in which `replace(operation, new_operands)` may give other values for an operation's results.

    Operations whose operands did not change are shared, not copied. `parameters` replaces the graph's own.
    """
    new: dict[Value, Value] = {}
    if parameters is not None:
        new = dict(zip(graph.parameters, parameters, strict=True))
    for operation in graph.operations:
        operands = tuple([new.get(v, v) for v in operation.operands])
        values = replace(operation, operands) if replace is not None else None
        if values is None:
            if operands == operation.operands:
                continue
            types = [r.type for r in operation.results]
            if any(a.type is not b.type for a, b in zip(operands, operation.operands, strict=True)):
                types = list(infer_types(operation.definition, tuple([v.type for v in operands])))
            values = Operation(operation.definition, operands, types, operation._location).results
        new.update(zip(operation.results, values, strict=True))
    changed = parameters if parameters is not None else graph.parameters
    return Graph(changed, [new.get(r, r) for r in graph.results], graph.name)
