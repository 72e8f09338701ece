"""PyTorch's own operation database (OpInfo): its sample inputs through our functions of the same name.

CI runs a fixed list, every sample of it; `make conformance` runs every operation that Flambeau has under PyTorch's name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flambeau as fb
from flambeau.compiler import options

torch = pytest.importorskip("torch")
database = pytest.importorskip("torch.testing._internal.common_methods_invocations")

#: Operations whose every sample must agree, in CI.
SAMPLE = (
    "abs",
    "add",
    "amax",
    "atan2",
    "bmm",
    "clamp",
    "cos",
    "cumsum",
    "div",
    "eq",
    "erf",
    "exp",
    "expm1",
    "flip",
    "log1p",
    "matmul",
    "mm",
    "mul",
    "nn.functional.gelu",
    "nn.functional.relu",
    "permute",
    "rsqrt",
    "sigmoid",
    "sin",
    "sqrt",
    "sub",
    "tanh",
    "tril",
    "unsqueeze",
)

#: Random numbers and uninitialised memory cannot agree; OpInfo's `where` takes its arguments in an order of its own.
LEFT_OUT = {
    "bernoulli", "empty", "empty_like", "multinomial", "nn.functional.dropout", "nn.functional.dropout2d",
    "nn.functional.dropout3d", "normal", "rand_like", "randint", "randint_like", "randn", "randn_like", "where",
}  # fmt: skip

INFOS = [
    info
    for info in database.op_db
    if torch.float32 in info.dtypes and not info.variant_test_name and info.name not in LEFT_OUT
]


def ours(name: str) -> Any:
    """Our function of PyTorch's name, or None."""
    found: Any = fb
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def converted(value: Any) -> Any:
    """A sample's argument with our tensors and dtypes in place of PyTorch's."""
    if isinstance(value, torch.Tensor):
        return fb.from_numpy(value.detach().contiguous().numpy().copy())
    if isinstance(value, torch.dtype):
        return getattr(fb, str(value).removeprefix("torch."))
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(converted(v) for v in value)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, dict):
        return {k: converted(v) for k, v in value.items()}
    return value


def plain(value: Any) -> list[np.ndarray[Any, Any]]:
    """All arrays in a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value.detach().numpy()]
    if isinstance(value, fb.Tensor):
        return [value.detach().numpy()]
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in plain(v)]
    return [np.asarray(value)]


def check(info: Any) -> None:
    function = ours(info.name)
    # The interpreter shows whether semantics agree; what is compiled is held to the interpreter by tests/ops.
    with options.override(interpret=True):
        for number, sample in enumerate(info.sample_inputs("cpu", torch.float32)):
            if number >= 40:
                break
            expected = plain(info.op(sample.input, *sample.args, **sample.kwargs))
            actual = plain(
                function(converted(sample.input), *converted(sample.args), **converted(sample.kwargs))
            )
            assert len(actual) == len(expected), f"sample {number}"
            for a, e in zip(actual, expected):
                assert a.dtype == e.dtype, f"sample {number}: {sample}"
                np.testing.assert_allclose(a, e, rtol=2e-4, atol=2e-5, err_msg=f"sample {number}: {sample}")


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    for info in INFOS:
        if info.name == name:
            check(info)


@pytest.mark.conformance
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_every_operation(info: Any) -> None:
    if ours(info.name) is None:
        pytest.skip(f"Flambeau has no {info.name}")
    check(info)
