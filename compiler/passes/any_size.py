"""Kernels of equal structure and different sizes become one kernel that takes its size: an optimizer's update of a hundred
parameters is compiled once.

That is so for pointwise kernels that read and write at one position only. They work on flat memory, so tensors of any
shape will do.
"""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Elementwise
from flambeau.compiler.dialects.graph.constants import Constant
from flambeau.compiler.dialects.graph.shape import BroadcastInDim
from flambeau.compiler.ir.core import Operation, Value, rebuild
from flambeau.compiler.ir.dims import Index, dim
from flambeau.compiler.ir.types import tensor
from flambeau.compiler.passes.fuse import Kernel, KernelCall, tensor_type

#: Bytes of a kernel's results from which it is better compiled for its size: then these may go past the caches
#: (`lowering/streaming.py`).
LARGE = 8 << 20


def any_size(kernel: Kernel) -> tuple[Kernel, int] | None:
    """The kernel for tensors of a symbolic number of elements, and the number of this one's; None if it is not of this
    kind."""
    graph = kernel.graph
    if kernel.family != "element" or type(kernel) is not Kernel:
        return None
    shape = tensor_type(graph.results[0]).shape
    size = tensor_type(graph.results[0]).size
    if not shape or not isinstance(size, int) or not 0 < size * 8 * len(graph.results) < LARGE:
        return None
    operations = graph.operations
    values = [*graph.parameters, *graph.results, *[r for o in operations for r in o.results]]
    if any(tensor_type(v).shape not in (shape, ()) for v in values):
        return None
    if any(tensor_type(r).shape != shape for r in graph.results) or not all(map(_anywhere, operations)):
        return None
    flat: tuple[Index, ...] = (dim("n"),)

    def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
        (result,) = operation.results
        definition = operation.definition
        if tensor_type(result).shape == ():
            return None
        if isinstance(definition, Constant):
            return (build.constant(definition.literal.splat, tensor_type(result).element, flat),)
        if isinstance(definition, BroadcastInDim):
            return (build.broadcast_in_dim(operands[0], flat, ()),)
        return None

    parameters = [
        p if tensor_type(p).shape == () else Value(tensor(flat, tensor_type(p).element))
        for p in graph.parameters
    ]
    return Kernel(rebuild(graph, replace, parameters), kernel.family), size


def _anywhere(operation: Operation) -> bool:
    """Is it the same operation whatever the size?"""
    definition = operation.definition
    if all(tensor_type(v).shape == () for v in (*operation.operands, *operation.results)):
        return True
    if isinstance(definition, Constant):
        return definition.literal.splat is not None
    if isinstance(definition, BroadcastInDim):
        return tensor_type(operation.operands[0]).shape == ()
    return isinstance(definition, Elementwise)


def shared(calls: Sequence[KernelCall]) -> list[tuple[Kernel, tuple[int, ...]]]:
    """For each call the kernel that it should run, and the sizes that the kernel takes before all others."""
    general = [any_size(call.kernel) for call in calls]
    keys = [found[0].key() if found is not None else None for found in general]
    variants: dict[object, set[object]] = {}
    for call, key in zip(calls, keys, strict=True):
        if key is not None:
            variants.setdefault(key, set()).add(call.kernel.key())
    return [
        (found[0], (found[1],)) if found is not None and len(variants[key]) > 1 else (call.kernel, ())
        for call, found, key in zip(calls, general, keys, strict=True)
    ]
