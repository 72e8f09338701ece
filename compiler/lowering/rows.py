"""Row kernels: a group of values with reductions along the last axes of a domain, row by row (`row_loops`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, product, recombine
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.overlapping_rows import lower_overlapping, overlaps
from flambeau.compiler.lowering.prefetching import gathered_from
from flambeau.compiler.lowering.row_loops import Row, levelled_stages, read_later
from flambeau.compiler.lowering.streaming import either_way, streamed
from flambeau.compiler.lowering.views import coefficient_of
from flambeau.compiler.passes.fuse import RowDomain, position_in, role

#: Elements from which on several axes at a row's end are one loop of vectors.
SHORTEST = 4


def lower_rows(ctx: LoweringContext, values: Sequence[Value], domain: RowDomain, results: set[Value]) -> None:
    """Emit a group of values (operands before users) over `domain`. Those in `results` have a buffer in `ctx.memory`."""
    values = _with_scalars(values, domain)
    joined = _joined(values, domain, ctx.lanes)
    index, stages = levelled_stages(values, domain, joined)
    gathered = [
        (s.value, operand)
        for s in stages
        if s.role == "full" and s.level == 0 and s.reads.straight and not s.reads.static
        for operand in gathered_from(ctx, s.value, index, set(values))
    ]
    cost = sum(s.reads.cost + 1 for s in stages)
    sizes = tuple([domain.shape[a] for a in domain.inner])
    inner = (*sizes[: len(sizes) - joined], product(sizes[len(sizes) - joined :]))
    rows = tuple(domain.shape[a] for a in domain.kept)
    whole = bool(inner) and isinstance(inner[-1], int) and inner[-1] % ctx.lanes == 0
    full = [s.value for s in stages if s.role == "full" and s.value in results and not read_later(stages, s)]

    def emit(past: frozenset[Value]) -> None:
        if past and joined == 1 and overlaps(ctx, index, stages, domain):
            lower_overlapping(ctx, index, stages, domain, results, past)
            return
        with ctx.rows(rows, product(domain.shape) * cost) as row:
            code = Row(ctx, stages, domain, row, inner, results, past, joined)
            code.gathered = gathered if rows else []
            code.emit()

    either_way(ctx, streamed(ctx, full) if whole else frozenset(), emit)


def _with_scalars(values: Sequence[Value], domain: RowDomain) -> list[Value]:
    """The group, and what its values compute from one number a row: each of these is then computed once a row, not in each
    iteration of its loops (a layer norm of 8192 x 1024, with its mean, takes 1.6 ms instead of 2.2)."""
    group, excluded = set(values), set[Value]()
    while True:
        found = _candidates(values, domain, group | excluded)
        index, stages = levelled_stages(found, domain)
        # By its shape alone, one number a row may be one a column.
        elsewhere = {
            v
            for stage in stages
            for v, at in stage.reads.accesses
            if v in found and v not in group and at != position_in(v, domain, index)
        }
        if not elsewhere:
            return found
        excluded |= elsewhere


def _candidates(values: Sequence[Value], domain: RowDomain, others: set[Value]) -> list[Value]:
    """The values, and before each what it computes of the shape of one number a row, unless it is in `others`."""
    found: dict[Value, None] = {}
    seen: set[Value] = set()

    def visit(value: Value) -> None:
        assert value.owner is not None
        for operand in value.owner.operands:
            if operand.owner is None or operand in seen or build.splat_value(operand) is not None:
                continue
            seen.add(operand)
            if operand in others:
                if operand not in values:
                    visit(operand)
                continue
            if tensor_of(operand).shape != domain.shape and role(operand, domain) == "outer":
                found[operand] = None
            else:
                visit(operand)

    for value in values:
        visit(value)
        found[value] = None
    return list(found)


def _joined(values: Sequence[Value], domain: RowDomain, lanes: int) -> int:
    """How many of a row's axes are one loop: those at its end, if the last one does not fill its vectors, and if whatever is
    read there lies on end or stays the same."""
    shape, axes = domain.shape, domain.inner
    together: list[int] = []
    for axis in reversed(range(len(shape))):
        extent = shape[axis]
        if axis not in axes or not isinstance(extent, int):
            break
        together.append(extent)
    count = len(together)
    if count < 2 or together[0] == 1 or together[0] % lanes == 0 or math.prod(together) < SHORTEST:
        return min(1, len(axes))
    index, stages = levelled_stages(values, domain, count)
    symbols = frozenset(index[-1].symbols()) if isinstance(index[-1], Dim) else frozenset()
    accesses = [access for stage in stages for access in stage.reads.accesses]
    ends = all(s.reads.straight for s in stages) and all(_on_end(v, at, symbols) for v, at in accesses)
    return count if ends else 1


def _on_end(value: Value, at: tuple[Index, ...], symbols: frozenset[Symbol]) -> bool:
    """Is the element at `at` the next one in memory, or the same, when the only one of `symbols` moves on by one?"""
    offset: Index = 0
    for extent, position in zip(tensor_of(value).shape, at, strict=True):
        offset = offset * extent + position
    return all(coefficient_of(recombine(offset), symbol) in (0, 1) for symbol in symbols)
