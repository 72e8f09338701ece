"""`backward` and `grad`: reverse mode over the recorded graph, with hooks and accumulation into leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flambeau.autograd.derivative import derivative_of
from flambeau.autograd.modes import set_grad_enabled
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Value
from flambeau.evaluation import state, stop_gradient
from flambeau.reverse import Meta, is_leaf, meta_of, reverse
from flambeau.storage import Cell
from flambeau.tape import caller_place
from flambeau.tensor import Tensor, new_tensor, read, wrap


def _listed(x: Any) -> list[Any]:
    return [x] if isinstance(x, Tensor) or x is None else list(x)


def _seeds(outputs: Sequence[Tensor], given: Sequence[Tensor | None]) -> list[Value]:
    seeds = []
    for i, (output, seed) in enumerate(zip(outputs, given)):
        value = read(output)
        if not value.requires_grad:
            raise RuntimeError(f"element {i} of tensors does not require grad and does not have a grad_fn")
        if seed is None:
            if output.numel() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            seeds.append(build.ones_like(value))
            continue
        if tuple(seed.shape) != tuple(output.shape):
            raise RuntimeError(
                f"Mismatch in shape: grad_output[{i}] has a shape of {seed.shape} and output[{i}] has a shape of "
                f"{output.shape}."
            )
        found = read(seed)
        seeds.append(found if found.type is value.type else build.convert(found, build.element_of(value)))
    return seeds


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
        if meta.name is None and root.definition is not None:
            meta.name = root.definition.name.rpartition(".")[2].title().replace("_", "")
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
    if not create_graph and inputs is None and given == [None] and _backward_again(read(roots[0])):
        if not retain_graph:
            _free([read(roots[0])])
        return
    with set_grad_enabled(create_graph):
        seeds = _seeds(roots, given)
        values = [read(t) for t in roots]
        cotangents = reverse(values, seeds, _visit)
        wanted = None if inputs is None else {read(t): t for t in _listed(inputs)}
        for value, ct in cotangents.items():
            if wanted is not None:
                if value in wanted:
                    _accumulate(wanted[value], ct, create_graph)
            elif is_leaf(value):
                tensor = value.hooks.tensor() if value.hooks.tensor is not None else None
                if tensor is not None:
                    _accumulate(tensor, ct, create_graph)
                    for hook in list((value.hooks.function or {}).values()):
                        hook(tensor)
    if not (create_graph if retain_graph is None else retain_graph):
        _free(values)


def _backward_again(root: Value) -> bool:
    """The common case, where the derivative may be known from the last time and nobody watches it at work; False if not."""
    now = state.now
    if now.trace is not None or not root.requires_grad:
        return False
    derivative = derivative_of(root)
    if derivative is None:
        return False
    gradients = derivative.of(root, now, caller_place(2))
    if gradients is None:
        return False
    before, now.grad = now.grad, False
    try:
        for leaf, gradient in gradients:
            tensor = leaf.hooks.tensor() if leaf.hooks.tensor is not None else None
            if tensor is not None:
                _accumulate(tensor, gradient, False)
    finally:
        now.grad = before
    return True


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
        cotangents = reverse(values, _seeds(roots, given), _visit)
        found: list[Tensor | None] = []
        for tensor in wrt:
            ct = cotangents.get(read(tensor))
            if ct is not None:
                found.append(wrap(ct))
            elif materialize_grads:
                found.append(wrap(build.zeros_like(read(tensor))))
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
