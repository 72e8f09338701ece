"""Random numbers: Philox, counter-based. A generator's state [seed, offset] is a tensor, "
"so compiled code stays random."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from flambeau import dtypes, evaluation
from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.random_bits import RandomInteger, RandomNormal, RandomUniform
from flambeau.compiler.ir import types as ir
from flambeau.compiler.ir.core import Value
from flambeau.creation import finish, size_of
from flambeau.dtypes import dtype as DType
from flambeau.evaluation import record
from flambeau.operands import broadcast_shapes, put, value_of
from flambeau.storage import Cell
from flambeau.tensor import Tensor, method, new_tensor, read, wrap, write

_STEP = np.array([0, 1], np.int64)


class Generator:
    """A stream of random numbers. Its state is a cell that every draw moves on."""

    def __init__(self, device: Any = "cpu") -> None:
        self._cell = Cell(_state(67280421310721, 0))

    def manual_seed(self, seed: int) -> Generator:
        """Begin again from `seed`."""
        self._cell.write(_state(int(seed), 0))
        return self

    def seed(self) -> int:
        """Begin from a seed that the system gives."""
        found = int.from_bytes(os.urandom(7), "little")
        self.manual_seed(found)
        return found

    def initial_seed(self) -> int:
        """The seed from which the stream began."""
        return int(evaluation.content(self._cell.read())[0])

    def get_state(self) -> Tensor:
        """[seed, offset]"""
        return new_tensor(Cell(self._cell.read()))

    def set_state(self, state: Tensor) -> None:
        """Go on from what `get_state` gave."""
        self._cell.write(read(state))

    def draw(self) -> Value:
        """The state for one draw; moves on."""
        now = self._cell.read()
        if (
            now.data is not None and evaluation.state.trace is None
        ):  # no operation for what a scalar addition does
            self._cell.write(_state(int(now.data[0]), int(now.data[1]) + 1))
        else:
            self._cell.write(build.add(now, build.literal(_STEP)))
        return now


def _state(seed: int, offset: int) -> Value:
    seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)
    return evaluation.leaf(np.array([seed, offset], np.int64), ir.i64)


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Begin the default generator again from `seed`."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Begin the default generator from a seed that the system gives."""
    return default_generator.seed()


def initial_seed() -> int:
    """The default generator's seed."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The default generator's state."""
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Set the default generator's state."""
    default_generator.set_state(new_state)


def _draw(definition: Any, generator: Generator | None) -> Value:
    return record(definition, (generator or default_generator).draw())


def _uniform(shape: tuple[Any, ...], element: ir.ElementType, generator: Generator | None) -> Value:
    return _draw(RandomUniform(shape, element), generator)


def _normal(shape: tuple[Any, ...], element: ir.ElementType, generator: Generator | None) -> Value:
    return _draw(RandomNormal(shape, element), generator)


def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform in [0, 1)."""
    return finish(
        _uniform(size_of(size), (dtype or dtypes.get_default_dtype()).element, generator),
        requires_grad,
        device,
    )


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Standard normal."""
    return finish(
        _normal(size_of(size), (dtype or dtypes.get_default_dtype()).element, generator),
        requires_grad,
        device,
    )


