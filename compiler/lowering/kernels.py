"""From a kernel to loop-level functions: parameters, buffers, and the lowering of its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.core import Graph, Operation, Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, of_symbol
from flambeau.compiler.ir.types import TensorType, memref
from flambeau.compiler.ir.types import pointer as pointer_type
from flambeau.compiler.lowering.columns import lower_columns
from flambeau.compiler.lowering.context import LoweringContext, tensor_of
from flambeau.compiler.lowering.contractions import lower_contraction, workspace_bytes
from flambeau.compiler.lowering.elements import ElementBuilder
from flambeau.compiler.lowering.rows import lower_elements, lower_rows
from flambeau.compiler.lowering.scans import lower_arg_reduce, lower_cumulative
from flambeau.compiler.lowering.scattering import lower_scatter
from flambeau.compiler.lowering.sorting import lower_sort, sort_workspace
from flambeau.compiler.passes.fuse import Kernel, StagedKernel, domain_of, family_of
from flambeau.compiler.targets.cpu import has_f16_conversion, has_fma
from flambeau.compiler.targets.machine import TargetDescription

Single = Callable[[LoweringContext, Operation, "Value | None"], None]

#: Families whose kernels are one operation (and, of a contraction, its epilogue): its lowering, and the bytes of workspace
#: that it needs.
SINGLE: dict[str, tuple[Single, Callable[[LoweringContext, Operation], Index]]] = {
    "columns": (lambda ctx, operation, _: lower_columns(ctx, operation), lambda ctx, operation: 0),
    "contraction": (lower_contraction, workspace_bytes),
    "arg_reduce": (lambda ctx, operation, _: lower_arg_reduce(ctx, operation), lambda ctx, operation: 0),
    "cumulative": (lambda ctx, operation, _: lower_cumulative(ctx, operation), lambda ctx, operation: 0),
    "scatter": (lambda ctx, operation, _: lower_scatter(ctx, operation), lambda ctx, operation: 0),
    "sort": (lower_sort, sort_workspace),
}


@dataclass(frozen=True)
class LoweredKernel:
    """`functions` in one module, of which `name` is the kernel; called with `parameters + results` buffers, the
    workspace's pointer, the pool's, and `symbols` as indices."""

    name: str
    functions: tuple[Operation, ...]
    symbols: tuple[Symbol, ...]
    workspace: Index


def symbols_of(types: Sequence[TensorType]) -> tuple[Symbol, ...]:
    """The shape symbols in the types, in the order of their first appearance."""
    found: dict[Symbol, None] = {}
    for type in types:
        for extent in type.shape:
            if isinstance(extent, Dim):
                for symbol in sorted(extent.symbols(), key=lambda s: s.name):
                    found[symbol] = None
    return tuple(found)


def _in_attributes(graph: Graph) -> Iterator[Symbol]:
    """The symbols in sizes that operations have as attributes: no type need show them (a count that something is divided
    by)."""

    def sizes(attribute: object) -> Iterator[Dim]:
        if isinstance(attribute, Dim):
            yield attribute
        elif isinstance(attribute, tuple):
            for part in attribute:
                yield from sizes(part)

    for operation in graph.operations:
        for _, attribute in operation.definition.attribute_items():
            for size in sizes(attribute):
                yield from sorted(size.symbols(), key=lambda s: s.name)


def lower_kernel(kernel: Kernel, name: str, target: TargetDescription) -> LoweredKernel:
    """Loop-level functions of one kernel for a CPU."""
    graph = kernel.graph
    every = [v for o in graph.operations for v in (*o.operands, *o.results)]
    in_types = symbols_of([tensor_of(v) for v in (*graph.parameters, *graph.results, *every)])
    symbols = tuple(dict.fromkeys([*in_types, *_in_attributes(graph)]))
    b = LoopBuilder(fma=has_fma(target))
    e = ElementBuilder(b, f16_instructions=has_f16_conversion(target))
    ctx = LoweringContext(b, e, target)
    buffers = [*graph.parameters, *graph.results]
    types = [memref(tensor_of(v).shape, tensor_of(v).element) for v in buffers]
    names = [f"in{i}" for i in range(len(graph.parameters))] + [f"out{i}" for i in range(len(graph.results))]
    single = SINGLE.get(kernel.family)
    workspace: Index = 0
    reads_only = [False] * len(graph.parameters)
    aliasing = [*reads_only, *[True] * len(graph.results), True, False]
    with b.function(
        name,
        [*types, pointer_type, pointer_type],
        [*names, "workspace", "pool"],
        dims=[of_symbol(s) for s in symbols],
        pool="pool",
        noalias=aliasing,
        internal=True,
        # Users' arrays may lie anywhere; vector loads from aligned addresses are as fast either way.
        alignment=1,
    ) as function:
        ctx.memory = dict(zip(buffers, function.arguments, strict=False))
        if single is not None:
            anchor = graph.results[0].owner
            if kernel.family == "contraction":  # its epilogue's operations may follow it
                anchor = next(o for o in graph.operations if family_of(o) == "contraction")
            assert anchor is not None
            ctx.results = graph.results
            lower, bytes_needed = single
            workspace = bytes_needed(ctx, anchor)
            lower(ctx, anchor, function["workspace"] if workspace != 0 else None)
        elif kernel.family in ("element", "rows"):
            _lower_group(ctx, kernel)
        else:
            raise CompilationError(f"no lowering for kernels of the family {kernel.family!r}")
    return LoweredKernel(name, tuple(b.functions), symbols, workspace)


def _lower_group(ctx: LoweringContext, kernel: Kernel) -> None:
    graph = kernel.graph
    stages = kernel.stages if isinstance(kernel, StagedKernel) else ()
    members = {*graph.results, *stages}
    ordered = [
        v for o in _operations(graph.parameters, [*graph.results, *stages]) for v in o.results if v in members
    ]
    domain = domain_of([(v,) for v in ordered if v.owner is not None and family_of(v.owner) == "reduce"])
    results = set(graph.results)
    if domain is None:
        lower_elements(ctx, ordered, results)
    else:
        lower_rows(ctx, ordered, domain, results)


def _operations(parameters: Sequence[Value], results: Sequence[Value]) -> tuple[Operation, ...]:
    return Graph(parameters, results).operations
