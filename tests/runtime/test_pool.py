"""The native thread pool: every index once, whoever comes late, and no way to make it hang."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from flambeau.runtime import abi, threads
from flambeau.runtime.engine import LoadedModule
from tests.runtime.native import BODIES, load


@pytest.fixture(scope="module")
def code() -> LoadedModule:
    return load(BODIES)


@pytest.fixture(params=[1, 2, 3, 7])
def pool(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """(address, threads), also with more threads than CPUs."""
    address = threads.create_pool(request.param)
    yield address, request.param
    threads.destroy_pool(address)


class Job:
    """Arrays that the bodies write, and the context that points at them."""

    def __init__(self, code: LoadedModule, size: int, pool: int = 0) -> None:
        self.code, self.pool = code, pool
        self.workers = np.full(size, -1, np.int64)
        self.visits = np.zeros(size, np.int64)
        self.values = np.zeros(1, np.float32)
        a, b, c = (array.ctypes.data for array in (self.workers, self.visits, self.values))
        self.ctx = (ctypes.c_uint64 * 4)(a, b, pool, c)

    def run(self, name: str, n: int, *more: int) -> None:
        types = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_int64] * len(more)]
        function = ctypes.CFUNCTYPE(None, *types)(self.code.address(name))
        function(self.pool, ctypes.addressof(self.ctx), n, *more)

    def by_threads(self, count: int) -> bool:
        """Did the pool's threads, and nobody else, run every index?"""
        return bool(np.isin(self.workers, np.arange(count)).all())


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 8, 100, 127, 128, 129, 1001, 100_003])
def test_every_index_once(code: LoadedModule, pool: tuple[int, int], n: int) -> None:
    address, count = pool
    job = Job(code, n + 2, address)
    for times in range(1, 6):  # the first finds the workers asleep
        job.run("run_mark", n)
        assert (job.visits[:n] == times).all() and job.visits[n:].tolist() == [0, 0]
    assert np.isin(job.workers[:n], np.arange(count)).all()


def test_what_a_slow_thread_has_not_begun_is_done_by_others(code: LoadedModule) -> None:
    """Index 2 ends when all others have: also those of the share that it is in."""
    address = threads.create_pool(2)
    try:
        for _ in range(50):
            job = Job(code, 5, address)
            job.run("run_gather", 5)
            assert job.visits.tolist() == [1] * 5 and job.values[0] == 1
    finally:
        threads.destroy_pool(address)


@pytest.mark.skipif(threads.available_cpus() < 2 or sys.platform != "linux", reason="needs two CPUs of Linux")
def test_workers_leave_the_caller_its_cpu(code: LoadedModule) -> None:
    """Wherever the caller is, no worker shares that CPU; and a caller that moves has it for itself again."""
    address = threads.create_pool(3)
    before = os.sched_getaffinity(0)
    try:
        for cpu in sorted(before)[:2] * 3:
            os.sched_setaffinity(0, {cpu})
            job = Job(code, 300, address)
            for _ in range(3):
                job.run("run_where", 300)
                places = {(int(w) & 0xFFFF, int(w) >> 16) for w in job.workers}
                assert all((worker == 0) == (where == cpu) for worker, where in places)
            time.sleep(0.002)
    finally:
        os.sched_setaffinity(0, before)
        threads.destroy_pool(address)


@pytest.mark.parametrize("n", [0, -5])
def test_empty_range_calls_nothing(code: LoadedModule, pool: tuple[int, int], n: int) -> None:
    job = Job(code, 4, pool[0])
    job.run("run_mark", n)
    assert job.visits.sum() == 0


def test_null_pool_is_one_chunk(code: LoadedModule) -> None:
    job = Job(code, 10, 0)
    job.run("run_mark", 10)
    assert job.workers.tolist() == [0] * 10


def test_one_thread_makes_no_pool() -> None:
    assert threads.create_pool(1) == 0
    assert threads.create_pool(-3) == 0
    threads.destroy_pool(0)


def test_pool_reports_its_threads(pool: tuple[int, int]) -> None:
    address, count = pool
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(threads.native_symbols()[abi.POOL_THREADS])
    assert function(address) == count


def test_nested_loops_run_inside_their_worker(code: LoadedModule, pool: tuple[int, int]) -> None:
    address, count = pool
    job = Job(code, 8 * 9, address)
    job.run("run_nest", 9)
    assert job.visits.tolist() == [1] * 72
    # The inner loop finds the pool busy, or is called where there is none: it stays on its caller's thread.
    assert job.by_threads(count)


