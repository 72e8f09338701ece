"""From a kernel to loop-level functions: parameters, buffers, and the lowering of its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.ir.builder import Function, LoopBuilder
from flambeau.compiler.ir.core import Graph, Operation, Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, maximum, of_symbol
from flambeau.compiler.ir.types import memref, u8
from flambeau.compiler.ir.types import pointer as pointer_type
from flambeau.compiler.lowering.attention import lower_attention
from flambeau.compiler.lowering.attention_gradient import lower_attention_gradient
from flambeau.compiler.lowering.columns import lower_columns
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.contractions import lower_contraction, workspace_bytes
from flambeau.compiler.lowering.elements import ElementBuilder
from flambeau.compiler.lowering.elementwise import lower_elements
from flambeau.compiler.lowering.in_place import Pairs, in_place_pairs
from flambeau.compiler.lowering.rows import lower_rows
from flambeau.compiler.lowering.scan_loop import Rows, Step, StepEmitter, StepKernel, cut_body
from flambeau.compiler.lowering.scans import lower_arg_reduce, lower_cumulative
from flambeau.compiler.lowering.scattering import lower_scatter
from flambeau.compiler.lowering.sorting import lower_sort, sort_workspace
from flambeau.compiler.lowering.windows import lower_window
from flambeau.compiler.lowering.winograd_kernel import lower_winograd_kernel
from flambeau.compiler.passes.fuse import (
    TAKES_EPILOGUE,
    Kernel,
    RowDomain,
    StagedKernel,
    domain_of,
    family_of,
)
from flambeau.compiler.passes.scan_rows import count_of, with_rows
from flambeau.compiler.schedule.cpu_contraction import Chooser, ContractionSchedule, choose, cpu_shape
from flambeau.compiler.schedule.cpu_scan import rows_of_part
from flambeau.compiler.signature import byte_size, symbols_of
from flambeau.compiler.targets.cpu import has_avx512, has_f16_conversion, has_fma
from flambeau.compiler.targets.machine import TargetDescription

Single = Callable[[LoweringContext, Operation, "Value | None"], None]

#: Families whose kernels are one operation (and, of some, its epilogue): its lowering, and the bytes of workspace
#: that it needs.
SINGLE: dict[str, tuple[Single, Callable[[LoweringContext, Operation], Index]]] = {
    "attention": (lambda ctx, operation, _: lower_attention(ctx, operation), lambda ctx, operation: 0),
    "attention_gradient": (
        lambda ctx, operation, _: lower_attention_gradient(ctx, operation),
        lambda ctx, operation: 0,
    ),
    "columns": (lambda ctx, operation, _: lower_columns(ctx, operation), lambda ctx, operation: 0),
    "contraction": (lower_contraction, workspace_bytes),
    "arg_reduce": (lambda ctx, operation, _: lower_arg_reduce(ctx, operation), lambda ctx, operation: 0),
    "cumulative": (lambda ctx, operation, _: lower_cumulative(ctx, operation), lambda ctx, operation: 0),
    "scatter": (lambda ctx, operation, _: lower_scatter(ctx, operation), lambda ctx, operation: 0),
    "sort": (lower_sort, sort_workspace),
    "winograd_kernel": (lower_winograd_kernel, lambda ctx, operation: 0),
    "window": (lambda ctx, operation, _: lower_window(ctx, operation), lambda ctx, operation: 0),
}


@dataclass(frozen=True)
class LoweredKernel:
    """`functions` in one module, of which `name` is the kernel; called with `parameters + results` buffers, the
    workspace's pointer, the pool's, and `symbols` as indices. `in_place`: which results may lie where operands do."""

    name: str
    functions: tuple[Operation, ...]
    symbols: tuple[Symbol, ...]
    workspace: Index
    in_place: Pairs = ()


def _all_symbols(graph: Graph) -> Iterator[Symbol]:
    """The symbols in a graph's types, then those in sizes that operations have as attributes: no type need show them (a
    count that something is divided by)."""
    every = [v for o in graph.operations for v in (*o.operands, *o.results)]
    yield from symbols_of([tensor_of(v) for v in (*graph.parameters, *graph.results, *every)])

    def inside(attribute: object) -> Iterator[Symbol]:
        if isinstance(attribute, Dim):
            yield from sorted(attribute.symbols(), key=lambda s: s.name)
        elif isinstance(attribute, tuple):
            for part in attribute:
                yield from inside(part)
        elif isinstance(attribute, Graph):
            yield from _all_symbols(attribute)

    for operation in graph.operations:
        for _, attribute in operation.definition.attribute_items():
            yield from inside(attribute)


def lower_kernel(
    kernel: Kernel, name: str, target: TargetDescription, chooser: Chooser = choose, parallel: bool = True
) -> LoweredKernel:
    """Loop-level functions of one kernel for a CPU, whose contraction has the schedule that `chooser` gives. Unless it is
    `parallel` it stays on its caller's thread."""
    graph = kernel.graph
    symbols = tuple(dict.fromkeys(_all_symbols(graph)))
    b = LoopBuilder(fma=has_fma(target), avx512=has_avx512(target))
    e = ElementBuilder(b, f16_instructions=has_f16_conversion(target))
    ctx = LoweringContext(b, e, target, chooser)
    buffers = [*graph.parameters, *graph.results]
    types = [memref(tensor_of(v).shape, tensor_of(v).element) for v in buffers]
    names = [f"in{i}" for i in range(len(graph.parameters))] + [f"out{i}" for i in range(len(graph.results))]
    single = SINGLE.get(kernel.family)
    workspace: Index = 0
    inner: tuple[Operation, ...] = ()
    members, domain = _members(kernel)
    in_place = in_place_pairs(kernel, members, domain)
    overwritten = {o for _, o in in_place}
    # Where a result may lie on an operand, the others are said to be apart from it: what is the same in each iteration
    # is then read once.
    apart = [bool(in_place) and o not in overwritten for o in range(len(graph.parameters))]
    overwriting = {r for r, _ in in_place}
    aliasing = [*apart, *[r not in overwriting for r in range(len(graph.results))], True, False]
    with b.function(
        name,
        [*types, pointer_type, pointer_type],
        [*names, "workspace", "pool"],
        dims=[of_symbol(s) for s in symbols],
        pool="pool" if parallel else None,
        noalias=aliasing,
        internal=True,
        # Users' arrays may lie anywhere; vector loads from aligned addresses are as fast either way.
        alignment=1,
    ) as function:
        ctx.memory = dict(zip(buffers, function.arguments, strict=False))
        ctx.apart = frozenset(p for o, p in enumerate(graph.parameters) if o not in overwritten)
        if single is not None:
            anchor = graph.results[0].owner
            if kernel.family in TAKES_EPILOGUE:  # whose operations may follow it
                anchor = next(o for o in graph.operations if family_of(o) == kernel.family)
            assert anchor is not None
            ctx.results = graph.results
            lower, bytes_needed = single
            workspace = bytes_needed(ctx, anchor)
            lower(ctx, anchor, function["workspace"] if workspace != 0 else None)
        elif kernel.family in ("element", "rows"):
            if domain is None:
                lower_elements(ctx, members, set(graph.results))
            else:
                lower_rows(ctx, members, domain, set(graph.results))
        elif kernel.family == "scan":
            scan = _lower_scan(ctx, kernel, name, function)
            inner, workspace = scan.functions, scan.workspace
        else:
            raise CompilationError(f"no lowering for kernels of the family {kernel.family!r}")
    return LoweredKernel(name, (*inner, *b.functions), symbols, workspace, in_place)


