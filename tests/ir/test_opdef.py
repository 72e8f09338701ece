"""Definitions: attributes by place and by name, normalised, interned, set once."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from flambeau.compiler.dialects.graph.packing import PackPanels
from flambeau.compiler.dialects.graph.pointwise_arithmetic import Add
from flambeau.compiler.dialects.graph.shape import Transpose


def test_equal_attributes_are_one_object() -> None:
    first = PackPanels((), (1,), (0,), 16)
    assert first is PackPanels([], rows=[1], depth=[0], width=16, group=1)  # type: ignore[arg-type]
    assert first is copy.deepcopy(first) is pickle.loads(pickle.dumps(first))
    assert first is not dataclasses.replace(first, flip=True)
    assert first.attributes == {
        "batch": (), "rows": (1,), "depth": (0,), "width": 16, "group": 1, "flip": False,
    }  # fmt: skip
    assert Add() is Add()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (((), (0,)), {}, "needs the attribute depth"),
        ((1, 2, 3, 4, 5, 6, 7, 8), {}, "attributes, got 8"),
        (((),), {"batch": ()}, "batch given twice"),
        (((), (1,), (0,), 16), {"sparse": True}, "has no attribute sparse"),
    ],
)
def test_wrong_attributes(args: tuple[object, ...], kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PackPanels(*args, **kwargs)  # type: ignore[arg-type]


def test_attributes_are_set_once() -> None:
    transpose = Transpose((1, 0))
    with pytest.raises(dataclasses.FrozenInstanceError, match="permutation cannot be changed"):
        transpose.permutation = (0, 1)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot be deleted"):
        del transpose.permutation
