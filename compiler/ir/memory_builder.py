"""Memory of `LoopBuilder`: buffers, loads and stores, and code for several elements at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flambeau.compiler.dialects.loops import memref, vector
from flambeau.compiler.dialects.loops.base import signless
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol, of_symbol, recombine
from flambeau.compiler.ir.index_builder import IndexBuilder, Position, Scope
from flambeau.compiler.ir.types import ElementType, MemRefType, VectorType, i1
from flambeau.compiler.ir.types import pointer as pointer_type


class MemoryBuilder(IndexBuilder):
    """The part of `LoopBuilder` that reads and writes."""

    def __init__(self, fma: bool, avx512: bool) -> None:
        #: In vector code: which lanes exist. Loads and stores leave the others alone.
        self.mask: Value | None = None
        super().__init__(fma, avx512)

    def _forget(self) -> None:
        super()._forget()
        self._flat: dict[Value, tuple[Value, Scope]] = {}
        self._steady: dict[tuple[Value, Index], tuple[Value, Scope]] = {}

    # -- memory --------------------------------------------------------------------------------------------------
    def alloca(self, shape: Sequence[int], element: ElementType, alignment: int = 64) -> Value:
        """A buffer on the stack, which lives as long as the function or the innermost parallel body's range."""
        type = MemRefType.get(tuple(shape), element)
        return self.value(memref.Alloca(alignment), to=type)

    def shared(self, shape: Sequence[int], element: ElementType, alignment: int = 16) -> Value:
        """A buffer that the threads of a GPU's block share."""
        type = MemRefType.get(tuple(shape), element)
        return self.value(memref.Alloca(alignment, "workgroup"), to=type)

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
        return recombine(total)

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

    def load(self, buffer: Value, indices: Sequence[Position], steady: bool = False) -> Value:
        """The element at the indices; a vector of them where the indices contain the lane.

        `steady`: nothing in this function writes to the buffer, so that one element is loaded before the loops in which its
        position stays the same. LLVM's passes that would do this are not run, and a kernel of 16 M GELUs took 4.4 ms instead
        of 3.6 because of one such load.
        """
        place, offset = self._place(buffer, indices)
        stride = self._lane_stride(offset)
        if stride == 0 and steady:
            return self._steady_load(place, offset)
        if stride == 0:
            return self.emit(memref.Load(), place, self.index(offset)).results[0]
        element = signless(_memref(buffer).element)
        zero = self.constant(VectorType.get((self.lanes,), element), 0)
        if stride == 1:
            first = self._without_lane(offset)
            if self.mask is None:
                return self.emit(vector.Load(self.lanes), place, self.index(first)).results[0]
            return self.emit(vector.MaskedLoad(), place, self.index(first), self.mask, zero).results[0]
        if stride == 2:
            return self._every_second(place, offset, zero)
        return self.emit(vector.Gather(), place, self.index(offset), self.lane_mask(), zero).results[0]

    def _steady_load(self, place: Value, offset: Index) -> Value:
        found = self._steady.get((place, offset))
        if found is not None and found[1].open:
            return found[0]
        scope = self._steady_scope(offset)
        value = self.emit(memref.Load(), place, self.index(offset), scope=scope).results[0]
        self._steady[place, offset] = value, scope
        return value

    def _every_second(self, place: Value, offset: Index, zero: Value) -> Value:
        """Elements at distances of 2: two vectors and a shuffle, a tenth of a gather's time. Nothing past the last one is
        read."""
        lanes = self.lanes
        first = self._without_lane(self._without_lane(offset))
        if self.mask is None:
            low = self.emit(vector.Load(lanes), place, self.index(first)).results[0]
            upper = self.create_mask(lanes - 1, lanes)
        else:
            none = self.constant(VectorType.get((lanes,), i1), 0)
            spread = [lane // 2 if lane % 2 == 0 else lanes for lane in range(2 * lanes)]
            lower = self.shuffle(self.mask, none, spread[:lanes])
            upper = self.shuffle(self.mask, none, spread[lanes:])
            low = self.emit(vector.MaskedLoad(), place, self.index(first), lower, zero).results[0]
        high = self.emit(vector.MaskedLoad(), place, self.index(first + lanes), upper, zero).results[0]
        return self.shuffle(low, high, range(0, 2 * lanes, 2))

    def address(self, buffer: Value) -> Value:
        """A buffer's address, as an index."""
        return self.emit(memref.AddressOf(), buffer).results[0]

    def store(
        self, value: Value, buffer: Value, indices: Sequence[Position], nontemporal: bool = False
    ) -> None:
        """Writes the element at the indices; the elements of all lanes where the indices contain the lane.

        `nontemporal`: whole vectors go past the caches; their addresses are multiples of their size.
        """
        place, offset = self._place(buffer, indices)
        stride = self._lane_stride(offset)
        if stride == 0:
            self.emit(memref.Store(), value, place, self.index(offset))
            return
        spread = value if isinstance(value.type, VectorType) else self.broadcast(value, self.lanes)
        if stride != 1:
            self.emit(vector.Scatter(), place, self.index(offset), self.lane_mask(), spread)
            return
        first = self._without_lane(offset)
        if self.mask is None:
            size = self.lanes * _memref(buffer).element.itemsize
            kind = vector.Store(True, size) if nontemporal else vector.Store()
            self.emit(kind, spread, place, self.index(first))
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

        Loads and stores at positions that contain it become vector loads (strides 1 and 2) or gathers. `count`: only that many
        lanes exist; the others are neither read nor written.
        """
        saved = self.lane, self.lanes, self.mask
        self.lanes = lanes
        step = self.emit(vector.Step(lanes)).results[0]
        # Lanes that do not exist are neither read nor written, whatever their positions would be.
        most = min(lanes, count) if isinstance(count, int) else lanes
        self.lane = Symbol("lane", 0, most - 1, step)
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
        """How far apart the positions of neighbouring lanes are: 0 for one position, -1 for anything but 0, 1 and 2."""
        if self.lane is None or isinstance(offset, int):
            return 0
        for stride in (1, 2):
            rest = offset - of_symbol(self.lane) * stride
            if isinstance(rest, int) or not self._has_vector(rest):
                return stride
        return -1 if self._has_vector(offset) else 0

    def _without_lane(self, offset: Index) -> Index:
        assert self.lane is not None
        return offset - of_symbol(self.lane)

    def _has_vector(self, expression: Dim) -> bool:
        values = [self._bound.get(s, s.value) for s in expression.symbols()]
        return any(isinstance(v, Value) and isinstance(v.type, VectorType) for v in values)


def _memref(buffer: Value) -> MemRefType:
    if not isinstance(buffer.type, MemRefType):
        raise TypeError(f"expected a memref, got {buffer.type}")
    return buffer.type
