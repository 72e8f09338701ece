"""`export`: what is captured, what it is called, and that function, `run` and library agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flambeau as torch
from flambeau import nn, optim
from flambeau.capture import ExportError
from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.parser import parse_graph
from flambeau.export import export, from_text
from flambeau.runtime.library import load


def array(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def test_module(tmp_path: Path) -> None:
    model = network()
    exported = export(model, (torch.zeros(2, 8),), {"input": {0: "N"}})
    signature = exported.signature
    assert signature["kind"] == "inference" and signature["symbols"] == ["N"]
    assert signature["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["N", 8]}]
    assert signature["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["N", 3]}]
    assert [w["name"] for w in signature["weights"]] == list(model.state_dict())
    library = load(exported.save(tmp_path / "model.so"))
    for rows in (1, 7):
        x = array(rows, 8)
        expected = model(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(exported.run(x), expected, rtol=1e-5, atol=1e-6)
        assert library(x).tobytes() == exported.run(x).tobytes()
    assert type(torch.load(tmp_path / "model.so")) is type(library)
    assert torch.export is export
    assert library.name == "model"  # after the file, since no name was given


def test_nothing_is_changed() -> None:
    model = network()
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    export(step, (torch.zeros(2, 8),))
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
    assert all(p.grad is None for p in model.parameters())
    assert float(step(torch.ones(2, 8))) != float(step(torch.ones(2, 8)))  # and it still works


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
}


def training(kind: str) -> tuple[nn.Sequential, Callable[..., Any]]:
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    return model, step


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "trained"])
def test_training_step(kind: str, warm: bool, tmp_path: Path) -> None:
    """The library's losses and weights over several steps are those of the Python program."""
    x, y = array(5, 8), array(5, 3, seed=1)
    model, step = training(kind)
    if warm:
        step(torch.from_numpy(x), torch.from_numpy(y))
    exported = export(step, (torch.from_numpy(x), torch.from_numpy(y)), name="step")
    assert exported.signature["kind"] == "training_step"
    state = [s["name"] for s in exported.signature["state"]]
    assert set(model.state_dict()) <= set(state)
    if kind.startswith("adam"):
        assert {"0.weight.exp_avg", "2.bias.exp_avg_sq"} <= set(state)
    library = load(exported.save(tmp_path / "step.so"))
    for _ in range(4):
        expected = float(step(torch.from_numpy(x), torch.from_numpy(y)))
        assert float(exported.run(x, y)) == pytest.approx(expected, rel=1e-4)
        assert float(library(x, y)) == pytest.approx(expected, rel=1e-4)
    for key, value in model.state_dict().items():
        np.testing.assert_allclose(library.get(key), value.numpy(), rtol=1e-3, atol=1e-5)


def test_learning_rate_is_state(tmp_path: Path) -> None:
    x, y = array(5, 8), array(5, 3, seed=1)
    _, step = training("sgd")
    library = load(export(step, (torch.from_numpy(x), torch.from_numpy(y))).save(tmp_path / "step.so"))
    assert float(library.get("lr")) == 0.1
    library.set("lr", np.zeros((), library.get("lr").dtype))
    assert float(library(x, y)) == float(library(x, y))  # no step is taken any more


def test_running_averages_are_state() -> None:
    layer = nn.BatchNorm1d(3)
    x = array(6, 3)
    exported = export(layer, (torch.zeros(6, 3),))
    assert {"running_mean", "running_var"} <= {s["name"] for s in exported.signature["state"]}
    exported.run(x)
    layer(torch.from_numpy(x))
    kept = dict(exported.state)
    np.testing.assert_allclose(kept["running_mean"], layer.running_mean.numpy(), rtol=1e-5)
    layer.eval()
    assert export(layer, (torch.zeros(6, 3),)).signature["kind"] == "inference"


def test_several_results_and_names() -> None:
    scale = torch.tensor([2.0, 3.0])

    def function(double: Any, pair: Any) -> dict[str, Any]:
        return {"total": double + pair[0] * scale, "N": pair[1].sum()}

    exported = export(function, (torch.zeros(4, 2), (torch.zeros(4, 2), torch.zeros(3))))
    assert exported.inputs == ("double_", "pair0", "pair1")
    assert exported.outputs == ("total", "N")
    assert [n for n, _ in exported.weights] == ["scale"]
    a, b, c = array(4, 2), array(4, 2, seed=1), array(3)
    total, last = exported.run(a, b, c)
    np.testing.assert_allclose(total, a + b * np.array([2, 3], np.float32), rtol=1e-6)
    np.testing.assert_allclose(last, c.sum(), rtol=1e-6)


