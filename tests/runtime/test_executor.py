"""Calling compiled entries."""

from __future__ import annotations

import struct
import threading
import time

import numpy as np
import pytest

from flambeau.runtime import threads
from flambeau.runtime.abi import Status
from flambeau.runtime.buffer import Allocator, as_numpy, from_numpy
from flambeau.runtime.executor import ExecutionError, Executor
from tests.runtime.native import load

# out[i] = a[i] + b[i] for i < dims[0], through the arena (the sums are stored there first); BAD_SHAPE if
# dims[0] > 1000. info = { arena, pool } as integers, the second output.
ENTRY = """
define i32 @entry(ptr %args, ptr %dims, ptr %arena, ptr %pool) {
entry:
  %a = load ptr, ptr %args
  %b.p = getelementptr ptr, ptr %args, i64 1
  %b = load ptr, ptr %b.p
  %o.p = getelementptr ptr, ptr %args, i64 2
  %o = load ptr, ptr %o.p
  %info.p = getelementptr ptr, ptr %args, i64 3
  %info = load ptr, ptr %info.p
  %n = load i64, ptr %dims
  %bad = icmp ugt i64 %n, 1000
  br i1 %bad, label %fail, label %start
start:
  store ptr %arena, ptr %info
  %info.1 = getelementptr ptr, ptr %info, i64 1
  store ptr %pool, ptr %info.1
  br label %first
first:
  %i = phi i64 [ 0, %start ], [ %i.next, %first ]
  %pa = getelementptr float, ptr %a, i64 %i
  %pb = getelementptr float, ptr %b, i64 %i
  %pt = getelementptr float, ptr %arena, i64 %i
  %x = load float, ptr %pa
  %y = load float, ptr %pb
  %z = fadd float %x, %y
  store float %z, ptr %pt
  %i.next = add i64 %i, 1
  %i.more = icmp ult i64 %i.next, %n
  br i1 %i.more, label %first, label %second
second:
  %j = phi i64 [ 0, %first ], [ %j.next, %second ]
  %qt = getelementptr float, ptr %arena, i64 %j
  %qo = getelementptr float, ptr %o, i64 %j
  %w = load volatile float, ptr %qt
  store float %w, ptr %qo
  %j.next = add i64 %j, 1
  %j.more = icmp ult i64 %j.next, %n
  br i1 %j.more, label %second, label %exit
exit:
  ret i32 0
fail:
  ret i32 2
}
"""


@pytest.fixture(scope="module")
def address() -> int:
    module = load(ENTRY)
    _keep.append(module)
    return module.address("entry")


_keep: list[object] = []


def _inputs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal(n).astype(np.float32), generator.standard_normal(n).astype(np.float32)


@pytest.mark.parametrize(
    "arena", [4000, 1 << 20, lambda dims: 4 * dims[0]], ids=["kept", "shared", "dynamic"]
)
def test_run_allocates_outputs_and_arena(address: int, arena: object) -> None:
    own = Allocator()
    run = Executor(address, 2, lambda dims: [4 * dims[0], 16], arena, n_dims=1, n_outputs=2, allocator=own)  # type: ignore[arg-type]
    for n in (1, 17, 1000):
        a, b = _inputs(n, n)
        out, info = run.run([from_numpy(a).ptr, from_numpy(b).ptr], [n])
        np.testing.assert_array_equal(as_numpy(out, np.float32, (n,)), a + b)
        arena_address, pool = as_numpy(info, np.int64, (2,)).tolist()
        assert arena_address % 64 == 0 and arena_address != 0
        assert pool == threads.default_pool()
    del out, info
    assert own.stats().live_bytes == (4096 if arena == 4000 else 0)  # a small arena stays with its executor


def test_static_sizes_and_no_arena() -> None:
    module = load(
        "define i32 @entry(ptr %args, ptr %dims, ptr %arena, ptr %pool) {\n  %o = load ptr, ptr %args\n"
        "  store ptr %arena, ptr %o\n  ret i32 0\n}"
    )
    (out,) = Executor(module.address("entry"), 0, [8], keep=module).run([])
    assert as_numpy(out, np.int64, (1,)).tolist() == [0]


def test_serial_entry_gets_no_pool(address: int) -> None:
    run = Executor(address, 2, [4, 16], 64, n_dims=1, parallel=False)
    a, b = _inputs(1, 0)
    _, info = run.run([a.ctypes.data, b.ctypes.data], [1])
    assert as_numpy(info, np.int64, (2,))[1] == 0


def test_status_becomes_an_error(address: int) -> None:
    run = Executor(address, 2, [4, 16], 64, n_dims=1, name="sum")
    a = np.zeros(4, np.float32)
    pointers = [a.ctypes.data] * 2
    assert run(pointers, [1001], pointers) == Status.BAD_SHAPE
    with pytest.raises(ExecutionError, match=r"sum: a dimension breaks a constraint") as caught:
        run.run(pointers, [1001])
    assert caught.value.status == Status.BAD_SHAPE
    with pytest.raises(ExecutionError, match="unknown status 77"):
        run.check(77)
    run.check(0)


def test_wrong_counts_are_refused(address: int) -> None:
    run = Executor(address, 2, [4, 16], 64, n_dims=1)
    with pytest.raises(struct.error):
        run([1], [1], [2, 3])
    with pytest.raises(struct.error):
        run([1, 2], [], [3, 4])
    with pytest.raises(ValueError, match="n_outputs"):
        Executor(address, 2, lambda dims: [4], 64)


@pytest.mark.parametrize("arena", [4000, 1 << 20])
def test_threads_do_not_share_arguments_or_arenas(address: int, arena: int) -> None:
    run = Executor(address, 2, [4000, 16], arena, n_dims=1)
    wrong: list[int] = []

    def work(seed: int) -> None:
        a, b = _inputs(1000, seed)
        for _ in range(300):
            out, _ = run.run([a.ctypes.data, b.ctypes.data], [1000])
            if not np.array_equal(as_numpy(out, np.float32, (1000,)), a + b):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_call_cost(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not judged."""
    module = load("define i32 @entry(ptr %a, ptr %d, ptr %s, ptr %p) {\n  ret i32 0\n}")
    run = Executor(module.address("entry"), 2, [8], 64, n_dims=1, keep=module)
    inputs, dims, outputs = [1, 2], [3], [4]
    start = time.perf_counter()
    for _ in range(20_000):
        assert run(inputs, dims, outputs) == 0
    cost = (time.perf_counter() - start) / 20_000
    with capsys.disabled():
        print(f"\nexecutor call, 3 pointers and 1 dimension: {cost * 1e6:.2f} us")
