"""Cuts a graph into kernels and decides which values get memory.

An element operation's value is *inlined* into its users where that costs no work, else materialised. Every materialised
value becomes a kernel; kernels that work row by row over the same rows then merge (softmax, layer norm: statistics and
what is computed from them stay in cache), and so do independent results of the same shape that read one another.
Contractions and sliding windows take the elementwise chain behind them as their epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Graph, Operation, Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.lowering.probe import Reads, axis_symbols, probe
from flambeau.compiler.lowering.views import base_of

#: An element that costs at most this much is computed again by each user rather than stored and read.
CHEAP = 6
#: Families that read their operands many times, as views of what lies in memory.
MANY_READS = ("attention", "attention_gradient")
#: Families that need their operands in memory.
IN_PLACE = ("sort", "scatter", "cumulative", "scan")
#: No kernel inlines more operations than this into one element.
LIMIT = 96
#: Concatenations of more operands than this copy them.
PARTS = 8
#: Families whose kernels compute the elementwise chain behind their operation too, as they store.
TAKES_EPILOGUE = ("contraction", "window")
#: Products of more than SHALLOW terms leave an epilogue that reads more than STATE arrays of the result's size (an optimizer's
#: step) to a kernel of its own: it streams them, while a tile's epilogue meets each line in caches full of panels.
STATE, SHALLOW = 2, 256


@dataclass(frozen=True)
class Kernel:
    """One kernel: `graph`'s parameters are buffers that it reads, its results buffers that it writes.

    `family` names the lowering. Inside, values for which `materialised` is true are computed one after the other.
    """

    graph: Graph
    family: str

    def key(self) -> tuple[object, ...]:
        return (self.family, self.graph.key())


@dataclass(frozen=True)
class KernelCall:
    """A kernel applied to values of the whole graph."""

    kernel: Kernel
    operands: tuple[Value, ...]
    results: tuple[Value, ...]


@dataclass(frozen=True)
class Program:
    """A graph cut into kernels, in the order in which they run."""

    graph: Graph
    calls: tuple[KernelCall, ...]


@dataclass
class _Item:
    """A materialised value (or all results of one multi-result operation)."""

    values: tuple[Value, ...]
    family: str
    reads: list[tuple[Value, tuple[Index, ...]]]
    index: tuple[Index, ...]
    #: Vectors can run it: no branches, no loops, no positions that depend on data.
    straight: bool = True
    #: The materialised values and parameters that its expression mentions, read or not.
    needs: set[Value] = field(default_factory=set)


@dataclass
class _Group:
    items: list[_Item]
    family: str
    depends: set[int] = field(default_factory=set)


def tensor_type(value: Value) -> TensorType:
    """The value's type, which at this level is a tensor's."""
    assert isinstance(value.type, TensorType)
    return value.type


def family_of(operation: Operation) -> str:
    assert isinstance(operation.definition, GraphOp)
    family = operation.definition.schedule_family
    return "element" if family == "constant" else family


def reduced_axes(operation: Operation) -> tuple[int, ...]:
    """The axes over which a reduction runs."""
    axes: tuple[int, ...] = operation.definition.dimensions  # type: ignore[attr-defined]
    return tuple(axes)


def is_row_reduction(operation: Operation) -> bool:
    """Is the last axis reduced? Then each row's elements lie together."""
    return family_of(operation) == "reduce" and tensor_type(operation.operands[0]).rank - 1 in reduced_axes(
        operation
    )


def fuse(graph: Graph) -> Program:
    """Cut `graph` (primitive operations only) into kernels."""
    materialised = _choose(graph)
    items = [_item(op, values, materialised) for op, values in _materialising(graph, materialised)]
    for item in items:
        item.needs = _needs(item, materialised)
    groups = _merge(items)
    escaping = set(graph.results)
    home: dict[Value, int] = {}
    for number, group in enumerate(groups):
        for item in group.items:
            for value in item.values:
                home[value] = number
    for number, group in enumerate(groups):
        for item in group.items:
            escaping.update(v for v in item.needs if home.get(v, number) != number)
    return Program(graph, tuple([_call(group, escaping, materialised) for group in groups]))


