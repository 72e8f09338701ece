"""Compiled code and threads: several callers at once, forks, changing numbers of threads, and the same bits always."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import flambeau as fb
from flambeau.runtime import threads

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = threads.num_threads()
    fb.set_num_threads(2)
    yield
    fb.set_num_threads(before)


def network(x: fb.Tensor, w: fb.Tensor) -> fb.Tensor:
    """Products, row and column reductions and elementwise work, each enough for several threads."""
    h = fb.nn.functional.softmax(x @ w, -1)
    return (h * x).sum(0) + fb.nn.functional.gelu(h @ w.T).mean(0) + h.amax(0)


def arguments(seed: int, size: int = 384) -> tuple[fb.Tensor, fb.Tensor]:
    rng = np.random.default_rng(seed)
    return tuple(fb.from_numpy(rng.standard_normal((size, size)).astype(np.float32)) for _ in range(2))  # type: ignore[return-value]


def together(count: int, work: Callable[[int], object]) -> None:
    """Run `work(i)` on `count` threads that begin at once; what one raises is raised here."""
    begin, errors = threading.Barrier(count), list[BaseException]()

    def run(number: int) -> None:
        try:
            begin.wait(60)
            work(number)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive()
    if errors:
        raise errors[0]


def test_bits_do_not_depend_on_threads() -> None:
    x, w = arguments(0)
    compiled = fb.compile(network)
    found = set()
    for count in (1, 2, 3, 4, 1):
        fb.set_num_threads(count)
        for _ in range(3):
            found.add(compiled(x, w).numpy().tobytes())
    assert len(found) == 1


def test_several_threads_call_one_function() -> None:
    """One has the pool, the others run their loops themselves; nobody waits, and nobody sees another's result."""
    compiled = fb.compile(network)
    given = [arguments(seed) for seed in range(4)]
    expected = [compiled(*g).numpy().tobytes() for g in given]

    def calls(number: int) -> None:
        for _ in range(30):
            assert compiled(*given[number]).numpy().tobytes() == expected[number]

    together(4, calls)


def test_several_threads_evaluate_and_differentiate() -> None:
    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        x = fb.from_numpy(rng.standard_normal((64, 48)).astype(np.float32)).requires_grad_()
        for step in range(10):
            x.grad = None
            (x * x * (step + 1)).sum().backward()
            assert x.grad is not None
            assert np.array_equal(x.grad.numpy(), x.detach().numpy() * 2 * (step + 1))

    together(3, work)


def test_number_of_threads_changes_under_way() -> None:
    compiled = fb.compile(network)
    x, w = arguments(1)
    expected = compiled(x, w).numpy().tobytes()
    stop = threading.Event()

    def change(number: int) -> None:
        if number:
            for _ in range(60):
                assert compiled(x, w).numpy().tobytes() == expected
            stop.set()
            return
        while not stop.is_set():
            for count in (1, 2, 3):
                fb.set_num_threads(count)
                time.sleep(0.001)

    together(2, change)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_has_a_pool_of_its_own() -> None:
    """As a data loader's process has: the parent's code is there, its threads are not."""
    compiled = fb.compile(network)
    x, w = arguments(2)
    expected = compiled(x, w).numpy().tobytes()
    assert threads.default_pool()
    child = os.fork()
    if child == 0:
        good = compiled(x, w).numpy().tobytes() == expected  # starts the child's threads
        good &= not os.path.isdir("/proc/self/task") or len(os.listdir("/proc/self/task")) == 2
        good &= fb.compile(lambda a: (a * 3).sum())(x).item() == (x * 3).sum().item()  # and compiles
        os._exit(0 if good else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert compiled(x, w).numpy().tobytes() == expected


def test_exit_while_a_thread_computes() -> None:
    program = """
import threading, time, flambeau as fb
fb.set_num_threads(2)
x = fb.ones(512, 512)
f = fb.compile(lambda x: x @ x)
f(x)
def forever():
    while True:
        f(x)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
