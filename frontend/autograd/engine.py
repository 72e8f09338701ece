"""`backward` and `grad`: reverse mode over the recorded graph, with hooks and accumulation into leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flambeau.autograd.derivative import known_gradients
from flambeau.autograd.modes import set_grad_enabled
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import state, stop_gradient
from flambeau.reverse import Meta, is_leaf, meta_of, reverse
from flambeau.storage import Cell
from flambeau.tensor import Size, Tensor, new_tensor, read, wrap


def _listed(x: Any) -> list[Any]:
    return [x] if isinstance(x, Tensor) or x is None else list(x)


def _checked_seeds(values: Sequence[Value], given: Sequence[Tensor | None]) -> list[Value | None]:
    """The cotangents given for the outputs, in their element types."""
    seeds: list[Value | None] = []
    for i, (value, seed) in enumerate(zip(values, given)):
        if not value.requires_grad:
            raise RuntimeError(f"element {i} of tensors does not require grad and does not have a grad_fn")
        shape = build.shape_of(value)
        if seed is None:
            if any(d != 1 for d in shape):
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            seeds.append(None)
            continue
        found = read(seed)
        if build.shape_of(found) != shape:
            raise RuntimeError(
                f"Mismatch in shape: grad_output[{i}] has a shape of {seed.shape} and output[{i}] has a shape of "
                f"{Size(shape)}."
            )
        seeds.append(found if found.type is value.type else build.convert(found, build.element_of(value)))
    return seeds


def _gradients(
    roots: Sequence[Value], seeds: Sequence[Value | None], wanted: Sequence[Value] | None
) -> Sequence[tuple[Value, Value]]:
    """Values and their gradients: all leaves, or those of `wanted` that derivatives reach. In the common case the
    derivative is known from the last time, and nobody watches it at work."""
    if len(roots) == 1:
        found = known_gradients(roots[0], seeds[0], wanted, state.now)
        if found is not None:
            return found
    cotangents = reverse(
        roots, [build.ones_like(v) if s is None else s for v, s in zip(roots, seeds)], _visit
    )
    if wanted is None:
        return [(v, ct) for v, ct in cotangents.items() if is_leaf(v)]
    return [(v, cotangents[v]) for v in wanted if v in cotangents]


def _visit(value: Value, ct: Value) -> Value:
    meta = value.hooks
    if not isinstance(meta, Meta):
        return ct
    for hook in list(meta.hooks.values()):
        changed = hook(wrap(ct))
        if changed is not None:
            ct = read(changed)
    for reference in meta.retain:
        tensor = reference()
        if tensor is not None:
            tensor._grad = wrap(ct)
    return ct


def _free(roots: Sequence[Value]) -> None:
    """Lets the history of evaluated roots go; a second pass through it is an error, as in PyTorch."""
    for root in roots:
        if is_leaf(root):
            continue
        meta = meta_of(root)
        if meta.name is None and root.owner is not None:
            meta.name = root.owner.definition.name.rpartition(".")[2].title().replace("_", "")
        meta.freed = True
        if root.data is not None:
            root.owner = None


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Adds the gradients of `tensors` to `.grad` of the leaves that they depend on (or of `inputs` alone)."""
    roots = _listed(tensors)
    given = _listed(grad_tensors) if grad_tensors is not None else [None] * len(roots)
    with set_grad_enabled(create_graph):
        values = [read(t) for t in roots]
        seeds = _checked_seeds(values, given)
        targets = None if inputs is None else {read(t): t for t in _listed(inputs)}
        for value, ct in _gradients(values, seeds, None if targets is None else list(targets)):
            if targets is not None:
                _accumulate(targets[value], ct, create_graph)
                continue
            tensor = value.hooks.tensor() if value.hooks.tensor is not None else None
            if tensor is not None:
                _accumulate(tensor, ct, create_graph)
                for hook in list((value.hooks.function or {}).values()):
                    hook(tensor)
    if not (create_graph if retain_graph is None else retain_graph):
        _free(values)


def _accumulate(tensor: Tensor, ct: Value, create_graph: bool) -> None:
    before = tensor.grad
    if not create_graph and ct.requires_grad:
        ct = stop_gradient(ct)
    if before is None:
        found = new_tensor(Cell(ct))
    elif create_graph:
        found = wrap(build.add(read(before), ct))
    else:
        total = build.add(read(before), ct)
        if before._chain:
            found = new_tensor(Cell(total))
        else:
            before._cell.write(total, False)
            found = before
    if state.trace is None:
        tensor._grad = found
    else:
        state.trace.set_grad(tensor, found)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the sum of `outputs` with respect to `inputs`, which may be leaves or not."""
    roots, wrt = _listed(outputs), _listed(inputs)
    given = _listed(grad_outputs) if grad_outputs is not None else [None] * len(roots)
    for tensor in wrt:
        if not tensor.requires_grad:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
    with set_grad_enabled(create_graph):
        values = [read(t) for t in roots]
        wanted = [read(t) for t in wrt]
        gradients = dict(_gradients(values, _checked_seeds(values, given), wanted))
        found: list[Tensor | None] = []
        for value in wanted:
            ct = gradients.get(value)
            if ct is not None:
                found.append(wrap(ct))
            elif materialize_grads:
                found.append(wrap(build.zeros_like(value)))
            elif allow_unused:
                found.append(None)
            else:
                raise RuntimeError(
                    "One of the differentiated Tensors appears to not have been used in the graph. "
                    "Set allow_unused=True if this is the desired behavior."
                )
    if not (create_graph if retain_graph is None else retain_graph):
        _free(values)
    return tuple(found)


def _tensor_backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Adds this tensor's gradients to `.grad` of the leaves that it depends on."""
    backward([self], [gradient], retain_graph, create_graph, inputs)


Tensor.backward = _tensor_backward  # type: ignore[attr-defined]
