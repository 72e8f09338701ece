"""PyTorch's own operation database (OpInfo): its sample inputs through our functions of the same name.

Every operation of the database that takes f32 and that Flambeau has under PyTorch's name is tested, in three ways: by the
operations' NumPy rules, as compiled code, and by gradients in f64. CI takes the first samples of each, `make
conformance` more of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau.compiler import options

torch = pytest.importorskip("torch")
database = pytest.importorskip("torch.testing._internal.common_methods_invocations")

#: Samples of an operation in CI, and at most.
FEW, MANY = 6, 40

#: What cannot agree, and why. An operation, or one keyword of an operation with the values that are left out.
RANDOM = "random numbers of another generator"
LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        ["bernoulli", "multinomial", "normal", "rand_like", "randint", "randint_like", "randn", "randn_like"],
        RANDOM,
    ),
    **dict.fromkeys([f"nn.functional.dropout{d}" for d in ("", "2d", "3d")], RANDOM),
    **dict.fromkeys(["empty", "empty_like"], "uninitialised memory"),
}
SAMPLES_LEFT_OUT = {
    ("nn.functional.scaled_dot_product_attention", "dropout_p"): (RANDOM, lambda p: p > 0),
    ("scatter", "reduce"): ("products of repeated places are not supported", lambda r: r == "multiply"),
    ("nn.functional.embedding", "sparse"): ("there are no sparse tensors", lambda s: s),
}

INFOS = [
    info
    for info in database.op_db
    if torch.float32 in info.dtypes and not info.variant_test_name and info.name not in LEFT_OUT
]

#: OpInfo calls these in an order of its own; here is how.
ORDER = {
    "einsum": lambda f: lambda tensors, equation: f(equation, *tensors),
    "where": lambda f: lambda x, condition, y: f(condition, x, y),
    "nn.functional.embedding": lambda f: lambda weight, index, **kw: f(index, weight, **kw),
}


def ours(name: str) -> Any:
    """Our function of PyTorch's name, a method where the name is a dtype's, or None."""
    found: Any = fb
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, fb.dtype):
        return lambda x, **kw: getattr(x, name)(**kw)
    return ORDER[name](found) if name in ORDER and found is not None else found


def converted(value: Any, leaves: list[Any] | None = None) -> Any:
    """A sample's argument with our tensors and dtypes in place of PyTorch's. Tensors that require grad go to `leaves`."""
    if isinstance(value, torch.Tensor):
        for known, made in leaves or ():
            if known is value:  # one tensor in two places
                return made
        made = fb.from_numpy(value.detach().contiguous().numpy().copy())
        if leaves is not None and value.requires_grad:
            leaves.append((value, made.requires_grad_()))
        return made
    if isinstance(value, torch.dtype):
        return getattr(fb, str(value).removeprefix("torch."))
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(converted(v, leaves) for v in value)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, dict):
        return {k: converted(v, leaves) for k, v in value.items() if k != "memory_format"}
    return value


def tensors(value: Any) -> list[Any]:
    """All tensors (and numbers) in a result, in order."""
    if isinstance(value, (torch.Tensor, fb.Tensor)):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors(v)]
    return [np.asarray(value)]


def plain(value: Any) -> list[np.ndarray[Any, Any]]:
    """All arrays in a result, in order."""
    found = []
    for t in tensors(value):
        if isinstance(t, torch.Tensor) and t.dtype is torch.bfloat16:
            found.append(t.detach().float().numpy().astype(fb.bfloat16.element.numpy))
        else:
            found.append(t if isinstance(t, np.ndarray) else t.detach().numpy())
    return found


def samples(info: Any, dtype: Any, count: int, grad: bool = False) -> Iterator[Any]:
    for sample in itertools.islice(info.sample_inputs("cpu", dtype, requires_grad=grad), count):
        given = dict(sample.kwargs)
        if not any(
            name == info.name and out(given.get(k))
            for (name, k), (_, out) in SAMPLES_LEFT_OUT.items()
            if k in given
        ):
            yield sample


def check(info: Any, count: int) -> None:
    """Values and dtypes of the first `count` samples."""
    function = ours(info.name)
    for number, sample in enumerate(samples(info, torch.float32, count)):
        arguments = (
            converted((sample.input, *sample.args)),
            converted(sample.kwargs),
        )  # before the peer may write to them
        expected = plain(info.op(sample.input, *sample.args, **sample.kwargs))
        actual = plain(function(*arguments[0], **arguments[1]))
        assert len(actual) == len(expected), f"sample {number}"
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == e.dtype, f"sample {number}: {sample}"
            np.testing.assert_allclose(
                a.astype(np.float64) if a.dtype.kind == "V" else a,
                e.astype(np.float64) if e.dtype.kind == "V" else e,
                rtol=2e-4,
                atol=2e-5,
                err_msg=f"sample {number}: {sample}",
            )


def check_gradients(info: Any, count: int) -> None:
    """Gradients of the sum of squares of all results, in f64."""
    function = ours(info.name)
    for number, sample in enumerate(samples(info, torch.float64, count, grad=True)):
        leaves: list[Any] = []
        given = [converted(v, leaves) for v in (sample.input, *sample.args)]
        named = converted(sample.kwargs, leaves)

        def total(results: Any) -> Any:
            flowing = [r for r in tensors(results) if getattr(r, "requires_grad", False)]
            return sum((r * r).sum() for r in flowing) if flowing else None

        for value, _ in leaves:
            value.grad = None  # samples share tensors
        theirs = total(info.op(sample.input, *sample.args, **sample.kwargs))
        mine = total(function(*given, **named))
        for results in (theirs, mine):
            if results is not None:
                results.backward()
        for value, made in leaves:
            expected = np.zeros(value.shape) if value.grad is None else value.grad.numpy()
            actual = np.zeros(value.shape) if made.grad is None else made.grad.numpy()
            np.testing.assert_allclose(
                actual, expected, rtol=1e-6, atol=1e-7, err_msg=f"sample {number}: {sample}"
            )


HAVE = [info for info in INFOS if ours(info.name) is not None]
DIFFERENTIABLE = [info for info in HAVE if info.supports_autograd and torch.float64 in info.dtypes]


@pytest.mark.parametrize("info", HAVE, ids=lambda info: info.name)
def test_first_samples(info: Any) -> None:
    with options.override(interpret=True):
        check(info, FEW)


@pytest.mark.conformance
@pytest.mark.parametrize("info", HAVE, ids=lambda info: info.name)
def test_samples(info: Any) -> None:
    with options.override(interpret=True):
        check(info, MANY)


@pytest.mark.conformance
@pytest.mark.parametrize("info", HAVE, ids=lambda info: info.name)
def test_compiled(info: Any) -> None:
    check(info, FEW)


@pytest.mark.conformance
@pytest.mark.parametrize("info", DIFFERENTIABLE, ids=lambda info: info.name)
def test_gradients(info: Any) -> None:
    with options.override(interpret=True):
        check_gradients(info, FEW)
