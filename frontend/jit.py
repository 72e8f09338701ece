"""`compile`: a whole call becomes one executable.

The function runs once on fresh leaf values. Storage cells that existed before and were read become inputs; those that
were written, the gradients that were set and the returned tensors become outputs. Guards are the tensors' types and
views, the other arguments' values, grad mode, the modules' train flags, and that modules and names are the same (`guards`).

The second size of an argument's dimension makes it symbolic (`dynamic.py`): later sizes run the same executable.

Cells that a function only reads, and that are no arguments, are its weights: what depends on them alone (their layout for
kernels, above all) is computed at the first call and kept until one of them is written (`_Entry.held`).
"""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from sys import getrefcount
from typing import Any

import numpy as np

from flambeau import dtypes, evaluation, planning
from flambeau.compiler import options
from flambeau.compiler.ir.core import Graph, Value, rebuild, topological
from flambeau.compiler.ir.dims import Dim
from flambeau.compiler.ir.types import TensorType
from flambeau.compiler.ir.types import tensor as tensor_type
from flambeau.dynamic import Family, Pattern, without_sizes
from flambeau.evaluation import TraceError, content, state
from flambeau.guards import Reach
from flambeau.planning import not_recording
from flambeau.recent import Recent
from flambeau.reverse import Meta
from flambeau.runtime.buffer import all_free, is_sole
from flambeau.storage import Cell, replacements
from flambeau.tables import modes
from flambeau.tensor import Tensor, known_tensor, new_tensor, read
from flambeau.tracing import InputTrace
from flambeau.weights import hold

Array = np.ndarray[Any, Any]


