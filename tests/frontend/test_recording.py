"""What a repeated program costs and what it must not change: walks, kept derivatives, values without operations."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch

import flambeau as fb
from flambeau import evaluation, planning, tape
from flambeau.autograd import derivative
from flambeau.compiler.dialects.graph.shape import Reshape
from flambeau.recent import Recent
from flambeau.runtime import caller, executor


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often graphs were looked at: structures computed, derivatives made."""
    counts = {"structure": 0, "reverse": 0}
    structure, reverse = planning.structure, derivative.reverse

    def counting_structure(wanted: Any) -> Any:
        counts["structure"] += 1
        return structure(wanted)

    def counting_reverse(*arguments: Any) -> Any:
        counts["reverse"] += 1
        return reverse(*arguments)

    monkeypatch.setattr(planning, "structure", counting_structure)
    monkeypatch.setattr(derivative, "reverse", counting_reverse)
    return counts


def test_a_repeated_program_is_not_looked_at_again(counted: dict[str, int]) -> None:
    found = []
    for i in range(4):
        x = fb.tensor([1.0 + i, 2.0], requires_grad=True)
        y = (x * 1.5 + x**2).sum()
        y.backward()
        found.append((y.item(), x.grad.tolist()))
        if i == 0:
            before = dict(counted)
    assert counted == before
    for i, (y, grad) in enumerate(found):
        a, b = 1.0 + i, 2.0
        assert y == pytest.approx(a * 1.5 + a * a + b * 1.5 + b * b)
        assert grad == pytest.approx([1.5 + 2 * a, 1.5 + 2 * b])


def test_another_program_is_another_one() -> None:
    """Programs that differ in one operand, one flag, one number, or in what is wanted of them."""
    for _ in range(3):
        x, y = fb.tensor([1.0, 2.0]), fb.tensor([10.0, 20.0])
        assert (x * y - x).tolist() == [9, 38]
        x, y = fb.tensor([1.0, 2.0]), fb.tensor([10.0, 20.0])
        assert (x * y - y).tolist() == [0, 20]
        x, y = fb.tensor([1.0, 2.0]), fb.tensor([10.0, 20.0])
        assert (x * x - y).tolist() == [-9, -16]
        assert (x * 3.0 - 2.0).tolist() == [1, 4]
        assert (x * 4.0 - 3.0).tolist() == [1, 5]
        assert (3.0 - x * 2.0).tolist() == [1, -1]
        a = x + y
        b = a * 2.0
        assert (a.tolist(), b.tolist()) == ([11, 22], [22, 44])
        a = x + y
        b = a * 2.0
        del a
        assert b.tolist() == [22, 44]


@pytest.mark.parametrize("first", [True, False])
def test_gradients_after_a_look_at_the_loss(first: bool) -> None:
    for i in range(3):
        x = fb.tensor([1.0 + i, 2.0], requires_grad=True)
        hidden = x * x
        loss = (hidden * hidden).sum()
        if first:
            assert loss.item() == pytest.approx((1.0 + i) ** 4 + 16)
        loss.backward()
        assert x.grad.tolist() == pytest.approx([4 * (1.0 + i) ** 3, 32])


def test_hooks_and_retained_gradients_see_the_second_pass_too() -> None:
    for m in (fb, torch):
        for i in range(4):
            seen: list[Any] = []
            x = m.tensor([1.0, 2.0], requires_grad=True)
            hidden = x * 3.0
            if i == 2:
                hidden.register_hook(lambda g: g * 10)
            if i == 3:
                hidden.retain_grad()
                x.register_hook(lambda g, seen=seen: seen.append(g.tolist()))
                x.register_post_accumulate_grad_hook(lambda t, seen=seen: seen.append(t.grad.tolist()))
            (hidden * hidden).sum().backward()
            scale = 10 if i == 2 else 1
            assert x.grad.tolist() == [18 * scale, 36 * scale]
            if i == 3:
                assert hidden.grad.tolist() == [6, 12] and seen == [[18, 36], [18, 36]]