# -- which values get memory ---------------------------------------------------------------------------------------


def _choose(graph: Graph) -> set[Value]:
    """The values that get memory."""
    users: dict[Value, list[Operation]] = {}
    for operation in graph.operations:
        for value in operation.operands:
            users.setdefault(value, []).append(operation)
    chosen: set[Value] = set(graph.results)
    for operation in graph.operations:
        if family_of(operation) in MANY_READS:
            chosen.update(v for v in map(base_of, operation.operands) if _is_computed(v))
    for operation in graph.operations:
        if family_of(operation) != "element":
            chosen.update(operation.results)
            continue
        for value in operation.results:
            index = axis_symbols(tensor_type(value).shape)
            reads = probe(value, index, lambda v: v not in chosen)
            deserves = _deserves_memory(value, operation, reads, users.get(value, []))
            if value not in chosen and (deserves or _is_epilogue(value, index, reads, users.get(value, []))):
                in_place = any(family_of(u) in IN_PLACE for u in users[value])
                chosen.add(value if in_place else _before_reshapes(value, chosen))
    return chosen


def _before_reshapes(value: Value, chosen: set[Value]) -> Value:
    """What has the same memory before it is reshaped: its rows may be simpler to compute."""
    while value.owner is not None and value.owner.name == "graph.reshape":
        (operand,) = value.owner.operands
        if operand in chosen or operand.owner is None or family_of(operand.owner) != "element":
            break
        value = operand
    return value


def _is_computed(value: Value) -> bool:
    definition = value.owner.definition if value.owner is not None else None
    return isinstance(definition, GraphOp) and definition.schedule_family != "constant"


def _deserves_memory(value: Value, operation: Operation, reads: Reads, users: list[Operation]) -> bool:
    if not users:
        return False
    if reads.operations > LIMIT or len(reads.accesses) > 24:
        return True
    definition = operation.definition
    assert isinstance(definition, GraphOp)
    cost = max(reads.cost, 64 if definition.expensive else 0)
    if cost > CHEAP and len(set(users)) > 1:
        return True
    for user in users:
        family = family_of(user)
        assert isinstance(user.definition, GraphOp)
        if any(user.operands[number] is value for number in user.definition.buffered):
            return True
        # These read an operand's element many times, or need it to lie in memory.
        if family in IN_PLACE and reads.operations > 0:
            return True
        if family == "contraction" and cost > 1:
            return True
        if user.definition.rereads and cost > 1:
            return True
        if cost <= CHEAP or family != "element":
            continue
        if user.definition.expensive or _rereads(user, tensor_type(value)):
            return True
    return False


def _is_epilogue(value: Value, index: tuple[Index, ...], reads: Reads, users: list[Operation]) -> bool:
    """Does a contraction or a window read what another one's element at the same position gives? Then it lies in memory
    in that element's place, and is read without being computed again."""
    if reads.cost == 0 or not any(family_of(user) in TAKES_EPILOGUE for user in users):
        return False
    return any(
        read.owner is not None and family_of(read.owner) in TAKES_EPILOGUE and at == index
        for read, at in reads.accesses
    )


def _rereads(user: Operation, operand: TensorType) -> bool:
    """Does the user read each element more than once?"""
    result = tensor_type(user.results[0])
    assert isinstance(user.definition, GraphOp)
    if user.definition.reads_once and result.is_static and len(user.operands) <= PARTS:
        return False  # it is computed box by box, without conditions
    if isinstance(operand.size, int) and isinstance(result.size, int):
        return result.size > operand.size
    return operand.size != result.size


def _materialising(graph: Graph, chosen: set[Value]) -> list[tuple[Operation, tuple[Value, ...]]]:
    pairs: list[tuple[Operation, tuple[Value, ...]]] = []
    for operation in graph.operations:
        if family_of(operation) != "element":
            pairs.append((operation, operation.results))
            continue
        pairs.extend((operation, (v,)) for v in operation.results if v in chosen)
    return pairs


