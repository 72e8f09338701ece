"""Which results of a kernel may take the memory of which operands.

A result may where the kernel reads the operand only at the position that it writes, and no later than it writes it: each
position's stores follow all of its loads (`rows.py`, `transposing.py`, a contraction's epilogue).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.lowering.context import tensor_of
from flambeau.compiler.lowering.probe import axis_symbols, probe
from flambeau.compiler.lowering.row_loops import levelled_stages
from flambeau.compiler.passes.fuse import Kernel, RowDomain, family_of

#: (number of the result, number of the operand)
Pairs = tuple[tuple[int, int], ...]
Access = tuple[Value, tuple[Index, ...]]


def in_place_pairs(kernel: Kernel, members: Sequence[Value], domain: RowDomain | None) -> Pairs:
    """The pairs of a kernel. `members`: an element or row kernel's values, operands first, and their domain."""
    graph = kernel.graph
    if kernel.family == "contraction":
        return _of_contraction(kernel)
    if kernel.family not in ("element", "rows"):
        return ()
    if domain is not None:
        return _of_rows(kernel, members, domain)
    shape = tensor_of(members[0]).shape
    if not shape:
        return ()
    group, index = set(members), axis_symbols(shape)
    reads = [probe(v, index, lambda v: v not in group and v.owner is not None).accesses for v in members]
    elsewhere = {v for accesses in reads for v, at in accesses if at != index}
    return _alike(graph.results, graph.parameters, elsewhere)


def _of_rows(kernel: Kernel, members: Sequence[Value], domain: RowDomain) -> Pairs:
    """Loops over a row come one after the other: what reads the operand may not be in a later loop than the result."""
    index, stages = levelled_stages(members, domain)
    elsewhere: set[Value] = set()
    last: dict[Value, int] = {}
    for stage in stages:
        for value, at in stage.reads.accesses:
            if at != index or stage.role == "outer":
                elsewhere.add(value)
            last[value] = max(last.get(value, 0), stage.level)
    written = {s.value: s.level for s in stages if s.role == "full"}
    graph = kernel.graph
    pairs = _alike(graph.results, graph.parameters, elsewhere)
    return tuple(
        [
            (r, o)
            for r, o in pairs
            if graph.results[r] in written and last.get(graph.parameters[o], 0) <= written[graph.results[r]]
        ]
    )


def _of_contraction(kernel: Kernel) -> Pairs:
    """What only the epilogue reads may be overwritten by its results, but for the one that holds unfinished sums."""
    graph = kernel.graph
    anchor = next(o for o in graph.operations if family_of(o) == "contraction")
    definition = anchor.definition
    if (
        isinstance(definition, Convolution)
        and definition.feature_group_count * definition.batch_group_count > 1
    ):
        return ()  # these run in schemes of their own
    (made,) = anchor.results
    index = axis_symbols(tensor_of(made).shape)
    elsewhere = _below(anchor.operands)
    for result in graph.results:
        if result is made:
            continue
        accesses = probe(result, index, lambda v: v is not made and v.owner is not None).accesses
        elsewhere.update(v for v, at in accesses if at != index)
    sums = holder_of_sums(graph.results, made)
    return _alike([None if r is sums else r for r in graph.results], graph.parameters, elsewhere)


def holder_of_sums(results: Sequence[Value], made: Value) -> Value:
    """The result of a contraction whose memory may hold unfinished sums."""
    return made if made in results else results[-1]


def _below(values: Iterable[Value]) -> set[Value]:
    """The values and all that they are computed from."""
    found: set[Value] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        if value in found:
            continue
        found.add(value)
        owner: Operation | None = value.owner
        if owner is not None:
            pending.extend(owner.operands)
    return found


def _alike(results: Sequence[Value | None], operands: Sequence[Value], elsewhere: set[Value]) -> Pairs:
    """Pairs of equal shapes and sizes of elements, without the operands in `elsewhere`."""

    def fit(result: Value | None, operand: Value) -> bool:
        if result is None or operand in elsewhere:
            return False
        a, b = tensor_of(result), tensor_of(operand)
        return a.shape == b.shape and a.element.itemsize == b.element.itemsize

    return tuple([(r, o) for r, x in enumerate(results) for o, y in enumerate(operands) if fit(x, y)])