class _Entry:
    """One compiled run: where its inputs come from and where its outputs go."""

    def __init__(self) -> None:
        self.executable: Any = None  # of `planning.compiled`; None if there are no outputs
        self.cells: list[Cell | int] = []  # a captured cell, or the number of a tensor argument
        self.weights: list[Cell] = []  # captured cells that are read only, of which a preparation is kept
        self.held: tuple[list[Value], Any] | None = None  # their values then, and what was made of them
        self.replacements = (
            replacements.count
        )  # when the captured cells were last known to be their tensors' own
        self.renewals = 0  # calls, one after the other, that found weights changed
        self.places: set[Cell | int] = set()  # the same, to look up
        self.overwrites: list[tuple[int, int]] = []  # (written result, input) that may share memory
        self.providers: list[tuple[Callable[[], Any], Any]] = []
        self.constants: list[Value] = []  # known contents that are no cell's
        self.written: list[tuple[Cell | int, Meta | None]] = []
        #: Tensors whose `.grad` is set: had they none before, and what it is then, or a reference to what the last call
        #: made, which is the caller's alone to keep.
        self.gradients: list[tuple[Tensor, bool, Tensor | weakref.ref[Tensor] | None]] = []
        self.kinds: list[Any] = []  # types of captured cells, which a call checks
        self.weight_kinds: list[Any] = []  # the same of weights, checked when they have changed
        self.types: list[Any] = []  # types of the outputs
        self.dynamic = False  # may they be symbolic?
        self.result: Any = None
        self.computes = False  # does it nothing but compute results of known types?
        #: The last two calls' results of one that does: of the older ones' memory, where nobody has them any more, the next call
        #: makes its own, which need not be asked for and given back, and are still in a cache. None for large ones.
        self.spare: list[list[Array]] | None = None

    def fits(self) -> bool:
        """Are the captured cells and gradients as they were when this was compiled?"""
        if self.replacements != replacements.count:
            if any(cell in replacements.cells for cell, _, _ in [*self.kinds, *self.weight_kinds]):
                return False
            self.replacements = replacements.count
        for tensor, was_none, _ in self.gradients:
            if (tensor._grad is None) != was_none:
                return False
        for cell, kind, flows in self.kinds:
            if cell.value.type is not kind or cell.value.requires_grad != flows:
                return False
        if self.held is not None:
            # Every write gives a cell another value. A network has hundreds, and few of them are in a cache.
            if self.weights and [cell.value for cell in self.weights] != self.held[0]:
                return self._renewed()
            self.renewals = 0
            return True
        return self._fits_weights()

    def _fits_weights(self) -> bool:
        if self.renewals >= RENEWALS:
            return False
        for cell, kind, flows in self.weight_kinds:
            if cell.value.type is not kind or cell.value.requires_grad != flows:
                return False
        return True

    def _renewed(self) -> bool:
        """Weights have changed. Those that always do are none, the next time that a function which reads them is traced."""
        assert self.held is not None
        self.renewals += 1
        if self.renewals >= RENEWALS:
            _CHANGING.update([c for c, value in zip(self.weights, self.held[0]) if c.value is not value])
        self.held = None
        return self._fits_weights()

    def hold(self) -> Any:
        """The weights as they are now, prepared for the calls to come."""
        values = [cell.read() for cell in self.weights]
        made = hold(self.executable, values + self.constants)
        self.held = values, made
        return made

    def run(self, arguments: Sequence[Tensor]) -> Any:
        """Call the executable and put everything in its place."""
        if self.computes:
            return self.computed([_root(x._cell) for x in arguments])
        cells = [_root(arguments[c]._cell) if isinstance(c, int) else c for c in self.cells]
        arrays = [_content(cell) for cell in cells]
        for source, element in self.providers:
            arrays.append(evaluation.array_of(source(), element))
        outputs = []
        held = self.held
        made: Any = ()
        if self.executable is not None:
            kept = held[1] if held else self.hold()
            into = self._reused(cells, arrays)
            made = self.executable(arrays, kept, into) if into else self.executable(arrays, kept)
        for kind, array in zip(self.types, made):
            value = Value(tensor_type(array.shape, kind.element) if self.dynamic else kind)
            value.data = array
            outputs.append(value)
        for (place, meta), value in zip(self.written, outputs):
            cell = _root(arguments[place]._cell) if isinstance(place, int) else place
            if meta is not None:
                value.requires_grad, value.hooks = True, meta
            cell.value = value
            cell.version += 1
        at = len(self.written)
        for number, (tensor, was_none, gradient) in enumerate(self.gradients):
            if isinstance(gradient, weakref.ref):
                known = gradient()
                if known is None:
                    known = new_tensor(Cell(outputs[at]))
                    self.gradients[number] = tensor, was_none, weakref.ref(known)
                else:
                    known._cell.value = outputs[at]
                    known._cell.version += 1
                gradient = known
                at += 1
            tensor._grad = gradient
        if at:
            outputs = outputs[at:]
        if self.result[0] == "leaf":
            return _returned(self.result[1], outputs, arguments)
        return _unflatten(self.result, lambda leaf: _returned(leaf, outputs, arguments))

    def computed(self, arguments: Sequence[Cell]) -> Any:
        """`run` where nothing is written: results from the arguments' memory and captured cells, of known types."""
        arrays = []
        for place in self.cells:
            cell: Cell = arguments[place] if isinstance(place, int) else place
            array = cell.value.data if cell.parent is None else None
            arrays.append(_content(cell) if array is None else array)
        held = self.held
        kept = held[1] if held else self.hold()
        spare = self.spare
        made: list[Array] = []
        if spare is not None and len(spare) > 1:
            try:  # popped, so that no other thread has them too
                made = spare.pop(0)
            except IndexError:
                pass
        if made and all_free(made):
            self.executable.fill(made, arrays, kept)
        else:
            made = self.executable(arrays, kept)
        if spare is not None:
            spare.append(made)
        if self.result[0] == "leaf":
            return known_tensor(self.types[0], made[0])
        tensors = [known_tensor(kind, array) for kind, array in zip(self.types, made)]
        return _unflatten(self.result, lambda leaf: tensors[leaf[1]])

    def _reused(self, cells: list[Cell], arrays: list[Any]) -> dict[int, Any]:
        """Memory that results may have: that of the state which they replace, and of the last call's gradients, where
        nobody else can see it."""
        into = {}
        for result, number in self.overwrites:
            if getrefcount(cells[number].value) == 2 and is_sole(arrays, number, 1):
                into[result] = arrays[number]
        result = len(self.written)
        for _, _, gradient in self.gradients:
            if not isinstance(gradient, weakref.ref):
                continue
            known = gradient()
            if known is not None and known._cell not in self.places and getrefcount(known._cell.value) == 2:
                data = [known._cell.value.data]
                if is_sole(data, 0, 1) and data[0].shape == self.types[result].shape:
                    into[result] = data[0]
            result += 1
        return into


