"""What each stage made, as text: for the command line, for dumps and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.core import Graph, Operation, Value
from flambeau.compiler.ir.printer import print_module
from flambeau.compiler.pipeline import STAGES, Compilation


def stage_text(c: Compilation, stage: str, locations: bool = False) -> str:
    """The text of `stage`, which `c` must have reached. CompilationError for a stage that does not exist.

    Graphs and loops are IR text (kernels as functions of one module), the plan is a table, the object file assembly.
    """
    if stage in ("trace", "autodiff"):  # derivatives are in the graph when it comes here
        return print_module(c.graph, locations)
    if stage == "simplify":
        assert c.simplified is not None
        return print_module(c.simplified, locations)
    if stage == "fuse":
        return print_module(_kernel_graphs(c), locations)
    if stage == "loops":
        return print_module(_functions(c), locations)
    if stage == "plan":
        return plan_text(c)
    if stage == "llvm":
        return c.llvm
    if stage == "object":
        from flambeau.compiler.targets.machine import emit_assembly

        return emit_assembly(c.llvm, c.target)
    raise CompilationError(f"there is no stage {stage!r}; there are {', '.join(name for name, _ in STAGES)}")


def _kernel_graphs(c: Compilation) -> list[Graph]:
    """One function for each different kernel, called as the loop functions are."""
    assert c.program is not None
    known: dict[object, Graph] = {}
    for call in c.program.calls:
        graph = call.kernel.graph
        known.setdefault(call.kernel.key(), Graph(graph.parameters, graph.results, f"kernel{len(known)}"))
    return list(known.values())


def _functions(c: Compilation) -> list[Operation]:
    found: dict[str, Operation] = {}
    for kernel in c.kernels.values():
        for function in kernel.functions:
            found.setdefault(str(function.definition.attributes["sym_name"]), function)
    return list(found.values())


def plan_text(c: Compilation) -> str:
    """The kernels in the order in which they run, with the places of what they read and write in the arena."""
    assert c.memory is not None and c.program is not None and c.simplified is not None
    names: dict[Value, str] = {p: f"parameter{i}" for i, p in enumerate(c.simplified.parameters)}
    for number, result in enumerate(c.simplified.results):
        names.setdefault(result, f"result{number}")

    def place(value: Value) -> str:
        return names.get(value) or f"arena+{c.memory.offsets[value]}"  # type: ignore[union-attr]

    def places(values: Iterable[Value]) -> str:
        return ", ".join(f"{place(v)}: {v.type}" for v in values)

    lines = [f"arena: {c.memory.size} bytes"]
    for call, name, workspace in zip(c.program.calls, c.names, c.memory.workspaces, strict=True):
        scratch = "" if workspace is None else f", workspace arena+{workspace}"
        lines.append(
            f"{name} ({call.kernel.family}): {places(call.operands)} -> {places(call.results)}{scratch}"
        )
    return "\n".join(lines) + "\n"