def test_a_graph_is_freed_by_its_backward_each_time() -> None:
    for m in (fb, torch):
        for i in range(3):
            x = m.tensor([1.0, 2.0], requires_grad=True)
            y = (x * x).exp().sum()
            y.backward(retain_graph=i == 1)
            if i == 1:
                y.backward()
                assert x.grad[0].item() == pytest.approx(4 * math.e)
            with pytest.raises(RuntimeError, match="second time"):
                y.backward()


def test_gradients_add_up_and_belong_to_who_has_them() -> None:
    for m in (fb, torch):
        x = m.tensor([1.0, 2.0], requires_grad=True)
        kept = []
        for i in range(3):
            (x * x * float(i + 2)).sum().backward()
            kept.append(x.grad.clone().tolist())
        assert kept == [[4, 8], [10, 20], [18, 36]]
        w = m.tensor(3.0, requires_grad=True)
        for _ in range(3):
            w.grad = None
            (w * 1.5).backward()  # the gradient is the number itself
            assert w.grad.item() == 1.5
            (w + 2.5).backward()
            assert w.grad.item() == 2.5


def test_history_from_before_the_last_evaluation() -> None:
    for m in (fb, torch):
        for _ in range(3):
            x = m.tensor([1.0, 2.0], requires_grad=True)
            hidden = x * x
            hidden.detach().numpy()
            (hidden * hidden * 0.5).sum().backward()
            assert x.grad.tolist() == [2, 16]


def test_writes_in_place_in_a_repeated_program() -> None:
    for m in (fb, torch):
        w = m.tensor([1.0, 2.0], requires_grad=True)
        for _ in range(4):
            a = w * 2.0
            a[0] = 5.0
            a.mul_(w)
            with m.no_grad():
                a.add_(1.0)
            a.sum().backward()
            with m.no_grad():
                w -= w.grad * 0.1
            w.grad = None
        assert w.requires_grad and w.is_leaf
        result = w.detach().tolist()
        if m is fb:
            ours = result
    assert ours == pytest.approx(result)


NUMBERS = [2, -3, 0, 1, True, 0.5, -0.0, 1.0, math.inf, -math.inf, math.nan, 1e30, 10**40, 7.25e-40]


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
def test_numbers_beside_tensors(dtype: str) -> None:
    for number in NUMBERS:
        for name in (
            "__add__",
            "__radd__",
            "__sub__",
            "__rsub__",
            "__mul__",
            "__rmul__",
            "__truediv__",
            "__rtruediv__",
        ):
            results = []
            for m in (fb, torch):
                x = m.tensor([[0, 1], [2, 3]]).to(getattr(m, dtype))
                try:
                    y = getattr(x, name)(number)
                    results.append((str(y.dtype).rpartition(".")[2], y.numpy()))
                except (RuntimeError, TypeError, OverflowError) as error:
                    results.append((type(error).__mro__[-3], None))
            (ours, a), (theirs, b) = results
            if b is None or (isinstance(number, int) and abs(number) > 2**63):
                continue
            if dtype == "float16" and number in (1e30, 10**40, 7.25e-40):  # PyTorch's numbers stay wide
                continue
            assert ours == theirs, (name, number)
            np.testing.assert_array_equal(a, b, err_msg=f"{name} {number}")
            if a.dtype.kind == "f":
                np.testing.assert_array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


def test_numbers_beside_scalars_parameters_and_subclasses() -> None:
    p = fb.nn.Parameter(fb.tensor(2.0))
    assert type(p * 3.0) is fb.Tensor and (p * 3.0).item() == 6 and (3.0 - p).item() == 1
    (p * 3.0 + p).backward()
    assert p.grad.item() == 4
    assert (fb.tensor([1.0]) + np.float64(2)).dtype == fb.float32


def test_recorded_values_go_with_the_last_reference() -> None:
    gc.collect()
    gc.disable()
    try:
        x = fb.ones(3)
        fb.sync()
        for _ in range(2):  # compiling makes operations, once
            y = x * 2.0
            z = y + x
            value = weakref.ref(y._cell.value)
            del y
            assert value() is not None
            assert z.tolist() == [3, 3, 3]
        assert value() is None
        for _ in range(2):
            w = fb.ones(3, requires_grad=True)
            loss = (w * w).sum()
            values = [weakref.ref(v) for v in (loss._cell.value, *loss._cell.value.sources)]
            loss.backward()
            assert w.grad.tolist() == [2, 2, 2]
            del loss
        assert all(v() is None for v in values)
    finally:
        gc.enable()


