"""Random numbers as pure functions of a counter: Philox-4x32-10, and the distributions made of its bits.

J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The generator's
state is an operand, i64[2] = (seed, offset): whoever draws twice advances the offset in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable, Sample
from flambeau.compiler.dialects.graph.contraction import encode
from flambeau.compiler.ir.core import Value, apply
from flambeau.compiler.ir.dims import Index
from flambeau.compiler.ir.types import ElementType, TensorType, bf16, f32, f64, i32, i64, tensor, u32

Array = np.ndarray[Any, Any]

ROUNDS = 10
# The multipliers and Weyl constants of Philox-4x32 (Salmon et al., table 2 and section 3.3).
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(b: Any, counter: tuple[Any, ...], key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Four u32 scalars of random bits from a counter of four and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    m0, m1 = (b.constant(m, u32) for m in MULTIPLIERS)
    w0, w1 = (b.constant(w, u32) for w in WEYL)
    for round in range(ROUNDS):
        if round:
            k0, k1 = b.add(k0, w0), b.add(k1, w1)
        high0, low0 = b.mul_high(m0, c0), b.mul(m0, c0)
        high1, low1 = b.mul_high(m1, c2), b.mul(m1, c2)
        c0, c1, c2, c3 = b.xor(b.xor(high1, c1), k0), low1, b.xor(b.xor(high0, c3), k1), low0
    return c0, c1, c2, c3


def philox_reference(counter: tuple[Array, ...], key: tuple[Array, ...]) -> tuple[Array, ...]:
    """`philox` in NumPy, on u32 arrays."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    for round in range(ROUNDS):
        if round:
            k0, k1 = (k0 + np.uint64(WEYL[0])) & mask, (k1 + np.uint64(WEYL[1])) & mask
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & mask, (p0 >> half) ^ c3 ^ k1, p0 & mask
    return tuple([c.astype(np.uint32) for c in (c0, c1, c2, c3)])


def check_state(op: GraphOp, operands: tuple[TensorType, ...]) -> None:
    """The one operand is a generator's state."""
    if len(operands) != 1:
        raise op.reject("wrong number of operands", expected=1, actual=len(operands))
    if operands[0] is not tensor((2,), i64):
        raise op.reject(
            "the operand is the generator's state (seed, offset)",
            expected=tensor((2,), i64),
            actual=operands[0],
        )


