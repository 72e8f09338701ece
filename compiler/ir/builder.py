"""Makes loop-level functions: an insertion point, control flow as context managers, indices as `Dim` expressions.

Sizes and positions are numbers or `Dim` expressions over symbols whose `value` is an SSA index (`Symbol.value`), so they
simplify in plain Python; `LoopBuilder.index` makes the operations for one, each subexpression in the outermost block
that knows its symbols, and once. Values are `Value`s. Arithmetic takes scalars and vectors, and widens a scalar that
meets a vector. The scalar arithmetic (`compiler.ir.scalar_builder`) also satisfies `lowering.mathlib.protocol.Builder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flambeau.compiler.dialects.loops import arith, func, memref, scf, vector
from flambeau.compiler.dialects.loops.base import LoopOp, signless
from flambeau.compiler.ir.core import Block, Operation, Region, Value, infer_types
from flambeau.compiler.ir.dims import Compound, Dim, Index, Symbol, known_nonnegative, lower, of_symbol
from flambeau.compiler.ir.scalar_builder import ScalarBuilder
from flambeau.compiler.ir.types import (
    ElementType,
    FunctionType,
    IndexType,
    MemRefType,
    PointerType,
    Type,
    VectorType,
    i1,
)
from flambeau.compiler.ir.types import index as index_type
from flambeau.compiler.ir.types import pointer as pointer_type

Position = Any  # int | Dim | Value


class Scope:
    """A block under construction. `depth` counts from the function's body, 0."""

    __slots__ = ("block", "depth", "open")

    def __init__(self, block: Block, depth: int) -> None:
        self.block, self.depth, self.open = block, depth, True


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