def _needs(item: _Item, chosen: set[Value]) -> set[Value]:
    found: set[Value] = set()
    seen: set[Value] = set()
    pending = [v for value in item.values if value.owner is not None for v in value.owner.operands]
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in chosen:
            found.add(value)
        elif value.owner is not None:
            pending.extend(value.owner.operands)
    return found


def _item(operation: Operation, values: tuple[Value, ...], chosen: set[Value]) -> _Item:
    family = family_of(operation)
    if family == "element":
        index = axis_symbols(tensor_type(values[0]).shape)
        found = probe(values[0], index, lambda v: v not in chosen)
        return _Item(values, family, found.accesses, index, found.straight)
    reads: list[tuple[Value, tuple[Index, ...]]] = []
    index = ()
    for number, operand in enumerate(operation.operands):
        at = axis_symbols(tensor_type(operand).shape)
        if number == 0:
            index = at
        if operand in chosen or operand.owner is None:
            reads.append((operand, at))
        else:
            reads.extend(probe(operand, at, lambda v: v not in chosen).accesses)
    if family == "reduce":
        family = "rows" if is_row_reduction(operation) else "columns"
    return _Item(values, family, reads, index)


# -- merging -------------------------------------------------------------------------------------------------------


def _merge(items: list[_Item]) -> list[_Group]:
    groups: list[_Group] = []
    home: dict[Value, int] = {}
    for item in items:
        producers = {home[v] for v in item.needs if v in home}
        target = None
        if item.family in ("element", "rows"):
            for number in sorted(producers, reverse=True):
                if _fits(groups[number], item) and not _reaches(groups, producers - {number}, number):
                    target = number
                    break
        if target is None:
            groups.append(_Group([], "element" if item.family == "element" else item.family))
            target = len(groups) - 1
        group = groups[target]
        group.items.append(item)
        if item.family == "rows":
            group.family = "rows"
        group.depends |= producers - {target}
        for value in item.values:
            home[value] = target
        for other in sorted(producers - {target}):
            if _fit_together(groups, target, other):
                _absorb(groups, target, other)
                home.update((v, target) for i in group.items for v in i.values)
    _part_epilogues(groups, home)
    return [groups[n] for n in _ordered(groups) if groups[n].items]


def _part_epilogues(groups: list[_Group], home: dict[Value, int]) -> None:
    """Make long epilogues of deep contractions groups of their own."""
    for group in list(groups):
        if group.family != "contraction" or len(group.items) == 1:
            continue
        first, *rest = group.items
        own = {v for item in group.items for v in item.values}
        shape = tensor_type(first.values[0]).shape
        state = {
            v for i in rest for v, at in i.reads if at == i.index and tensor_type(v).shape == shape
        } - own
        if len(state) <= STATE or not _is_deep(first.values[0].owner):
            continue
        group.items = [first]
        home.update((v, len(groups)) for item in rest for v in item.values)
        groups.append(_Group(rest, "element"))
    for number, group in enumerate(groups):
        needs = {home[v] for item in group.items for v in item.needs if v in home}
        group.depends = needs - {number}


def _is_deep(operation: Operation | None) -> bool:
    """Is it a product or convolution whose sums have many terms?"""
    if operation is None or not isinstance(operation.definition, DotGeneral | Convolution):
        return False
    depth = operation.definition.contraction(*[tensor_type(v) for v in operation.operands]).k
    return not isinstance(depth, int) or depth > SHALLOW


def _fit_together(groups: list[_Group], target: int, other: int) -> bool:
    """May two groups of elementwise results, both of which one item reads, be one? (A moment and a parameter that an
    optimizer updates from one gradient.)"""
    a, b = groups[target], groups[other]
    if a.family != "element" or b.family != "element" or len(a.items) + len(b.items) > 12:
        return False
    members = [*a.items, *b.items]
    if domain_of([i.values for i in members]) is not None:
        return False
    whole = _Group(members, "element")
    return (
        all(_same_positions(whole, item) for item in members)
        and not _reaches(groups, a.depends - {other}, other)
        and not _reaches(groups, b.depends - {target}, target)
    )


