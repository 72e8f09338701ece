"""`scan`: a Python function of one step becomes a loop in the graph, compiled once and differentiable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flambeau import evaluation, planning
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.autograd_ops import CustomGradient, StopGradient
from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.dialects.graph.scan_gradient import with_residuals
from flambeau.compiler.dialects.graph.shape import BroadcastInDim, Reshape
from flambeau.compiler.ir.core import Graph, Operation, Value, create, rebuild, untraced
from flambeau.compiler.ir.types import TensorType
from flambeau.evaluation import record_all, state
from flambeau.reverse import is_leaf
from flambeau.shaping import movedim
from flambeau.storage import Cell
from flambeau.tensor import Tensor, axis, read, wrap
from flambeau.tracing import Trace


def scan(
    combine_fn: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any,
    *,
    dim: int = 0,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Runs ``carry, y = combine_fn(carry, x)`` over the slices x of `xs` along `dim`; (last carry, all y stacked).

    `init`, `xs` and what `combine_fn` returns are tensors or nested tuples, lists and dicts of tensors. The carry keeps
    its shapes and dtypes; the y are stacked along a new first dimension. With `reverse` the steps go from the last slice
    to the first, and y number t still belongs to slice t. `combine_fn` runs once, on tensors that stand for those of any
    step: it cannot observe values, write to tensors that it did not make, or draw random numbers. Tensors from outside
    that it reads are the same in each step, and derivatives reach them too.

    As `torch._higher_order_ops.scan`. Raises RuntimeError where sizes or the carry's types do not fit.
    """
    starts: list[Tensor] = []
    carry_tree = _flatten(init, starts, "init")
    slices: list[Tensor] = []
    xs_tree = _flatten(xs, slices, "xs")
    if not slices:
        raise RuntimeError("scan() expects xs to hold at least one tensor")
    if any(x.ndim == 0 for x in slices):
        raise RuntimeError("scan() expects xs of at least one dimension, got a tensor of none")
    moved = [movedim(x, axis(dim, x.ndim), 0) if axis(dim, x.ndim) else x for x in slices]
    length = moved[0].shape[0]
    if any(x.shape[0] != length for x in moved):
        raise RuntimeError(
            f"scan() expects xs of one size in dimension {dim}, got {[x.shape[0] for x in moved]}"
        )
    carries, sequences = [read(t) for t in starts], [read(x) for x in moved]
    placeholders = [_placeholder(build.type_of(v)) for v in carries]
    placeholders += [_placeholder(build.type_of(v).with_shape(build.shape_of(v)[1:])) for v in sequences]
    results: list[Tensor] = []
    with _BodyTrace():
        tensors = [wrap(p) for p in placeholders]
        returned = combine_fn(_unflatten(carry_tree, tensors), _unflatten(xs_tree, tensors[len(starts) :]))
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise RuntimeError("combine_fn must return a pair: the next carry, and the step's output")
        after_tree = _flatten(returned[0], results, "the carry that combine_fn returns")
        outputs = len(results)
        y_tree = _flatten(returned[1], results, "the output of combine_fn")
        values = [read(t) for t in results]
        del tensors, returned, results[:]
    _check_carries(carry_tree, after_tree, carries, values[:outputs])
    body, invariants = _body(placeholders, values)
    definition = Scan(body, length, len(carries), len(sequences), reverse)
    found = [wrap(v, "Scan") for v in apply_scan(definition, [*carries, *sequences, *invariants])]
    return _unflatten(carry_tree, found), _unflatten(y_tree, found)  # the carry has as many tensors as init


def apply_scan(definition: Scan, operands: Sequence[Value]) -> tuple[Value, ...]:
    """Record a scan; its results. Where derivatives flow it also keeps what they will read."""
    count = len(definition.body.results)
    if state.grad and any(v.requires_grad for v in operands):
        definition = with_residuals(definition)
    return record_all(definition, *operands)[:count]


# -- trees of tensors --------------------------------------------------------------------------------------------------


def _flatten(x: Any, found: list[Tensor], what: str) -> Any:
    """The structure of `x`, its tensors replaced by their numbers in `found`, to which they are added."""
    if isinstance(x, Tensor):
        found.append(x)
        return len(found) - 1
    if isinstance(x, dict):
        return dict, [(k, _flatten(v, found, what)) for k, v in x.items()]
    if isinstance(x, (tuple, list)):
        return type(x), [_flatten(y, found, what) for y in x]
    if x is None:
        return None
    raise RuntimeError(f"scan() expects {what} to be made of tensors, got {type(x).__name__}")


def _unflatten(tree: Any, tensors: Sequence[Tensor]) -> Any:
    if tree is None:
        return None
    if isinstance(tree, int):
        return tensors[tree]
    kind, parts = tree
    if kind is dict:
        return {k: _unflatten(v, tensors) for k, v in parts}
    made = [_unflatten(p, tensors) for p in parts]
    return kind(*made) if hasattr(kind, "_fields") else kind(made)


