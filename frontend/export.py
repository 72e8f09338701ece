"""Exporting: a function or module becomes a graph, runs in this process, and is saved as a library with its header."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flambeau import evaluation
from flambeau.capture import Capture, Captured, ExportError, settled
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.ir.types import from_numpy as from_dtype
from flambeau.export_names import RESERVED, argument_names, identifier, input_names, output_names, unique
from flambeau.names import state_names
from flambeau.tensor import Tensor
from flambeau.weights import hold

Array = np.ndarray[Any, Any]


class Exported:
    """A captured function. It runs in this process (`run`) and becomes a library (`save`).

    `graph` has inputs, then weights, then state as parameters, and outputs, then the state's successors as results.
    With state it is a training step: each run moves the state on, here as in the library.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[str],
        outputs: Sequence[str],
        weights: Sequence[tuple[str, Array]] = (),
        state: Sequence[tuple[str, Array]] = (),
        name: str = "model",
        named: bool = True,
    ) -> None:
        self.graph, self.name = graph, name
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.weights, self.state = tuple(weights), [(n, np.array(a)) for n, a in state]
        self._named = named
        self._executable: Any = None

    # -- looking -------------------------------------------------------------------------------------------------------
    @property
    def signature(self) -> dict[str, Any]:
        """Names, dtypes and shapes of inputs, outputs, weights and state; symbolic sizes are strings."""
        parameters, results = self.graph.parameters, self.graph.results
        after_inputs, after_weights = len(self.inputs), len(self.inputs) + len(self.weights)
        symbols = symbols_of([_type(p) for p in parameters])
        return {
            "name": self.name,
            "kind": "training_step" if self.state else "inference",
            "symbols": [s.name for s in symbols],
            "inputs": [_described(n, v) for n, v in zip(self.inputs, parameters)],
            "outputs": [_described(n, v) for n, v in zip(self.outputs, results)],
            "weights": [_described(n, v) for (n, _), v in zip(self.weights, parameters[after_inputs:])],
            "state": [_described(n, v) for (n, _), v in zip(self.state, parameters[after_weights:])],
        }

    def compilation(
        self, stop_after: str = "object", target: Any = None, opt_level: int | None = None
    ) -> Any:
        """The compiler's stages up to `stop_after` (`compiler.pipeline.Compilation`), for weights that stay as they are."""
        from flambeau.compiler import options
        from flambeau.compiler.pipeline import compile_stages

        level = options.current().opt_level if opt_level is None else opt_level
        first = len(self.inputs)
        fixed = () if self.state else range(first, first + len(self.weights))
        return compile_stages(
            self.graph, _target(target), stop_after=stop_after, opt_level=level, weights=fixed
        )

    def text(self, stage: str = "simplify", target: Any = None) -> str:
        """What a stage of compilation made, as text. CompilationError if there is no such stage.

        The stages are trace, autodiff, simplify, fuse, loops, plan, llvm and object (as assembly).
        """
        from flambeau.compiler.pipeline import STAGES
        from flambeau.compiler.stage_text import stage_text

        names = [name for name, _ in STAGES]
        stop = stage if stage in names[2:] else "simplify"
        if stage == "object":
            stop = "llvm"
        return stage_text(self.compilation(stop, target), stage)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{n}: {p.type}" for n, p in zip(self.inputs, self.graph.parameters))
        outputs = ", ".join(f"{n}: {r.type}" for n, r in zip(self.outputs, self.graph.results))
        return f"<exported {self.name}({inputs}) -> ({outputs})>"

    # -- running -------------------------------------------------------------------------------------------------------
    def run(self, *arrays: Any) -> Any:
        """The outputs for these arrays or tensors, as NumPy arrays: one, or a tuple. Moves the state on.

        TypeError for a wrong number or dtype, ValueError for a wrong shape.
        """
        given = self._checked(arrays)
        found = self._run(given)
        count = len(self.outputs)
        self.state = [(n, a) for (n, _), a in zip(self.state, found[count:])]
        return found[0] if count == 1 else tuple(found[:count])

    __call__ = run

    def _run(self, given: list[Array]) -> list[Array]:
        from flambeau import execution
        from flambeau.compiler import options
        from flambeau.compiler.ir import interpreter
        from flambeau.compiler.ir.dims import evaluate
        from flambeau.runtime.buffer import as_numpy, from_numpy

        weights, state = [a for _, a in self.weights], [a for _, a in self.state]
        arrays = [*given, *weights, *state]
        if options.current().interpret:
            return interpreter.evaluate(self.graph, arrays)
        if self._executable is None:
            executable = execution.compile_graph(self.graph, 0 if state else len(weights))
            values = [evaluation.leaf(a, from_dtype(a.dtype)) for a in ([] if state else weights)]
            self._executable = executable, hold(executable, values)
        executable, held = self._executable
        sizes = executable.dims_of([a.shape for a in arrays])
        passed = arrays if state else given
        buffers = executable(
            [from_numpy(np.ascontiguousarray(a).reshape(a.shape)) for a in passed], sizes, held
        )
        values = {s.name: n for s, n in zip(executable.symbols, sizes)}
        types = [_type(r) for r in self.graph.results]
        shapes = [tuple(evaluate(d, values) for d in t.shape) for t in types]
        return [as_numpy(b, t.element.numpy, s) for b, t, s in zip(buffers, types, shapes)]

    def _checked(self, arrays: Sequence[Any]) -> list[Array]:
        if len(arrays) != len(self.inputs):
            raise TypeError(
                f"{self.name} takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(arrays)}"
            )
        sizes: dict[str, int] = {}
        checked = []
        for label, parameter, given in zip(self.inputs, self.graph.parameters, arrays):
            expected = _type(parameter)
            array = np.asarray(given.detach().numpy() if isinstance(given, Tensor) else given)
            if array.dtype != expected.element.numpy:
                raise TypeError(
                    f"{self.name}: input {label}: expected {expected.element.numpy}, got {array.dtype}"
                )
            fits = array.ndim == expected.rank
            for d, n in zip(expected.shape, array.shape):
                known = sizes.setdefault(str(d), n) if isinstance(d, Dim) else d
                fits = fits and known == n and n > 0
            if not fits:
                shape = [d if isinstance(d, int) else str(d) for d in expected.shape]
                raise ValueError(
                    f"{self.name}: input {label}: expected shape {shape}, got {list(array.shape)}"
                )
            checked.append(array)
        return checked

    # -- saving --------------------------------------------------------------------------------------------------------
    def library(
        self,
        name: str | None = None,
        target: Any = None,
        opt_level: int | None = None,
        weights_file: Any = None,
    ) -> Any:
        """The compiled library before linking (`compiler.exporting.LibraryCode`). `weights_file`: a `WeightsFile` from there,
        whose tensors it reads; None embeds them."""
        from flambeau.compiler import options
        from flambeau.compiler.exporting import ExportRoles, export_library
        from flambeau.execution import run_graph

        roles = ExportRoles(self.inputs, self.outputs, self.weights, tuple(self.state))
        level = options.current().opt_level if opt_level is None else opt_level
        label = identifier(name or self.name)
        return export_library(self.graph, roles, label, _target(target), level, weights_file, run_graph)

    def save(
        self,
        path: str | os.PathLike[str],
        target: Any = None,
        *,
        name: str | None = None,
        opt_level: int | None = None,
        weights: str = "embedded",
    ) -> Path:
        """Write the shared library to `path` and its C header beside it; returns the library's path.

        `weights`: "embedded" in the library, or "external": in a safetensors file beside it, named as the library, which
        each handle reads when it is made. The first state of a training step goes the same way.

        `target` is a triple ("aarch64-linux-gnu"), a TargetDescription, or None for this machine. The C functions are
        called `name_create`, …; by default after the `name` given to `export`, else after the file. The
        files appear whole or not at all. OSError, CompilationError or LinkerError if that fails.
        """
        from flambeau.compiler.exporting.weights_file import WeightsFile
        from flambeau.runtime.header import header
        from flambeau.runtime.linker import link_shared

        if weights not in ("embedded", "external"):
            raise ValueError(f"weights: expected 'embedded' or 'external', got {weights!r}")
        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected the file to write")
        beside = path.with_suffix(".safetensors")
        name = name or (self.name if self._named else path.name.split(".")[0].removeprefix("lib"))
        path.parent.mkdir(parents=True, exist_ok=True)
        # First, so that a folder that cannot be written is found before the work is done.
        staged = [(_staged(path), path.with_suffix(".h"))]
        try:
            file = None
            if weights == "external" and (self.weights or self.state):
                staged.append((_staged(path), beside))
                file = WeightsFile.write(staged[1][0], beside.name, dict([*self.weights, *self.state]))
            code = self.library(name, target, opt_level, file)
            staged[0][0].write_text(header(code.signature), encoding="utf-8", newline="\n")
            triple = code.compilation.target.triple if target is not None else None
            link_shared(code.objects, path, exports=code.exports, target_triple=triple)
            for temporary, final in staged:
                os.chmod(temporary, 0o666 & ~_umask())
                os.replace(temporary, final)
        except BaseException:
            for temporary, _ in staged:
                temporary.unlink(missing_ok=True)
            raise
        return path