def _content(cell: Cell) -> Any:
    """The cell's content. No reference to its value is left behind: memory may be reused where nobody has one."""
    value = cell.value if cell.parent is None else cell.read()
    array = value.data
    return content(value) if array is None else array


def _returned(leaf: tuple[str, Any], outputs: list[Value], arguments: Sequence[Tensor]) -> Any:
    kind, what = leaf
    if kind == "output":
        return new_tensor(Cell(outputs[what]))
    return arguments[what] if kind == "argument" else what


# -- arguments and results as trees ------------------------------------------------------------------------------------


def _flatten(x: Any, tensors: list[Tensor], numbers: dict[Cell, int]) -> Any:
    """A hashable description in which tensors are numbered; `numbers` has the first tensor of each memory."""
    if isinstance(x, Tensor):
        cell = x._cell
        root = cell if cell.parent is None else _root(cell)
        number = numbers.setdefault(root, len(tensors))
        tensors.append(x)
        value = cell.value if cell.parent is None else cell.read()
        flows = value.requires_grad if x._chain is None else read(x).requires_grad
        if cell is not root:  # a detached alias: what it is an alias of is the input
            seen = root.value
            return "alias", value.type, x._chain, flows, number, seen.type, seen.requires_grad, _parts(cell)
        return "tensor", value.type, x._chain, flows, number
    if isinstance(x, (list, tuple)):
        return type(x).__name__, tuple([_flatten(y, tensors, numbers) for y in x])
    if isinstance(x, dict):
        return "dict", tuple([(k, _flatten(v, tensors, numbers)) for k, v in x.items()])
    try:
        hash(x)
    except TypeError:
        return "object", id(x)
    return type(x), x


def _root(cell: Cell) -> Cell:
    """The cell whose memory this is."""
    while cell.parent is not None:
        cell = cell.parent
    return cell


def _parts(cell: Cell) -> tuple[Any, ...]:
    """Which part of which part of the root an alias is."""
    found = []
    while cell.parent is not None:
        found.append((cell.through, cell.leaf is not None))
        cell = cell.parent
    return tuple(found)


def _tree(x: Any, leaf: Callable[[Tensor], Any]) -> Any:
    if isinstance(x, Tensor):
        return "leaf", leaf(x)
    if isinstance(x, dict):
        return "dict", type(x), [(k, _tree(v, leaf)) for k, v in x.items()]
    if isinstance(x, (list, tuple)):
        return "sequence", type(x), [_tree(y, leaf) for y in x]
    return "leaf", ("constant", x)


def _marks(tree: Any) -> list[Any]:
    """The leaves of a tree."""
    found: list[Any] = []
    _unflatten(tree, found.append)
    return found


