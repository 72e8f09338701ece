"""Multiplies the kernels of convolutions by the factors that follow them, where both are weights: batch norm costs nothing.

What follows a convolution and acts on each feature alone (a bias, batch norm's mean, factor and shift) is one factor and
one shift a feature. ``(x * w - mean) * factor + shift`` is ``x * (w * factor) + (shift - mean * factor)``; both brackets
depend on weights only, so `split_weights` moves them to the preparation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.convolution import Convolution
from flambeau.compiler.dialects.graph.pointwise_arithmetic import Add, Multiply, Subtract
from flambeau.compiler.dialects.graph.shape import BroadcastInDim
from flambeau.compiler.ir.core import Graph, Operation, Value, apply, rebuild
from flambeau.compiler.ir.types import f32, f64
from flambeau.compiler.passes.split_weights import weight_bytes


@dataclass(frozen=True)
class _Affine:
    """`convolution`'s result times `factor` plus `shift`: vectors over its features, None for 1 and for 0."""

    convolution: Operation
    factor: Value | None = None
    shift: Value | None = None


def fold_scales(graph: Graph, weights: Collection[Value]) -> Graph:
    """An equal graph, up to rounding, in which convolutions with `weights` are not followed by factors of weights."""
    known = weight_bytes(graph, weights)
    forms, inner = _forms(graph, known)
    inputs: dict[Operation, tuple[Value, ...]] = {}

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        if isinstance(operation.definition, Convolution):
            inputs[operation] = operands
            return None
        result = operation.results[0]
        form = forms.get(result)
        if form is None or form.factor is None or result in inner:
            return None
        op = form.convolution.definition
        assert isinstance(op, Convolution)
        x, w = inputs[form.convolution]
        w = build.mul(w, build.broadcast_along(form.factor, build.shape_of(w), op.kernel_output_feature))
        made = apply(op, x, w)
        if form.shift is not None:
            shape = build.shape_of(result)
            made = build.add(made, build.broadcast_along(form.shift, shape, op.output_feature))
        return (made,)

    return rebuild(graph, replace)


def _forms(graph: Graph, known: Mapping[Value, int]) -> tuple[dict[Value, _Affine], set[Value]]:
    """The values that are affine functions of a convolution, and those of them that only another such value reads."""
    uses = Counter([v for operation in graph.operations for v in operation.operands])
    uses.update(graph.results)
    forms: dict[Value, _Affine] = {}
    inner: set[Value] = set()
    for operation in graph.operations:
        definition = operation.definition
        if isinstance(definition, Convolution):
            if definition.batch_group_count == 1 and operation.operands[1] in known and _exact(operation):
                forms[operation.results[0]] = _Affine(operation)
            continue
        if not isinstance(definition, Add | Subtract | Multiply):
            continue
        x, y = operation.operands
        if x not in forms and not isinstance(definition, Subtract):
            x, y = y, x
        form = forms.get(x)
        if form is None or uses[x] != 1:
            continue
        vector = _over_features(y, form, known)
        if vector is not None:
            forms[operation.results[0]] = _then(form, definition, vector)
            inner.add(x)
    return forms, inner


def _exact(convolution: Operation) -> bool:
    """Are operands and result of one type, which is wide enough for products to be rounded elsewhere?"""
    types = {build.element_of(v) for v in (*convolution.operands, *convolution.results)}
    return types in ({f32}, {f64})


def _over_features(y: Value, form: _Affine, known: Mapping[Value, int]) -> Value | None:
    """The weight of which y has one element for each feature."""
    operation, op = y.owner, form.convolution.definition
    assert isinstance(op, Convolution)
    if operation is None or not isinstance(operation.definition, BroadcastInDim):
        return None
    if operation.definition.dimensions != (op.output_feature,) or operation.operands[0] not in known:
        return None
    vector = operation.operands[0]
    return vector if build.shape_of(vector)[0] == build.shape_of(y)[op.output_feature] else None


def _then(form: _Affine, definition: object, vector: Value) -> _Affine:
    """`form`, and then one more operation."""
    if isinstance(definition, Multiply):
        factor = vector if form.factor is None else build.mul(form.factor, vector)
        shift = None if form.shift is None else build.mul(form.shift, vector)
        return _Affine(form.convolution, factor, shift)
    if form.shift is None:
        shift = vector if isinstance(definition, Add) else build.neg(vector)
    else:
        shift = (
            build.add(form.shift, vector) if isinstance(definition, Add) else build.sub(form.shift, vector)
        )
    return _Affine(form.convolution, form.factor, shift)