class LoopBuilder(ScalarBuilder):
    """Builds the functions of one module; see the module's text. `functions` holds those that are finished.

    `fma`: the target multiplies and adds with one rounding. Operations are made with `fastmath` (``fast`` changes it):
    contraction into FMA by default, nothing else. `location` goes to every operation.
    """

    def __init__(self, fma: bool = True) -> None:
        super().__init__(fma)
        self.functions: list[Operation] = []
        self.location: Any = None
        #: The position inside a vector, if element functions are emitted for `lanes` elements at once (see `lanes_of`).
        self.lane: Symbol | None = None
        self.lanes = 0
        #: In vector code: which lanes exist. Loads and stores leave the others alone.
        self.mask: Value | None = None
        self._reset()

    def _reset(self) -> None:
        self._scopes: list[Scope] = []
        self._symbol_scopes: dict[Symbol, Scope] = {}
        self._bound: dict[Symbol, Value] = {}
        self._indices: dict[Dim, tuple[Value, Scope]] = {}
        self._flat: dict[Value, tuple[Value, Scope]] = {}
        self._constants: dict[tuple[Type, str], Value] = {}
        self._constant_operations: list[Operation] = []
        self._pool: Value | None = None
        self._counter = 0

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
    ) -> Iterator[Function]:
        """A function; end a function with results by `return_`.

        `dims`: shape symbols, each bound to one more parameter of type index, after the others. `pool` names the
        pointer parameter on which `parallel` runs its bodies. `noalias` (default: all) says which memrefs overlap no other.
        Functions may be made inside one another (they are separate in the module).
        """
        saved = {k: v for k, v in self.__dict__.items() if k not in ("functions", "exact_fma")}
        self._reset()
        self.lane, self.lanes, self.mask = None, 0, None
        symbols = [d if isinstance(d, Symbol) else _only_symbol(d) for d in dims]
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
        aliasing = tuple(noalias) if noalias is not None else tuple(isinstance(t, MemRefType) for t in types)
        definition = func.Func(
            name, FunctionType.get(types, tuple(results)), tuple(names), aliasing, internal, inline
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

    # -- indices -------------------------------------------------------------------------------------------------
    def bind(self, symbol: Symbol | Dim, value: Value) -> None:
        """In this function, from this block on, `symbol` (a shape symbol, say) has `value`, of type index."""
        symbol = symbol if isinstance(symbol, Symbol) else _only_symbol(symbol)
        self._bound[symbol] = value
        self._symbol_scopes[symbol] = self._scopes[-1]

    def symbol(self, value: Value, low: Index = 0, high: Index | None = None, name: str | None = None) -> Dim:
        """A fresh expression for an SSA index whose bounds (inclusive) the caller knows."""
        self._counter += 1
        symbol = Symbol(name or f"v{self._counter}", low, high, value)
        self._symbol_scopes[symbol] = self._scopes[-1]
        return of_symbol(symbol)

    def dim_value(self, symbol: Symbol | Dim) -> Value:
        """The SSA index of a symbol."""
        symbol = symbol if isinstance(symbol, Symbol) else _only_symbol(symbol)
        value: Value | None = self._bound.get(symbol, symbol.value)
        if value is None:
            raise KeyError(f"the dimension {symbol} is not bound to a parameter of this function")
        return value

    def index(self, expression: Position) -> Value:
        """The SSA index of an expression (or of a vector of them, if it contains the lane)."""
        if isinstance(expression, Value):
            return expression
        if not isinstance(expression, Dim):
            return self.constant(index_type, expression)
        found = self._indices.get(expression)
        if found is not None and found[1].open:
            return found[0]
        scope = self._scope_of(expression)
        value = self._materialise(expression, scope)
        self._indices[expression] = (value, scope)
        return value

    def _scope_of(self, expression: Dim) -> Scope:
        scope = self._scopes[0]
        for symbol in expression.symbols():
            home = self._symbol_scopes.get(symbol)
            if home is None:
                raise KeyError(f"the dimension {symbol} is not bound in this function")
            if home.depth > scope.depth:
                scope = home
        if not scope.open:
            raise ValueError(f"{expression} is used outside the block that defines it")
        return scope

    def _materialise(self, expression: Dim, scope: Scope) -> Value:
        """Outer terms first, each sum in its own block; the constant last, so that neighbours share the rest."""
        terms = dict(expression.terms)
        constant = terms.pop((), 0)
        if constant and terms:
            return self._index_add(scope, self.index(Dim(terms)), constant)
        if len(terms) == 1:
            ((monomial, coefficient),) = terms.items()
            if coefficient != 1:
                return self._index_binary(
                    scope, arith.MulI(("nsw",)), self.index(Dim({monomial: 1})), coefficient
                )
            value = self._atom(monomial[0], scope)
            for atom in monomial[1:]:
                value = self._index_binary(scope, arith.MulI(("nsw",)), value, self._atom(atom, scope))
            return value
        by_depth = sorted(terms.items(), key=lambda term: self._scope_of(Dim({term[0]: 1})).depth)
        last, coefficient = by_depth[-1]
        rest = self.index(Dim(dict(by_depth[:-1])))
        if coefficient < 0:
            subtrahend = self.index(Dim({last: -coefficient}))
            return self._index_binary(scope, arith.SubI(("nsw",)), rest, subtrahend)
        return self._index_binary(scope, arith.AddI(("nsw",)), rest, self.index(Dim({last: coefficient})))

    def _index_add(self, scope: Scope, value: Value, constant: int) -> Value:
        return self._index_binary(scope, arith.AddI(("nsw",)), value, constant)

    def _atom(self, atom: Symbol | Compound, scope: Scope) -> Value:
        if isinstance(atom, Symbol):
            return self.dim_value(atom)
        expression = Dim({(atom,): 1})
        found = self._indices.get(expression)
        if found is not None and found[1].open:
            return found[0]
        home = self._scope_of(expression)
        a, b = self.index(atom.a), self.index(atom.b)
        definition: LoopOp
        if atom.kind in ("floordiv", "mod"):
            unsigned = known_nonnegative(atom.a) or _unsigned(atom.a)
            if atom.kind == "floordiv":
                definition = arith.DivUI() if unsigned else arith.FloorDivSI()
            elif unsigned:
                definition = arith.RemUI()
            else:
                quotient = self._index_binary(home, arith.FloorDivSI(), a, b)
                product = self._index_binary(home, arith.MulI(("nsw",)), quotient, b)
                value = self._index_binary(home, arith.SubI(("nsw",)), a, product)
                self._indices[expression] = (value, home)
                return value
        else:
            definition = arith.MaxSI() if atom.kind == "max" else arith.MinSI()
        value = self._index_binary(home, definition, a, b)
        self._indices[expression] = (value, home)
        return value

    def _index_binary(self, scope: Scope, definition: LoopOp, a: Value, b: Value | int) -> Value:
        right = self.constant(a.type, b) if isinstance(b, int) else b
        if a.type is not right.type:  # one of them is a vector: the expression contains the lane
            a, right = self._spread_index(scope, a), self._spread_index(scope, right)
        return self.emit(definition, a, right, scope=scope).results[0]

    def _spread_index(self, scope: Scope, value: Value) -> Value:
        if isinstance(value.type, VectorType):
            return value
        return self.emit(vector.Broadcast(self.lanes), value, scope=scope).results[0]

    # -- control flow --------------------------------------------------------------------------------------------
    @contextmanager
    def _block(self, argument_types: Sequence[Type]) -> Iterator[Scope]:
        scope = Scope(Block(argument_types), len(self._scopes))
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
        vectorize: bool = False,
        independent: bool = False,
        unroll: int = 0,
    ) -> Iterator[Loop]:
        """`scf.for`. A body with carried values must end in `loop.yield_`; afterwards `loop.results` has them.

        `independent`: no iteration reads what another writes (LLVM then needs no alias checks to vectorise).
        """
        operands = (self.index(low), self.index(high), self.index(step), *init)
        with self._block([index_type, *[v.type for v in init]]) as scope:
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
        with self._block([index_type]) as scope:
            loop = Loop(self._loop_symbol(scope, 0, count), (), self._worker)
            yield loop
            self.emit(scf.Reduce())
        self._pool = pool
        self.emit(scf.Parallel(), *operands, regions=[Region([scope.block])])

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
        regions = []
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

    # -- memory --------------------------------------------------------------------------------------------------
    def alloca(self, shape: Sequence[int], element: ElementType, alignment: int = 64) -> Value:
        """A buffer on the stack, which lives as long as the function or the innermost parallel body's range."""
        type = MemRefType.get(tuple(shape), element)
        return self.value(memref.Alloca(alignment), to=type)

    def view(
        self,
        buffer: Value,
        byte_offset: Position,
        shape: Sequence[Index],
        element: ElementType,
        alignment: int = 1,
    ) -> Value:
        """A typed buffer inside a buffer of bytes (`memref<?xi8>`)."""
        type = MemRefType.get(tuple(shape), element)
        return self.value(memref.View(alignment), buffer, self.index(byte_offset), to=type)

    def subview(self, buffer: Value, offset: Position, shape: Sequence[Index]) -> Value:
        """A contiguous part of a buffer, from an offset in elements, with a shape of its own."""
        type = MemRefType.get(tuple(shape), _memref(buffer).element)
        return self.value(memref.ReinterpretCast(), buffer, self.index(offset), to=type)

    def from_pointer(self, pointer: Value, shape: Sequence[Index], element: ElementType) -> Value:
        """The memory behind a pointer, as a buffer."""
        return self.value(memref.FromPointer(), pointer, to=MemRefType.get(tuple(shape), element))

    def to_pointer(self, buffer: Value) -> Value:
        """A buffer's address."""
        return self.value(memref.FromPointer(), buffer, to=pointer_type)

    def get_global(self, name: str, shape: Sequence[Index], element: ElementType) -> Value:
        """A constant buffer of the module."""
        return self.value(memref.GetGlobal(name), to=MemRefType.get(tuple(shape), element))

    def offset(self, buffer: Value, indices: Sequence[Position]) -> Index:
        """The row-major position of an element."""
        type = _memref(buffer)
        if len(indices) != type.rank:
            raise ValueError(f"{type} takes {type.rank} indices, got {len(indices)}")
        total: Index = 0
        for size, position in zip(type.shape, indices, strict=True):
            total = total * size + (self.symbol(position) if isinstance(position, Value) else position)
        return total

    def flat(self, buffer: Value) -> Value:
        """The same buffer with one dimension."""
        if _memref(buffer).rank == 1:
            return buffer
        found = self._flat.get(buffer)
        if found is not None and found[1].open:
            return found[0]
        scope = self._scopes[-1]
        if buffer.owner is None and buffer in self._scopes[0].block.arguments:
            scope = self._scopes[0]
        result = self.emit(memref.CollapseShape(), buffer, scope=scope).results[0]
        self._flat[buffer] = (result, scope)
        return result

    def _place(self, buffer: Value, indices: Sequence[Position]) -> tuple[Value, Index]:
        return self.flat(buffer), self.offset(buffer, indices)

    def load(self, buffer: Value, indices: Sequence[Position]) -> Value:
        """The element at the indices; a vector of them where the indices contain the lane."""
        place, offset = self._place(buffer, indices)
        stride = self._lane_stride(offset)
        if stride == 0:
            return self.emit(memref.Load(), place, self.index(offset)).results[0]
        element = signless(_memref(buffer).element)
        zero = self.constant(VectorType.get((self.lanes,), element), 0)
        if stride == 1:
            first = offset - of_symbol(self.lane)  # type: ignore[arg-type]
            if self.mask is None:
                return self.emit(vector.Load(self.lanes), place, self.index(first)).results[0]
            return self.emit(vector.MaskedLoad(), place, self.index(first), self.mask, zero).results[0]
        return self.emit(vector.Gather(), place, self.index(offset), self.lane_mask(), zero).results[0]

    def store(self, value: Value, buffer: Value, indices: Sequence[Position]) -> None:
        """Writes the element at the indices; the elements of all lanes where the indices contain the lane."""
        place, offset = self._place(buffer, indices)
        stride = self._lane_stride(offset)
        if stride == 0:
            self.emit(memref.Store(), value, place, self.index(offset))
            return
        spread = value if isinstance(value.type, VectorType) else self.broadcast(value, self.lanes)
        if stride != 1:
            self.emit(vector.Scatter(), place, self.index(offset), self.lane_mask(), spread)
            return
        first = offset - of_symbol(self.lane)  # type: ignore[arg-type]
        if self.mask is None:
            self.emit(vector.Store(), spread, place, self.index(first))
        else:
            self.emit(vector.MaskedStore(), place, self.index(first), self.mask, spread)

    def vload(
        self, buffer: Value, indices: Sequence[Position], lanes: int, mask: Value | None = None
    ) -> Value:
        """`lanes` consecutive elements from the indices; lanes outside the mask are not read and give zero."""
        place, offset = self._place(buffer, indices)
        if mask is None:
            return self.emit(vector.Load(lanes), place, self.index(offset)).results[0]
        zero = self.constant(VectorType.get((lanes,), signless(_memref(buffer).element)), 0)
        return self.emit(vector.MaskedLoad(), place, self.index(offset), mask, zero).results[0]

    def vstore(
        self, value: Value, buffer: Value, indices: Sequence[Position], mask: Value | None = None
    ) -> None:
        """Writes a vector to consecutive elements from the indices, or those lanes of it that the mask has."""
        place, offset = self._place(buffer, indices)
        if mask is None:
            self.emit(vector.Store(), value, place, self.index(offset))
        else:
            self.emit(vector.MaskedStore(), place, self.index(offset), mask, value)

    def prefetch(
        self, buffer: Value, indices: Sequence[Position], write: bool = False, locality: int = 3
    ) -> None:
        """Hints that the element will be used soon."""
        place, offset = self._place(buffer, indices)
        self.emit(memref.Prefetch(write, locality), place, self.index(offset))

    def copy(self, source: Value, target: Value, count: Position) -> None:
        """Copies `count` elements from the start of one buffer to the start of another that does not overlap it."""
        self.emit(memref.Copy(), source, target, self.index(count))

    def zero(self, buffer: Value, count: Position) -> None:
        """Sets the first `count` elements to zero."""
        self.emit(memref.Fill(), buffer, self.index(count))

    def atomic(self, kind: str, value: Value, buffer: Value, indices: Sequence[Position]) -> Value:
        """Combines `value` into the element atomically (`memref.atomic_rmw`); the old element."""
        place, offset = self._place(buffer, indices)
        return self.emit(memref.AtomicRMW(kind), value, place, self.index(offset)).results[0]

    # -- code for several elements at once -----------------------------------------------------------------------
    @contextmanager
    def lanes_of(self, lanes: int, count: Position | None = None) -> Iterator[Index]:
        """Inside, the yielded expression stands for all of 0 ... lanes - 1: what depends on it is a vector.

        Loads and stores at positions that contain it become vector loads (stride 1) or gathers. `count`: only that many
        lanes exist; the others are neither read nor written.
        """
        saved = self.lane, self.lanes, self.mask
        self.lanes = lanes
        step = self.emit(vector.Step(lanes)).results[0]
        self.lane = Symbol("lane", 0, lanes - 1, step)
        self._symbol_scopes[self.lane] = self._scopes[-1]
        self.mask = None if count is None else self.create_mask(count, lanes)
        try:
            yield of_symbol(self.lane)
        finally:
            self.lane, self.lanes, self.mask = saved

    def lane_mask(self) -> Value:
        """The mask of lanes that exist."""
        return self.mask if self.mask is not None else self.constant(VectorType.get((self.lanes,), i1), 1)

    def _lane_stride(self, offset: Index) -> int:
        """How far apart the positions of neighbouring lanes are: 0 for one position, -1 for anything but 0 and 1."""
        if self.lane is None or isinstance(offset, int):
            return 0
        rest = offset - of_symbol(self.lane)
        if isinstance(rest, int) or not self._has_vector(rest):
            return 1
        return -1 if self._has_vector(offset) else 0

    def _has_vector(self, expression: Dim) -> bool:
        return any(
            isinstance(self._bound.get(s, s.value), Value)
            and isinstance(self._bound.get(s, s.value).type, VectorType)
            for s in expression.symbols()
        )  # type: ignore[union-attr]


def _only_symbol(expression: Dim) -> Symbol:
    """The symbol that an expression consists of. ValueError if it is more than that."""
    ((monomial, coefficient),) = expression.terms.items()
    if coefficient != 1 or len(monomial) != 1 or not isinstance(monomial[0], Symbol):
        raise ValueError(f"{expression} is not a single symbol")
    return monomial[0]


def _memref(buffer: Value) -> MemRefType:
    if not isinstance(buffer.type, MemRefType):
        raise TypeError(f"expected a memref, got {buffer.type}")
    return buffer.type


def _unsigned(expression: Index) -> bool:
    low = lower(expression)
    return isinstance(low, int) and low >= 0


__all__ = ["Function", "IndexType", "Loop", "LoopBuilder", "PointerType", "Position", "Scope"]