def _lower_scan(ctx: LoweringContext, kernel: Kernel, name: str, function: Function) -> _Scan:
    """The loop of a scan, and the kernels of its body: for all rows, whose kernels are parallel, and if there is a thread for
    each part of the rows to go through all steps with, for a part."""
    operation = kernel.graph.results[0].owner
    assert operation is not None and isinstance(operation.definition, Scan)
    whole = operation.definition
    step, summed = _step(ctx, whole, name, True)
    part, parts = _part(ctx, whole, name, summed)
    operands = [ctx.memory[v] for v in operation.operands]
    results = [ctx.memory[v] for v in operation.results]
    space = step.workspace if part is None else maximum(step.workspace, part.workspace * parts)
    pool = function["pool"]

    def emit(step: Step, rows: Rows) -> None:
        arena = None
        if step.workspace != 0:
            memory = ctx.b.from_pointer(function["workspace"], (space,), u8)
            arena = ctx.b.subview(memory, rows.part * step.workspace, (step.workspace,))
        StepEmitter(ctx, step, rows, operands, results, arena, pool).emit()

    if part is None:
        emit(step, Rows(whole))
        return _Scan(step.functions, space)
    few = ctx.b.icmp("ule", ctx.b.threads(), ctx.b.index(parts))

    def in_parts() -> None:
        with ctx.b.parallel(parts) as loop:
            emit(part, Rows(whole, loop.index))

    ctx.b.if_(few, in_parts, lambda: emit(step, Rows(whole)))
    return _Scan((*step.functions, *part.functions), space)


