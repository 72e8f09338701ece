"""Every library function through real code: no libm on any architecture, and lanes agree with single elements."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.types import element_type, memref
from flambeau.compiler.lowering.elements import ElementBuilder
from flambeau.compiler.lowering.mathlib import FUNCTIONS
from flambeau.compiler.targets.cpu import emit_ir, has_avx512, has_fma
from flambeau.compiler.targets.machine import cross_target, emit_assembly, emit_object, host_target
from flambeau.runtime.engine import default_engine
from tests.loops.jit import aligned, compiled, new_builder
from tests.lowering.mathlib_reference import AVX512
from tests.lowering.numpy_builder import NumpyBuilder

TWO_OPERANDS = {"atan2", "pow", "hypot"}


def emit(b, name, element, lanes):
    """A kernel that applies the function to 64 elements."""
    e = ElementBuilder(b)
    with (
        b.function("f", [memref((64,), element)] * 3, ["x", "y", "z"]) as f,
        b.for_(0, 64, max(lanes, 1)) as loop,
    ):

        def one(at):
            operands = [e.load(f[n], at) for n in ("xy" if name in TWO_OPERANDS else "x")]
            e.store(e.math(name, *operands), f["z"], at)

        if not lanes:
            one([loop.index])
            return
        with b.lanes_of(lanes) as lane:
            one([loop.index + lane])


@pytest.mark.parametrize(("name", "kind"), FUNCTIONS, ids=str)
def test_lanes_give_the_same_bits(name, kind):
    element = element_type(kind)
    x = np.random.default_rng(0).standard_normal(64) * 3
    x[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0]
    x, y = aligned(x.astype(element.numpy)), aligned(x[::-1].astype(element.numpy))
    results = []
    for lanes in (0, 8, 16, 32):
        b = new_builder()
        emit(b, name, element, lanes)
        z = aligned(np.zeros(64, element.numpy))
        compiled(b, "f", 2)(x, y, z)
        results.append(z)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
    assert np.isfinite(results[0]).any()


@pytest.mark.skipif(not has_avx512(host_target()), reason="instructions of AVX-512")
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in AVX512 for k in ("f32", "f64")], ids=str)
def test_avx512_instructions_do_what_the_builders_of_the_tests_say(name, kind):
    element = element_type(kind)
    x = np.random.default_rng(0).standard_normal(64) * 40
    x[:9] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -100.0, -103.9, 88.7]
    x = aligned(x.astype(element.numpy))
    b = new_builder()
    emit(b, name, element, 16)
    z = aligned(np.zeros(64, element.numpy))
    compiled(b, "f", 2)(x, x, z)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(z, FUNCTIONS[name, kind](NumpyBuilder(avx512=True), x))


@pytest.mark.parametrize("triple", ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"])
def test_no_function_calls_libm(triple):
    target = cross_target(triple)
    for name, kind in FUNCTIONS:
        b = LoopBuilder(fma=has_fma(target))
        emit(b, name, element_type(kind), 0)
        assembly = emit_assembly(emit_ir(b.functions, target), target, 1)
        calls = [
            line.split()[-1] for line in assembly.splitlines() if line.split()[:1] in (["callq"], ["bl"])
        ]
        assert calls == [], (name, kind)


@pytest.mark.parametrize("lanes", [0, 8])
@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("floor", np.floor), ("ceil", np.ceil), ("trunc", np.trunc), ("round_even", np.rint)],
)
def test_rounding_without_instructions(name, reference, kind, lanes):
    """The code for the base line of x86-64, which runs on every x86-64."""
    target = cross_target("x86_64-unknown-linux-gnu")
    if not host_target().triple.startswith("x86_64"):
        pytest.skip("runs x86 code")
    element = element_type(kind)
    x = np.random.default_rng(0).standard_normal(64) * 10 ** np.linspace(-1, 20, 64)
    special = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        -1.5,
        2.5,
        -0.3,
        0.7,
        -0.7,
        np.inf,
        -np.inf,
        np.nan,
        2**23 - 0.5,
        2**52 - 0.5,
    ]
    x[: len(special)] = special
    x = aligned(x.astype(element.numpy))
    b = LoopBuilder(fma=False)
    emit(b, name, element, lanes)
    text = emit_ir(b.functions, target)
    assert f"llvm.{name.replace('_', '')}" not in text
    z = aligned(np.zeros(64, element.numpy))
    loaded = default_engine().add_object(emit_object(text, target), exports=["f"])
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(loaded.address("f"))
    function(x.ctypes.data, x.ctypes.data, z.ctypes.data)
    np.testing.assert_array_equal(z, reference(x))
    whole = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(z)[whole], np.signbit(reference(x))[whole])