def _unflatten(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    if tree[0] == "leaf":
        return leaf(tree[1])
    if tree[0] == "dict":
        return tree[1]((k, _unflatten(v, leaf)) for k, v in tree[2])
    parts = [_unflatten(y, leaf) for y in tree[2]]
    return tree[1](*parts) if hasattr(tree[1], "_fields") else tree[1](parts)


# -- compiling ---------------------------------------------------------------------------------------------------------

_EXECUTABLES: Recent[tuple[Graph, int, Any], Any] = Recent(512)
#: Calls in a row, each with other weights than the last, after which it is better to prepare nothing.
RENEWALS = 4
#: Bytes of results up to which their memory stays with their entry.
SPARED = 1 << 18
#: Entries of one signature, which differ in what they found in the cells that they read; the last ones are kept.
ENTRIES = 8
_CHANGING: weakref.WeakSet[Cell] = weakref.WeakSet()


class _Signature:
    """What a call had that ran `entry`, if its arguments were tensors only, each with memory of its own: an equal one is
    known without a description of it (`Compiled._key`)."""

    __slots__ = ("entry", "types", "flows", "grad", "dtype", "modes", "modules", "training")

    def __init__(self, entry: _Entry, tensors: Sequence[Tensor], key: Any, reach: Reach) -> None:
        self.entry = entry
        self.types = [t._cell.value.type for t in tensors]
        self.flows = [t._cell.value.requires_grad for t in tensors]
        _, self.grad, self.dtype, *self.training = key
        self.modules = reach.modules
        self.modes = modes.count  # when these were last as they are in `training`

    @staticmethod
    def of(entry: _Entry, args: tuple[Any, ...], key: Any, reach: Reach) -> _Signature | None:
        """None for arguments of another kind."""
        for x in args:
            if not isinstance(x, Tensor) or x._chain is not None or x._cell.parent is not None:
                return None
        if len({x._cell for x in args}) != len(args):
            return None
        return _Signature(entry, args, key, reach)

    def cells(self, args: tuple[Any, ...], grad: bool, reach: Reach | None) -> list[Cell] | None:
        """The arguments' memory, if a call with them has the same signature."""
        types, flows = self.types, self.flows
        if len(args) != len(types) or grad is not self.grad or reach is None or not reach.stands():
            return None
        cells: list[Cell] = []
        number = 0  # a `zip` of three takes as long as all else here
        for x in args:
            if not isinstance(x, Tensor) or x._chain is not None:
                return None
            cell = x._cell
            value = cell.value
            if cell.parent is not None or value.type is not types[number]:
                return None
            if value.requires_grad is not flows[number]:
                return None
            cells.append(cell)
            number += 1
        if cells[0] is cells[1] if number == 2 else len(set(cells)) != number:
            return None
        if len(self.modules) != len(self.training):  # others have been reached since
            return None
        if self.modes != modes.count:
            before = modes.count
            for module, training in zip(self.modules, self.training):
                if module.training is not training:
                    return None
            self.modes = before
        return cells if dtypes.get_default_dtype() is self.dtype else None


class Compiled:
    """A function that `compile` made; calls like the function itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self._entries: dict[Any, list[_Entry]] = {}
        self._direct: set[Any] = set()
        self._families: dict[Any, Family] = {}
        self._reach: Reach | None = None
        self._last: _Signature | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = state.now
        if now.trace is not None:  # inside another trace: part of it
            return self.function(*args, **kwargs)
        last = self._last
        if last is not None and not kwargs:
            cells = last.cells(args, now.grad, self._reach)
            entry = last.entry
            if cells is not None and entry.fits():
                return entry.computed(cells) if entry.computes else entry.run(args)
        tensors: list[Tensor] = []
        numbers: dict[Cell, int] = {}
        described = [_flatten(a, tensors, numbers) for a in args]
        if kwargs:
            described.append(_flatten(kwargs, tensors, numbers))
        reach = self._reach
        if reach is None or not reach.stands():
            reach = self._look_again(args, kwargs)
        key = self._key(described, reach)
        for entry in self._entries.get(key, ()):
            if entry.fits():
                if not kwargs:
                    self._last = _Signature.of(entry, args, key, reach)
                return entry.run(tensors)
        if key in self._direct:
            return self.function(*args, **kwargs)
        family = self._families.setdefault(without_sizes(key), Family())
        sizes = tuple([t._cell.value.type.shape for t in tensors])  # type: ignore[attr-defined]
        entry = family.find(sizes)
        if entry is not None:
            return entry.run(tensors)
        pattern = family.pattern(sizes, [not t._chain and t._cell.parent is None for t in tensors])
        if pattern is not None:
            entry = self._symbolic(tensors, pattern, args, kwargs)
            family.add(pattern, entry)
            if entry is not None:
                return entry.run(tensors)
        reach.add_arguments((args, kwargs))
        return self._trace(described, tensors, args, kwargs)

    def _key(self, described: list[Any], reach: Reach) -> Any:
        return tuple(described), state.grad, dtypes.get_default_dtype(), *[m.training for m in reach.modules]

    def _look_again(self, args: Any, kwargs: Any) -> Reach:
        """At the first call, and when a captured module or name is another one: then what was compiled is of no use."""
        self._last = None
        self._entries.clear()
        self._direct.clear()
        self._families.clear()
        self._reach = Reach(self.function, (args, kwargs))
        return self._reach

    def _symbolic(self, tensors: list[Tensor], pattern: Pattern, args: Any, kwargs: Any) -> _Entry | None:
        """An entry for all the sizes of a pattern; None if the function needs to know the sizes."""
        types = {t._cell: pattern.type(i, t._cell.value.type) for i, t in enumerate(tensors)}  # type: ignore[arg-type]
        try:
            entry, survivors, observed = self._capture(tensors, args, kwargs, types)
        except (
            Exception
        ) as error:  # whatever a symbolic size does to the user's code: one size at a time, then
            planning.explain(f"{self.function!r} is compiled for each size: {error}")
            return None
        return None if survivors is not None or observed else entry

    def _trace(self, described: list[Any], tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        entry, survivors, observed = self._capture(tensors, args, kwargs, {})
        assert self._reach is not None
        key = self._key(described, self._reach)
        if observed:
            text = f"{self.function!r} observes a value while it runs: it is not compiled as a whole"
            warnings.warn(text, stacklevel=3)
        if entry is None:  # somebody may also call backward on the result: its history must be real
            self._direct.add(key)
            return self.function(*args, **kwargs)
        if survivors is None:
            entries = self._entries.setdefault(key, [])
            entries.append(entry)
            del entries[:-ENTRIES]
        return entry.run(tensors)

    def _capture(
        self, tensors: list[Tensor], args: Any, kwargs: Any, types: Mapping[Cell, TensorType]
    ) -> tuple[_Entry | None, Any, bool]:
        """Run the function on placeholders. The entry, or None; what survives; whether a value was observed."""
        evaluation.sync()
        trace = state.trace = InputTrace(types)
        for cell in types:
            trace.cell(cell)
        entry, survivors, observed = None, None, False
        try:
            returned = [self.function(*args, **kwargs)]
            if not any(t.requires_grad and t._cell in trace.created for t in _leaves(returned)):
                entry, survivors = _finish(trace, tensors, returned)
            returned.clear()
        except TraceError:
            observed = True
        finally:
            state.trace = None
            state.now.forget()  # everything was computed before; what the trace made exists only in the executable
        assert self._reach is not None
        self._reach.add(trace.modules)
        self._reach.settle()
        return entry, survivors, observed


def _leaves(x: Any) -> list[Any]:
    """The tensors in it."""
    found: list[Any] = []
    _tree(x, found.append)
    return found


def _finish(trace: InputTrace, tensors: list[Tensor], returned: list[Any]) -> tuple[_Entry, Any]:
    """The entry for this run. The second result is not None if the run made state that outlives it.

    `returned` has the function's result and is emptied, so that what is still alive then is somebody else's.
    """
    entry = _Entry()
    numbers = {_root(t._cell): i for i, t in reversed(list(enumerate(tensors)))}
    place = {cell: numbers.get(cell, cell) for cell in trace.inputs}
    entry.weights = (
        [] if _trains(trace) else [c for c in trace.inputs if c not in numbers and _keeps(c, trace)]
    )
    weights = set(entry.weights)
    entry.cells = [where for cell, where in place.items() if cell not in weights]
    for cell, (before, _) in trace.inputs.items():
        if cell not in numbers:
            kinds = entry.weight_kinds if cell in weights else entry.kinds
            kinds.append((cell, before.type, before.requires_grad))
    entry.providers = [(source, element) for _, source, element in trace.providers]
    results: list[Value] = []
    for cell, (_, placeholder) in trace.inputs.items():
        after = trace.after(cell)
        if after is not placeholder:
            meta = placeholder.hooks if placeholder.requires_grad else None
            entry.written.append((place[cell], meta))
            results.append(after)
    known = set()
    for tensor, before, made in trace.gradients.values():
        computed = made is not None and made._cell in trace.created
        entry.gradients.append((tensor, before is None, weakref.ref(made) if computed else made))
        if computed:
            assert made is not None
            known.add(made._cell)
            results.append(read(made))
    outputs: list[Value] = []

    def leaf(tensor: Tensor) -> tuple[str, Any]:
        for i, t in enumerate(tensors):
            if tensor is t:
                return "argument", i
        if tensor._cell not in trace.created:
            return "constant", tensor
        outputs.append(read(tensor))
        _part_from_parent(tensor._cell, trace)
        return "output", len(outputs) - 1

    entry.result = _tree(returned.pop(), leaf)
    results += outputs
    gc.collect(0)
    survivors = [c for c in trace.created if c not in known and c.parent is None and c.value.data is None]
    parameters = [p for cell, (_, p) in trace.inputs.items() if cell not in weights]
    parameters += [v for v, _, _ in trace.providers]
    parameters += [trace.inputs[cell][1] for cell in entry.weights]
    _compile_into(entry, parameters, results)
    entry.computes = (
        not (entry.providers or entry.written or entry.gradients or entry.dynamic)
        and entry.executable is not None
        and all(kind == "output" for kind, _ in _marks(entry.result))
    )
    if entry.computes and sum(t.size * t.element.itemsize for t in entry.types) <= SPARED:
        entry.spare = []
    entry.places = set(entry.cells)
    allowed = set(getattr(entry.executable, "overwrites", ()))
    for result, (where, _) in enumerate(entry.written):
        pair = result, entry.cells.index(where)
        if pair in allowed:
            entry.overwrites.append(pair)
    if survivors:
        _fill_survivors(trace, survivors, parameters, tensors, entry)
        return entry, survivors
    return entry, None


def _trains(trace: InputTrace) -> bool:
    """Does the run set gradients, or change what has one? Then what it reads changes between its calls."""
    return bool(trace.gradients) or any(
        placeholder.requires_grad and trace.after(cell) is not placeholder
        for cell, (_, placeholder) in trace.inputs.items()
    )


def _keeps(cell: Cell, trace: InputTrace) -> bool:
    """Is a captured cell's content the same at every call, as far as can be seen?"""
    before, placeholder = trace.inputs[cell]
    return trace.after(cell) is placeholder and cell not in _CHANGING and before not in evaluation.shared


def _part_from_parent(cell: Cell, trace: InputTrace) -> None:
    """A returned alias of what this run made (`loss.detach()`) keeps nothing else alive: what it is an alias of
    outlives the run only if somebody else has it."""
    while cell.parent is not None and cell.parent in trace.created:
        parent = cell.parent
        cell.value, cell.parent, cell.seen, cell.through = cell.read(), None, None, None
        cell = parent


def _compile_into(entry: _Entry, parameters: list[Value], results: list[Value]) -> None:
    inside = set(parameters)
    constants: dict[Value, None] = {}
    for operation in topological(results, inside):
        for value in operation.operands:
            if value.owner is None and value not in inside:
                constants[value] = None
    for value in results:
        if value.owner is None and value not in inside:
            constants[value] = None
    if any(v.data is None for v in constants):
        raise RuntimeError("compile: a value from another compiled call was used before that call ended")
    entry.constants = list(constants)
    kept = len(entry.weights) + len(constants)
    entry.types = [v.type for v in results]
    entry.dynamic = any(isinstance(d, Dim) for v in parameters for d in v.type.shape)  # type: ignore[attr-defined]
    if not results:
        return
    with not_recording():
        graph = Graph([*parameters, *constants], results)
        graph = rebuild(graph, planning.without_python, [Value(v.type) for v in graph.parameters])
        key = graph, kept, options.current().code
        entry.executable = _EXECUTABLES.get(key)
        if entry.executable is None:
            planning.statistics.compilations += 1
            entry.executable = _EXECUTABLES[key] = planning.compiled(graph, kept)


def _fill_survivors(
    trace: InputTrace, cells: list[Cell], parameters: list[Value], tensors: list[Tensor], entry: _Entry
) -> None:
    """State that this run made (an optimizer's first step): computed now; the next call finds "
    "it and is traced again."""
    extra = _Entry()
    extra.cells, extra.providers, extra.weights = entry.cells, entry.providers, entry.weights
    values = [c.value for c in cells]
    _compile_into(extra, parameters, values)
    state.trace = None
    arrays = [content((_root(tensors[c]._cell) if isinstance(c, int) else c).read()) for c in extra.cells]
    arrays += [evaluation.array_of(source(), element) for source, element in extra.providers]
    for cell, old, array in zip(cells, values, extra.executable(arrays, extra.hold())):
        cell.value = Value(old.type)
        cell.value.data = array
    state.trace = trace


def compile(model: Any = None, **options: Any) -> Any:
    """`model` (a function or a module) as one executable a signature. Usable as a decorator.

    A result that requires grad keeps its history: such a call is evaluated late, as any other code. A function that
    observes a value while it runs is not compiled as a whole, with a warning.

    What depends only on tensors that the function reads and does not get as arguments (a module's parameters) is computed
    once, and again when one of them was written. A write that goes past the tensor, into an array that shares its memory
    (``t.numpy()[:] = 0``), is not seen; tensors that `from_numpy` made of a program's own array are read at every call.
    """
    if model is None:
        return lambda f: compile(f, **options)
    return Compiled(model)