def _absorb(groups: list[_Group], target: int, other: int) -> None:
    """The items of group `other` become `target`'s; everybody who depends on it depends on `target`."""
    a, b = groups[target], groups[other]
    a.items += b.items
    a.depends |= b.depends
    b.items, b.depends = [], set()
    for group in groups:
        if other in group.depends:
            group.depends.discard(other)
            group.depends.add(target)
    a.depends -= {target, other}


def _reaches(groups: list[_Group], start: set[int], goal: int) -> bool:
    """Does any group in `start` need `goal`, directly or not?"""
    pending, seen = list(start), set(start)
    while pending:
        for dependency in groups[pending.pop()].depends:
            if dependency == goal:
                return True
            if dependency not in seen:
                seen.add(dependency)
                pending.append(dependency)
    return goal in start


def _ordered(groups: list[_Group]) -> list[int]:
    order: list[int] = []
    done: set[int] = set()

    def visit(root: int) -> None:
        stack = [(root, iter(sorted(groups[root].depends)))]
        done.add(root)
        while stack:
            number, rest = stack[-1]
            following = next((d for d in rest if d not in done), None)
            if following is None:
                order.append(number)
                stack.pop()
                continue
            done.add(following)
            stack.append((following, iter(sorted(groups[following].depends))))

    for number in range(len(groups)):
        if number not in done:
            visit(number)
    return order


@dataclass(frozen=True)
class RowDomain:
    """The positions of a row group: a full shape, and which of its axes lie inside a row."""

    shape: tuple[Index, ...]
    inner: tuple[int, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.shape)) if a not in self.inner)


def domain_of(items: Sequence[tuple[Value, ...]]) -> RowDomain | None:
    """The domain of a group, from its reductions; None if it has none."""
    for values in items:
        operation = values[0].owner
        if operation is not None and family_of(operation) == "reduce":
            return RowDomain(tensor_type(operation.operands[0]).shape, reduced_axes(operation))
    return None


def role(value: Value, domain: RowDomain) -> str | None:
    """What a value is in a domain: "reduce", "full" (an element a position) or "outer" (an element a row)."""
    assert value.owner is not None
    if family_of(value.owner) == "reduce":
        same = tensor_type(value.owner.operands[0]).shape == domain.shape and set(
            reduced_axes(value.owner)
        ) == set(domain.inner)
        return "reduce" if same else None
    shape = tensor_type(value).shape
    if shape == domain.shape:
        return "full"
    if outer_axes(shape, domain) is not None:
        return "outer"
    return None


def outer_axes(shape: tuple[Index, ...], domain: RowDomain) -> tuple[int | None, ...] | None:
    """For each axis of a per-row value's shape the domain's axis (None: size 1); None if it is not one value a row."""
    kept = [domain.shape[a] for a in domain.kept]
    if list(shape) == kept:
        return domain.kept
    keep_dims = tuple(1 if a in domain.inner else d for a, d in enumerate(domain.shape))
    if tuple(shape) == keep_dims:
        return tuple(None if a in domain.inner else a for a in range(len(domain.shape)))
    return None


def position_in(value: Value, domain: RowDomain, index: tuple[Index, ...]) -> tuple[Index, ...]:
    """Where a value's element for the domain's position `index` is."""
    what = role(value, domain)
    if what == "full":
        return index
    axes = outer_axes(tensor_type(value).shape, domain)
    assert axes is not None
    return tuple(0 if a is None else index[a] for a in axes)


