"""A library's tensors come as object files of their own, whatever their number, sizes and types are."""

from __future__ import annotations

import ctypes
import importlib.util
import io
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import flambeau as fb
from flambeau import nn
from flambeau.compiler.exporting import data_objects
from flambeau.compiler.exporting.data_objects import DataObjects
from flambeau.compiler.targets.machine import TargetDescription, cross_target, emit_object, host_target
from flambeau.runtime.engine import default_engine

X = np.random.default_rng(0).standard_normal((200, 70)).astype(np.float32)


@pytest.mark.parametrize(
    "array",
    [
        np.float32(3.5),
        np.zeros((0, 4), np.float32),
        np.arange(7, dtype=np.int8),
        np.arange(24, dtype=np.float64).reshape(4, 6).T,
        np.arange(40).astype(ml_dtypes.bfloat16),
        np.array([True, False]),
        np.arange(100_003, dtype=np.uint8),
    ],
    ids=lambda a: f"{np.asarray(a).dtype}-{np.asarray(a).size}",
)
def test_bytes_are_where_they_should_be(array: np.ndarray) -> None:  # type: ignore[type-arg]
    """Between two others, read through the code that the address is in."""
    target = host_target()
    objects = DataObjects("tensors", target)
    arrays = [np.arange(5, dtype=np.int32), np.asarray(array), np.arange(3, dtype=np.int16)]
    places = [objects.add(a) for a in arrays]
    (found,) = objects.objects
    stream = io.BytesIO()
    found.write(stream)
    module = default_engine().add_object(stream.getvalue(), exports=[found.label])
    base = module.address(found.label)
    assert base % 64 == 0
    for a, place in zip(arrays, places, strict=True):
        offset = int(place.rstrip(")").split()[-1])
        assert offset % 64 == 0 and ctypes.string_at(base + offset, a.nbytes) == a.tobytes()


def test_objects_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_objects, "LIMIT", 1000)
    objects = DataObjects("t", host_target())
    places = [objects.add(np.zeros(n, np.uint8)) for n in (900, 40, 40, 2000, 64, 900)]
    assert [p.split('"')[1] for p in places] == ["t0", "t0", "t1", "t2", "t3", "t3"]
    assert [o.nbytes for o in objects.objects] == [1024, 64, 2048, 64 + 960]


@pytest.mark.parametrize(
    "triple", ["x86_64-windows-gnu", "aarch64-linux-gnu", "aarch64-macos", "riscv64-linux-gnu", "wasm32-wasi"]
)
def test_every_format_takes_them(triple: str) -> None:
    """As LLVM writes the same constant itself, byte for byte; but COFF has checksums of sections (which linkers read for
    those that are to be equal only), and ours is that of zeros."""
    target = cross_target(triple)
    array = np.random.default_rng(0).integers(0, 256, 192, dtype=np.uint8)
    objects = DataObjects("t", target)
    objects.add(array)
    stream = io.BytesIO()
    objects.objects[0].write(stream)
    found, expected = (np.frombuffer(b, np.uint8) for b in (stream.getvalue(), _by_llvm(array, target)))
    assert found.size == expected.size
    assert (found != expected).sum() <= (4 if "windows" in triple else 0)


def _by_llvm(array: np.ndarray, target: TargetDescription) -> bytes:  # type: ignore[type-arg]
    text = "".join(f"\\{b:02X}" for b in array.tobytes())
    return emit_object(f'@"t0" = hidden constant [{array.nbytes} x i8] c"{text}", align 64\n', target)


@pytest.mark.parametrize(
    "triple",
    [None, "x86_64-windows-gnu", "aarch64-macos", "aarch64-linux-gnu"],
)
def test_a_library_of_several(triple: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if triple is not None and importlib.util.find_spec("ziglang") is None:
        pytest.skip("the ziglang wheel is not installed")
    monkeypatch.setattr(data_objects, "LIMIT", 4000)
    model = nn.Sequential(nn.Linear(70, 40), nn.ReLU(), nn.Linear(40, 3))
    exported = fb.export(model, (fb.from_numpy(X),), name="net")
    assert len(exported.library().data) > 1
    path = exported.save(tmp_path / "net.so", triple)
    assert {p.name for p in tmp_path.iterdir()} == {"net.so", "net.h"}
    if triple is None:
        np.testing.assert_array_equal(fb.load(path)(X), exported.run(X))
