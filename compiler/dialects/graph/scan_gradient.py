"""The derivative of a scan: a scan the other way round.

The body's derivative reads values of the forward steps. Slices of sequences and invariants are there again; the rest is
stacked by the forward scan. An invariant's cotangent is a sum over all steps. Where each step's part is a contraction
(of a weight: ``h^T dz``), the sum over the steps is one large contraction of stacked operands behind the loop, rather
than many small ones that each read and write the whole sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.contraction import DotGeneral
from flambeau.compiler.dialects.graph.reduction import Reduce
from flambeau.compiler.dialects.graph.shape import BroadcastInDim, Reshape, Transpose
from flambeau.compiler.ir.core import Graph, Value, apply_all, rebuild, untraced
from flambeau.compiler.passes.autodiff import vjp

#: From a sum's stacked parts to the sum.
Combine = Callable[[Sequence[Value]], Value]
#: Where the derivative finds something: kind ("operand", "result" of the forward scan, "cotangent" of a result, "made"
#: by the backward scan) and number.
Place = tuple[str, int]


@dataclass
class _Backward:
    """How a scan's cotangents come about; the same for every scan with this definition and these cotangents."""

    #: The forward scan that also stacks what is missing, or None if nothing is.
    augmented: Any
    scan: Any
    #: Of the cotangents of carries that come in: which results' they are.
    carried: list[int] = field(default_factory=list)
    accumulators: list[Value] = field(default_factory=list)
    inputs: list[Place] = field(default_factory=list)
    #: For each operand: how its cotangent is made from the backward scan's results and others, or None.
    cotangents: list[tuple[list[Place], Combine] | None] = field(default_factory=list)


_KNOWN: dict[tuple[Any, tuple[bool, ...]], _Backward | None] = {}


def scan_gradient(
    scan: Any, cotangents: Sequence[Value | None], operands: Sequence[Value], results: Sequence[Value]
) -> tuple[Value | None, ...]:
    """Cotangents of a scan's operands."""
    how = _backward(scan, tuple([ct is not None for ct in cotangents]))
    if how is None:
        return (None,) * len(operands)
    if how.augmented is not None:
        results = apply_all(how.augmented, *operands)
    made: tuple[Value, ...] = ()

    def at(place: Place) -> Value:
        kind, number = place
        if kind == "cotangent":
            found = cotangents[number]
            assert found is not None
            return found
        return {"operand": operands, "result": results, "made": made}[kind][number]

    starts = []
    for i in how.carried:
        ct = cotangents[i]
        starts.append(build.zeros_like(operands[i]) if ct is None else ct)
    starts += [build.zeros(build.type_of(v)) for v in how.accumulators]
    reads = [*starts, *[at(p) for p in how.inputs]]
    made = apply_all(how.scan, *reads)
    if made[0].requires_grad:  # this derivative is recorded to be differentiated
        made = apply_all(with_residuals(how.scan), *reads)
    return tuple([None if h is None else h[1]([at(p) for p in h[0]]) for h in how.cotangents])


def with_residuals(scan: Any) -> Any:
    """The scan that also stacks what its derivative reads, after its other results."""
    how = _backward(scan, (True,) * len(scan.body.results))
    return scan if how is None or how.augmented is None else how.augmented


def _backward(scan: Any, arriving: tuple[bool, ...]) -> _Backward | None:
    key = (scan, arriving)
    if key not in _KNOWN:
        with untraced():
            _KNOWN[key] = _Construction(scan, arriving).run()
    return _KNOWN[key]


def _is_float(value: Value) -> bool:
    return build.element_of(value).is_float


