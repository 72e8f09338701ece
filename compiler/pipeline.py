"""The stages from a graph to machine code, in one list; everybody who compiles walks this road.

`STAGES` names the dump files, the documentation pages, the command line's ``--stop-after`` and the timing report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flambeau.compiler import options
from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.dialects.graph.constants import Constant
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.dims import Dim, Index, Symbol, evaluate, of_symbol
from flambeau.compiler.lowering.context import tensor_of
from flambeau.compiler.lowering.kernels import LoweredKernel, lower_kernel
from flambeau.compiler.passes.any_size import shared
from flambeau.compiler.passes.block_convolutions import block_convolutions
from flambeau.compiler.passes.decompose import decompose
from flambeau.compiler.passes.expand_depthwise import expand_depthwise
from flambeau.compiler.passes.fold_scales import fold_scales
from flambeau.compiler.passes.fuse import Kernel, KernelCall, Program, fuse
from flambeau.compiler.passes.order import constraints, order
from flambeau.compiler.passes.pack_invariants import pack_invariants
from flambeau.compiler.passes.pack_weights import pack_weights, read_from_panels
from flambeau.compiler.passes.plan import MemoryPlan, plan
from flambeau.compiler.passes.rematerialise import rematerialise
from flambeau.compiler.passes.simplify import simplify
from flambeau.compiler.passes.simplify_scans import simplify_scans
from flambeau.compiler.passes.split_groups import split_groups
from flambeau.compiler.passes.split_reductions import split_reductions
from flambeau.compiler.passes.split_weights import split_weights
from flambeau.compiler.passes.split_windows import split_windows
from flambeau.compiler.passes.together import together
from flambeau.compiler.passes.undilate import undilate
from flambeau.compiler.passes.winograd import winograd
from flambeau.compiler.schedule.cpu_contraction import Chooser, choose, cpu_shape
from flambeau.compiler.signature import ENTRY, byte_size, symbols_of
from flambeau.compiler.targets.cpu import emit_ir
from flambeau.compiler.targets.entry import EntryCall, EntryCopy, Place, emit_entry
from flambeau.compiler.targets.machine import TargetDescription, emit_object, process_target
from flambeau.runtime import abi

#: Name and one line each; in order.
STAGES: tuple[tuple[str, str], ...] = (
    ("trace", "Python calls become a graph"),
    ("autodiff", "derivatives are added to the graph"),
    ("simplify", "folding, sharing, composites into primitives"),
    ("fuse", "the graph is cut into kernels"),
    ("loops", "kernels become loops over memory"),
    ("plan", "buffers get places in one arena"),
    ("llvm", "loops become LLVM IR"),
    ("object", "LLVM IR becomes machine code"),
)

#: What chooses the schedule of a kernel's contraction; None for the analytic model.
Tuner = Callable[[Kernel, TargetDescription], "Chooser | None"]


@dataclass
class Compilation:
    """Everything that compiling a graph made, stage by stage. `seconds` by stage.

    `weights` are the numbers of parameters whose content stays the same. `preparation`, if anything is worth preparing,
    computes from them what `simplified` takes as parameters behind the graph's own.
    """

    graph: Graph
    target: TargetDescription
    weights: tuple[int, ...] = ()
    preparation: Graph | None = None
    simplified: Graph | None = None
    constants: tuple[np.ndarray[Any, Any], ...] = ()
    program: Program | None = None
    kernels: dict[str, LoweredKernel] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    #: Of each call, the numbers that its kernel takes for sizes that it leaves open (`passes/any_size.py`); and when it runs:
    #: neighbours with one step at the same time (`passes/together.py`).
    sizes: tuple[tuple[int, ...], ...] = ()
    steps: tuple[int, ...] = ()
    memory: MemoryPlan | None = None
    symbols: tuple[Symbol, ...] = ()
    llvm: str = ""
    object_code: bytes = b""
    seconds: dict[str, float] = field(default_factory=dict)
    #: The entry counts each kernel call's runs and nanoseconds (`targets/entry.py`).
    profile: bool = False
    #: Gives contractions their schedules; None: the analytic model does.
    tuner: Tuner | None = None

    def overwrites(self) -> tuple[tuple[int, int], ...]:
        """Numbers of a result and of a parameter that may be given the same memory by the caller."""
        assert self.memory is not None and self.simplified is not None
        results = self.simplified.results
        parameters = {p: n for n, p in enumerate(self.simplified.parameters[: len(self.graph.parameters)])}
        # A parameter that is a result too is copied when all kernels have run.
        return tuple(
            [
                (results.index(result), parameters[parameter])
                for result, parameter in self.memory.overwrites
                if parameter in parameters and parameter not in results
            ]
        )

    def read_weights(self) -> tuple[int, ...]:
        """Which of `weights` (positions among them) the code itself reads, beside what was prepared."""
        assert self.simplified is not None
        graph = self.simplified
        read = {v for operation in graph.operations for v in operation.operands} | set(graph.results)
        return tuple([n for n, parameter in enumerate(self.weights) if graph.parameters[parameter] in read])

    def size_of(self, expression: Index) -> Callable[[Sequence[int]], int]:
        """A function from the symbols' values to the value of a size."""
        if isinstance(expression, int):
            number = expression
            return lambda dims: number
        names = [s.name for s in self.symbols]
        return lambda dims: evaluate(expression, dict(zip(names, dims, strict=True)))


