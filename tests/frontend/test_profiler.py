"""The profile: kernels are counted, named, and give the same results."""

import os
import subprocess
import sys

import pytest

import flambeau as fb
from flambeau import profiler

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the C library there has no clock_gettime")


def compiled_product():
    @fb.compile
    def f(x, w):
        return (x @ w).relu().sum(0)

    return f


def test_counts_runs_and_work():
    x, w = fb.randn(24, 40), fb.randn(40, 56)
    f = compiled_product()
    with profiler.profile():
        first = f(x, w)
        first.sum().item()
    expected = (x.numpy() @ w.numpy()).clip(0).sum(0)
    assert abs(first.numpy() - expected).max() < 1e-4
    profiler.reset()
    for _ in range(3):
        f(x, w).numpy()
    (product,) = [t for t in profiler.times() if t.family == "contraction" and "24x40" in t.shapes]
    assert product.runs == 3
    assert product.seconds > 0
    assert product.work == 2 * 24 * 40 * 56
    assert "dot_general" in profiler.table()
    profiler.reset()
    assert not [t for t in profiler.times() if "24x40" in t.shapes]


@pytest.mark.parametrize("size", [9, 40])
def test_convolutions_count_the_products_of_a_direct_one(size: int):
    """In blocks or from tiles (Winograd)."""
    x, w = fb.randn(1, 24, size, size), fb.randn(40, 24, 3, 3)
    f = fb.compile(lambda x, w: fb.nn.functional.conv2d(x, w, padding=1))
    with profiler.profile():
        f(x, w).numpy()
    found = [
        t for t in profiler.times() if f"1x24x{size}x{size}" in t.shapes and "convolution" in t.operations
    ]
    assert [t.work for t in found] == [2 * 9 * 24 * 40 * size * size]


def test_without_the_option_nothing_is_counted():
    x, w = fb.randn(23, 41), fb.randn(41, 57)
    compiled_product()(x, w).numpy()
    assert not [t for t in profiler.times() if "23x41" in t.shapes]


def test_the_environment_prints_a_table_at_the_end():
    program = "import flambeau as fb; print((fb.randn(8, 8) @ fb.randn(8, 8)).sum().item())"
    environment = {**os.environ, "FLAMBEAU_PROFILE": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "dot_general" in run.stderr and "ms in all" in run.stderr
