"""The autodiff pass: which paths it walks, how it accumulates, and what it says where there is no derivative."""

from typing import Any

import numpy as np
import pytest

from flambeau.compiler.diagnostics import Location, NotDifferentiableError
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import Elementwise, NotDifferentiable
from flambeau.compiler.ir.core import Graph, Value, create
from flambeau.compiler.ir.dims import dim
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.types import f32, f64, i64, tensor
from flambeau.compiler.passes.autodiff import vjp


class Opaque(Elementwise):
    """Has no derivative; unnamed, so that it is not an operation of the language."""

    vjp = NotDifferentiable("nobody worked it out")

    def reference(self, x: Any) -> Any:
        return x


def numbers(graph: Graph, *arrays: Any) -> list[Any]:
    return [r.tolist() for r in evaluate(graph, [np.asarray(a) for a in arrays])]


def test_every_use_of_a_value_adds_to_its_gradient() -> None:
    x = Value(tensor((), f64))
    y = build.add(build.mul(x, x), build.mul(x, 3))
    (gradient,) = vjp([y], [x], [build.ones_like(y)])
    assert gradient is not None
    assert numbers(Graph([x], [gradient]), 5.0) == [13.0]


def test_derivatives_of_derivatives() -> None:
    x = Value(tensor((), f64))
    found = build.pow(x, build.constant(5.0, f64))
    for _ in range(3):
        (gradient,) = vjp([found], [x], [build.ones_like(found)])
        assert gradient is not None
        found = gradient
    assert numbers(Graph([x], [found]), 2.0) == [240.0]  # 60 x ** 2


def test_gradients_of_intermediate_values_and_of_what_they_depend_on() -> None:
    x = Value(tensor((), f64))
    middle = build.exp(x)
    y = build.mul(middle, middle)
    gradients = vjp([y], [x, middle], [build.ones_like(y)])
    for_x, for_middle = numbers(Graph([x], [g for g in gradients if g is not None]), 0.5)
    assert for_middle == pytest.approx(2 * np.exp(0.5))
    assert for_x == pytest.approx(2 * np.exp(1.0))


def test_no_path_gives_none() -> None:
    x, other = Value(tensor((2,), f64)), Value(tensor((2,), f64))
    count = Value(tensor((2,), i64))
    y = build.mul(build.floor(x), build.convert(count, f64))
    assert vjp([y], [x, other, count], [build.ones_like(y)]) == [None, None, None]


def test_needs_stops_the_walk() -> None:
    x = Value(tensor((), f64))
    detached = build.exp(x)
    y = build.mul(detached, x)
    (gradient,) = vjp([y], [x], [build.ones_like(y)], needs=lambda v: v is not detached)
    assert gradient is not None
    assert numbers(Graph([x], [gradient]), 2.0) == [pytest.approx(np.exp(2.0))]


def test_operations_off_the_path_may_lack_a_derivative() -> None:
    x, constant = Value(tensor((), f64)), Value(tensor((), f64))
    y = build.mul(x, create(Opaque(), constant).result)
    (gradient,) = vjp([y], [x], [build.ones_like(y)])
    assert gradient is not None
    assert numbers(Graph([x, constant], [gradient]), 2.0, 7.0) == [7.0]


def test_a_missing_derivative_names_the_reason_and_the_users_line() -> None:
    x = Value(tensor((), f64))
    y = create(Opaque(), x, location=("model.py", 12)).result
    with pytest.raises(NotDifferentiableError, match="nobody worked it out") as caught:
        vjp([y], [x], [build.ones_like(y)])
    assert caught.value.location == Location("model.py", 12)


def test_a_cotangent_of_another_type_is_rejected() -> None:
    x = Value(tensor((2,), f64))
    with pytest.raises(NotDifferentiableError, match=r"2xf64.*2xf32"):
        vjp([build.exp(x)], [x], [build.constant(1, f32, (2,))])


def test_several_results_and_absent_cotangents() -> None:
    x = Value(tensor((3,), f64))
    values, _ = build.sort(x, 0)
    total = build.reduce_sum(build.mul(x, 2))
    gradients = vjp([values, total], [x], [build.literal([1.0, 10.0, 100.0]), None])
    assert numbers(Graph([x], [g for g in gradients if g is not None]), [3.0, 1.0, 2.0]) == [
        [100.0, 1.0, 10.0]
    ]


def test_symbolic_shapes() -> None:
    n = dim("N")
    x = Value(tensor((n, 2), f64))
    y = build.reduce_mean(build.square(build.reshape(x, (n * 2,))))
    (gradient,) = vjp([y], [x], [build.ones_like(y)])
    assert gradient is not None and gradient.type is x.type
    for size in (1, 3):
        data = np.arange(size * 2.0).reshape(size, 2)
        (found,) = evaluate(Graph([x], [gradient]), [data])
        np.testing.assert_allclose(found, 2 * data / data.size, 1e-15)
