"""The contraction template, executed as it is emitted: every loop position is a number, every access is checked.

No code generator takes part, so a failure here is the template's own. Buffers start as NaN (or a marker), reads of
elements that nothing wrote show up in the result, and reads and writes outside a buffer raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flambeau.compiler.ir import dims
from flambeau.compiler.ir import types as T
from flambeau.compiler.lowering.contraction import emit, schedule_of, workspace_elements
from flambeau.compiler.lowering.contraction_problem import (
    Contraction,
    Operand,
    Plain,
    into_buffer,
    plain_operand,
)
from flambeau.compiler.lowering.microkernel import transpose
from flambeau.compiler.schedule.cpu_contraction import (
    Chooser,
    ContractionSchedule,
    CpuShape,
    OperandFacts,
    balanced,
    choose,
    register_tile,
)
from flambeau.compiler.schedule.tuning import Request, neighbours, search, starts

SMALL = CpuShape(vector_bits=128, registers=16, l1=256, l2=2048)


class Buffer:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def offset(self, at: Sequence[int], lanes: int = 1) -> int:
        assert len(at) == self.array.ndim
        flat = 0
        for i, extent in zip(at, self.array.shape, strict=True):
            flat = flat * extent + i
        assert flat >= 0 and flat + lanes <= self.array.size, (
            f"{list(at)} + {lanes} is outside {self.array.shape}"
        )
        return flat


class Executor:
    """An emitter that runs each operation at once; `sizes` are the symbolic extents, unknown to the template."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = dict(sizes)
        self.builder = self
        self.lanes = 0
        self.active: list[int] = []
        #: Elements that were prefetched.
        self.asked: list[tuple[Buffer, int]] = []

    @contextmanager
    def lanes_of(self, lanes: int, count: Any = None) -> Iterator[Any]:
        assert not self.lanes, "vectors in vectors"
        self.lanes = lanes
        self.active = list(range(lanes if count is None else max(0, min(lanes, self.number(count)))))
        yield dims.dim("lane")
        self.lanes = 0

    @contextmanager
    def some_lanes(self, lanes: int, mask: Any) -> Iterator[Any]:
        with self.lanes_of(lanes) as lane:
            self.active = [i for i in range(lanes) if mask[i]]
            yield lane

    def between(self, low: Any, high: Any, lanes: int) -> Any:
        return (np.arange(lanes) >= self.number(low)) & (np.arange(lanes) < self.number(high))

    def select(self, mask: Any, x: Any, y: Any) -> Any:
        return np.where(mask, x, y)

    def symbol(self, expression: Any, low: Any, high: Any) -> int:
        return self.number(expression)

    def has_lane(self, at: Sequence[Any]) -> bool:
        return any(isinstance(i, dims.Dim) and "lane" in {x.name for x in i.symbols()} for i in at)

    def each_lane(self, buffer: Buffer, at: Sequence[Any]) -> list[int]:
        return [
            buffer.offset([dims.evaluate(i, {**self.sizes, "lane": lane}) for i in at])
            for lane in self.active
        ]

    def number(self, x: Any) -> int:
        return dims.evaluate(x, self.sizes)

    def for_(self, low: Any, high: Any, step: int, body: Any, carried: Sequence[Any] = ()) -> list[Any]:
        values = list(carried)
        for i in range(self.number(low), self.number(high), step):
            values = list(body(i, values) or [])
        return values

    def parallel(self, extents: Sequence[Any], body: Callable[[list[Any]], None]) -> None:
        # Backwards, so that a dependence between iterations shows.
        for at in reversed(list(np.ndindex(*[self.number(e) for e in extents]))):
            body([int(i) for i in at])

    def if_equal(
        self, a: Any, b: Any, then: Callable[[], None], otherwise: Callable[[], None] | None = None
    ) -> None:
        if self.number(a) == self.number(b):
            then()
        elif otherwise is not None:
            otherwise()

    def at(self, at: Sequence[Any]) -> list[int]:
        return [self.number(i) for i in at]

    def load(self, buffer: Buffer, at: Sequence[Any]) -> Any:
        if self.has_lane(at):
            result = np.zeros(self.lanes, buffer.array.dtype)
            result[self.active] = buffer.array.reshape(-1)[self.each_lane(buffer, at)]
            return result
        return buffer.array.reshape(-1)[buffer.offset(self.at(at))]

    def store(self, value: Any, buffer: Buffer, at: Sequence[Any]) -> None:
        assert np.asarray(value).dtype == buffer.array.dtype
        if self.has_lane(at):
            buffer.array.reshape(-1)[self.each_lane(buffer, at)] = value[self.active]
            return
        buffer.array.reshape(-1)[buffer.offset(self.at(at))] = value

    def prefetch(self, buffer: Buffer, at: Sequence[Any], write: bool = False, locality: int = 3) -> None:
        """It reads nothing, so it may lie outside."""
        strides = np.array(buffer.array.strides) // buffer.array.itemsize
        self.asked.append((buffer, int(np.dot(strides, self.at(at)))))

    def vector_load(self, buffer: Buffer, at: Sequence[Any], lanes: int, mask: Any = None) -> Any:
        count = lanes if mask is None else int(mask.sum())
        result = np.zeros(lanes, buffer.array.dtype)
        if count:
            start = buffer.offset(self.at(at), count)
            result[:count] = buffer.array.reshape(-1)[start : start + count]
        return result

    def vector_store(self, value: Any, buffer: Buffer, at: Sequence[Any], mask: Any = None) -> None:
        assert value.dtype == buffer.array.dtype and value.ndim == 1
        count = len(value) if mask is None else int(mask.sum())
        if count:
            start = buffer.offset(self.at(at), count)
            buffer.array.reshape(-1)[start : start + count] = value[:count]

    def mask(self, count: Any, lanes: int) -> Any:
        return np.arange(lanes) < self.number(count)

    def splat(self, scalar: Any, lanes: int) -> Any:
        return np.full(lanes, scalar)

    def zero(self, element: T.ElementType, lanes: int) -> Any:
        return np.zeros(lanes, element.numpy)

    def multiply_add(self, x: Any, y: Any, z: Any, element: T.ElementType) -> Any:
        return x * y + z

    def add(self, x: Any, y: Any, element: T.ElementType) -> Any:
        return x + y

    def reduce_add(self, x: Any) -> Any:
        return x.sum(dtype=x.dtype)

    def shuffle(self, x: Any, y: Any, lanes: Sequence[int]) -> Any:
        return np.concatenate([x, y])[list(lanes)]

    def cast(self, x: Any, source: T.ElementType, target: T.ElementType) -> Any:
        assert x.dtype == source.numpy
        return x.astype(target.numpy)

    def alloca(self, shape: Sequence[int], element: T.ElementType) -> Buffer:
        return Buffer(poisoned(tuple(shape), element))