def compile_stages(
    graph: Graph,
    target: TargetDescription | None = None,
    *,
    stop_after: str = "object",
    opt_level: int = 1,
    entry: str = ENTRY,
    profile: bool = False,
    weights: Sequence[int] = (),
    tuner: Tuner | None = None,
) -> Compilation:
    """Run the stages on `graph` for `target` (this machine if None), up to and including `stop_after`.

    `weights`: numbers of the parameters whose content stays the same from call to call. What depends on them alone is
    split off (`Compilation.preparation`) where that pays. `tuner` gives contractions their schedules.
    """
    names = [name for name, _ in STAGES]
    if stop_after not in names:
        raise CompilationError(f"there is no stage {stop_after!r}; there are {', '.join(names)}")
    c = Compilation(graph, target or process_target(), tuple(weights), profile=profile, tuner=tuner)
    for name in names[2 : names.index(stop_after) + 1]:
        started = time.perf_counter()
        _RUN[name](c, opt_level, entry)
        c.seconds[name] = time.perf_counter() - started
    return c


def _simplify(c: Compilation, opt_level: int, entry: str) -> None:
    graph, cpu = simplify_scans(decompose(simplify(c.graph))), cpu_shape(c.target)
    graph = undilate(split_groups(graph), cpu, [graph.parameters[i] for i in c.weights])
    graph = simplify(split_windows(split_reductions(graph)))
    if c.weights:
        graph = simplify(fold_scales(graph, [graph.parameters[i] for i in c.weights]))
    if options.current().winograd:
        graph = winograd(graph, c.target, [graph.parameters[i] for i in c.weights])
    graph = expand_depthwise(graph, cpu)
    graph = simplify(block_convolutions(graph, cpu, [graph.parameters[i] for i in c.weights]))
    graph = pack_invariants(graph, c.target)
    if not c.weights:  # else nothing is trained
        graph = rematerialise(graph)
    else:
        weights = [graph.parameters[i] for i in c.weights]
        packed = read_from_panels(pack_weights(graph, weights, c.target), weights)
        split = split_weights(packed, weights)
        c.preparation, graph = split.preparation, split.main
    c.simplified, c.constants = _hoist_constants(graph)
    c.symbols = symbols_of([tensor_of(p) for p in c.graph.parameters])


def _hoist_constants(graph: Graph) -> tuple[Graph, tuple[np.ndarray[Any, Any], ...]]:
    """Tensors of literal data become parameters, which executables keep; splats stay, since code makes them."""
    arrays: list[np.ndarray[Any, Any]] = []
    parameters: list[Value] = []
    found: dict[Any, Value] = {}

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        definition = operation.definition
        if not isinstance(definition, Constant) or definition.literal.splat is not None:
            return None
        if definition not in found:
            found[definition] = Value(operation.results[0].type)
            parameters.append(found[definition])
            arrays.append(definition.literal.array)
        return (found[definition],)

    rebuilt = rebuild(graph, replace)
    return Graph([*rebuilt.parameters, *parameters], rebuilt.results, rebuilt.name), tuple(arrays)


def _fuse(c: Compilation, opt_level: int, entry: str) -> None:
    assert c.simplified is not None
    graph = c.simplified
    computed = list(dict.fromkeys(r for r in graph.results if r not in set(graph.parameters)))
    c.program = fuse(Graph(graph.parameters, computed, graph.name))


