"""What every kernel's lowering works with: the loop builder, the buffers, and reading any value at any index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.builder import LoopBuilder, Scope
from flambeau.compiler.ir.core import Operation, Value
from flambeau.compiler.ir.dims import Index, divide, minimum, product
from flambeau.compiler.lowering.elements import ElementBuilder, Scalar
from flambeau.compiler.lowering.probe import element_of, probe
from flambeau.compiler.schedule.cpu_contraction import Chooser, choose
from flambeau.compiler.signature import tensor_of
from flambeau.compiler.targets.machine import TargetDescription

#: Less work than this (elements times cost) stays on the caller's thread.
PARALLEL_WORK = 1 << 16


class LoweringContext:
    """One kernel under construction. `memory` holds the buffer of each value that has one; `chooser` gives contractions
    their schedules."""

    def __init__(
        self, b: LoopBuilder, e: ElementBuilder, target: TargetDescription, chooser: Chooser = choose
    ) -> None:
        self.b, self.e, self.target, self.chooser = b, e, target, chooser
        self.memory: dict[Value, Value] = {}
        #: Operands that lie apart from all that the kernel writes.
        self.apart: frozenset[Value] = frozenset()
        #: The kernel's results.
        self.results: tuple[Value, ...] = ()
        #: Elements that are known without reading: (value) -> what gives the scalar for an index, or None.
        self.overrides: dict[Value, Callable[[tuple[Index, ...]], Scalar | None]] = {}
        self._memo: dict[tuple[Any, ...], tuple[Scalar, Scope]] = {}

    @property
    def lanes(self) -> int:
        """Elements in a vector of 32-bit numbers."""
        return max(4, self.target.vector_bits // 32)

    def read(self, value: Value, index: tuple[Index, ...]) -> Scalar:
        """The element of `value` at `index`: known, loaded, or computed here."""
        override = self.overrides.get(value)
        if override is not None:
            known = override(index)
            if known is not None:
                return known
        key = (value, index, self.b.lane, self.b.mask)
        found = self._memo.get(key)
        if found is not None and found[1].open:
            return found[0]
        scope = self.b._scopes[-1]
        buffer = self.memory.get(value)
        if buffer is not None:
            scalar = self.e.load(buffer, index, steady=value in self.apart)
        else:
            scalar = self.compute(value, index)
        self._memo[key] = (scalar, scope)
        return scalar

    @contextmanager
    def known(self, value: Value, index: tuple[Index, ...], scalar: Scalar) -> Iterator[None]:
        """Inside, the element of `value` at `index` is `scalar`."""
        before = self.overrides.get(value)
        self.overrides[value] = lambda at: scalar if at == index else None
        yield
        del self.overrides[value]
        if before is not None:
            self.overrides[value] = before

    def finish(self, made: Value, index: tuple[Index, ...], scalar: Scalar) -> None:
        """Store the kernel's results at `index`, where the element of `made` is `scalar`: its operation's result, of which
        the others are elementwise functions. All loads come before any store, as a result may lie where an operand does.
        """
        elements = {made: scalar}
        with ExitStack() as known:
            known.enter_context(self.known(made, index, scalar))
            for wanted in self.results:
                if wanted is not made:
                    elements[wanted] = self.compute(wanted, index)
                    known.enter_context(self.known(wanted, index, elements[wanted]))
        for wanted in self.results:
            self.e.store(elements[wanted], self.memory[wanted], index)

    def touched(self, made: Value, index: tuple[Index, ...]) -> list[tuple[Value, tuple[Index, ...], bool]]:
        """What `finish` reads and writes at the element's own position where it is as large as the result: the buffer,
        the index, and whether it is written."""
        found: dict[Value, bool] = dict.fromkeys(self.results, True)

        def inline(v: Value) -> bool:
            return v is not made and v.owner is not None and v not in self.memory

        for wanted in self.results:
            if wanted is made:
                continue
            for value, at in probe(wanted, index, inline).accesses:
                if value in self.memory and at == index and tensor_of(value).shape == tensor_of(made).shape:
                    found.setdefault(value, False)
        return [(self.memory[value], index, written) for value, written in found.items()]

    def compute(self, value: Value, index: tuple[Index, ...]) -> Scalar:
        """The element by the operation's own element function, whether or not the value has a buffer."""
        if value.owner is None:
            raise KeyError(f"a value of type {value.type} has neither a buffer nor an operation")
        scalar: Scalar = element_of(value, self.e, index, self.read)
        return scalar

    def forget(self) -> None:
        """What was read before a store may be stale now."""
        self._memo.clear()

    def operand(self, operation: Operation, number: int) -> Callable[[tuple[Index, ...]], Scalar]:
        """Reads elements of an operand."""
        value = operation.operands[number]
        return lambda index: self.read(value, tuple(index))

    @contextmanager
    def rows(self, extents: tuple[Index, ...], work: Index) -> Iterator[tuple[Index, ...]]:
        """A loop over all positions in `extents`, parallel if `work` (elements times cost) is enough or unknown."""
        count = product(extents)
        if count == 1:
            yield tuple(0 for _ in extents)
            return
        parallel = not isinstance(work, int) or work >= PARALLEL_WORK
        with self.b.parallel(count) if parallel else self.b.for_(0, count) as loop:
            yield decode(loop.index, extents)

    def nest(self, extents: tuple[Index, ...], body: Callable[[tuple[Index, ...]], None]) -> None:
        """Loops over all positions, innermost last."""

        def go(axis: int, index: tuple[Index, ...]) -> None:
            if axis == len(extents):
                body(index)
                return
            if extents[axis] == 1:
                go(axis + 1, (*index, 0))
                return
            with self.b.for_(0, extents[axis]) as loop:
                go(axis + 1, (*index, loop.index))

        go(0, ())

    def spread(self, value: Value) -> Value:
        """In vector code, the value with all lanes."""
        return self.e._spread(value)


def decode(position: Index, extents: tuple[Index, ...]) -> tuple[Index, ...]:
    """A linear position as an index, row-major."""
    index: list[Index] = []
    for extent in reversed(extents[1:]):
        position, rest = divide(
            position, 1 if extent == 0 else extent
        )  # of nothing, no position is asked for
        index.append(rest)
    if extents:
        index.append(position)
    return tuple(reversed(index))


def definition_of(operation: Operation) -> Any:
    """The operation's definition, as the graph operation that it is."""
    assert isinstance(operation.definition, GraphOp)
    return operation.definition


__all__ = ["LoweringContext", "decode", "definition_of", "minimum", "tensor_of"]