@dataclass(frozen=True)
class _Scan:
    """The functions of a scan's kernels, and the bytes of its workspace."""

    functions: tuple[Operation, ...]
    workspace: Index


#: What the bits of a contraction's sums depend on.
_Summed = list[tuple[object, ...]]


def _step(ctx: LoweringContext, scan: Scan, name: str, parallel: bool) -> tuple[Step, _Summed]:
    """The kernels of a scan's body, and how its contractions are summed."""
    summed: _Summed = []

    def noted(*problem: Any) -> ContractionSchedule:
        s = choose(*problem)
        summed.append((s.scheme, s.lanes, s.block_k, s.unroll))
        return s

    def lower(inner: Kernel, number: int) -> StepKernel:
        lowered = lower_kernel(inner, f"{name}_{number}", ctx.target, noted, parallel)
        return StepKernel(lowered.name, lowered.functions, lowered.symbols, lowered.workspace)

    return cut_body(scan, lower), summed


def _part(ctx: LoweringContext, whole: Scan, name: str, summed: _Summed) -> tuple[Step | None, int]:
    """The kernels for a part of the rows, and how many parts there are; None if it does not pay, if rows are not independent, or
    if bits would depend on it."""
    count = count_of(whole)
    shared = [byte_size(p) for p in whole.body.parameters[whole.carries + whole.sequences :]]
    if count is None or not all(isinstance(size, int) for size in shared):
        return None, 0
    rows = rows_of_part(count, sum(s for s in shared if isinstance(s, int)), cpu_shape(ctx.target))
    scan = None if rows is None else with_rows(whole, rows)
    if rows is None or scan is None:
        return None, 0
    step, found = _step(ctx, scan, f"{name}_part", False)
    return (step, count // rows) if found == summed else (None, 0)


def _members(kernel: Kernel) -> tuple[list[Value], RowDomain | None]:
    """What an element or row kernel computes one after the other, operands first, and the domain of its reductions."""
    graph = kernel.graph
    stages = kernel.stages if isinstance(kernel, StagedKernel) else ()
    every = {*graph.results, *stages}
    operations = Graph(graph.parameters, [*graph.results, *stages]).operations
    ordered = [v for o in operations for v in o.results if v in every]
    if kernel.family not in ("element", "rows"):
        return ordered, None
    return ordered, domain_of(
        [(v,) for v in ordered if v.owner is not None and family_of(v.owner) == "reduce"]
    )
