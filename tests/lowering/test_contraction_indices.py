"""Positions split into digits and put together again cost nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.compiler.dialects.graph.contraction import decode, encode
from flambeau.compiler.ir.dims import Index, Symbol, dim, evaluate, of_symbol, product, recombine

N, K = dim("N"), dim("K")


@pytest.mark.parametrize("sizes", [(2, 3), (2, 3, 5), (2, 3, 4, 5), (N, 3), (2, N, K), (N, K, 7)], ids=str)
def test_decoded_positions_encode_to_themselves(sizes: tuple[Index, ...]) -> None:
    m = of_symbol(Symbol("m", 0, product(sizes) - 1))
    b = of_symbol(Symbol("b", 0, 9))
    digits = decode(m, sizes)
    assert recombine(encode(digits, sizes)) == m
    assert recombine(encode((b, *digits, 3), (10, *sizes, 8))) == b * product(sizes) * 8 + m * 8 + 3


def test_other_expressions_stay() -> None:
    m = of_symbol(Symbol("m", 0, 59))
    for value in (7, m, m // 5 * 7 + m % 5, m % 5, m // 5 * 5 + m % 7):
        assert recombine(value) == value


@given(st.integers(0, 500), st.integers(1, 9), st.integers(1, 9), st.integers(-3, 3), st.integers(-3, 3))
def test_the_value_stays(m: int, d: int, e: int, x: int, y: int) -> None:
    symbol = of_symbol(Symbol("m", 0, None))
    value = symbol // d // e * (d * e) * x + symbol // d % e * d * x + symbol % d * y + symbol // d
    assert evaluate(recombine(value), {"m": m}) == evaluate(value, {"m": m})