#: Elements of a cache line.
LINE = 16


def poisoned(shape: tuple[int, ...], element: T.ElementType) -> np.ndarray:
    return np.full(shape, np.nan if element.is_float else 77, element.numpy)


def run(
    batch: tuple[int, ...],
    m: int,
    n: int,
    k: int,
    *,
    cpu: CpuShape = SMALL,
    transposed: str = "",
    plain: str = "ab",
    element: T.ElementType = T.f32,
    accumulator: T.ElementType | None = None,
    bias: bool = False,
    partial: bool = True,
    symbolic: str = "",
    inner: tuple[int, ...] = (),
    along: bool = True,
    vector_store: bool = True,
    run_length: int = 0,
    chooser: Chooser = choose,
    foreseen: bool = False,
) -> str:
    """Execute one contraction and compare with NumPy; returns the scheme that ran. `foreseen`: all of the operands, but for
    the first batch element, is asked for beforehand."""
    acc = accumulator or element
    rng = np.random.default_rng(m * 10007 + n * 101 + k)
    a_shape = (*batch, k, m) if "a" in transposed else (*batch, m, k)
    b_shape = (*batch, n, k) if "b" in transposed else (*batch, k, n)
    a, b = (Buffer(rng.integers(-4, 5, s).astype(element.numpy)) for s in (a_shape, b_shape))
    c, offsets = Buffer(poisoned((*batch, m, n), acc)), Buffer(rng.integers(-4, 5, n).astype(acc.numpy))

    executor = Executor({"M": m, "N": n, "K": k})
    rank = len(batch)
    axes = list(range(rank))

    def operand(buffer: Buffer, name: str, swapped: bool) -> Operand:
        order = (axes, rank + 1, rank) if swapped else (axes, rank, rank + 1)
        found = plain_operand(executor, buffer, element, buffer.array.shape, order, acc)
        if name in plain:
            return found
        if not run_length:
            return replace(found, plain=None, along=found.along if along else "")

        def load(b: Any, at: Any, row: Any, depth: Any) -> Any:
            if executor.lanes:
                position = row if found.along == "row" else depth
                lanes = [dims.evaluate(position, {**executor.sizes, "lane": x}) for x in executor.active]
                assert len({x // run_length for x in lanes}) <= 1
            return found.load(b, at, row, depth)

        return Operand(load, None, found.along, run_length)

    result = Plain(c, acc, lambda at, i, j: (*at, i, j), unit_depth=True)
    write = into_buffer(executor, result, acc)

    def store(b: Any, at: Any, i: Any, j: Any, value: Any) -> None:
        if not vector_store or (m == n == 1 and not symbolic):
            assert np.ndim(value) == 0
        write(b, at, i, j, value + executor.load(offsets, (j,)) if bias else value)

    sizes = {"M": m, "N": n, "K": k}
    extents = [dims.dim(name) if name in symbolic else size for name, size in sizes.items()]
    problem = Contraction(
        batch,
        *extents,
        acc,
        operand(a, "a", "a" in transposed),
        operand(b, "b", "b" not in transposed),
        store,
        result if partial else None,
        inner,
        vector_store,
    )
    workspace = Buffer(poisoned((dims.evaluate(workspace_elements(problem, cpu, chooser), sizes),), acc))
    schedule = emit(executor, problem, cpu, workspace, chooser)
    for operand in (a, b) if foreseen else ():
        asked = {at // LINE for buffer, at in executor.asked if buffer is operand}
        each = operand.array[0].size
        assert asked >= set(range(each // LINE + 1, operand.array.size // LINE))
    left, right = a.array.astype(np.float64), b.array.astype(np.float64)
    expected = (left.swapaxes(-1, -2) if "a" in transposed else left) @ (
        right.swapaxes(-1, -2) if "b" in transposed else right
    )
    # Small integers: every order of summation is exact.
    np.testing.assert_array_equal(c.array.astype(np.float64), expected + (offsets.array if bias else 0))
    return schedule.scheme


AWKWARD = [
    (1, 1, 1),
    (1, 7, 5),
    (5, 1, 9),
    (2, 9, 1),
    (3, 3, 0),
    (7, 9, 11),
    (13, 21, 30),
    (1, 23, 40),
    (29, 1, 17),
]


@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("size", [(17, 70, 40), (40, 33, 50), (36, 64, 128)], ids=str)
def test_the_next_of_a_batch_is_fetched(size: tuple[int, int, int], transposed: str) -> None:
    for batch in ((3,), (2, 2), (3, 1)):
        assert run(batch, *size, cpu=CpuShape(), transposed=transposed, foreseen=True) in ("direct", "panel")


@pytest.mark.parametrize("plain", ["ab", "a", "b", ""])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("size", AWKWARD, ids=str)
def test_layouts(size: tuple[int, int, int], transposed: str, plain: str) -> None:
    run((), *size, transposed=transposed, plain=plain)
    run((), *size, transposed=transposed, plain=plain, along=False, vector_store=False)


@pytest.mark.parametrize(
    ("kwargs", "scheme"),
    [
        ({"cpu": CpuShape()}, "direct"),
        ({"cpu": CpuShape(), "transposed": "b", "size": (40, 40, 20)}, "panel"),
        ({"cpu": CpuShape(), "transposed": "b", "size": (3, 20, 40)}, "dot"),
        ({"plain": ""}, "packed"),
        ({"size": (5, 40, 40)}, "direct"),
        ({"size": (20, 40, 40)}, "direct"),
        ({"size": (20, 40, 70)}, "packed"),
        ({"size": (70, 20, 30)}, "direct"),
        ({"size": (70, 40, 70)}, "packed"),
    ],
)
def test_each_scheme_is_reached_and_right(kwargs: dict[str, Any], scheme: str) -> None:
    kwargs = dict(kwargs)
    size = kwargs.pop("size", (13, 21, 30))
    assert run((2,), *size, **kwargs) == scheme
    assert run((2,), *size, **kwargs, bias=True) == scheme
    assert run((2,), *size, **kwargs, partial=False, bias=True) == scheme


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("size", [(13, 17, 160), (15, 36, 75), (20, 15, 34)], ids=str)
def test_few_rows_against_a_large_matrix(size: tuple[int, int, int], partial: bool) -> None:
    for transposed in ("", "a", "b", "ab"):
        for plain in ("ab", "b"):
            scheme = run((), *size, transposed=transposed, plain=plain, partial=partial, bias=True)
            assert scheme == "few" or (scheme, transposed, plain) == ("dot", "b", "ab")
        assert run((1,), *size, transposed=transposed, plain="b", vector_store=False) == "few"


def test_few_rows_that_fill_no_vectors_run_along_depth() -> None:
    """Both operands have K along memory: the scheme *few* would compute rows that do not exist."""
    along = OperandFacts(True, False, True)
    for m, k, scheme in [
        (9, 768, "dot"),
        (17, 4096, "dot"),
        (32, 768, "few"),
        (30, 4096, "dot"),
        (30, 256, "few"),
    ]:
        s = choose(m, 4096, k, T.f32, along, along, CpuShape())
        assert s.scheme == scheme and (scheme == "few" or (s.task_rows >= m and s.foresee == s.vectors))
    s = choose(256, 10, 512, T.f32, along, along, CpuShape())
    assert s.scheme == "dot" and s.task_rows < 64  # tasks for threads


def test_shallow_products_of_few_rows_are_packed() -> None:
    """96 rows by 12288 columns, summed over 16: transposing would take most of the time. (Columns that do not lie a page
    apart, as 12544 of a convolution of MobileNet, are read as they lie.)"""
    plain, columns = OperandFacts(True, False, True), OperandFacts(True, True, False)
    assert choose(96, 12288, 16, T.f32, plain, columns, CpuShape()).scheme == "panel"
    assert choose(96, 12288, 256, T.f32, plain, columns, CpuShape()).scheme == "few"
    assert choose(96, 12544, 16, T.f32, plain, columns, CpuShape()).scheme == "direct"


@pytest.mark.parametrize("size", [(0, 3, 4), (3, 0, 4), (0, 0, 0)], ids=str)
def test_empty_results(size: tuple[int, int, int]) -> None:
    run((2,), *size)
    run((0,), 3, 4, 5)


@pytest.mark.parametrize("run_length", [2, 3, 5, 7, 30])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
def test_vectors_stay_within_runs(transposed: str, run_length: int) -> None:
    run((2,), 13, 21, 30, plain="", transposed=transposed, run_length=run_length)
    run((), 13, 21, 30, plain="", transposed=transposed, run_length=run_length, symbolic="MNK")


@pytest.mark.parametrize("symbolic", ["M", "N", "K", "MN", "MNK"])
@pytest.mark.parametrize("transposed", ["", "b"])
@pytest.mark.parametrize("plain", ["ab", ""])
@pytest.mark.parametrize("cpu", [SMALL, CpuShape()], ids=["small", "large"])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 9, 11), (13, 40, 19)], ids=str)
def test_symbolic_extents(
    size: tuple[int, int, int], cpu: CpuShape, plain: str, transposed: str, symbolic: str
) -> None:
    run((), *size, cpu=cpu, plain=plain, transposed=transposed, symbolic=symbolic)
    run((), *size, cpu=cpu, plain=plain, transposed=transposed, symbolic=symbolic, bias=True, partial=False)


@pytest.mark.parametrize("plain", ["ab", ""])
@pytest.mark.parametrize("transposed", ["", "b"])
@pytest.mark.parametrize(
    ("element", "accumulator"),
    [(T.f64, T.f64), (T.bf16, T.f32), (T.f16, T.f32), (T.i32, T.i32), (T.i64, T.i64), (T.i8, T.i32)],
)
def test_element_types(
    element: T.ElementType, accumulator: T.ElementType, transposed: str, plain: str
) -> None:
    assert ml_dtypes.bfloat16 is T.bf16.numpy.type
    for size in [(7, 9, 11), (1, 12, 33), (12, 1, 33)]:
        run((), *size, element=element, accumulator=accumulator, transposed=transposed, plain=plain)


def test_digits_of_k_become_nested_loops_without_divisions() -> None:
    """A convolution's k is (channel, row, column): the element function sees positions whose digits simplify."""
    run((), 5, 9, 36, plain="", inner=(3, 3))
    seen: list[Any] = []

    class Recorder(Executor):
        """Runs each loop body once, at a symbolic position, as a code generator would."""

        def for_(self, low: Any, high: Any, step: int, body: Any, carried: Sequence[Any] = ()) -> list[Any]:
            position = dims.of_symbol(
                dims.Symbol("i", 0, None if isinstance(high, dims.Dim) else high - 1, value=self)
            )
            body(position, list(carried))
            return list(carried)

        def parallel(self, extents: Sequence[Any], body: Callable[[list[Any]], None]) -> None:
            body([dims.of_symbol(dims.Symbol("p", 0, e - 1, value=self)) for e in extents])

        def store(self, value: Any, buffer: Any, at: Any) -> None: ...
        def vector_store(self, value: Any, buffer: Any, at: Any, mask: Any = None) -> None: ...
        def vector_load(self, buffer: Any, at: Any, lanes: int, mask: Any = None) -> Any:
            return np.zeros(lanes, np.float32)

        def load(self, buffer: Any, at: Any) -> Any:
            return np.float32(0)

        def mask(self, count: Any, lanes: int) -> Any:
            return np.ones(lanes, bool)

        def number(self, x: Any) -> int:
            return 1

        def if_equal(self, a: Any, b: Any, then: Any, otherwise: Any = None) -> None:
            then()

    def element(e: Any, batch: Any, row: Any, k: Any) -> Any:
        seen.extend([k // 9, k // 3 % 3, k % 3])
        return np.float32(0)

    problem = Contraction(
        (),
        8,
        16,
        36,
        T.f32,
        Operand(element),
        Operand(element),
        lambda *_: None,
        None,
        (3, 3),
    )
    emit(Recorder({}), problem, CpuShape(), Buffer(np.zeros(1, np.float32)))
    assert seen and not any("floordiv" in repr(x) or "mod" in repr(x) for x in seen)


def test_columns_are_exchanged_for_rows() -> None:
    """A transposed matrix times a column runs as a row times a matrix."""
    a = Plain(None, T.f32, lambda at, m, k: (k, m), unit_row=True)
    b = Plain(None, T.f32, lambda at, n, k: (k,), unit_row=True, unit_depth=True)
    none: Any = None
    problem = Contraction((), 100, 1, 50, T.f32, Operand(none, a), Operand(none, b), none)
    exchanged, schedule = schedule_of(problem, CpuShape())
    assert (exchanged.m, exchanged.n, schedule.scheme) == (1, 100, "direct")


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_transposition_in_registers(lanes: int) -> None:
    square = np.arange(lanes * lanes, dtype=np.float32).reshape(lanes, lanes)
    np.testing.assert_array_equal(transpose(Executor({}), list(square)), square.T)


def test_register_tiles_fit() -> None:
    for registers in (16, 32):
        rows, vectors = register_tile(CpuShape(registers=registers), 16)
        assert rows * vectors + vectors + 1 <= registers
    assert [balanced(32, 12), balanced(12, 12), balanced(13, 12), balanced(0, 12)] == [11, 12, 7, 1]


@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("size", [(9, 11, 21), (13, 20, 9), (3, 9, 18)], ids=str)
def test_every_schedule_that_is_tried_is_right(size: tuple[int, int, int], transposed: str) -> None:
    asked: list[Request] = []

    def model(*request: Any) -> ContractionSchedule:
        asked.append(Request(*request))
        return choose(*request)

    run((), *size, transposed=transposed, chooser=model)
    (request,) = set(asked)
    tried = [s for start in starts(request) for s in (start, *neighbours(request, start))]
    assert len({s.scheme for s in tried}) >= 2
    for number, s in enumerate(tried):
        if number % 3 == 0 or s in starts(request):
            assert run((), *size, transposed=transposed, chooser=lambda *_, s=s: s, bias=True) == s.scheme


def test_a_search_finds_the_fastest_and_keeps_to_its_budget() -> None:
    plain = OperandFacts(True, False, True)
    request = Request(300, 700, 900, T.f32, plain, OperandFacts(True, True, False), CpuShape())
    model = choose(300, 700, 900, T.f32, request.a, request.b, request.cpu)
    measured: list[ContractionSchedule] = []

    def seconds(s: ContractionSchedule) -> float:
        measured.append(s)
        return (
            1
            + (s.scheme != "direct")
            + (s.rows != 6) * 0.1
            + (s.unroll != 8) * 0.1
            + (s.block_k != 256) * 0.1
        )

    best, count = search(request, model, seconds, 200)
    assert (best.scheme, best.rows, best.unroll, best.block_k) == ("direct", 6, 8, 256)
    assert count == len(measured) == len(set(measured)) <= 200
    assert search(request, model, seconds, 1) == (model, 1)