def _fits(group: _Group, item: _Item) -> bool:
    """May `item` join `group`? All values must have a role in one domain, and read one another at their own row only."""
    if group.family in TAKES_EPILOGUE:
        return (
            item.family == "element"
            and item.straight
            and len(group.items) <= 4
            and _same_positions(group, item)
        )
    if group.family not in ("element", "rows"):
        return False
    members = [i.values for i in group.items]
    domain = domain_of([*members, item.values])
    if domain is None:
        return _same_positions(group, item)
    if len(group.items) > 24:
        return False
    if any(role(values[0], domain) is None for values in [*members, item.values]):
        return False
    inside = {v for values in members for v in values}
    return all(_row_aligned(i, domain, inside) for i in [*group.items, item])


def _same_positions(group: _Group, item: _Item) -> bool:
    """Elementwise results of one shape, each reading the others only where it is itself."""
    if len(group.items) > 12 or item.family != "element":
        return False
    shape = tensor_type(item.values[0]).shape
    if any(tensor_type(i.values[0]).shape != shape for i in group.items):
        return False
    inside = {v for i in group.items for v in i.values}
    return all(at == item.index for v, at in item.reads if v in inside)


def _row_aligned(item: _Item, domain: RowDomain, inside: set[Value]) -> bool:
    value = item.values[0]
    what = role(value, domain)
    if what == "outer":
        axes = outer_axes(tensor_type(value).shape, domain)
        assert axes is not None
        here = {a: at for a, at in zip(axes, item.index, strict=True) if a is not None}
    else:
        here = {a: item.index[a] for a in domain.kept}
    for read, at in item.reads:
        if read not in inside:
            continue
        read_role = role(read, domain)
        axes = (
            tuple(range(len(domain.shape)))
            if read_role == "full"
            else outer_axes(tensor_type(read).shape, domain)
        )
        assert axes is not None
        for axis, place in zip(axes, at, strict=True):
            if axis is None or axis in domain.inner:
                continue
            if place != here[axis] and domain.shape[axis] != 1:
                return False
        if read_role == "full" and what == "outer":
            return False
    return True


# -- outlining -----------------------------------------------------------------------------------------------------


def _call(group: _Group, escaping: set[Value], chosen: set[Value]) -> KernelCall:
    """Outline a group: a graph of its own whose parameters are the buffers that it reads."""
    own = {v for item in group.items for v in item.values}
    results = [v for item in group.items for v in item.values if v in escaping or len(group.items) == 1]
    copies: dict[Value, Value] = {}
    operands: list[Value] = []
    parameters: list[Value] = []
    pending: list[tuple[Value, bool]] = [(v, False) for item in reversed(group.items) for v in item.values]
    while pending:
        value, ready = pending.pop()
        if value in copies:
            continue
        if value not in own and (value in chosen or value.owner is None):
            copies[value] = Value(value.type)
            operands.append(value)
            parameters.append(copies[value])
            continue
        operation = value.owner
        assert operation is not None
        if not ready:
            pending.append((value, True))
            pending.extend((v, False) for v in reversed(operation.operands) if v not in copies)
            continue
        made = Operation(
            operation.definition,
            [copies[v] for v in operation.operands],
            [r.type for r in operation.results],
            operation._location,
        )
        for old, new in zip(operation.results, made.results, strict=True):
            copies[old] = new
    # Values that the kernel keeps to itself come after its results; the lowering gives them memory of their own.
    kept = [v for item in group.items for v in item.values if v not in set(results)]
    graph = Graph(parameters, [copies[v] for v in results], "kernel")
    kernel = Kernel(graph, group.family) if not kept else _with_stages(graph, group, copies, kept)
    return KernelCall(kernel, tuple(operands), tuple(results))


@dataclass(frozen=True)
class StagedKernel(Kernel):
    """A row kernel with values that it computes once a row but does not hand out."""

    stages: tuple[Value, ...] = ()

    def key(self) -> tuple[object, ...]:
        whole = Graph(self.graph.parameters, [*self.graph.results, *self.stages])
        return (self.family, len(self.stages), whole.key())


def _with_stages(graph: Graph, group: _Group, copies: dict[Value, Value], kept: list[Value]) -> StagedKernel:
    return StagedKernel(graph, group.family, tuple([copies[v] for v in kept]))