def test_an_operation_knows_its_place() -> None:
    x = fb.tensor([1.0, 2.0] * 31)
    y = x * 2.0 - x
    owner = y._cell.value.owner
    assert owner is not None and owner.location is not None and owner.location.file == __file__
    assert owner.operands[0].owner.location.line == owner.location.line
    assert owner.results == (y._cell.value,)
    with pytest.raises(RuntimeError, match=r"test_recording\.py"):
        evaluation.record(Reshape((3,)), y._cell.value)
    assert y.tolist() == [1, 2] * 31
    again = (x * 2.0 - x)._cell.value.owner  # the same program: its place is known
    assert again is not None and again.location == owner.location


def test_threads_share_tensors_and_keep_their_walks_apart() -> None:
    x, failures = fb.tensor([1.0, 2.0]), []

    def work(scale: float) -> None:
        for i in range(150):
            a = x * scale
            b = a + x
            expected = [scale + 1, 2 * scale + 2]
            if i % 3 == 0:
                c = b * x
                expected = [expected[0], 2 * expected[1]]
            else:
                c = b
            if c.tolist() != expected:
                failures.append((scale, i, c.tolist()))

    threads = [threading.Thread(target=work, args=(float(s),)) for s in range(2, 6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_another_thread_computes_what_is_pending() -> None:
    for _ in range(3):
        x = fb.tensor([1.0, 2.0])
        a = x * 3.0
        b = a + 2.0
        found: list[Any] = []
        other = threading.Thread(target=lambda a=a, found=found: found.append((a - 1.0).tolist()))
        other.start()
        other.join()
        assert found == [[2, 5]] and (b * a).tolist() == [15, 48]


def test_the_tree_of_walks_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "STEPS", 50)
    x = fb.arange(40.0)
    for i in range(120):
        assert (x[i % 20 : i % 20 + 3] * 2.0 + 1.0)[0].item() == 2 * (i % 20) + 1
        assert tape.tree.steps <= 50


def test_recent_forgets_what_was_not_asked_for() -> None:
    kept: Recent[int, str] = Recent(2)
    kept[1], kept[2] = "a", "b"
    assert kept.get(1) == "a"
    kept[3] = "c"
    assert (kept.get(1), kept.get(2), kept.get(3), len(kept)) == ("a", None, "c", 2)


def test_calls_without_the_native_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    step = fb.compile(lambda x, y: (x * y + 2.0, x - y))
    x, y = fb.tensor([1.0, 2.0]), fb.tensor([3.0, 5.0])
    assert caller.caller() is not None
    fast = [t.tolist() for t in step(x, y)]
    monkeypatch.setattr(executor, "caller", lambda: None)
    assert [t.tolist() for t in step(x, y)] == fast == [[5, 12], [-2, -3]]


def test_results_are_new_memory_at_each_call() -> None:
    step = fb.compile(lambda x: x * 2.0)
    kept = [step(fb.tensor([float(i)] * 5000)) for i in range(5)]
    assert [t[0].item() for t in kept] == [0, 2, 4, 6, 8]
    small = [step(fb.tensor([float(i), 0.0])) for i in range(5)]
    assert [t[0].item() for t in small] == [0, 2, 4, 6, 8]


def test_with_code_in_the_cache_the_compiler_stays_out(tmp_path: Any) -> None:
    program = (
        "import sys, flambeau as fb\n"
        "x = fb.ones(5)\n"
        "print(fb.compile(lambda x: x * 2.0 + 1.0)(x).tolist(), 'flambeau.compiler.pipeline' in sys.modules)\n"
    )
    environment = {**os.environ, "FLAMBEAU_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["[3.0, 3.0, 3.0, 3.0, 3.0] True", "[3.0, 3.0, 3.0, 3.0, 3.0] False"]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_squares_and_sums_of_all(shape: tuple[int, ...], dtype: str) -> None:
    for make in (
        lambda x: x**2,
        lambda x: x.sum(),
        lambda x: x.sum(dim=None, keepdim=True),
        lambda x: (x**2).sum(),
    ):
        results = []
        for m in (fb, torch):
            x = m.arange(int(np.prod(shape, dtype=int))).reshape(shape).to(getattr(m, dtype))
            if dtype.startswith("float"):
                x = x.requires_grad_()
            y = make(x)
            gradient, name = None, None
            if x.requires_grad:
                y.sum().backward()
                gradient, name = x.grad.tolist(), y.grad_fn.name() if shape else None
            results.append(
                (tuple(y.shape), str(y.dtype).rpartition(".")[2], y.detach().tolist(), gradient, name)
            )
        assert results[0] == results[1]


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, x, h, y: m.autograd.grad(y, x, m.ones_like(y)),
        lambda m, x, h, y: m.autograd.grad(y, [h, x], y.detach() * 2),
        lambda m, x, h, y: m.autograd.grad(y.sum(), [h, x]),
        lambda m, x, h, y: m.autograd.grad(y, [x, y], y),
        lambda m, x, h, y: y.backward(m.tensor([1.0, 2.0])) or [x.grad],
        lambda m, x, h, y: y.backward(y.detach(), inputs=[x]) or [x.grad],
        lambda m, x, h, y: y.sum().backward(create_graph=True) or m.autograd.grad(x.grad.sum(), x),
        lambda m, x, h, y: m.autograd.grad(m.autograd.grad(y, x, y, create_graph=True)[0].exp().sum(), [x]),
    ],
)
def test_a_derivative_that_is_asked_for_again(ask: Any) -> None:
    """Roots that are no scalars, cotangents, interior values, higher orders: the second time nothing is compiled, whatever
    the numbers are, and each time the result is PyTorch's."""
    for i in range(4):
        found = []
        for m in (fb, torch):
            x = m.tensor([1.0 + i, 2.0 - i], requires_grad=True)
            h = x * x * 0.5
            y = h.sin() * x
            before = fb.stats().compilations
            found.append([g.tolist() for g in ask(m, x, h, y)])
            assert m is torch or i < 2 or fb.stats().compilations == before
        for ours, theirs in zip(*found, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_gradients_of_other_tensors_than_the_last_time() -> None:
    """The same graph, other questions."""
    for _ in range(3):
        x, y = fb.tensor([3.0], requires_grad=True), fb.tensor([5.0], requires_grad=True)
        z = x * x * y
        (gx,) = fb.autograd.grad(z, x, retain_graph=True)
        (gy,) = fb.autograd.grad(z, y, retain_graph=True)
        both = fb.autograd.grad(z, [y, x], retain_graph=True)
        unused = fb.autograd.grad(z, [y, fb.tensor([1.0], requires_grad=True)], allow_unused=True)
        assert (gx.item(), gy.item()) == (30, 9) and [g.item() for g in both] == [9, 30]
        assert unused[0].item() == 9 and unused[1] is None
        with pytest.raises(RuntimeError, match="second time"):
            fb.autograd.grad(z, x)


def test_a_second_derivative_reads_what_the_first_one_made() -> None:
    """A gradient penalty, trained: histories through derivatives that are kept."""
    losses = []
    for m in (fb, torch):
        w = m.tensor([[0.5, -0.2], [0.1, 0.3]], requires_grad=True)
        x = m.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
        seen = []
        for _ in range(5):
            (g,) = m.autograd.grad((x @ w).tanh().sum(), x, create_graph=True)
            loss = (g.norm(dim=1) - 1).square().mean()
            loss.backward()
            with m.no_grad():
                w -= 0.1 * w.grad
            w.grad = x.grad = None
            seen.append(loss.item())
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_gradient_is_no_constant_because_of_what_it_is_made_of() -> None:
    """It is a broadcast, and the first value that its derivative reads is one everywhere: it is not."""
    for _ in range(3):
        found = []
        for m in (fb, torch):
            x, w = (
                m.tensor([1.0, 2.0, 3.0], requires_grad=True),
                m.tensor([4.0, 5.0, 6.0], requires_grad=True),
            )
            one = m.ones(())
            m.atan2(one, x.sum()).backward()
            (w * x.grad).square().sum().backward()
            found.append(w.grad.tolist())
        assert found[0] == pytest.approx(found[1])