def export(
    function: Callable[..., Any],
    args: Any = (),
    dynamic_shapes: Mapping[Any, Any] | None = None,
    name: str | None = None,
) -> Exported:
    """Capture a function or module called with `args`, whose tensors and arrays become inputs.

    Tensors that the function only reads become weights of the result; those that it changes (parameters under an
    optimizer's step, running averages) become its state, and it a training step. `dynamic_shapes` makes axes
    symbolic: ``{"x": {0: "N"}}`` or ``{0: {0: "N"}}``. Raises ExportError where that cannot be.
    """
    if not callable(function):
        raise TypeError(f"export expects a function or a module, got {type(function).__name__}")
    arguments = tuple(args) if isinstance(args, list | tuple) else (args,)
    labels = argument_names(function, len(arguments))
    dynamic = _dynamic(dynamic_shapes or {}, labels, arguments)
    label = name or identifier(getattr(function, "__name__", type(function).__name__.lower()))
    found = settled(function, arguments, dynamic, label)
    for value in found.graph.results:
        _known_size(found, value, label)
    used: set[str] = {s.name for s in symbols_of([_type(p) for p in found.graph.parameters])}
    inputs = [unique(n, used) for n in input_names(labels, arguments)]
    outputs = [unique(n, used) for n in output_names(found.outputs)]
    names = state_names(function, arguments)
    kept: set[str] = set()
    weights = _contents(found.weights, names, "weight", kept)
    state = _contents(found.state, names, "state", kept)
    return Exported(found.graph, inputs, outputs, weights, state, label, name is not None)