# -- one step as a graph -----------------------------------------------------------------------------------------------


class _BodyTrace(Trace):
    """What `state.trace` is while the step runs: values are not observed, and nothing outside is written."""

    def __init__(self) -> None:
        super().__init__()
        self.outer: Any = None
        self.own: set[int] = set()
        self.kept: list[Cell] = []  # while the step runs, so that their identities are theirs

    def __enter__(self) -> _BodyTrace:
        self.outer, state.trace = state.trace, self
        self.pending, state.pending = state.pending, []
        if self.outer is not None:
            self.modules = self.outer.modules
        return self

    def __exit__(self, *_: object) -> None:
        state.trace = self.outer
        state.pending = self.pending  # what the step made stands for no value
        self.kept.clear()

    def makes(self, cell: Cell) -> None:
        self.own.add(id(cell))
        self.kept.append(cell)
        if self.outer is not None:
            self.outer.makes(cell)

    def cell(self, cell: Cell) -> Cell:
        return cell if self.outer is None else self.outer.cell(cell)  # type: ignore[no-any-return]

    def writes(self, cell: Cell) -> None:
        root = cell
        while root.parent is not None:
            root = root.parent
        if id(root) not in self.own:
            raise RuntimeError(
                "combine_fn must not write to tensors that it did not make, nor draw random numbers"
            )
        if self.outer is not None:
            self.outer.writes(cell)

    def grad(self, tensor: Tensor) -> Any:
        return tensor._grad if self.outer is None else self.outer.grad(tensor)

    def set_grad(self, tensor: Tensor, gradient: Any) -> None:
        raise RuntimeError("combine_fn must not set a tensor's .grad")

    def provide(self, source: Callable[[], Any], element: Any, type: Any) -> Value:
        if self.outer is not None:
            return self.outer.provide(source, element, type)  # type: ignore[no-any-return]
        return evaluation.leaf(evaluation.array_of(source(), element), element)


def _placeholder(type: TensorType) -> Value:
    return Value(type, requires_grad=state.grad and type.element.is_float)


def _check_carries(before: Any, after: Any, given: Sequence[Value], made: Sequence[Value]) -> None:
    if before != after:
        raise RuntimeError("combine_fn must return a carry of the same structure as init")
    for number, (old, new) in enumerate(zip(given, made, strict=True)):
        if old.type is not new.type:
            raise RuntimeError(
                "combine_fn must return a carry of init's shapes and dtypes: tensor "
                f"{number} of init is {old.type}, combine_fn returns {new.type}"
            )


def _body(placeholders: list[Value], results: list[Value]) -> tuple[Graph, list[Value]]:
    """The step as a closed graph, and the values from outside that are its last parameters."""
    inside = _dependent(placeholders, results)
    invariants: dict[Value, None] = {}
    pending = [v for o in inside for v in o.operands] + list(results)
    varying = {*placeholders, *[r for o in inside for r in o.results]}
    while pending:
        value = pending.pop(0)
        if value in varying or value in invariants:
            continue
        owner = value.owner
        cheap = owner is not None and (
            not owner.operands or isinstance(owner.definition, BroadcastInDim | Reshape)
        )
        if owner is not None and cheap and value.data is None and not is_leaf(value):
            pending.extend(owner.operands)  # made again in each step
        else:
            invariants[value] = None
    parameters = [*placeholders, *invariants]
    with untraced():
        body = rebuild(Graph(parameters, results, "body"), _closed, [Value(p.type) for p in parameters])
    return body, list(invariants)


def _closed(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
    """The body has no flags: where the user's program stops derivatives (`no_grad`), an operation says so."""
    flows = any(v.requires_grad for v in operation.operands)
    if isinstance(operation.definition, CustomGradient):
        if flows:
            raise RuntimeError("combine_fn must not use an autograd.Function through which derivatives flow")
        return planning.without_python(operation, operands)
    if not flows or isinstance(operation.definition, StopGradient):
        return None
    if any(r.requires_grad or not build.element_of(r).is_float for r in operation.results):
        return None
    stopped = [create(StopGradient(), v).results[0] if build.element_of(v).is_float else v for v in operands]
    return create(operation.definition, *stopped, location=operation._location).results


def _dependent(placeholders: Sequence[Value], results: Sequence[Value]) -> list[Operation]:
    """The operations on the way from `placeholders` to `results`, operands first."""
    depends: dict[Value, bool] = dict.fromkeys(placeholders, True)
    order: list[Operation] = []
    stack: list[tuple[Value, bool]] = [(v, False) for v in reversed(results)]
    while stack:
        value, visited = stack.pop()
        if value in depends:
            continue
        owner = value.owner
        if owner is None or value.data is not None or is_leaf(value):
            depends[value] = False
        elif visited:
            found = any(depends[v] for v in owner.operands)
            depends.update(dict.fromkeys(owner.results, found))
            if found:
                order.append(owner)
        else:
            stack.append((value, True))
            stack.extend([(v, False) for v in reversed(owner.operands)])
    return order


__all__ = ["scan"]
