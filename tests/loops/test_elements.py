"""`ElementBuilder` against NumPy, one element at a time and for several lanes at once."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from flambeau.compiler.ir.types import (
    ELEMENT_TYPES,
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
    u8,
    u32,
)
from flambeau.compiler.lowering.elements import ElementBuilder
from tests.loops.jit import aligned, compiled, new_builder

LANES = pytest.mark.parametrize("lanes", [0, 8])
FLOATS = [f64, f32, f16, bf16]
INTS = [i64, i32, i16, i8, u8, u32]


def values(element, seed=0, size=200):
    """Random elements, with the awkward ones first."""
    generator = np.random.default_rng(seed)
    if element.is_bool:
        return aligned(generator.integers(0, 2, size).astype(bool))
    if element.is_float:
        x = generator.standard_normal(size) * 10 ** generator.uniform(-3, 3, size)
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0, 0.5, 3.0, 1e-7, 6e4]
        x[: len(special)] = generator.permutation(special)
        return aligned(x.astype(element.numpy))
    info = np.iinfo(element.numpy)
    x = generator.integers(info.min, info.max, size, dtype=element.numpy, endpoint=True)
    x[:8] = generator.permutation(
        np.array([0, 1, info.max, info.min, 2, 3, info.max // 2, 5]).astype(element.numpy)
    )
    x[8:60] = generator.integers(max(info.min, -9), 9, 52)
    return aligned(x)


def run(emit, inputs, result, lanes=0, f16_instructions=True):
    """`emit(e, *scalars)` for each position of the arrays; `result` is its element type."""
    b = new_builder()
    e = ElementBuilder(b, f16_instructions)
    size = inputs[0].size
    types = [memref((size,), _element(x)) for x in inputs]
    with b.function("f", [*types, memref((size,), result)]) as f:
        *sources, target = f.arguments
        with b.for_(0, size, max(lanes, 1)) as loop:
            if lanes:
                with b.lanes_of(lanes) as lane:
                    at = [loop.index + lane]
                    e.store(emit(e, *[e.load(x, at) for x in sources]), target, at)
            else:
                at = [loop.index]
                e.store(emit(e, *[e.load(x, at) for x in sources]), target, at)
    out = aligned(np.zeros(size, result.numpy))
    compiled(b, "f")(*inputs, out)
    return out


def _element(array):
    return next(t for t in ELEMENT_TYPES if t.numpy == array.dtype)


def wide(reference, element):
    """f16 and bf16 compute in f32 and round."""

    def evaluate(*arrays):
        with np.errstate(all="ignore"):
            if element in (f16, bf16):
                return reference(*[a.astype(np.float32) for a in arrays]).astype(element.numpy)
            return reference(*arrays)

    return evaluate


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    if actual.dtype == ml_dtypes.bfloat16 or actual.dtype == np.float16:
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(actual, expected)


@LANES
@pytest.mark.parametrize("element", FLOATS, ids=repr)
@pytest.mark.parametrize(
    ("name", "reference"),
    [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.divide), ("max", np.maximum),
     ("min", np.minimum), ("rem", np.fmod)],
)  # fmt: skip
def test_float_binary(name, reference, element, lanes):
    x, y = values(element), values(element, 1)
    actual = run(lambda e, x, y: getattr(e, name)(x, y), [x, y], element, lanes)
    assert_same(actual, wide(reference, element)(x, y))


@pytest.mark.parametrize("element", FLOATS, ids=repr)
@pytest.mark.parametrize(
    ("name", "reference"),
    [("neg", np.negative), ("abs", np.abs), ("sqrt", np.sqrt), ("floor", np.floor), ("ceil", np.ceil),
     ("round_even", np.rint), ("trunc", np.trunc), ("sign", np.sign)],
)  # fmt: skip
def test_float_unary(name, reference, element):
    x = values(element)

    def emit(e, x):
        return getattr(e, name)(x) if hasattr(e, name) else e.math(name, x)

    assert_same(run(emit, [x], element), wide(reference, element)(x))


@pytest.mark.parametrize(
    ("x", "y"), [(1e308, 5e-324), (1e308, 3e-320), (5e300, 1.7e-10), (7.5, -2.0), (-1e17, 3.3)]
)
def test_remainders_of_very_different_sizes(x, y):
    actual = run(lambda e, x, y: e.rem(x, y), [aligned(np.full(8, x)), aligned(np.full(8, y))], f64)
    assert actual[0] == math.fmod(x, y)


@pytest.mark.parametrize("instructions", [True, False])
def test_every_f16_widens_and_rounds(instructions):
    x = aligned(np.arange(65536).astype(np.uint16).view(np.float16))
    wider = run(lambda e, x: e.convert(x, f32), [x], f32, 0, instructions)
    np.testing.assert_array_equal(wider, x.astype(np.float32))
    back = run(lambda e, x: e.add(x, e.constant(0, f16)), [x], f16, 0, instructions)
    np.testing.assert_array_equal(back, x)


@LANES
@pytest.mark.parametrize("element", [f16, bf16], ids=repr)
@pytest.mark.parametrize("instructions", [True, False])
def test_rounding_of_f32_to_half(element, lanes, instructions):
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    ties = (np.arange(2048, dtype=np.uint32) * 0x1000) + np.uint32(
        0x3F800000
    )  # ties and neighbours of both formats
    x = aligned(
        np.concatenate([bits, ties, ties + np.uint32(1), ties - np.uint32(0x38800000)]).view(np.float32)
    )
    actual = run(lambda e, x: e.convert(x, element), [x], element, lanes, instructions)
    with np.errstate(all="ignore"):
        assert_same(actual, x.astype(element.numpy))


@LANES
@pytest.mark.parametrize("element", INTS, ids=repr)
@pytest.mark.parametrize(
    ("name", "reference"),
    [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("max", np.maximum), ("min", np.minimum),
     ("and_", np.bitwise_and), ("or_", np.bitwise_or), ("xor", np.bitwise_xor)],
)  # fmt: skip
def test_integer_binary(name, reference, element, lanes):
    x, y = values(element), values(element, 1)
    assert_same(run(lambda e, x, y: getattr(e, name)(x, y), [x, y], element, lanes), reference(x, y))


@LANES
@pytest.mark.parametrize("element", INTS, ids=repr)
def test_integer_division_never_traps(element, lanes):
    x, y = values(element), values(element, 1)
    info = np.iinfo(element.numpy)
    x[:4], y[:4] = [info.min, info.min, 5, 0], np.array([-1, 0, 0, 0]).astype(element.numpy)

    def quotient(a, b):
        return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)

    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    q = [quotient(a, b) for a, b in pairs]
    r = [a - quotient(a, b) * b for a, b in pairs]
    with np.errstate(over="ignore"):
        expected = [
            np.array(v, object).astype(np.int64, casting="unsafe") if element is not i64 else v
            for v in (q, r)
        ]
        wrapped = [
            np.array([int(n) % 2**element.bits for n in v], np.uint64)
            .astype(f"u{element.itemsize}")
            .view(element.numpy)
            for v in expected
        ]
    assert_same(run(lambda e, x, y: e.div(x, y), [x, y], element, lanes), wrapped[0])
    assert_same(run(lambda e, x, y: e.rem(x, y), [x, y], element, lanes), wrapped[1])


@pytest.mark.parametrize("divisor", [7, -3, 1, -1])
def test_division_by_a_constant(divisor):
    x = values(i32)
    actual = run(lambda e, x: e.div(x, e.constant(divisor, i32)), [x], i32)
    expected = [int(math.copysign(abs(v) // abs(divisor), v * divisor)) for v in x.tolist()]
    assert actual.tolist() == np.array(expected).astype(np.int32).tolist()


@LANES
@pytest.mark.parametrize("element", INTS, ids=repr)
def test_integer_powers(element, lanes):
    x, y = values(element), values(element, 1)
    y = aligned((y % np.array(7, element.numpy)).astype(element.numpy))
    expected = [pow(int(a), int(b), 2**element.bits) for a, b in zip(x, y, strict=True)]
    expected = np.array(expected, np.uint64).astype(f"u{element.itemsize}").view(element.numpy)
    assert_same(run(lambda e, x, y: e.pow(x, y), [x, y], element, lanes), expected)


def test_negative_integer_powers():
    x, y = (
        aligned(np.array([2, 1, -1, -1, 0, 5], np.int32)),
        aligned(np.array([-1, -5, -3, -4, -2, -1], np.int32)),
    )
    assert run(lambda e, x, y: e.pow(x, y), [x, y], i32).tolist() == [0, 1, -1, 1, 0, 0]


@LANES
@pytest.mark.parametrize("element", [*FLOATS, *INTS, i1], ids=repr)
@pytest.mark.parametrize(
    ("direction", "reference"),
    [("EQ", np.equal), ("NE", np.not_equal), ("LT", np.less), ("LE", np.less_equal), ("GT", np.greater),
     ("GE", np.greater_equal)],
)  # fmt: skip
def test_comparisons(direction, reference, element, lanes):
    x, y = values(element), values(element, 1)
    y[::3] = x[::3]
    assert_same(
        run(lambda e, x, y: e.compare(direction, x, y), [x, y], i1, lanes), np.asarray(reference(x, y), bool)
    )


@LANES
@pytest.mark.parametrize("target", [*FLOATS, *INTS, i1], ids=repr)
@pytest.mark.parametrize("source", [*FLOATS, *INTS, i1], ids=repr)
def test_every_conversion(source, target, lanes):
    x = values(source)
    if source.is_float and not target.is_float and not target.is_bool:
        low, high = (-128, 127) if target in (i8, i16, i32, i64) else (0, 127)
        with np.errstate(invalid="ignore"):
            x = aligned(np.nan_to_num(np.clip(x.astype(np.float32), low, high)).astype(source.numpy))
    if target is f32 or source is f64 or not target.is_float:
        middle = x
    else:
        middle = x if source.is_float else x.astype(np.float32) if target is not f64 else x
    with np.errstate(all="ignore"):
        if source is f64 and target in (f16, bf16):
            expected = x.astype(np.float32).astype(target.numpy)
        else:
            expected = middle.astype(target.numpy)
    assert_same(run(lambda e, x: e.convert(x, target), [x], target, lanes), expected)


def test_floats_out_of_range_become_the_nearest_integer():
    x = aligned(np.array([1e20, -1e20, np.nan, np.inf], np.float32))
    info = np.iinfo(np.int32)
    assert run(lambda e, x: e.convert(x, i32), [x], i32).tolist() == [info.max, info.min, 0, info.max]


@pytest.mark.parametrize("element", [i32, u32, u8, i64], ids=repr)
def test_shifts(element):
    x = values(element)
    counts = aligned((np.arange(200) % (element.bits + 8)).astype(element.numpy))
    inside = counts < element.bits
    safe = np.where(inside, counts, 0).astype(element.numpy)
    left = np.where(inside, np.left_shift(x, safe), 0).astype(element.numpy)
    assert_same(run(lambda e, x, y: e.shift_left(x, y), [x, counts], element), left)
    filled = np.where(inside, np.right_shift(x, safe), np.where(x < 0, -1, 0).astype(element.numpy))
    assert_same(run(lambda e, x, y: e.shift_right(x, y), [x, counts], element), filled.astype(element.numpy))
    unsigned = x.view(f"u{element.itemsize}")
    logical = np.where(inside, np.right_shift(unsigned, safe.view(unsigned.dtype)), 0).astype(unsigned.dtype)
    assert_same(
        run(lambda e, x, y: e.shift_right_logical(x, y), [x, counts], element), logical.view(element.numpy)
    )


def test_high_word_of_a_product():
    x, y = values(u32), values(u32, 1)
    expected = ((x.astype(np.uint64) * y.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
    assert_same(run(lambda e, x, y: e.mul_high(x, y), [x, y], u32), expected)


@pytest.mark.parametrize(
    ("source", "target"), [(f32, i32), (i32, f32), (f64, i64), (f16, i16), (i16, bf16), (bf16, i16)]
)
def test_bitcasts(source, target):
    x = values(source)
    if target is bf16:
        x = aligned(np.arange(200).astype(np.int16) * 100)
    if source.is_float:
        x = aligned(np.nan_to_num(x.astype(np.float32)).astype(source.numpy))
    actual = run(lambda e, x: e.bitcast(x, target), [x], target)
    np.testing.assert_array_equal(actual.view(np.uint8), x.view(np.uint8))


@LANES
@pytest.mark.parametrize("element", FLOATS, ids=repr)
@pytest.mark.parametrize("name", ["exp", "tanh", "log"])
def test_library_functions(name, element, lanes):
    x = values(element)
    actual = run(lambda e, x: e.math(name, x), [x], element, lanes)
    expected = wide(getattr(np, name), element)(x)
    tolerance = {f64: 1e-15, f32: 3e-7, f16: 1e-3, bf16: 8e-3}[element]
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=tolerance)


def test_a_library_function_is_made_once():
    b = new_builder()
    e = ElementBuilder(b)
    with b.function("f", [memref((4,), f32)], ["x"]) as f, b.for_(0, 4) as loop:
        x = e.load(f["x"], [loop.index])
        e.store(e.math("exp", e.math("exp", x)), f["x"], [loop.index])
    assert [f.definition.sym_name for f in b.functions] == ["math.exp.f32", "f"]


def test_an_unknown_function_is_an_error():
    b = new_builder()
    e = ElementBuilder(b)
    with pytest.raises(KeyError, match="no function expo"), b.function("f", [memref((4,), f32)], ["x"]) as f:
        e.math("expo", e.load(f["x"], [0]))


@LANES
def test_guards_keep_loads_inside(lanes):
    """A pad: positions outside the source are not read."""
    b = new_builder()
    e = ElementBuilder(b)
    with b.function("pad", [memref((10,), f32), memref((16,), f32)], ["x", "y"]) as f:

        def element(position):
            inside = e.in_bounds(position - 3, 0, 10)
            return e.guarded(inside, lambda: e.load(f["x"], [position - 3]), e.constant(-1, f32))

        with b.for_(0, 16, max(1, lanes)) as loop:
            if lanes:
                with b.lanes_of(lanes) as lane:
                    e.store(element(loop.index + lane), f["y"], [loop.index + lane])
            else:
                e.store(element(loop.index), f["y"], [loop.index])
    x, y = aligned(np.arange(10, dtype=np.float32)), aligned(np.zeros(16, np.float32))
    compiled(b, "pad")(x, y)
    np.testing.assert_array_equal(y, np.pad(x, (3, 3), constant_values=-1))


@LANES
def test_gathers_through_index_scalars(lanes):
    b = new_builder()
    e = ElementBuilder(b)
    with b.function(
        "take", [memref((10, 3), f32), memref((16,), i32), memref((16, 3), f32)], ["x", "i", "y"]
    ) as f:
        for column in range(3):
            with b.for_(0, 16, max(1, lanes)) as loop:

                def emit(at, column=column):
                    row = e.clamped_index(e.load(f["i"], [at]), 0, 9)
                    e.store(e.load(f["x"], [row, column]), f["y"], [at, column])

                if lanes:
                    with b.lanes_of(lanes) as lane:
                        emit(loop.index + lane)
                else:
                    emit(loop.index)
    x, y = aligned(np.arange(30, dtype=np.float32).reshape(10, 3)), aligned(np.zeros((16, 3), np.float32))
    i = aligned(np.random.default_rng(0).integers(-5, 15, 16).astype(np.int32))
    compiled(b, "take")(x, i, y)
    np.testing.assert_array_equal(y, x[np.clip(i, 0, 9)])


@LANES
def test_loops_carry_scalars(lanes):
    """x ** 5 + i summed over i < 4, for each x."""
    x = values(i64)

    def emit(e, x):
        def step(i, total, power):
            return e.add(total, e.index_to_scalar(i, i64)), e.mul(power, x)

        total, power = e.loop(4, (e.constant(0, i64), x), step)
        return e.add(total, power)

    assert_same(run(emit, [x], i64, lanes), x * x * x * x * x + 6)


def test_mixed_element_types_are_an_error():
    b = new_builder()
    e = ElementBuilder(b)
    with b.function("f", []), pytest.raises(TypeError, match="add takes scalars of the same element type"):
        e.add(e.constant(1, f32), e.constant(1, i32))


def test_constants_wrap_and_round():
    out = run(lambda e, x: e.convert(e.constant(300, u8), i32), [values(i32)], i32)
    assert (out == 44).all()
    out = run(lambda e, x: e.convert(e.constant(0.1, f16), f64), [values(f64)], f64)
    assert (out == float(np.float16(0.1))).all()