def from_text(text: str, file: str = "<string>", name: str | None = None) -> Exported:
    """An IR text with one graph, ready to run and save: its parameters are inputs. Raises ParseError."""
    from flambeau.compiler.ir.parser import parse_graph
    from flambeau.compiler.ir.verifier import verify_graph

    graph = parse_graph(text, file)
    verify_graph(graph)
    inputs = [f"input{i}" for i in range(len(graph.parameters))]
    outputs = [f"output{i}" for i in range(len(graph.results))]
    return Exported(graph, inputs, outputs, name=name or identifier(graph.name), named=name is not None)


def symbols_of(types: Sequence[TensorType]) -> Any:
    """The size symbols in the types; the lowering loads when it is first needed."""
    from flambeau.compiler.lowering import kernels

    return kernels.symbols_of(types)


def _type(value: Value) -> TensorType:
    assert isinstance(value.type, TensorType)
    return value.type


def _described(label: str, value: Value) -> dict[str, Any]:
    type_ = _type(value)
    shape = [d if isinstance(d, int) else str(d) for d in type_.shape]
    return {"name": label, "dtype": type_.element.numpy.name, "shape": shape}


def _target(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    from flambeau.compiler.targets.machine import cross_target

    return cross_target(target)


def _staged(path: Path) -> Path:
    """An empty file of another name beside `path`."""
    import tempfile  # takes two milliseconds, which every program's start would pay

    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    return Path(temporary)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _dynamic(
    given: Mapping[Any, Any], labels: Sequence[str], arguments: Sequence[Any]
) -> dict[int, dict[int, str]]:
    found: dict[int, dict[int, str]] = {}
    for key, axes in given.items():
        if isinstance(key, str) and key not in labels:
            raise ExportError(
                f"dynamic_shapes: there is no argument {key!r}; there are {', '.join(labels) or 'none'}"
            )
        position = labels.index(key) if isinstance(key, str) else key
        if not isinstance(position, int) or not 0 <= position < len(arguments):
            raise ExportError(f"dynamic_shapes: there is no argument {key!r}; there are {len(arguments)}")
        if not isinstance(axes, Mapping):
            raise ExportError(f"dynamic_shapes: argument {key!r}: expected {{axis: name}}, got {axes!r}")
        argument = arguments[position]
        shape = argument.shape if isinstance(argument, Tensor) else np.shape(argument)
        for axis, symbol in axes.items():
            if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
                raise ExportError(
                    f"dynamic_shapes: argument {key!r} has {len(shape)} axes, there is no axis {axis!r}"
                )
            if not str(symbol).isidentifier() or str(symbol) in RESERVED:
                raise ExportError(f"dynamic_shapes: a size's name must be a C identifier, got {symbol!r}")
            found.setdefault(position, {})[axis % len(shape)] = str(symbol)
    return found


def _contents(
    captured: Sequence[Captured], names: Mapping[int, str], kind: str, used: set[str]
) -> list[tuple[str, Array]]:
    found = []
    for item in captured:
        label = names.get(id(item.cell)) if item.cell is not None else item.label
        number = 0
        while label is None or label in used:
            label, number = f"{kind}{number}", number + 1
        used.add(label)
        found.append((label, item.content))
    return found


def _known_size(found: Capture, result: Value, name: str) -> None:
    given = set(symbols_of([_type(p) for p in found.graph.parameters]))
    unknown = {s for d in _type(result).shape if isinstance(d, Dim) for s in d.symbols()} - given
    if unknown:
        raise ExportError(
            f"{name}: no input's shape determines the size {', '.join(map(str, unknown))} of a result"
        )