def randint(
    low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None, dtype: DType | None = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Integers in [low, high), or in [0, low) if `high` is left out."""
    if size is None or not isinstance(high, int):
        low, high, size = 0, low, high if size is None else size
    if low >= high:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    definition = RandomInteger(tuple(size), (dtype or dtypes.int64).element, low, high)
    return finish(_draw(definition, generator), requires_grad, device)


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: DType | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """The integers below `n` in random order."""
    keys = _draw(RandomInteger((n,), ir.i64, 0, (1 << 63) - 1), generator)
    order = evaluation.record_all(build.op("sort", dimension=0, descending=False), keys)[1]
    return finish(build.convert(order, (dtype or dtypes.int64).element), requires_grad, device)


def rand_like(input: Tensor, *, dtype: DType | None = None, **kw: Any) -> Tensor:
    """Uniform, of `input`'s shape and dtype."""
    return rand(*input.shape, dtype=dtype or input.dtype, **kw)


def randn_like(input: Tensor, *, dtype: DType | None = None, **kw: Any) -> Tensor:
    """Standard normal, of `input`'s shape and dtype."""
    return randn(*input.shape, dtype=dtype or input.dtype, **kw)


def randint_like(
    input: Tensor, low: int, high: int | None = None, *, dtype: DType | None = None, **kw: Any
) -> Tensor:
    """Random integers, of `input`'s shape and dtype."""
    return randint(
        *((0, low) if high is None else (low, high)), input.shape, dtype=dtype or input.dtype, **kw
    )


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that the element says, else 0."""
    p = read(input)
    u = _uniform(build.shape_of(p), build.element_of(p), generator)
    return wrap(build.convert(build.lt(u, p), build.element_of(p)))


def normal(
    mean: Any, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None, dtype: Any = None
) -> Tensor:
    """Normal with means and deviations given by tensors or numbers."""
    shape = (
        size
        if size is not None
        else broadcast_shapes(*(x.shape for x in (mean, std) if isinstance(x, Tensor)))
    )
    kind = dtype or next((x.dtype for x in (mean, std) if isinstance(x, Tensor)), dtypes.get_default_dtype())
    return wrap(_normal(tuple(shape), kind.element, generator)) * std + mean  # type: ignore[operator, no-any-return]


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with probabilities proportional to each row."""
    p = read(input)
    shape = build.shape_of(p)
    last = len(shape) - 1
    if replacement:
        total = build.cumulative(p, last, "sum")
        u = _uniform((*shape[:-1], num_samples), build.element_of(p), generator)
        u = build.mul(
            u, build.broadcast_to(build.slice_axis(total, last, shape[-1] - 1, shape[-1]), build.shape_of(u))
        )
        full = (*shape[:-1], num_samples, shape[-1])
        below = build.le(
            build.broadcast_in_dim(total, full, (*range(last), last + 1)),
            build.broadcast_in_dim(u, full, range(last + 1)),
        )
        return wrap(build.reduce_sum(build.convert(below, ir.i64), last + 1))
    u = _uniform(
        shape, build.element_of(p), generator
    )  # the exponential race of Efraimidis and Spirakis (2006)
    race = build.div(build.neg(build.log(build.sub(1.0, u))), p)
    order = evaluation.record_all(build.op("sort", dimension=last, descending=False), race)[1]
    return wrap(build.slice_axis(order, last, 0, num_samples))


@method("uniform_")
def uniform_(self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """In place: uniform in [a, b)."""
    like = read(self)
    u = _uniform(build.shape_of(like), build.element_of(like), generator)
    return write(self, build.add(build.mul(u, value_of(b - a, like)), value_of(a, like)))


@method("normal_")
def normal_(
    self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """In place: normal."""
    like = read(self)
    z = _normal(build.shape_of(like), build.element_of(like), generator)
    return write(self, build.add(build.mul(z, value_of(std, like)), value_of(mean, like)))


@method("bernoulli_")
def bernoulli_(self: Tensor, p: float = 0.5, *, generator: Generator | None = None) -> Tensor:
    """In place: 1 with probability `p`, else 0."""
    like = read(self)
    u = _uniform(build.shape_of(like), ir.f32, generator)
    return put(self, build.convert(build.lt(u, _number(p, u)), build.element_of(like)))


def _number(x: float, like: Value) -> Value:
    return build.broadcast_to(evaluation.number(x, build.element_of(like)), build.shape_of(like))


@method("random_")
def random_(
    self: Tensor, low: int = 0, high: int | None = None, *, generator: Generator | None = None
) -> Tensor:
    """In place: integers in [low, high)."""
    like = read(self)
    if high is None:
        low, high = (0, low) if low else (0, min(1 << self.dtype.element.bits - 1, 1 << 24))
    return write(
        self, _draw(RandomInteger(build.shape_of(like), build.element_of(like), low, high), generator)
    )


@method("exponential_")
def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """In place: exponential with rate `lambd`."""
    like = read(self)
    u = _uniform(build.shape_of(like), build.element_of(like), generator)
    return write(self, build.div(build.neg(build.log(build.sub(1.0, u))), value_of(lambd, like)))