class RngBitGenerator(GraphOp):
    """32 random bits an element, `state: i64[2] -> ui32[shape]`, the same on every device.

    Element i (row-major) is word ``i % 4`` of Philox-4x32-10 with the seed as its key and the counter
    ``(i // 4, offset)``, each as two words, low first. The new state is the caller's to make: offset + 1.
    Compare StableHLO `rng_bit_generator`.
    """

    name = "graph.rng_bit_generator"
    shape: tuple[Index, ...]
    vjp = NotDifferentiable("random bits do not depend continuously on anything", zero=True)

    def infer(self, *operands: TensorType) -> TensorType:
        check_state(self, operands)
        return tensor(self.shape, u32)

    def element_at(self, b: Any, index: tuple[Index, ...], *operands: Any) -> Any:
        (state,) = operands
        shift = b.constant(32, i64)

        def words(value: Any) -> tuple[Any, Any]:
            return b.convert(value, u32), b.convert(b.shift_right(value, shift), u32)

        position = encode(index, self.shape)
        block = b.index_to_scalar(position // 4, i64)
        c = philox(b, (*words(block), *words(state((1,)))), words(state((0,))))
        lane = position % 4
        if isinstance(lane, int):
            return c[lane]
        odd = b.in_bounds(lane % 2, 1, 2)
        return b.select(b.in_bounds(lane, 2, 4), b.select(odd, c[3], c[2]), b.select(odd, c[1], c[0]))

    def reference(self, *operands: Array) -> Any:
        seed, offset = (int(v) & 0xFFFFFFFFFFFFFFFF for v in operands[0])
        count = int(np.prod(self.shape, dtype=np.int64))  # type: ignore[arg-type]
        block = np.arange((count + 3) // 4, dtype=np.uint64)
        counter = (
            block & np.uint64(0xFFFFFFFF),
            block >> np.uint64(32),
            np.uint64(offset & 0xFFFFFFFF),
            np.uint64(offset >> 32),
        )
        words = philox_reference(counter, (np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)))  # type: ignore[arg-type]
        return np.stack(words, axis=-1).reshape(-1)[:count].reshape(self.shape)  # type: ignore[arg-type]

    def samples(self) -> Iterable[Sample]:
        yield Sample(RngBitGenerator((3, 5)), (np.array([42, 0]),), None)
        yield Sample(RngBitGenerator((7,)), (np.array([-1, 1 << 40]),), None, note="high words")
        yield Sample(RngBitGenerator(()), (np.array([0, 3]),), None)
        yield Sample(RngBitGenerator((0, 2)), (np.array([0, 3]),), None)


def random_bits(state: Value, shape: tuple[Index, ...]) -> Value:
    """`graph.rng_bit_generator`."""
    return apply(RngBitGenerator(shape), state)


class Distribution(GraphOp):
    """Base of the distributions: `state: i64[2] -> element[shape]`."""

    shape: tuple[Index, ...]
    element: ElementType

    def infer(self, *operands: TensorType) -> TensorType:
        check_state(self, operands)
        self.check_element()
        return tensor(self.shape, self.element)

    def check_element(self) -> None:
        if not self.element.is_float:
            raise self.reject("unsupported element type", expected="float", actual=self.element)

    def words(self, state: Value, count: int) -> list[Value]:
        """`count` independent tensors of 32 random bits, ui32."""
        bits = random_bits(state, (count, *self.shape))
        return [build.reshape(build.slice_axis(bits, 0, i, i + 1), self.shape) for i in range(count)]

    def words_reference(self, state: Array, count: int) -> list[Array]:
        return list(RngBitGenerator((count, *self.shape)).reference(state).astype(np.int64))

    def fractions(self, words: list[Value]) -> Value:
        """Uniform in [0, 1): 24 bits as f32, or, from two words, 53 bits as f64."""
        if self.element is f64:
            high, low = (
                build.convert(build.div(words[0], 32), f64),
                build.convert(build.div(words[1], 64), f64),
            )
            return build.mul(build.add(build.mul(high, 2.0**26), low), 2.0**-53)
        return build.mul(build.convert(build.div(words[0], 256), f32), 2.0**-24)

    def fractions_reference(self, words: list[Array]) -> Array:
        if self.element is f64:
            return ((words[0] >> 5) * (1 << 26) + (words[1] >> 6)).astype(np.float64) * 2.0**-53
        return (words[0] >> 8).astype(np.float32) * np.float32(2.0**-24)

    @property
    def words_needed(self) -> int:
        """Words for one fraction."""
        return 2 if self.element is f64 else 1


class RandomUniform(Distribution):
    """Uniform in [0, 1), `state: i64[2] -> element[shape]`: 24 random bits for f32, 53 for f64.

    16-bit results have as many bits as their significand (11 for f16, 8 for bf16), so that none rounds up to 1.
    """

    name = "graph.random_uniform"
    vjp = NotDifferentiable("random numbers do not depend continuously on the state", zero=True)

    def decompose(self, *operands: Value) -> Value:
        if self.element.bits > 16:
            return self.fractions(self.words(operands[0], self.words_needed))
        (word,) = self.words(operands[0], 1)
        kept = 8 if self.element is bf16 else 11
        top = build.convert(build.div(word, 1 << (32 - kept)), f32)
        return build.convert(build.mul(top, 2.0**-kept), self.element)

    def reference(self, *operands: Array) -> Any:
        words = self.words_reference(operands[0], self.words_needed)
        if self.element.bits > 16:
            return self.fractions_reference(words)
        kept = 8 if self.element is bf16 else 11
        return ((words[0] >> (32 - kept)).astype(np.float32) * np.float32(2.0**-kept)).astype(
            self.element.numpy
        )

    def samples(self) -> Iterable[Sample]:
        yield Sample(RandomUniform((3, 5), f32), (np.array([42, 0]),), None)
        yield Sample(RandomUniform((3, 5), f64), (np.array([42, 1]),), None)
        yield Sample(RandomUniform((9,), bf16), (np.array([42, 1]),), None)


class RandomNormal(Distribution):
    """Standard normal, `state: i64[2] -> element[shape]`.

    ``sqrt(-2 log(1 - u)) cos(2 pi v)`` of two uniform numbers; G. Box and M. Muller, "A note on the generation of
    random normal deviates", Ann. Math. Stat. 29(2), 1958.
    """

    name = "graph.random_normal"
    vjp = NotDifferentiable("random numbers do not depend continuously on the state", zero=True)

    def decompose(self, *operands: Value) -> Value:
        n = self.words_needed
        words = self.words(operands[0], 2 * n)
        u, v = self.fractions(words[:n]), self.fractions(words[n:])
        radius = build.sqrt(build.mul(build.log(build.sub(1.0, u)), -2.0))
        return build.convert(build.mul(radius, build.cos(build.mul(v, 2 * math.pi))), self.element)

    def reference(self, *operands: Array) -> Any:
        n = self.words_needed
        words = self.words_reference(operands[0], 2 * n)
        u, v = self.fractions_reference(words[:n]), self.fractions_reference(words[n:])
        one, two_pi = u.dtype.type(1), u.dtype.type(2 * math.pi)
        return (np.sqrt(np.log(one - u) * -2) * np.cos(v * two_pi)).astype(self.element.numpy)

    def samples(self) -> Iterable[Sample]:
        yield Sample(RandomNormal((3, 5), f32), (np.array([42, 0]),), None)
        yield Sample(RandomNormal((33,), f64), (np.array([7, 1]),), None)


class RandomInteger(Distribution):
    """Integers in [low, high), `state: i64[2] -> element[shape]`; the bias is below ``(high - low) / 2**63``.

    63 random bits modulo the range, as in PyTorch's `randint`; ranges up to 2**31 take 32 + 31 bits too, so that the
    same seed gives the same numbers in every integer type.
    """

    name = "graph.random_integer"
    low: int
    high: int
    vjp = NotDifferentiable("its result is an integer", zero=True)

    def check_element(self) -> None:
        if not self.element.is_integer and not self.element.is_float:
            raise self.reject(
                "unsupported element type", expected="int or uint or float", actual=self.element
            )
        if not 0 < self.high - self.low < 1 << 63:
            raise self.reject(
                "the range must not be empty, nor exceed 2**63 - 1", actual=(self.low, self.high)
            )

    def decompose(self, *operands: Value) -> Value:
        first, second = (build.convert(word, i64) for word in self.words(operands[0], 2))
        wide = build.add(build.mul(build.div(first, 2), 1 << 32), second)
        return build.convert(build.add(build.rem(wide, self.high - self.low), self.low), self.element)

    def reference(self, *operands: Array) -> Any:
        first, second = self.words_reference(operands[0], 2)
        return (((first >> 1) * (1 << 32) + second) % (self.high - self.low) + self.low).astype(
            self.element.numpy
        )

    def samples(self) -> Iterable[Sample]:
        yield Sample(RandomInteger((3, 5), i64, -3, 12), (np.array([42, 0]),), None)
        yield Sample(RandomInteger((8,), i32, 0, 10), (np.array([1, 0]),), None)
        yield Sample(RandomInteger((8,), i64, 0, 1 << 60), (np.array([1, 5]),), None)
