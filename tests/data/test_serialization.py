"""What `save` writes, `load` gives back; and what cannot be saved or read says so."""

import io
from collections import OrderedDict

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flambeau as fb


def round_trip(x):
    stream = io.BytesIO()
    fb.save(x, stream)
    stream.seek(0)
    return fb.load(stream)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
)
def test_every_dtype(dtype):
    kind = getattr(fb, dtype)
    for shape in ((), (3,), (2, 0, 3), (2, 3)):
        x = fb.ones(shape, dtype=kind)
        y = round_trip(x)
        assert y.dtype is kind and y.shape == x.shape and y.tolist() == x.tolist()


def test_containers_and_numbers():
    x = {
        "a": [1, 2.5, float("inf"), None, True, "text"], 3: (fb.float16, fb.Size([1, 2])), "n": {},
        "o": OrderedDict(z=1, a=2), "array": np.arange(3), "tiny": 5e-324,
    }  # fmt: skip
    y = round_trip(x)
    assert (y["array"] == np.arange(3)).all() and y["array"].dtype == np.int64
    del x["array"], y["array"]
    assert x == y and type(y["o"]) is OrderedDict and type(y[3]) is tuple and type(y["a"][4]) is bool


def test_views_are_saved_as_seen_and_sharing_is_kept():
    base = fb.arange(12).reshape(3, 4)
    y = round_trip({"t": base.t(), "row": base[1], "same": [base, base]})
    assert y["t"].tolist() == base.t().tolist() and y["row"].tolist() == [4, 5, 6, 7]
    assert y["same"][0] is y["same"][1]


def test_parameters_stay_parameters():
    p = round_trip([fb.nn.Parameter(fb.ones(2)), fb.ones(2, requires_grad=True)])
    assert isinstance(p[0], fb.nn.Parameter) and p[0].requires_grad and p[1].requires_grad


def test_training_goes_on_after_a_checkpoint(tmp_path):
    def make():
        fb.manual_seed(0)
        model = fb.nn.Sequential(fb.nn.Linear(3, 4), fb.nn.BatchNorm1d(4), fb.nn.Linear(4, 1))
        return model, fb.optim.Adam(model.parameters(), lr=0.05)

    def train(model, opt, steps):
        x = fb.arange(30, dtype=fb.float32).reshape(10, 3) / 30
        for _ in range(steps):
            opt.zero_grad()
            loss = fb.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
            loss.backward()
            opt.step()
        return loss.item()

    model, opt = make()
    train(model, opt, 3)
    fb.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "point.safetensors")
    expected = train(model, opt, 3)
    other, other_opt = make()
    found = fb.load(tmp_path / "point.safetensors")
    other.load_state_dict(found["model"])
    other_opt.load_state_dict(found["opt"])
    assert train(other, other_opt, 3) == pytest.approx(expected, rel=1e-5)


def test_other_programs_read_and_write_it(tmp_path):
    file = tmp_path / "w.safetensors"
    fb.save(fb.nn.Linear(2, 3).state_dict(), file)
    assert set(load_file(file)) == {"weight", "bias"}
    save_file({"x": np.ones(3, np.float32)}, file)
    assert fb.load(file)["x"].tolist() == [1.0, 1.0, 1.0]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    file = tmp_path / "w"
    fb.save(fb.ones(1), file)
    with pytest.raises(TypeError, match=r"at a\.0: .* not object"):
        fb.save({"a": [object()]}, file)
    assert fb.load(file).tolist() == [1.0] and [f.name for f in tmp_path.iterdir()] == ["w"]


def test_what_is_no_such_file(tmp_path):
    file = tmp_path / "w"
    file.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        fb.load(file)
