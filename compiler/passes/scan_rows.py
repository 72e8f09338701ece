"""A scan over some of its rows, where rows have nothing to do with one another.

Where axis 0 of all carries, outputs and sequences counts rows (the batch of a recurrent network), and each row of a result
depends on the same row of what the body reads, some of the rows can go through all steps before, or beside, the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Elementwise
from flambeau.compiler.dialects.graph.comparison_logic import Convert, Select
from flambeau.compiler.dialects.graph.constants import Constant
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.reduction import Reduce
from flambeau.compiler.dialects.graph.scan import Scan
from flambeau.compiler.dialects.graph.shape import BroadcastInDim, Concatenate, Pad, Reshape, Slice, Transpose
from flambeau.compiler.ir.core import Graph, Operation, Value, create, untraced
from flambeau.compiler.ir.dims import product
from flambeau.compiler.ir.types import TensorType, tensor
from flambeau.compiler.passes.fuse import tensor_type


def count_of(scan: Scan) -> int | None:
    """How many rows the carries have, if all have the same number of them."""
    counts = {tensor_type(p).shape[:1] for p in scan.body.parameters[: scan.carries]}
    count = counts.pop()[0] if len(counts) == 1 and () not in counts else None
    return count if isinstance(count, int) else None


def with_rows(scan: Scan, rows: int) -> Scan | None:
    """The scan of `rows` rows; None if they depend on one another. A sequence without rows stays as it is."""
    count = count_of(scan)
    if count is None:
        return None
    with untraced():
        body = _Narrowed(scan, count, rows).body()
    return None if body is None else scan.with_body(body)


class _Narrowed:
    """The body for `rows` of `count` rows: for each value that has rows, its counterpart and the axis that counts them."""

    def __init__(self, scan: Scan, count: int, rows: int) -> None:
        self.scan, self.count, self.rows = scan, count, rows
        self.made: dict[Value, Value] = {}
        self.axis: dict[Value, int] = {}

    def body(self) -> Graph | None:
        body, varying = self.scan.body, self.scan.carries + self.scan.sequences
        for number, parameter in enumerate(body.parameters):
            type = tensor_type(parameter)
            if number < varying and type.shape[:1] == (self.count,):
                self.axis[parameter] = 0
                self.made[parameter] = Value(self._narrow(type, 0))
            else:
                self.made[parameter] = Value(type)
        for operation in body.operations:
            if not self._translate(operation):
                return None
        if any(self.axis.get(r) != 0 for r in body.results):
            return None
        parameters = [self.made[p] for p in body.parameters]
        return Graph(parameters, [self.made[r] for r in body.results], body.name)

    def _narrow(self, type: TensorType, axis: int) -> TensorType:
        return tensor((*type.shape[:axis], self.rows, *type.shape[axis + 1 :]), type.element)

    def _translate(self, operation: Operation) -> bool:
        """Make the operation's counterpart, if it keeps rows apart."""
        if not any(v in self.axis for v in operation.operands):
            made = create(operation.definition, *[self.made[v] for v in operation.operands])
            self.made.update(zip(operation.results, made.results, strict=True))
            return True
        rule = next((r for kind, r in _RULES.items() if isinstance(operation.definition, kind)), None)
        found = None if rule is None else rule(self, operation)
        if found is None:
            return False
        (result,) = operation.results
        self.made[result], self.axis[result] = found
        return True

    def _along(self, values: Sequence[Value], axis: int) -> list[Value] | None:
        """The counterparts of values whose rows, if they have any, are along `axis`."""
        found: list[Value] = []
        for value in values:
            if value in self.axis:
                narrowed = self.made[value] if self.axis[value] == axis else None
            else:
                narrowed = self._uniform(value, axis)
            if narrowed is None:
                return None
            found.append(narrowed)
        return found

    def _uniform(self, value: Value, axis: int) -> Value | None:
        """Of a value without rows that is the same everywhere along `axis`: as much of it as there are rows."""
        owner = value.owner
        definition = None if owner is None else owner.definition
        shape = self._narrow(tensor_type(value), axis).shape
        if isinstance(definition, Constant) and definition.literal.splat is not None:
            return build.constant(definition.literal.splat, definition.literal.element, shape)
        if owner is not None and isinstance(definition, BroadcastInDim):
            (operand,) = owner.operands
            there = dict(zip(definition.dimensions, tensor_type(operand).shape, strict=True))
            if there.get(axis, 1) == 1:
                return create(BroadcastInDim(shape, definition.dimensions), self.made[operand]).results[0]
        if owner is not None and isinstance(definition, _POINTWISE):
            operands = self._along(owner.operands, axis)
            return None if operands is None else create(definition, *operands).results[0]
        return None

    # -- operations ------------------------------------------------------------------------------------------------
    def _axis_of(self, operation: Operation) -> int:
        return next(self.axis[v] for v in operation.operands if v in self.axis)

    def pointwise(self, operation: Operation) -> tuple[Value, int] | None:
        axis = self._axis_of(operation)
        operands = self._along(operation.operands, axis)
        return None if operands is None else (create(operation.definition, *operands).results[0], axis)

    def concatenate(self, operation: Operation) -> tuple[Value, int] | None:
        assert isinstance(operation.definition, Concatenate)
        apart = operation.definition.dimension != self._axis_of(operation)
        return self.pointwise(operation) if apart else None

    def pad(self, operation: Operation) -> tuple[Value, int] | None:
        op, axis = operation.definition, self._axis_of(operation)
        assert isinstance(op, Pad)
        apart = (op.low[axis], op.high[axis], op.interior[axis]) == (0, 0, 0)
        return self.pointwise(operation) if apart else None

    def slice(self, operation: Operation) -> tuple[Value, int] | None:
        op, (x,) = operation.definition, operation.operands
        assert isinstance(op, Slice)
        axis = self.axis[x]
        if (op.start_indices[axis], op.limit_indices[axis], op.strides[axis]) != (0, self.count, 1):
            return None
        limits = (*op.limit_indices[:axis], self.rows, *op.limit_indices[axis + 1 :])
        return create(Slice(op.start_indices, limits, op.strides), self.made[x]).results[0], axis

    def broadcast(self, operation: Operation) -> tuple[Value, int] | None:
        op, (x,) = operation.definition, operation.operands
        assert isinstance(op, BroadcastInDim)
        axis = op.dimensions[self.axis[x]]
        shape = self._narrow(tensor_type(operation.results[0]), axis).shape
        return create(BroadcastInDim(shape, op.dimensions), self.made[x]).results[0], axis

    def reshape(self, operation: Operation) -> tuple[Value, int] | None:
        (x,), (result,) = operation.operands, operation.results
        type, before = tensor_type(result), product(tensor_type(x).shape[: self.axis[x]])
        for axis, extent in enumerate(type.shape):
            if extent == self.count and product(type.shape[:axis]) == before:
                return create(Reshape(self._narrow(type, axis).shape), self.made[x]).results[0], axis
        return None

    def transpose(self, operation: Operation) -> tuple[Value, int] | None:
        op, (x,) = operation.definition, operation.operands
        assert isinstance(op, Transpose)
        return create(op, self.made[x]).results[0], op.permutation.index(self.axis[x])

    def reduce(self, operation: Operation) -> tuple[Value, int] | None:
        op, (x,) = operation.definition, operation.operands
        assert isinstance(op, Reduce)
        axis = self.axis[x]
        if axis in op.dimensions:
            return None
        return create(op, self.made[x]).results[0], axis - sum(d < axis for d in op.dimensions)

    def dot_general(self, operation: Operation) -> tuple[Value, int] | None:
        op, (x, y) = operation.definition, operation.operands
        assert isinstance(op, DotGeneral)
        sides = (
            (x, op.lhs_batching_dimensions, op.lhs_contracting_dimensions),
            (y, op.rhs_batching_dimensions, op.rhs_contracting_dimensions),
        )
        batches = len(op.lhs_batching_dimensions)
        #: For each side that has rows, the result's axis that counts them.
        places: list[int] = []
        before = batches
        for value, batching, contracting in sides:
            axis = self.axis.get(value)
            free = [a for a in range(tensor_type(value).rank) if a not in (*batching, *contracting)]
            if axis is not None:
                if axis in contracting:
                    return None
                places.append(batching.index(axis) if axis in batching else before + free.index(axis))
            before += len(free)
        if len(set(places)) != 1:
            return None
        (place,) = set(places)
        if place >= batches:
            return create(op, self.made[x], self.made[y]).results[0], place
        operands = [self._along([value], batching[place]) for value, batching, _ in sides]
        if operands[0] is None or operands[1] is None:
            return None
        return create(op, *operands[0], *operands[1]).results[0], place


_POINTWISE = (Elementwise, Select, Convert)
_Rule = Callable[[_Narrowed, Operation], "tuple[Value, int] | None"]
_RULES: dict[type, _Rule] = {
    **dict.fromkeys(_POINTWISE, _Narrowed.pointwise),
    Concatenate: _Narrowed.concatenate,
    Pad: _Narrowed.pad,
    Slice: _Narrowed.slice,
    BroadcastInDim: _Narrowed.broadcast,
    Reshape: _Narrowed.reshape,
    Transpose: _Narrowed.transpose,
    Reduce: _Narrowed.reduce,
    DotGeneral: _Narrowed.dot_general,
}
