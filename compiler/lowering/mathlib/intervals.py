"""Polynomials around the centres of 16 intervals, whose coefficients AVX-512 takes from tables in registers."""

from __future__ import annotations

from collections.abc import Sequence

from flambeau.compiler.lowering.mathlib.exponential import magic
from flambeau.compiler.lowering.mathlib.num import Real
from flambeau.compiler.lowering.mathlib.protocol import V


def rows_of(table: Sequence[float]) -> list[Sequence[float]]:
    """A table's rows, each with a number for every interval."""
    return [table[row : row + 16] for row in range(0, len(table), 16)]


def rising(magnitude: Real[V], top: float, scale: float, rows: Sequence[Sequence[float]]) -> Real[V]:
    """At a >= 0, a function that rises from 0 to 1, which it is from `top` on; an interval is 1 / `scale` wide. `rows`: the
    intervals' centres, the function there, and the coefficients of polynomials around them, constant terms first."""
    a = magnitude.at_most(top)
    interval = a.fma(scale, magic(a.fmt)).bits()
    centre, constant, *coefficients = [interval.look_up(row) for row in rows]
    t = a - centre
    slope = coefficients.pop()
    while coefficients:
        slope = slope.fma(t, coefficients.pop())
    # In the first interval the constant term is 0, and t, most of the result, is added to it; in the others t is smaller.
    return slope.fma(t, t.at_least(constant))
