"""Minimax polynomial and near-minimax rational fits in multiple precision; used by ``mathlib_derive``.

Remez's second algorithm on a dense Chebyshev grid: the reference is exchanged for the extrema of the weighted error
until the levelled error stops growing. Source: E. W. Cheney, Introduction to Approximation Theory (1966), chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np

Number = Any  # an mpmath real
Function = Callable[[Number], Number]


def chebyshev_grid(lo: Number, hi: Number, count: int) -> list[Number]:
    """Extrema of the Chebyshev polynomial of degree count - 1 on [lo, hi], ascending."""
    mid, half = (hi + lo) / 2, (hi - lo) / 2
    return [mid - half * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]


def _evaluate(coefficients: list[Number], x: Number) -> Number:
    acc = mp.mpf(0)
    for c in reversed(coefficients):
        acc = acc * x + c
    return acc


def _alternation(errors: list[Number], count: int) -> list[int]:
    """Indices of ``count`` alternating extrema, the largest error among them."""
    peaks: list[int] = []
    for i, e in enumerate(errors):
        if peaks and (errors[peaks[-1]] > 0) == (e > 0):
            if abs(e) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        else:
            peaks.append(i)
    while len(peaks) > count:
        peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
    return peaks


def minimax(
    values: list[Number], grid: list[Number], weights: list[Number], degree: int
) -> tuple[list[Number], Number]:
    """Polynomial p of ``degree`` that minimises max |w (p - f)| over the grid; with that maximum."""
    n = degree + 2
    picks = [round(i * (len(grid) - 1) / (n - 1)) for i in range(n)]
    centre, half = (grid[0] + grid[-1]) / 2, (grid[-1] - grid[0]) / 2
    best: tuple[list[Number], Number] | None = None
    for _ in range(40):
        rows = mp.matrix(n, n)
        rhs = mp.matrix(n, 1)
        for r, i in enumerate(picks):
            power = mp.mpf(1)
            for k in range(degree + 1):
                rows[r, k] = power
                power *= (grid[i] - centre) / half
            rows[r, degree + 1] = (-1) ** r / weights[i]
            rhs[r] = values[i]
        solution = mp.lu_solve(rows, rhs)
        coefficients = [solution[k] for k in range(degree + 1)]
        level = abs(solution[degree + 1])
        errors = [
            w * (_evaluate(coefficients, (x - centre) / half) - v)
            for x, v, w in zip(grid, values, weights, strict=True)
        ]
        worst = max(abs(e) for e in errors)
        if best is None or worst < best[1]:
            best = (coefficients, worst)
        fresh = _alternation(errors, n)
        if len(fresh) < n or worst <= level * mp.mpf("1.001"):
            break
        picks = fresh
    assert best is not None
    return _shift(best[0], centre, half), best[1]


def _shift(coefficients: list[Number], centre: Number, half: Number) -> list[Number]:
    """Coefficients in x of a polynomial given in (x - centre) / half."""
    result = [mp.mpf(0)]
    for c in reversed(coefficients):
        moved = [mp.mpf(0)] + [a / half for a in result]
        for i, a in enumerate(result):
            moved[i] -= a * centre / half
        moved[0] += c
        result = moved
    return result[: len(coefficients)]


def fit(
    f: Function, lo: Number, hi: Number, degree: int, weight: Function, single: bool
) -> tuple[list[float], float]:
    """Coefficients (constant term first) of the minimax polynomial, rounded to f64, or to f32 one after the other,
    each time fitting the rest anew so that later coefficients absorb the rounding of earlier ones. (Not where 0 is
    inside the interval: what the rounding of a coefficient leaves, divided by x, has a pole there.)"""
    grid = chebyshev_grid(mp.mpf(lo), mp.mpf(hi), 24 * (degree + 2) + 1)
    grid = [x for x in grid if abs(x) > 1e-9 * (abs(lo) + abs(hi))]  # f and weight may be 0/0 at 0
    values = [f(x) for x in grid]
    weights = [weight(x) for x in grid]
    original = values
    done: list[float] = []
    for k in range(degree + 1):
        coefficients, _ = minimax(values, grid, weights, degree - k)
        if not single:
            done = [float(c) for c in coefficients]
            break
        if grid[0] < 0 < grid[-1]:
            done = [float(np.float32(float(c))) for c in coefficients]
            break
        c0 = float(np.float32(float(coefficients[0])))
        done.append(c0)
        values = [(v - c0) / x for v, x in zip(values, grid, strict=True)]
        weights = [w * abs(x) for w, x in zip(weights, grid, strict=True)]
    weights = [weight(x) for x in grid]
    exact = [mp.mpf(c) for c in done]
    error = max(abs(w * (_evaluate(exact, x) - v)) for x, v, w in zip(grid, original, weights, strict=True))
    return done, float(error)


def rational(
    f: Function, lo: Number, hi: Number, top: int, bottom: int, weight: Function
) -> tuple[list[float], list[float], float]:
    """P / Q with Q(0) = 1 that interpolates f at Chebyshev nodes (near-minimax); and its weighted error with
    coefficients rounded to f64."""
    n = top + bottom + 1
    lo, hi = mp.mpf(lo), mp.mpf(hi)
    nodes = [(hi + lo) / 2 - (hi - lo) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    rows = mp.matrix(n, n)
    rhs = mp.matrix(n, 1)
    for r, x in enumerate(nodes):
        y = f(x)
        for k in range(top + 1):
            rows[r, k] = x**k
        for k in range(1, bottom + 1):
            rows[r, top + k] = -y * x**k
        rhs[r] = y
    s = mp.lu_solve(rows, rhs)
    p = [float(s[k]) for k in range(top + 1)]
    q = [1.0] + [float(s[top + k]) for k in range(1, bottom + 1)]
    grid = chebyshev_grid(lo, hi, 40 * n + 1)
    pe, qe = [mp.mpf(c) for c in p], [mp.mpf(c) for c in q]
    error = max(abs(weight(x) * (_evaluate(pe, x) / _evaluate(qe, x) - f(x))) for x in grid)
    return p, q, float(error)