class _Construction:
    def __init__(self, scan: Any, arriving: tuple[bool, ...]) -> None:
        self.scan, self.arriving = scan, arriving
        self.body: Graph = scan.body
        n, m = scan.carries, scan.carries + scan.sequences
        parameters = self.body.parameters
        self.carries, self.sequences, self.invariants = parameters[:n], parameters[n:m], parameters[m:]
        self.number = {p: i for i, p in enumerate(parameters)}
        #: Values of the forward step.
        self.forward = {*parameters, *[r for o in self.body.operations for r in o.results]}
        self.varying = self._varying()
        #: Forward values that only stacks keep, and which result of the forward scan each is.
        self.stacks: dict[Value, int] = {}
        for i, value in enumerate(self.body.results[n:], n):
            self.stacks.setdefault(value, i)
        self.missing: list[Value] = []
        #: What the backward step stacks, in order.
        self.stacked: dict[Value, int] = {}
        self.accumulators: list[tuple[Value, Value]] = []

    def _varying(self) -> set[Value]:
        """Forward values that may differ from step to step."""
        found: set[Value] = {*self.carries, *self.sequences}
        for operation in self.body.operations:
            if any(v in found for v in operation.operands):
                found.update(operation.results)
        return found

    def run(self) -> _Backward | None:
        n = self.scan.carries
        results = self.body.results
        chosen = [i for i, r in enumerate(results) if _is_float(r) and (i < n or self.arriving[i])]
        if not any(self.arriving[i] for i in chosen):
            return None
        seeds = {i: Value(results[i].type) for i in chosen}
        wrt = [p for p in self.body.parameters if _is_float(p)]
        found = dict(
            zip(wrt, vjp([results[i] for i in chosen], wrt, [seeds[i] for i in chosen]), strict=True)
        )
        carried = [i for i in range(n) if i in seeds]
        next_carries = [found.get(self.carries[i]) for i in carried]
        next_values = [
            build.zeros(build.type_of(self.carries[i])) if ct is None else ct
            for i, ct in zip(carried, next_carries, strict=True)
        ]
        how = _Backward(None, None, carried)
        # Places among the backward scan's stacked results; the carries come before them.
        parts: dict[Value, tuple[list[Any], Combine] | None] = dict.fromkeys(self.body.parameters)
        for position, i in enumerate(carried):
            parts[self.carries[i]] = [("made", position)], _first
        for x in self.sequences:
            ct = found.get(x)
            if ct is not None:
                parts[x] = [self._stack(ct)], _first
        for w in self.invariants:
            ct = found.get(w)
            if ct is not None:
                parts[w] = self._sum(ct)
        total = [build.add(before, part) for before, part in self.accumulators]
        outputs = [*next_values, *total, *self.stacked]
        reads = self._reads(outputs, set(seeds.values()))
        self._finish(how, seeds, reads, outputs, parts)
        return how

    # -- sums over the steps ---------------------------------------------------------------------------------------
    def _stack(self, value: Value) -> Any:
        """Where `value`, one a step, is found stacked."""
        if value not in self.forward:
            return ("stack", self.stacked.setdefault(value, len(self.stacked)))
        if value in self.sequences:
            return ("operand", self.number[value])
        return ("result", self._saved(value))

    def _saved(self, value: Value) -> int:
        """Which result of the forward scan has the stack of a forward value."""
        found = self.stacks.get(value)
        if found is None:
            found = self.stacks[value] = len(self.body.results) + len(self.missing)
            self.missing.append(value)
        return found

    def _sum(self, ct: Value) -> tuple[list[Any], Combine]:
        """How the sum of `ct` over all steps is made."""
        outside = self._outside(ct)
        if outside is not None:
            return [self._stack(v) for v in outside[0]], outside[1]
        self.accumulators.append((Value(ct.type), ct))
        return [("accumulator", len(self.accumulators) - 1)], _first

    def _outside(self, ct: Value) -> tuple[list[Value], Combine] | None:
        """The values to stack, and the sum over all steps made of them; None if the loop had better sum."""
        operation = ct.owner
        if operation is None or ct in self.forward:
            return None
        definition = operation.definition
        if isinstance(definition, DotGeneral):
            x, y = operation.operands
            if not self._stackable(x) or not self._stackable(y):
                return None
            return [x, y], _over_steps(definition)
        if isinstance(definition, Reduce) and definition.kind == "sum":
            (x,) = operation.operands
            if x not in self.stacked:  # stacking it would only cost memory
                return None
            axes = (0, *[a + 1 for a in definition.dimensions])
            return [x], lambda v: build.reduce_sum(v[0], axes)
        if isinstance(definition, Transpose | Reshape):
            inner = self._outside(operation.operands[0])
            if inner is None:
                return None
            combine = inner[1]
            return inner[0], lambda v: build.make(definition, combine(v))
        return None

    def _stackable(self, value: Value) -> bool:
        return value in self.varying or value not in self.forward

    # -- what the backward step reads ------------------------------------------------------------------------------
    def _reads(self, outputs: Sequence[Value], seeds: set[Value]) -> list[Value]:
        """The forward values that the backward step gets: parameters, and values that are stacked."""
        found: dict[Value, None] = {}
        seen: set[Value] = set()
        known = {before for before, _ in self.accumulators}
        pending = list(reversed(outputs))
        while pending:
            value = pending.pop()
            if value in seen or value in seeds or value in known:
                continue
            seen.add(value)
            owner = value.owner
            again = value not in self.forward or (owner is not None and self._made_again(value))
            if again and owner is not None:
                pending.extend(reversed(owner.operands))
            else:
                found[value] = None
        return list(found)

    def _made_again(self, value: Value) -> bool:
        """Does the backward step make the forward value itself, rather than read a stack?"""
        if value in self.stacks:
            return False
        if value not in self.varying:
            return True
        assert value.owner is not None
        return isinstance(value.owner.definition, BroadcastInDim | Reshape | Transpose)

    # -- the scans ---------------------------------------------------------------------------------------------------
    def _finish(
        self,
        how: _Backward,
        seeds: dict[int, Value],
        reads: Sequence[Value],
        outputs: Sequence[Value],
        parts: dict[Value, tuple[list[Any], Combine] | None],
    ) -> None:
        scan, n = self.scan, self.scan.carries
        starts = [seeds[i] for i in how.carried] + [before for before, _ in self.accumulators]
        how.accumulators = [before for before, _ in self.accumulators]
        sequences: list[tuple[Value, Place]] = [(s, ("cotangent", i)) for i, s in seeds.items() if i >= n]
        invariants: list[tuple[Value, Place]] = []
        for value in reads:
            if value in self.invariants:
                invariants.append((value, ("operand", self.number[value])))
            elif value in self.sequences:
                sequences.append((value, ("operand", self.number[value])))
            else:
                sequences.append((value, ("result", self._saved(value))))
        parameters = [*starts, *[v for v, _ in sequences], *[v for v, _ in invariants]]
        how.inputs = [place for _, place in (*sequences, *invariants)]
        # Parameters of its own: what stands for a forward value must not have that value's history.
        body = rebuild(Graph(parameters, outputs, "backward"), parameters=[Value(p.type) for p in parameters])
        how.scan = type(scan)(body, scan.length, len(starts), len(sequences), not scan.reverse)
        if self.missing:
            augmented = Graph(self.body.parameters, [*self.body.results, *self.missing], self.body.name)
            how.augmented = scan.with_body(augmented)
        bases = {"stack": len(starts), "accumulator": len(how.carried)}
        for parameter in self.body.parameters:
            part = parts[parameter]
            if part is not None:
                places = [
                    ("made", bases[kind] + number) if kind in bases else (kind, number)
                    for kind, number in part[0]
                ]
                part = places, part[1]
            how.cotangents.append(part)


def _first(values: Sequence[Value]) -> Value:
    return values[0]


def _over_steps(dot: DotGeneral) -> Combine:
    """The sum over the steps of a contraction: axis 0 of both stacked operands is contracted as well."""

    def along(axes: Sequence[int]) -> tuple[int, ...]:
        return tuple([a + 1 for a in axes])

    whole = DotGeneral(
        along(dot.lhs_batching_dimensions),
        along(dot.rhs_batching_dimensions),
        (0, *along(dot.lhs_contracting_dimensions)),
        (0, *along(dot.rhs_contracting_dimensions)),
        dot.element,
    )
    return lambda values: build.make(whole, *values)
