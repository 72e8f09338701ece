"""Loops built by hand, compiled and run, against NumPy."""

from __future__ import annotations

import ctypes
import time

import numpy as np
import pytest

from flambeau.compiler.dialects.loops import arith, scf
from flambeau.compiler.dialects.loops import memref as memref_ops
from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.types import (
    VectorType,
    bf16,
    f16,
    f32,
    f64,
    i1,
    i8,
    i16,
    i32,
    i64,
    memref,
    pointer,
    u8,
)
from flambeau.runtime import threads
from tests.loops.jit import aligned, compiled, new_builder

N, M = dim("N"), dim("M")


def operations(block, kind=None):
    """All operations in a block and below."""
    for operation in block.operations:
        if kind is None or isinstance(operation.definition, kind):
            yield operation
        for region in operation.regions:
            yield from operations(region.block, kind)


def random(shape, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return aligned(generator.standard_normal(shape).astype(dtype))
    info = np.iinfo(dtype)
    return aligned(generator.integers(info.min, info.max, shape, dtype=dtype))


@pytest.mark.parametrize("independent", [False, True])
def test_saxpy_with_a_symbolic_size(independent):
    b = new_builder()
    with b.function("saxpy", [f32, memref((N,), f32), memref((N,), f32)], ["a", "x", "y"], dims=[N]) as f:
        with b.for_(0, N, independent=independent) as loop:
            x, y = b.load(f["x"], [loop.index]), b.load(f["y"], [loop.index])
            b.store(b.fadd(b.fmul(f["a"], x), y), f["y"], [loop.index])
    run = compiled(b, "saxpy")
    for n in (0, 1, 7, 64, 1001):
        x, y = random(n), random(n, seed=1)
        expected = np.float32(2.5) * x + y
        run(np.float32(2.5), x, y, n)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_transpose_of_symbolic_sizes_shares_its_row_offsets():
    b = new_builder()
    with b.function("t", [memref((N, M), i32), memref((M, N), i32)], ["x", "y"], dims=[N, M]) as f:
        with b.for_(0, N) as i, b.for_(0, M) as j:
            b.store(b.load(f["x"], [i.index, j.index]), f["y"], [j.index, i.index])
    # i * M is made once, in the outer loop's body
    products = list(operations(b.functions[0].regions[0].block, arith.MulI))
    assert len(products) == 2
    x, y = random((5, 7), np.int32), aligned(np.zeros((7, 5), np.int32))
    compiled(b, "t")(x, y, 5, 7)
    np.testing.assert_array_equal(y, x.T)


def test_reduction_carries_its_sum():
    b = new_builder()
    with b.function("sum", [memref((N,), f64), memref((), f64)], ["x", "out"], dims=[N]) as f:
        with b.for_(0, N, init=[b.const(f64, 0.0)]) as loop, b.fast("reassoc", "contract"):
            loop.yield_(b.fadd(loop.carried[0], b.load(f["x"], [loop.index])))
        b.store(loop.results[0], f["out"], [])
    x, out = random(1000, np.float64), aligned(np.zeros((), np.float64))
    compiled(b, "sum")(x, out, 1000)
    assert out[()] == pytest.approx(x.sum(), rel=1e-12)


def test_yielding_too_few_values_is_an_error():
    b = new_builder()
    with pytest.raises(ValueError, match="carries 1 values"):
        with b.function("f", [], []), b.for_(0, 3, init=[b.const(f32, 0.0)]):
            pass


def test_an_index_does_not_leave_its_loop():
    b = new_builder()
    with (
        pytest.raises(ValueError, match="outside the block"),
        b.function("f", [memref((8,), f32)], ["x"]) as f,
    ):
        with b.for_(0, 8) as loop:
            pass
        b.load(f["x"], [loop.index])


def test_an_unbound_dimension_is_an_error():
    b = new_builder()
    with pytest.raises(KeyError, match="N"), b.function("f", [memref((N,), f32)], ["x"]):
        b.index(N + 1)


def test_division_of_indices_simplifies_and_runs():
    b = new_builder()
    with b.function("f", [memref((6, 4), i64)], ["out"]) as f, b.for_(0, 24) as loop:
        i = loop.index
        value = b.index_cast(b.index(i // 4 * 100 + i % 4), i64)
        b.store(value, f["out"], [i // 4, i % 4])
    out = aligned(np.zeros((6, 4), np.int64))
    compiled(b, "f")(out)
    np.testing.assert_array_equal(out, np.arange(6)[:, None] * 100 + np.arange(4))


def test_negative_indices_divide_towards_minus_infinity():
    b = new_builder()
    with b.function("f", [memref((9,), i64), memref((9,), i64)], ["q", "r"]) as f, b.for_(0, 9) as loop:
        value = b.symbol(b.index(loop.index - 4), -4, 4)
        b.store(b.index_cast(b.index(value // 3), i64), f["q"], [loop.index])
        b.store(b.index_cast(b.index(value % 3), i64), f["r"], [loop.index])
    q, r = aligned(np.zeros(9, np.int64)), aligned(np.zeros(9, np.int64))
    compiled(b, "f")(q, r)
    np.testing.assert_array_equal(q, np.arange(-4, 5) // 3)
    np.testing.assert_array_equal(r, np.arange(-4, 5) % 3)


def test_if_gives_values():
    b = new_builder()
    with b.function("f", [memref((8,), f32), memref((8,), f32)], ["x", "y"]) as f, b.for_(0, 8) as loop:
        x = b.load(f["x"], [loop.index])
        positive = b.fcmp("ogt", x, b.const("f32", 0.0))
        (y,) = b.if_(positive, lambda x=x: [b.sqrt(x)], lambda x=x: [b.fneg(x)], weight=10)
        b.if_(positive, lambda y=y, i=loop.index: b.store(y, f["y"], [i]))
    x, y = random(8), aligned(np.full(8, -1, np.float32))
    compiled(b, "f")(x, y)
    np.testing.assert_array_equal(y, np.where(x > 0, np.sqrt(np.abs(x)), np.float32(-1)))


def test_while_counts_collatz_steps():
    b = new_builder()
    with b.function("collatz", [memref((20,), i64)], ["out"]) as f:
        one, two = b.const(i64, 1), b.const(i64, 2)
        with b.for_(0, 20) as loop:
            start = b.iadd(b.index_cast(b.index(loop.index), i64), one)

            def step(n, steps):
                even = b.icmp("eq", b.iand(n, one), b.const(i64, 0))
                odd = b.iadd(b.imul(n, b.const(i64, 3)), one)
                return b.select(even, b.idiv(n, two), odd), b.iadd(steps, one)

            result = b.while_([start, b.const(i64, 0)], lambda n, steps: b.icmp("sgt", n, one), step)
            b.store(result[1], f["out"], [loop.index])

    def collatz(n):
        return 0 if n == 1 else 1 + collatz(n // 2 if n % 2 == 0 else 3 * n + 1)

    out = aligned(np.zeros(20, np.int64))
    compiled(b, "collatz")(out)
    assert out.tolist() == [collatz(n) for n in range(1, 21)]


def parallel_squares():
    b = new_builder()
    arguments = [pointer, memref((N,), f32), memref((N,), f32), memref((64,), i64)]
    with b.function("squares", arguments, ["pool", "x", "y", "workers"], dims=[N], pool="pool") as f:
        scale = b.fmul(b.load(f["x"], [0]), b.const(f32, 0.0))  # a captured scalar
        scratch = b.subview(f["y"], 0, (N,))
        with b.parallel(N // 16) as chunk:
            local = b.alloca((16,), f32)
            with b.for_(0, 16, independent=True) as loop:
                x = b.load(f["x"], [chunk.index * 16 + loop.index])
                b.store(b.fadd(b.fmul(x, x), scale), local, [loop.index])
            with b.for_(0, 16) as loop:
                b.store(b.load(local, [loop.index]), scratch, [chunk.index * 16 + loop.index])
            worker = chunk.worker
            count = b.load(f["workers"], [worker])
            b.store(b.iadd(count, b.const(i64, 1)), f["workers"], [worker])
    return b


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_loops_cover_their_range(workers):
    run = compiled(parallel_squares(), "squares", symbols=threads.native_symbols())
    x, y, counts = random(1600), aligned(np.zeros(1600, np.float32)), aligned(np.zeros(64, np.int64))
    if workers == 1:
        run(None, x, y, counts, 1600)
    else:
        # A worker that comes late finds nothing left to do, so the loop runs until it has had a part.
        pool, calls, end = threads.create_pool(workers), 0, time.monotonic() + 30
        while counts[1] == 0 and time.monotonic() < end:
            run(ctypes.c_void_p(pool), x, y, counts, 1600)
            calls += 1
        threads.destroy_pool(pool)
        assert counts[1] > 0
    np.testing.assert_allclose(y, x * x, rtol=1e-6)
    assert counts.sum() == 100 * (calls if workers > 1 else 1)
    assert (counts[workers:] == 0).all()


def test_parallel_without_a_pool_is_a_loop():
    b = new_builder()
    with b.function("f", [memref((4,), i64)], ["x"]) as f, b.parallel(4) as p:
        b.store(b.index_cast(b.index(p.index + p.worker), i64), f["x"], [p.index])
    x = aligned(np.zeros(4, np.int64))
    compiled(b, "f")(x)
    assert x.tolist() == [0, 1, 2, 3]


FLOAT_CASES = {
    "fadd": (2, np.add),
    "fsub": (2, np.subtract),
    "fmul": (2, np.multiply),
    "fdiv": (2, np.divide),
    "fneg": (1, np.negative),
    "fabs": (1, np.abs),
    "fmax": (2, np.maximum),
    "fmin": (2, np.minimum),
    "floor": (1, np.floor),
    "ceil": (1, np.ceil),
    "trunc": (1, np.trunc),
    "round_even": (1, np.rint),
    "copysign": (2, np.copysign),
    "sqrt": (1, np.sqrt),
    "frem": (2, np.fmod),
}
INT_CASES = {
    "iadd": (2, np.add),
    "isub": (2, np.subtract),
    "imul": (2, np.multiply),
    "iand": (2, np.bitwise_and),
    "ior": (2, np.bitwise_or),
    "ixor": (2, np.bitwise_xor),
    "imax": (2, np.maximum),
    "imin": (2, np.minimum),
    "iabs": (1, np.abs),
    "ctpop": (
        1,
        lambda x: np.array([bin(int(v) & (2 ** (8 * x.itemsize) - 1)).count("1") for v in x], x.dtype),
    ),
}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, 1e30, -7.25, 1e-40, 0.1, -1.0]


@pytest.mark.parametrize("lanes", [0, 16])
@pytest.mark.parametrize("element", [f32, f64])
@pytest.mark.parametrize("name", FLOAT_CASES)
def test_float_operations(name, element, lanes):
    arity, reference = FLOAT_CASES[name]
    special = np.array(SPECIAL, element.numpy)
    x, y = aligned(np.repeat(special, 16)), aligned(np.tile(special, 16))
    check_elementwise(name, element, lanes, (x, y)[:arity], reference)


@pytest.mark.parametrize("lanes", [0, 16])
@pytest.mark.parametrize("element", [i8, i16, i32, i64])
@pytest.mark.parametrize("name", INT_CASES)
def test_integer_operations(name, element, lanes):
    arity, reference = INT_CASES[name]
    arrays = [random(64, element.numpy, seed) for seed in range(arity)]
    check_elementwise(name, element, lanes, arrays, reference)


def check_elementwise(name, element, lanes, arrays, reference):
    b, size = new_builder(), arrays[0].size
    with b.function("f", [memref((size,), element)] * (len(arrays) + 1)) as f:
        *inputs, out = f.arguments
        with b.for_(0, size, lanes or 1) as loop:
            if lanes:
                values = [b.vload(x, [loop.index], lanes) for x in inputs]
                b.vstore(getattr(b, name)(*values), out, [loop.index])
            else:
                values = [b.load(x, [loop.index]) for x in inputs]
                b.store(getattr(b, name)(*values), out, [loop.index])
    actual = aligned(np.zeros(size, element.numpy))
    compiled(b, "f")(*arrays, actual)
    with np.errstate(all="ignore"):
        expected = reference(*arrays)
    np.testing.assert_array_equal(actual, expected)
    if element.is_float:
        numbers = ~np.isnan(expected)
        zeros = name in ("fmax", "fmin")  # NumPy gives either zero
        if not zeros:
            np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers])


@pytest.mark.parametrize("predicate", ["olt", "ole", "ogt", "oge", "oeq", "one", "ord", "uno", "une"])
def test_float_comparisons_with_nan(predicate):
    special = np.array(SPECIAL, np.float32)
    x, y = aligned(np.repeat(special, 16)), aligned(np.tile(special, 16))
    b = new_builder()
    with b.function("f", [memref((256,), f32), memref((256,), f32), memref((256,), i1)]) as f:
        with b.for_(0, 256) as loop:
            values = [b.load(a, [loop.index]) for a in f.arguments[:2]]
            b.store(b.fcmp(predicate, *values), f.arguments[2], [loop.index])
    out = aligned(np.zeros(256, bool))
    compiled(b, "f")(x, y, out)
    unordered = np.isnan(x) | np.isnan(y)
    ordered = {
        "lt": x < y,
        "le": x <= y,
        "gt": x > y,
        "ge": x >= y,
        "eq": x == y,
        "ne": ~unordered & (x != y),
    }
    expected = {"ord": ~unordered, "uno": unordered, "une": x != y}.get(predicate)
    np.testing.assert_array_equal(out, ordered[predicate[1:]] if expected is None else expected)


CONVERSIONS = [
    ("fpext", f32, f64), ("fptrunc", f64, f32), ("fpext", f16, f32), ("fptrunc", f32, f16), ("fpext", bf16, f32),
    ("sitofp", i32, f32), ("sitofp", i64, f64), ("uitofp", u8, f32), ("extsi", i8, i64), ("extui", u8, i32),
    ("trunci", i64, i16), ("extui", i1, i32), ("fptosi", f32, i32), ("fptosi", f64, i64), ("bitcast", f32, i32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "target"), CONVERSIONS, ids=str)
def test_conversions(name, source, target):
    if source.is_bool:
        x = aligned(np.arange(64) % 3 == 0)
    elif source.is_float:
        x = aligned((np.random.default_rng(0).standard_normal(64) * 100).astype(source.numpy))
    else:
        x = random(64, source.numpy)
    b = new_builder()
    with (
        b.function("f", [memref((64,), source), memref((64,), target)], ["x", "y"]) as f,
        b.for_(0, 64) as loop,
    ):
        b.store(getattr(b, name)(b.load(f["x"], [loop.index]), target), f["y"], [loop.index])
    y = aligned(np.zeros(64, target.numpy))
    compiled(b, "f")(x, y)
    np.testing.assert_array_equal(y, x.view(target.numpy) if name == "bitcast" else x.astype(target.numpy))


def test_vectors_masks_and_reductions():
    b = new_builder()
    with b.function(
        "dot", [memref((N,), f32), memref((N,), f32), memref((4,), f32)], ["x", "y", "o"], dims=[N]
    ) as f:
        zero = b.constant(VectorType.get((16,), f32), 0.0)
        with b.for_(0, N // 16, init=[zero]) as loop:
            x, y = b.vload(f["x"], [loop.index * 16], 16), b.vload(f["y"], [loop.index * 16], 16)
            loop.yield_(b.fma(x, y, loop.carried[0]))
        tail = N // 16 * 16
        mask = b.create_mask(N - tail, 16)
        x, y = b.vload(f["x"], [tail], 16, mask), b.vload(f["y"], [tail], 16, mask)
        total = b.fma(x, y, loop.results[0])
        b.store(b.vector_reduce("add", total), f["o"], [0])
        low = b.shuffle(total, total, [3, 1])
        b.store(b.extract(low, 0), f["o"], [1])
        b.store(b.extract(total, b.index(N % 16)), f["o"], [2])
        b.store(b.extract(b.insert(b.const(f32, 5.0), total, 3), 3), f["o"], [3])
    run = compiled(b, "dot")
    for n in (5, 16, 100):
        x, y, out = random(n), random(n, seed=1), aligned(np.zeros(4, np.float32))
        run(x, y, out, n)
        lanes = np.pad(x * y, (0, -n % 16)).reshape(-1, 16).sum(0)
        np.testing.assert_allclose(out, [lanes.sum(), lanes[3], lanes[n % 16], 5.0], rtol=1e-4, atol=1e-5)


def test_lanes_turn_positions_into_vectors():
    """The same emission as for one element gives vector loads, gathers and masked stores."""
    b = new_builder()
    with b.function("f", [memref((6, 8), f32), memref((8, 6), f32)], ["x", "y"]) as f:
        with b.for_(0, 6) as row, b.for_(0, 8, 4) as block, b.lanes_of(4, 7 - block.index) as lane:
            column = block.index + lane
            straight = b.load(f["x"], [row.index, column])
            number = b.sitofp(b.index_cast(b.index(column * 10 + row.index), "i32"), "f32")
            same = b.load(f["x"], [row.index, 0])
            b.store(b.fadd(b.fadd(straight, number), same), f["y"], [column, row.index])
    x, y = random((6, 8)), aligned(np.zeros((8, 6), np.float32))
    compiled(b, "f")(x, y)
    expected = (x + (np.arange(8) * 10 + np.arange(6)[:, None]).astype(np.float32)) + x[:, :1]
    expected[:, 7] = 0
    np.testing.assert_array_equal(y, expected.T)


def test_views_copies_and_fills():
    b = new_builder()
    with b.function("f", [memref((256,), i8), memref((8,), f32)], ["arena", "x"]) as f:
        first = b.view(f["arena"], 64, (8,), f32, alignment=64)
        second = b.view(f["arena"], 128, (2, 4), f32, alignment=64)
        b.zero(second, 8)
        b.copy(f["x"], first, 8)
        b.prefetch(first, [0])
        b.store(b.load(first, [3]), second, [1, 2])
    arena, x = aligned(np.full(256, 7, np.int8)), random(8)
    compiled(b, "f")(arena, x)
    floats = arena[64:192].view(np.float32)
    np.testing.assert_array_equal(floats[:8], x)
    np.testing.assert_array_equal(floats[16:24], np.where(np.arange(8) == 6, x[3], np.float32(0)))
    assert (arena[:64] == 7).all()


def test_pointers_to_buffers():
    b = new_builder()
    with b.function("f", [memref((2,), pointer)], ["args"]) as f:  # type: ignore[list-item]
        source = b.from_pointer(b.load(f["args"], [0]), (4,), f32)
        target = b.from_pointer(b.load(f["args"], [1]), (4,), f32)
        b.store(b.load(source, [1]), target, [2])
    x, y = random(4), aligned(np.zeros(4, np.float32))
    compiled(b, "f")(aligned(np.array([x.ctypes.data, y.ctypes.data], np.int64)))
    np.testing.assert_array_equal(y, np.array([0, 0, x[1], 0], np.float32))


def test_functions_call_each_other():
    b = new_builder()
    with b.function("f", [memref((4,), f32)], ["x"]) as f:
        with b.function("cube", [f32], ["v"], [f32], inline=True) as g:
            b.return_(b.fmul(b.fmul(g["v"], g["v"]), g["v"]))
        with b.for_(0, 4) as loop:
            (y,) = b.call("cube", [b.load(f["x"], [loop.index])], [f32])
            b.store(y, f["x"], [loop.index])
    x = random(4)
    expected = x * x * x
    compiled(b, "f")(x)
    np.testing.assert_array_equal(x, expected)


def test_atomic_sum():
    b = new_builder()
    with b.function("f", [memref((1,), f32)], ["x"]) as f, b.for_(0, 10):
        b.atomic("addf", b.const(f32, 1.5), f["x"], [0])
    x = aligned(np.zeros(1, np.float32))
    compiled(b, "f")(x)
    assert x[0] == 15


def test_constants_are_made_once_and_negative_zero_is_kept():
    b = LoopBuilder()
    with b.function("f", [memref((2,), f32)], ["x"]) as f:
        b.store(b.const(f32, -0.0), f["x"], [0])
        b.store(b.const(f32, 0.0), f["x"], [1])
        assert b.const(f32, 1) is b.const("f32", 1.0)
    x = aligned(np.ones(2, np.float32))
    compiled(b, "f", 0)(x)
    assert np.signbit(x).tolist() == [True, False]


def test_loads_of_many_dimensions_flatten_once():
    b = LoopBuilder()
    with b.function("f", [memref((4, 4), f32)], ["x"]) as f, b.for_(0, 4) as loop:
        b.store(b.load(f["x"], [loop.index, 0]), f["x"], [0, loop.index])
    block = b.functions[0].regions[0].block
    assert len(list(operations(block, memref_ops.CollapseShape))) == 1
    assert isinstance(block.operations[-2].definition, scf.For)


def test_steady_loads_come_before_the_loops_that_do_not_move_them():
    b = new_builder()
    with b.function("f", [memref((4,), f32), memref((4,), f32)], ["scale", "y"]) as f:
        with b.for_(0, 4) as outer, b.for_(0, 8):
            first = b.load(f["scale"], [2], steady=True)
            again = b.load(f["scale"], [2], steady=True)
            here = b.load(f["scale"], [outer.index], steady=True)
            b.store(b.fadd(first, b.fadd(again, here)), f["y"], [outer.index])
            condition = b.icmp("sgt", b.index(outer.index), b.index(1))
            b.if_(condition, lambda: b.store(b.load(f["scale"], [3], steady=True), f["y"], [0]))
    body = f.operation.regions[0].block
    loads = [o for o in body.operations if o.name == "memref.load"]
    (loop,) = [o for o in body.operations if o.name == "scf.for"]
    middle = loop.regions[0].block.operations
    assert len(loads) == 1 and [o.name for o in middle].count("memref.load") == 1
    (choice,) = operations(body, scf.If)
    assert (
        len(list(operations(choice.regions[0].block, memref_ops.Load))) == 1
    )  # what is conditional stays so
    x, y = aligned(np.array([1, 2, 4, 8], np.float32)), aligned(np.zeros(4, np.float32))
    compiled(b, "f")(x, y)
    np.testing.assert_array_equal(y, [8, 10, 12, 16])
