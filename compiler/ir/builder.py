"""Makes loop-level functions: an insertion point, control flow as context managers, indices as `Dim` expressions.

Sizes and positions are numbers or `Dim` expressions over symbols that stand for SSA indices (`Symbol.value`), so they
simplify in plain Python; `LoopBuilder.index` makes the operations for one, each subexpression in the outermost block
that knows its symbols, and once. Values are `Value`s. Arithmetic takes scalars and vectors, and widens a scalar that
meets a vector. The scalar arithmetic (`compiler.ir.scalar_builder`) also satisfies `lowering.mathlib.protocol.Builder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flambeau.compiler.dialects.loops import arith, func, scf
from flambeau.compiler.dialects.loops.base import LoopOp
from flambeau.compiler.ir.core import Block, Operation, Region, Value, infer_types
from flambeau.compiler.ir.dims import Dim, Index, Symbol, lower, of_symbol
from flambeau.compiler.ir.index_builder import Position, Scope, only_symbol
from flambeau.compiler.ir.memory_builder import MemoryBuilder
from flambeau.compiler.ir.types import (
    ElementType,
    FunctionType,
    MemRefType,
    Type,
    VectorType,
)
from flambeau.compiler.ir.types import index as index_type


class Loop:
    """What `for_` and `parallel` hand to the body. `results` are there once the body is closed."""

    def __init__(self, index: Index, carried: tuple[Value, ...], worker: Callable[[], Index]) -> None:
        self.index = index
        self.carried = carried
        self.results: tuple[Value, ...] = ()
        self.yielded: tuple[Value, ...] | None = None
        self._worker = worker

    @property
    def worker(self) -> Index:
        """The number of the thread that runs this iteration, for workspace of its own."""
        return self._worker()

    def yield_(self, *values: Value) -> None:
        """The carried values of the next iteration; the last statement of the body."""
        self.yielded = values


class Function:
    """What `function` hands out: the parameters in order, and by name."""

    def __init__(self, arguments: tuple[Value, ...], names: Sequence[str]) -> None:
        self.arguments = arguments
        self.by_name = dict(zip(names, arguments, strict=True))
        self.operation: Operation | None = None

    def __getitem__(self, name: str) -> Value:
        return self.by_name[name]


class LoopBuilder(MemoryBuilder):
    """Builds the functions of one module; see the module's text. `functions` holds those that are finished.

    `fma`: the target multiplies and adds with one rounding; `avx512`: it has `scale`, `table` and `bounded`. Operations
    are made with `fastmath` (``fast`` changes it): contraction into FMA by default, nothing else. `location` goes to every
    operation.
    """

    def __init__(self, fma: bool = True, avx512: bool = False) -> None:
        super().__init__(fma, avx512)
        self.functions: list[Operation] = []
        self.location: Any = None

    def _forget(self) -> None:
        super()._forget()
        self._constants: dict[tuple[Type, str], Value] = {}
        self._constant_operations: list[Operation] = []
        self._pool: Value | None = None

    # -- emission ------------------------------------------------------------------------------------------------
    def emit(
        self,
        definition: LoopOp,
        *operands: Value,
        regions: Sequence[Region] = (),
        result_types: Sequence[Type] | None = None,
        scope: Scope | None = None,
    ) -> Operation:
        """Appends an operation. `result_types` are inferred where the definition can."""
        if result_types is None:
            result_types = infer_types(definition, tuple([v.type for v in operands]))
        operation = Operation(definition, operands, result_types, self.location, regions)
        (scope or self._scopes[-1]).block.operations.append(operation)
        return operation

    def value(self, definition: LoopOp, *operands: Value, to: Type | None = None) -> Value:
        """Appends an operation with one result and returns that; `to` is its type where it cannot be inferred."""
        return self.emit(definition, *operands, result_types=None if to is None else (to,)).results[0]

    def constant(self, type: Type, value: float | int) -> Value:
        """A number of a scalar type, an index, or in every lane of a vector type. One operation a function."""
        scalar = type.element if isinstance(type, VectorType) else type
        is_float = isinstance(scalar, ElementType) and scalar.is_float
        number: float | int = float(value) if is_float else int(value)
        if number != number:
            number = math.nan  # one object, so that definitions with NaN are interned
        key = (type, repr(number))
        found = self._constants.get(key)
        if found is None:
            # 0.0 and -0.0 are one attribute, so the negative zero is made by negation.
            negative_zero = is_float and key[1] == "-0.0"
            definition = arith.Constant(0.0 if negative_zero else number, type)
            operation = Operation(definition, (), (type,), None)
            self._constant_operations.append(operation)
            if negative_zero:
                operation = Operation(arith.NegF(), operation.results, (type,), None)
                self._constant_operations.append(operation)
            found = self._constants[key] = operation.results[0]
        return found

    # -- functions -----------------------------------------------------------------------------------------------
    @contextmanager
    def function(
        self,
        name: str,
        arg_types: Sequence[Type],
        arg_names: Sequence[str] | None = None,
        results: Sequence[Type] = (),
        *,
        dims: Sequence[Dim | Symbol] = (),
        pool: str | None = None,
        noalias: Sequence[bool] | None = None,
        internal: bool = False,
        inline: bool = False,
        alignment: int = 64,
    ) -> Iterator[Function]:
        """A function; end a function with results by `return_`.

        `dims`: shape symbols, each bound to one more parameter of type index, after the others. `pool` names the
        pointer parameter on which `parallel` runs its bodies. `noalias` (default: all) says which memrefs
        overlap no other; `alignment` is that of all of them.
        Functions may be made inside one another (they are separate in the module).
        """
        saved = {k: v for k, v in self.__dict__.items() if k not in ("functions", "exact_fma", "avx512")}
        self._forget()
        self.lane, self.lanes, self.mask = None, 0, None
        symbols = [d if isinstance(d, Symbol) else only_symbol(d) for d in dims]
        types = (*arg_types, *[index_type] * len(symbols))
        names = [
            *(arg_names or [f"arg{i}" for i in range(len(arg_types))]),
            *[f"dim_{s.name}" for s in symbols],
        ]
        block = Block(types)
        self._scopes = [Scope(block, 0)]
        function = Function(block.arguments, names)
        for symbol, value in zip(symbols, block.arguments[len(arg_types) :], strict=True):
            self.bind(symbol, value)
        if pool is not None:
            self._pool = function[pool]
        if noalias is None:
            noalias = [isinstance(t, MemRefType) for t in arg_types]
        aliasing = (*noalias, *[False] * len(symbols))
        definition = func.Func(
            name, FunctionType.get(types, tuple(results)), tuple(names), aliasing, internal, inline, alignment
        )
        try:
            yield function
            if not block.operations or not block.operations[-1].definition.is_terminator:  # type: ignore[attr-defined]
                if results:
                    raise ValueError(f"the function {name} has results and must end in return_")
                self.emit(func.Return())
            block.operations[:0] = self._constant_operations
            function.operation = Operation(definition, (), (), self.location, (Region([block]),))
            self.functions.append(function.operation)
        finally:
            self.__dict__.update(saved)

    def return_(self, *values: Value) -> None:
        """Ends the function."""
        self.emit(func.Return(), *values)

    def call(self, callee: str, operands: Sequence[Value], results: Sequence[Type] = ()) -> tuple[Value, ...]:
        """Calls a function of this module (or an external one that the target knows)."""
        return self.emit(func.Call(callee), *operands, result_types=results).results

    # -- control flow --------------------------------------------------------------------------------------------
    @contextmanager
    def _block(self, argument_types: Sequence[Type], loop: bool = False) -> Iterator[Scope]:
        scope = Scope(Block(argument_types), len(self._scopes), loop)
        self._scopes.append(scope)
        try:
            yield scope
        finally:
            self._scopes.pop()
            scope.open = False

    def _loop_symbol(self, scope: Scope, low: Position, high: Position, step: Index = 1) -> Index:
        self._counter += 1
        least = lower(low) if isinstance(low, int | Dim) else None
        most: Index | None = None
        if isinstance(high, int | Dim) and isinstance(low, int | Dim):
            whole = isinstance(step, int) and (high - low) % step == 0
            most = high - step if whole else high - 1
        bound = least if least is not None else (low if isinstance(low, int | Dim) else -(2**62))
        symbol = Symbol(f"i{self._counter}", bound, most, scope.block.arguments[0])
        self._symbol_scopes[symbol] = scope
        return of_symbol(symbol)

    @contextmanager
    def for_(
        self,
        low: Position,
        high: Position,
        step: Position = 1,
        init: Sequence[Value] = (),
        *,
        vectorize: bool = True,
        independent: bool = False,
        unroll: int = 0,
    ) -> Iterator[Loop]:
        """`scf.for`. A body with carried values must end in `loop.yield_`; afterwards `loop.results` has them.

        `independent`: no iteration reads what another writes (LLVM then needs no alias checks to vectorise).
        `vectorize=False`: LLVM leaves the loop scalar. `unroll`: a factor, 0 if LLVM decides, 1 for never.
        """
        operands = (self.index(low), self.index(high), self.index(step), *init)
        with self._block([index_type, *[v.type for v in init]], loop=True) as scope:
            position = self._loop_symbol(scope, low, high, step)
            loop = Loop(position, scope.block.arguments[1:], self._worker)
            yield loop
            values = loop.yielded if loop.yielded is not None else ()
            if len(values) != len(init):
                raise ValueError(f"the loop carries {len(init)} values, its body yields {len(values)}")
            self.emit(scf.Yield(), *values)
        definition = scf.For(vectorize, independent, unroll)
        loop.results = self.emit(definition, *operands, regions=[Region([scope.block])]).results

    @contextmanager
    def parallel(self, count: Position) -> Iterator[Loop]:
        """`scf.parallel` over [0, count) on the function's pool; without one, or inside another, a loop.

        The iterations must be independent.
        """
        operands = [self.index(0), self.index(count), self.index(1)]
        if self._pool is not None:
            operands.append(self._pool)
        # A body already has a thread of its own: loops in it stay there.
        pool, self._pool = self._pool, None
        with self._block([index_type], loop=True) as scope:
            loop = Loop(self._loop_symbol(scope, 0, count), (), self._worker)
            yield loop
            self.emit(scf.Reduce())
        self._pool = pool
        self.emit(scf.Parallel(), *operands, regions=[Region([scope.block])])

    def threads(self) -> Value:
        """How many threads the function's pool has."""
        assert self._pool is not None
        return self.value(scf.Threads(), self._pool)

    def _worker(self) -> Index:
        return self.symbol(self.value(scf.Worker()), 0, None, "worker")

    def if_(
        self,
        condition: Value,
        then: Callable[[], Sequence[Value] | None],
        otherwise: Callable[[], Sequence[Value] | None] | None = None,
        weight: int = 0,
    ) -> tuple[Value, ...]:
        """`scf.if`: the values that `then()` or `otherwise()` returns; both give the same types."""
        regions: list[Region] = []
        types: tuple[Type, ...] = ()
        for branch in (then, otherwise):
            if branch is None:
                continue
            with self._block(()) as scope:
                values = tuple(branch() or ())
                self.emit(scf.Yield(), *values)
            actual = tuple(v.type for v in values)
            if regions and actual != types:
                raise ValueError(f"the branches of scf.if yield {types} and {actual}")
            types = actual
            regions.append(Region([scope.block]))
        if otherwise is None and types:
            raise ValueError("an scf.if with results needs both branches")
        return self.emit(scf.If(weight), condition, regions=regions, result_types=types).results

    def while_(
        self,
        init: Sequence[Value],
        condition: Callable[..., Value],
        body: Callable[..., Sequence[Value]],
    ) -> tuple[Value, ...]:
        """`scf.while`: `condition(*carried)` gives an i1, `body(*carried)` the next values."""
        types = [v.type for v in init]
        with self._block(types) as before:
            self.emit(scf.Condition(), condition(*before.block.arguments), *before.block.arguments)
        with self._block(types) as after:
            self.emit(scf.Yield(), *body(*after.block.arguments))
        regions = [Region([before.block]), Region([after.block])]
        return self.emit(scf.While(), *init, regions=regions, result_types=types).results


__all__ = ["Function", "Loop", "LoopBuilder", "Position", "Scope"]
