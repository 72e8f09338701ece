"""From a graph to something that runs in this process: compiles, loads, and calls with buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import empty

from flambeau import profiler
from flambeau.compiled_code import CompiledCode, compiled
from flambeau.compiler.ir.core import Graph
from flambeau.compiler.ir.dims import Dim, Index, evaluate
from flambeau.compiler.signature import ENTRY, byte_size, symbols_of, tensor_of
from flambeau.runtime import threads
from flambeau.runtime.buffer import SMALL, Buffer, address_of, as_numpy, from_numpy, new_array
from flambeau.runtime.engine import default_engine
from flambeau.runtime.executor import Executor
from flambeau.runtime.system_memory import trim_heap

Array = np.ndarray[Any, Any]


class Held:
    """What stays the same between calls: `pointers` are an executable's arguments behind those that a call gives (weights,
    what was prepared from them, literals); `keep` is their memory. Another one has another `token`."""

    __slots__ = ("pointers", "keep", "token")

    def __init__(self, pointers: list[int], keep: Any) -> None:
        self.pointers, self.keep, self.token = pointers, keep, object()


class Executable:
    """A compiled graph. Calling it with buffers (in the parameters' order) gives the results' buffers.

    `dims` are the values of `symbols`, the graph's symbolic dimensions. The last `weights` of the parameters keep their
    content: `hold` prepares it, and a call gives the result of that instead. `overwrites`: pairs of a result and a
    parameter that may be given the same memory. `layouts` and `reads` are those of its `CompiledCode`.
    """

    __slots__ = (
        "executor",
        "layouts",
        "module",
        "overwrites",
        "reads",
        "symbols",
        "unheld",
        "_constants",
        "_constant_buffers",
        "_dim_sources",
        "_preparation",
    )

    def __init__(self, graph: Graph, code: CompiledCode) -> None:
        self.overwrites, self.layouts, self.reads = code.overwrites, code.layouts, code.reads
        prepares = code.preparation
        self._preparation = None if prepares is None else _preparation(prepares)
        prepared = len(code.layouts) + (0 if prepares is None else len(prepares.results))
        self.module = module = default_engine().add_object(
            code.object_code, symbols=threads.native_symbols(), exports=[ENTRY]
        )
        self.symbols = symbols_of([tensor_of(p) for p in graph.parameters])
        names = [s.name for s in self.symbols]

        def number(size: Index, dims: Sequence[int]) -> int:
            return evaluate(size, dict(zip(names, dims, strict=True)))

        sizes = [byte_size(r) for r in graph.results]
        static = [s for s in sizes if isinstance(s, int)]
        self.executor = Executor(
            module.address(ENTRY),
            len(graph.parameters) + prepared + len(code.constants),
            static if len(static) == len(sizes) else lambda dims: [number(s, dims) for s in sizes],
            code.arena if isinstance(code.arena, int) else lambda dims: number(code.arena, dims),
            n_dims=len(self.symbols),
            n_outputs=len(sizes),
            keep=module,
        )
        self._constant_buffers = [from_numpy(a) for a in code.constants]
        self._constants = [b.ptr for b in self._constant_buffers]
        #: For graphs without weights.
        self.unheld = Held(self._constants, None)
        self._dim_sources = [_source(graph, i) for i in range(len(self.symbols))] if self.symbols else []

    def __call__(
        self, inputs: Sequence[Buffer], dims: Sequence[int] = (), held: Held | None = None
    ) -> list[Buffer]:
        return self.executor.run([b.ptr for b in inputs] + (held or self.unheld).pointers, dims)

    def run_into(
        self,
        inputs: Sequence[Array],
        types: Sequence[tuple[tuple[int, ...], Any]],
        into: Mapping[int, Array],
        dims: Sequence[int] = (),
        held: Held | None = None,
    ) -> list[Array]:
        """The results, of these shapes and dtypes; result n in the array `into[n]`, where that is given."""
        outputs = _outputs(types, into)
        pointers = [address_of(a) for a in inputs] + (held or self.unheld).pointers
        self.executor.check(self.executor(pointers, dims, [address_of(a) for a in outputs]))
        return outputs

    def hold(self, weights: Sequence[Array | None], laid_out: Sequence[Array]) -> Held:
        """The weights for the calls to come, until one of them changes: `laid_out` has those that `layouts` ask for, and
        `weights` need only have those that `reads` names."""
        pointers = [0 if a is None else address_of(a) for a in weights]
        keep: list[Any] = [*weights, *laid_out]
        prepared: list[int] = []
        if self._preparation is not None:
            executor, constants = self._preparation
            buffers = executor.run(pointers + [b.ptr for b in constants])
            prepared = [b.ptr for b in buffers]
            keep += buffers
        for layout, array in zip(self.layouts, laid_out, strict=True):  # by their place among the results
            prepared.insert(layout.result, address_of(array))
        return Held(pointers + prepared + self._constants, keep)

    def dims_of(self, shapes: Sequence[tuple[int, ...]]) -> list[int]:
        """The symbols' values from the parameters' concrete shapes."""
        return [shapes[parameter][axis] for parameter, axis in self._dim_sources]


def _preparation(code: CompiledCode) -> tuple[Executor, list[Buffer]]:
    module = default_engine().add_object(code.object_code, symbols=threads.native_symbols(), exports=[ENTRY])
    assert isinstance(code.arena, int), "weights have known sizes"
    constants = [from_numpy(a) for a in code.constants]
    executor = Executor(
        module.address(ENTRY), code.parameters + len(constants), code.results, code.arena, keep=module
    )
    return executor, constants


def _source(graph: Graph, number: int) -> tuple[int, int]:
    """Which parameter's axis gives symbol `number`. ValueError if none has it alone."""
    symbol = symbols_of([tensor_of(p) for p in graph.parameters])[number]
    for p, parameter in enumerate(graph.parameters):
        for axis, extent in enumerate(tensor_of(parameter).shape):
            if isinstance(extent, Dim) and extent.terms == {(symbol,): 1}:
                return p, axis
    raise ValueError(f"no parameter has the symbolic dimension {symbol} as an axis of its own")


#: Bytes of machine code from which compiling took much memory.
LARGE = 1 << 16


def compile_graph(graph: Graph, weights: int = 0) -> Executable:
    """Compile `graph`, of whose parameters the last `weights` keep their content, for this machine and load it."""
    count = len(graph.parameters)
    code, compilation = compiled(graph, range(count - weights, count))
    executable = Executable(graph, code)
    if compilation is not None and compilation.profile:
        profiler.watch(executable.module, compilation)
    if compilation is not None and len(code.object_code) > LARGE:
        del compilation
        trim_heap()  # LLVM has freed more than the program may ever ask for
    return executable


class ArrayExecutable:
    """An executable that takes and gives NumPy arrays (C-contiguous, of the parameters' dtypes). Static shapes only.

    `weights.hold` takes the last `weights` parameters once; calls give what it returns in their place.
    """

    __slots__ = (
        "executable",
        "hold",
        "layouts",
        "overwrites",
        "reads",
        "_call",
        "_results",
        "_shapes",
        "_small",
        "_dtypes",
        "_unheld",
    )

    def __init__(self, graph: Graph, weights: int = 0) -> None:
        self.executable = compile_graph(graph, weights)
        self.hold, self.overwrites = self.executable.hold, self.executable.overwrites
        self.layouts, self.reads = self.executable.layouts, self.executable.reads
        types = [tensor_of(r) for r in graph.results]
        self._results = [(t.shape, t.element.numpy) for t in types]
        self._call = self.executable.executor.call_on
        self._unheld = self.executable.unheld
        self._shapes, self._dtypes = [t.shape for t in types], [t.element.numpy for t in types]
        # NumPy's own memory is quicker to come by than the allocator's where no page has to be kept for reuse.
        self._small = all(byte_size(r) <= SMALL for r in graph.results)

    def __call__(
        self, arrays: Sequence[Array], held: Held | None = None, into: Mapping[int, Array] | None = None
    ) -> list[Array]:
        if into:
            outputs = _outputs(self._results, into)
        elif self._small:
            outputs = list(map(empty, self._shapes, self._dtypes))
        else:
            outputs = list(map(new_array, self._shapes, self._dtypes))
        self.fill(outputs, arrays, held)
        return outputs

    def fill(self, outputs: Sequence[Array], arrays: Sequence[Array], held: Held | None = None) -> None:
        """The results, to arrays of their shapes and dtypes."""
        if held is None:
            held = self._unheld
        self._call(arrays, held.pointers, held.token, outputs)


def _outputs(results: Sequence[tuple[tuple[Any, ...], Any]], into: Mapping[int, Array]) -> list[Array]:
    """Arrays for the results: those of `into` where it has one, else new ones."""
    return [into[n] if n in into else new_array(*result) for n, result in enumerate(results)]


class DynamicExecutable:
    """As `ArrayExecutable`, for graphs with symbolic sizes: each call's arrays say what they are."""

    __slots__ = ("executable", "hold", "layouts", "overwrites", "reads", "_names", "_results")

    def __init__(self, graph: Graph, weights: int = 0) -> None:
        self.executable = compile_graph(graph, weights)
        self.hold, self.overwrites = self.executable.hold, self.executable.overwrites
        self.layouts, self.reads = self.executable.layouts, self.executable.reads
        self._names = [s.name for s in self.executable.symbols]
        self._results = [tensor_of(r) for r in graph.results]

    def __call__(
        self, arrays: Sequence[Array], held: Held | None = None, into: Mapping[int, Array] | None = None
    ) -> list[Array]:
        dims = self.executable.dims_of([a.shape for a in arrays])
        names = dict(zip(self._names, dims, strict=True))
        types = [(tuple([evaluate(d, names) for d in t.shape]), t.element.numpy) for t in self._results]
        return self.executable.run_into(arrays, types, into or {}, dims, held)


def run_graph(graph: Graph, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Compile and run once, NumPy in and out."""
    executable = compile_graph(graph)
    inputs = [
        np.ascontiguousarray(a, tensor_of(p).element.numpy)
        for a, p in zip(arrays, graph.parameters, strict=True)
    ]
    dims = executable.dims_of([a.shape for a in arrays])
    outputs = executable([from_numpy(a) for a in inputs], dims)
    names = {s.name: d for s, d in zip(executable.symbols, dims, strict=True)}
    return [_view(o, tensor_of(r), names) for o, r in zip(outputs, graph.results, strict=True)]


def _view(buffer: Buffer, type: Any, names: dict[str, int]) -> np.ndarray[Any, Any]:
    shape = tuple(evaluate(d, names) for d in type.shape)
    return as_numpy(buffer, type.element.numpy, shape)
