"""`vjp`, `jvp`, `jacobian` and `hessian` of functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flambeau.autograd.engine import grad
from flambeau.autograd.modes import enable_grad
from flambeau.creation import zeros_like
from flambeau.joining import stack
from flambeau.tensor import Tensor


def _prepared(inputs: Any, create_graph: bool) -> tuple[bool, list[Tensor]]:
    single = isinstance(inputs, Tensor)
    listed = [inputs] if single else list(inputs)
    if create_graph:
        return single, [
            x.view_as(x) if x.requires_grad else x.detach().clone().requires_grad_() for x in listed
        ]  # type: ignore[attr-defined]
    return single, [x.detach().clone().requires_grad_() for x in listed]  # type: ignore[attr-defined]


def _finished(x: Any, create_graph: bool) -> Any:
    if isinstance(x, tuple):
        return tuple(_finished(y, create_graph) for y in x)
    return x if create_graph or not isinstance(x, Tensor) else x.detach()


def _outputs(found: Any) -> tuple[bool, list[Tensor]]:
    return (True, [found]) if isinstance(found, Tensor) else (False, list(found))


@enable_grad()
def vjp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> Any:
    """(func(*inputs), v-transposed times the Jacobian)."""
    single, args = _prepared(inputs, create_graph)
    out = func(*args)
    _, outs = _outputs(out)
    seeds = None if v is None else [v] if isinstance(v, Tensor) else list(v)
    found = grad(outs, args, seeds, create_graph=create_graph, materialize_grads=True)
    return _finished(out, create_graph), _finished(found[0] if single else found, create_graph)


@enable_grad()
def jvp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> Any:
    """(func(*inputs), the Jacobian times v), by differentiating the vjp with respect to its cotangent."""
    _, args = _prepared(inputs, create_graph)
    out = func(*args)
    one, outs = _outputs(out)
    tangents = [v] if isinstance(v, Tensor) else list(v)
    duals = [zeros_like(o).requires_grad_() for o in outs]
    gradients = grad(outs, args, duals, create_graph=True, materialize_grads=True)
    flowing = [(g, t) for g, t in zip(gradients, tangents) if g is not None and g.requires_grad]
    if flowing:
        found: Any = grad(
            [g for g, _ in flowing],
            duals,
            [t for _, t in flowing],
            create_graph=create_graph,
            materialize_grads=True,
        )
    else:
        found = tuple(zeros_like(o) for o in outs)
    return _finished(out, create_graph), _finished(found[0] if one else found, create_graph)


@enable_grad()
def jacobian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    **_: Any,
) -> Any:
    """The Jacobian: shape of the output, then of the input; tuples for several of either."""
    single, args = _prepared(inputs, create_graph)
    one, outs = _outputs(func(*args))
    rows = []
    for out in outs:
        flat = out.reshape(-1)  # type: ignore[attr-defined]
        parts: list[list[Any]] = [[] for _ in args]
        for i in range(flat.numel()):
            if out.requires_grad:
                found: Any = grad(
                    flat[i], args, retain_graph=True, create_graph=create_graph, materialize_grads=True
                )
            else:
                found = [zeros_like(a) for a in args]
            for part, g in zip(parts, found):
                part.append(g)
        row = tuple(
            _finished(stack(p).reshape(tuple(out.shape) + tuple(a.shape)), create_graph)  # type: ignore[attr-defined]
            for p, a in zip(parts, args)
        )
        rows.append(row[0] if single else row)
    return rows[0] if one else tuple(rows)


def hessian(
    func: Callable[..., Any], inputs: Any, create_graph: bool = False, strict: bool = False, **_: Any
) -> Any:
    """The Jacobian of the gradient of a scalar function."""
    single = isinstance(inputs, Tensor)

    def gradient(*args: Tensor) -> Any:
        out = func(*args)
        if out.numel() != 1:
            raise RuntimeError(
                "The Tensor returned by the function given to hessian should contain a single element"
            )
        if not out.requires_grad:
            return tuple(zeros_like(a) for a in args) if not single else zeros_like(args[0])
        found = grad(out.reshape(()), args, create_graph=True, materialize_grads=True)
        return found[0] if single else found

    return jacobian(gradient, inputs, create_graph=create_graph)