def _loops(c: Compilation, opt_level: int, entry: str) -> None:
    assert c.program is not None
    known: dict[Any, str] = {}
    names = []
    kernels = shared(c.program.calls)
    for kernel, _ in kernels:
        key = kernel.key()
        if key not in known:
            name = f"kernel{len(known)}"
            known[key] = name
            chooser = c.tuner(kernel, c.target) if c.tuner is not None else None
            c.kernels[name] = lower_kernel(kernel, name, c.target, chooser or choose)
        names.append(known[key])
    c.names = tuple(names)
    c.sizes = tuple([sizes for _, sizes in kernels])


def _plan(c: Compilation, opt_level: int, entry: str) -> None:
    assert c.program is not None
    numbers = order(c.program, [c.kernels[name].in_place for name in c.names])
    c.names = tuple([c.names[n] for n in numbers])
    c.sizes = tuple([c.sizes[n] for n in numbers])
    c.program = Program(c.program.graph, tuple([c.program.calls[n] for n in numbers]))
    kernels = [c.kernels[name] for name in c.names]
    in_place = [k.in_place for k in kernels]
    # Times are taken of one kernel after the other.
    alone = [c.profile or k.workspace != 0 for k in kernels]
    steps = together(c.program.calls, constraints(c.program, in_place), alone)
    c.steps = tuple([step for step, numbers in enumerate(steps) for _ in numbers])
    c.memory = plan(c.program, [k.workspace for k in kernels], in_place, c.steps)


def _llvm(c: Compilation, opt_level: int, entry: str) -> None:
    assert c.program is not None and c.memory is not None and c.simplified is not None
    arguments: dict[Value, int] = {p: i for i, p in enumerate(c.simplified.parameters)}
    count = len(arguments)
    copies = []
    for number, result in enumerate(c.simplified.results):
        if result in arguments:
            copies.append(EntryCopy(arguments[result], count + number, byte_size(result)))
        else:
            arguments[result] = count + number
    calls = []
    for call, name, sizes, step, workspace in zip(
        c.program.calls, c.names, c.sizes, c.steps, c.memory.workspaces, strict=True
    ):
        places = tuple(
            Place(arguments[v]) if v in arguments else Place(None, c.memory.offsets[v])
            for v in (*call.operands, *call.results)
        )
        taken: tuple[Index, ...] = sizes or tuple([of_symbol(s) for s in c.kernels[name].symbols])
        calls.append(EntryCall(name, places, workspace, taken, step))
    functions: list[Operation] = []
    seen: set[str] = set()
    for kernel in c.kernels.values():
        for function in kernel.functions:
            symbol: str = function.definition.sym_name  # type: ignore[attr-defined]
            if symbol not in seen:
                seen.add(symbol)
                functions.append(function)
    text = emit_entry(entry, c.symbols, calls, copies, profile=c.profile)
    c.llvm = emit_ir(functions, c.target) + "\n" + text
    declaration = abi.DECLARATIONS[abi.PARALLEL_FOR]
    if abi.PARALLEL_FOR in text and declaration not in c.llvm:
        c.llvm += "\n" + declaration + "\n"


def _object(c: Compilation, opt_level: int, entry: str) -> None:
    c.object_code = emit_object(c.llvm, c.target, opt_level)


_RUN: dict[str, Callable[[Compilation, int, str], None]] = {
    "simplify": _simplify,
    "fuse": _fuse,
    "loops": _loops,
    "plan": _plan,
    "llvm": _llvm,
    "object": _object,
}


def compile_kernel(
    kernel: Kernel, target: TargetDescription, chooser: Chooser, opt_level: int = 1
) -> Compilation:
    """A kernel as a program of its own, whose contraction has the schedule that `chooser` gives."""
    graph = kernel.graph
    c = Compilation(graph, target, simplified=graph, tuner=lambda kernel, target: chooser)
    c.program = Program(graph, (KernelCall(kernel, graph.parameters, graph.results),))
    c.symbols = symbols_of([tensor_of(p) for p in graph.parameters])
    for stage in (_loops, _plan, _llvm, _object):
        stage(c, opt_level, ENTRY)
    return c


def unknown_symbols(graph: Graph) -> set[Symbol]:
    """Symbols of results that no parameter's shape determines."""
    given = set(symbols_of([tensor_of(p) for p in graph.parameters]))
    return {
        s for r in graph.results for d in tensor_of(r).shape if isinstance(d, Dim) for s in d.symbols()
    } - given