def test_two_callers_at_once(code: LoadedModule, pool: tuple[int, int]) -> None:
    """Whoever finds the pool busy runs its own chunks; neither waits for the other, and nothing is lost."""
    address, count = pool
    jobs = [Job(code, 16, address) for _ in range(3)]
    callers = [threading.Thread(target=job.run, args=("repeat_mark", 16, 4_000)) for job in jobs]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    for job in jobs:
        assert job.visits.tolist() == [4_000] * 16
        assert job.by_threads(count)


def test_wakes_after_sleep(code: LoadedModule, pool: tuple[int, int]) -> None:
    job = Job(code, 16, pool[0])
    for _ in range(20):
        time.sleep(0.002)  # well beyond the time that a worker spins
        job.run("run_mark", 16)
    assert job.visits.tolist() == [20] * 16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_runs_on_its_own_thread(code: LoadedModule) -> None:
    address = threads.create_pool(4)
    job = Job(code, 10, address)
    job.run("run_mark", 10)
    child = os.fork()
    if child == 0:  # the parent's workers do not exist here
        job.run("run_mark", 10)
        good = job.visits.tolist() == [2] * 10 and job.workers.tolist() == [0] * 10
        threads.destroy_pool(address)
        own = Job(code, 10, threads.default_pool())
        own.run("run_mark", 10)
        os._exit(0 if good and own.visits.tolist() == [1] * 10 else 1)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    job.run("run_mark", 10)
    assert job.visits.tolist() == [2] * 10
    threads.destroy_pool(address)


def _threads_of_process() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_destroyed_pools_leave_no_thread(code: LoadedModule) -> None:
    before = _threads_of_process()
    for _ in range(20):
        address = threads.create_pool(3)
        assert _threads_of_process() == before + 2
        Job(code, 8, address).run("run_mark", 8)
        threads.destroy_pool(address)
    assert _threads_of_process() == before


def test_number_of_threads() -> None:
    before = threads.num_threads()
    try:
        threads.set_num_threads(1)
        assert threads.num_threads() == 1 and threads.default_pool() == 0
        threads.set_num_threads(3)
        three = threads.default_pool()
        assert three != 0 and threads.default_pool() == three
        threads.set_num_threads(2)
        assert threads.default_pool() not in (0, three)
        threads.set_num_threads(3)
        assert threads.default_pool() == three
        for wrong in (0, -1, abi.MAX_THREADS + 1, 2.5):
            with pytest.raises(ValueError, match="from 1 to"):
                threads.set_num_threads(wrong)  # type: ignore[arg-type]
    finally:
        threads.set_num_threads(before)


def test_exit_with_live_workers_is_clean() -> None:
    """Interpreter shutdown must not free code that sleeping or spinning workers stand in."""
    program = (
        "from flambeau.runtime import threads; threads.set_num_threads(4); assert threads.default_pool()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("triple", "threaded"),
    [
        ("x86_64-unknown-linux-gnu", True),
        ("aarch64-unknown-linux-gnu", True),
        ("arm64-apple-macosx11.0", True),
        ("riscv64-unknown-linux-gnu", True),
        ("x86_64-pc-windows-gnu", False),
        ("wasm32-unknown-unknown", False),
        ("armv7-unknown-linux-gnueabihf", False),
    ],
)
def test_pool_compiles_for_every_target(triple: str, threaded: bool) -> None:
    from flambeau.compiler.targets.machine import cross_target, emit_object

    assert abi.has_threads(triple) is threaded
    code = emit_object(abi.pool_ir(triple, abi.WEAK), cross_target(triple))
    assert (b"pthread_create" in code) is threaded
    for name in abi.NATIVE_FUNCTIONS:
        assert name.encode() in code


def test_fork_join_latency(code: LoadedModule, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged: it depends on what else the machine does."""
    address = threads.create_pool(2)
    job = Job(code, 2, address)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        job.run("repeat_mark", 2, 1000)
        best = min(best, (time.perf_counter() - start) / 1000)
    threads.destroy_pool(address)
    assert job.visits.tolist() == [20_000] * 2
    with capsys.disabled():
        print(f"\nfork and join, 2 threads, hot: {best * 1e6:.2f} us")