def test_constants_made_inside() -> None:
    def function(x: Any) -> Any:
        offset = torch.tensor([1.0, 2.0, 3.0])
        offset.mul_(2)
        return x + offset

    exported = export(function, (torch.zeros(3),))
    assert exported.signature["kind"] == "inference"
    np.testing.assert_array_equal(exported.run(np.zeros(3, np.float32)), [2, 4, 6])


def test_text_of_stages() -> None:
    exported = export(network(), (torch.zeros(2, 8),))
    assert parse_graph(exported.text("trace")) == exported.graph
    assert "graph.relu" in exported.text("trace") and "graph.relu" not in exported.text()
    assert exported.text("plan").startswith("arena: ")
    assert "define " in exported.text("llvm")
    with pytest.raises(CompilationError, match="no stage 'absent'"):
        exported.text("absent")


def test_from_text() -> None:
    exported = export(network(), (torch.zeros(2, 8),))
    again = from_text(exported.text("trace"))
    contents = [a for _, a in exported.weights]
    x = array(2, 8)
    np.testing.assert_array_equal(again.run(x, *contents), exported.run(x))


def test_wrong_inputs() -> None:
    exported = export(network(), (torch.zeros(2, 8),), {0: {0: "N"}})
    with pytest.raises(TypeError, match=r"takes 1 inputs \(input\), got 2"):
        exported.run(array(2, 8), array(2, 8))
    with pytest.raises(TypeError, match="expected float32, got float64"):
        exported.run(np.zeros((2, 8)))
    with pytest.raises(ValueError, match=r"expected shape \['N', 8\], got \[2, 9\]"):
        exported.run(array(2, 9))


kept: list[Any] = []


def _peeks(x: Any) -> Any:
    return x * float(x.sum())


def _keeps(x: Any) -> Any:
    kept.append(x * 2)
    return x


def _in_place(x: Any) -> Any:
    return x.add_(1)


class _Counting:
    """A Python number that changes at every call."""

    def __init__(self) -> None:
        self.calls = 2
        self.total = torch.zeros(3)

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.total.add_(x * self.calls)
        return self.total.sum()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_peeks, "looks at a tensor's content"),
        (_keeps, "tensor that outlive"),
        (_in_place, "changes an argument in place"),
        (lambda x: 3, "returns tensors"),
        (_Counting(), "every call gives another graph"),
    ],
)
def test_what_cannot_be_exported(function: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(function, (torch.zeros(3),))
    kept.clear()
    assert float(torch.ones(3).sum()) == 3  # evaluation is as it was


def test_place_of_a_peek() -> None:
    with pytest.raises(ExportError) as caught:
        export(_peeks, (torch.zeros(3),))
    assert caught.value.location is not None
    assert Path(caught.value.location.file).name == "test_export.py"
    assert caught.value.location.line == _peeks.__code__.co_firstlineno + 1


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "N"}}, "no argument 'y'; there are x"),
        ({1: {0: "N"}}, "no argument 1"),
        ({"x": {2: "N"}}, "there is no axis 2"),
        ({"x": {0: "a b"}}, "must be a C identifier"),
        ({"x": "N"}, "expected {axis: name}"),
    ],
)
def test_wrong_dynamic_shapes(dynamic: Any, message: str) -> None:
    def function(x: Any) -> Any:
        return x * 2

    with pytest.raises(ExportError, match=message):
        export(function, (torch.zeros(2, 3),), dynamic)


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flambeau.runtime import linker

    def broken(*arguments: Any, **options: Any) -> None:
        raise linker.LinkerError("no linker")

    exported = export(network(), (torch.zeros(2, 8),))
    monkeypatch.setattr(linker, "link_shared", broken)
    (tmp_path / "model.h").write_text("old")
    with pytest.raises(linker.LinkerError):
        exported.save(tmp_path / "model.so")
    assert [p.name for p in tmp_path.iterdir()] == ["model.h"]
    assert (tmp_path / "model.h").read_text() == "old"
    with pytest.raises(IsADirectoryError):
        exported.save(tmp_path)


def test_a_symbolic_size_is_a_number() -> None:
    exported = torch.export(lambda x: x * x.shape[0] + 1, (torch.ones(3),), dynamic_shapes={0: {0: "N"}})
    for n in (1, 4):
        assert exported.run(np.full(n, 2, np.float32)).tolist() == [2 * n + 1] * n
