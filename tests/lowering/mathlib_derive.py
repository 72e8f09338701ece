"""Derives every polynomial of ``flambeau.compiler.lowering.mathlib`` and prints its module ``coefficients``.

    python -m tests.lowering.mathlib_derive > compiler/lowering/mathlib/coefficients.py

Needs mpmath. Each table says which function it approximates, on which interval, and the largest weighted error (the
weight makes it the error relative to the final result) with the coefficients as rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp  # type: ignore[import-untyped]
import numpy as np

from tests.lowering.remez import fit, rational

Number = Any
Function = Callable[[Number], Number]


def odd_tail(f: Function) -> Function:
    """g with f(x) = x + x**3 g(x**2), for odd f with f'(0) = 1."""
    return lambda z: (f(mp.sqrt(z)) / mp.sqrt(z) - 1) / z


def emit(name: str, comment: str, coefficients: list[float]) -> None:
    print(f"\n# {comment}")
    print(f"{name} = (")
    for c in coefficients:
        print(f"    {c!r},".replace("e+", "e"))
    print(")")


def polynomial(
    name: str,
    what: str,
    f: Function,
    lo: Number,
    hi: Number,
    degree: int,
    weight: Function,
    single: bool = False,
) -> None:
    coefficients, error = fit(f, mp.mpf(lo), mp.mpf(hi), degree, weight, single)
    bound = f"[{mp.nstr(mp.mpf(lo), 6)}, {mp.nstr(mp.mpf(hi), 6)}]"
    emit(name, f"{what} on {bound}; error 2**{math.log2(error):.1f}", coefficients)


def split(name: str, value: Number, parts: int, digits: int, what: str, last: int = 53) -> None:
    """``value`` as an unevaluated sum: parts of ``digits`` bits (so that a product with a small integer is exact), the
    last one rounded to ``last`` bits."""
    print(f"\n# {what}")
    print(f"{name} = (")
    for k in range(parts):
        bits = last if k == parts - 1 else digits
        exponent = mp.floor(mp.log(abs(value), 2)) + 1 - bits
        part = mp.nint(value / mp.mpf(2) ** exponent) * mp.mpf(2) ** exponent
        print(f"    {float(part)!r},")
        value -= part
    print(")")


def exponentials() -> None:
    half = mp.log(2) / 2 * mp.mpf("1.01")
    q: Function = lambda r: (mp.expm1(r) - r) / r**2  # noqa: E731
    weight: Function = lambda r: r * r / mp.exp(r)  # noqa: E731
    polynomial("EXP_F32", "(exp(r) - 1 - r) / r**2", q, -half, half, 4, weight, single=True)
    polynomial("EXP_F64", "(exp(r) - 1 - r) / r**2", q, -half, half, 9, weight)
    polynomial("EXP_SHORT", "(exp(r) - 1 - r) / r**2", q, -half, half, 5, weight)
    near = mp.log(2) / 32 * mp.mpf("1.01")
    polynomial("EXP_NEAR_F32", "(exp(r) - 1 - r) / r**2", q, -near, near, 1, weight, single=True)
    q2: Function = lambda r: (mp.mpf(2) ** r - 1 - r * mp.log(2)) / r**2  # noqa: E731
    weight = lambda r: r * r / mp.mpf(2) ** r  # noqa: E731
    polynomial("EXP2_F32", "(2**r - 1 - r ln 2) / r**2", q2, -0.505, 0.505, 5, weight, single=True)
    polynomial("EXP2_F64", "(2**r - 1 - r ln 2) / r**2", q2, -0.505, 0.505, 10, weight)
    polynomial("EXP2_SHORT", "(2**r - 1 - r ln 2) / r**2", q2, -0.505, 0.505, 6, weight)
    near = mp.mpf("1.01") / 32
    slope: Function = lambda r: (mp.mpf(2) ** r - 1) / r  # noqa: E731
    polynomial("EXP2_NEAR_F32", "(2**r - 1) / r", slope, -near, near, 2, lambda r: abs(r), single=True)
    roots = [mp.mpf(2) ** (mp.mpf(i) / 16) for i in range(16)]
    nearest = [float(np.float32(float(root))) for root in roots]
    rests = [float(np.float32(float(root - near))) for root, near in zip(roots, nearest, strict=True)]
    emit("ROOTS_OF_TWO_F32", "2**(i / 16)", nearest)
    emit("ROOTS_OF_TWO_REST_F32", "2**(i / 16) without the f32 number that is nearest", rests)
    split("LN2_FULL_F32", mp.log(2), 2, 24, "ln 2", 24)
    split("LN2_FULL_F64", mp.log(2), 2, 53, "ln 2")
    split("LN2_F32", mp.log(2), 2, 15, "ln 2; times a 9-bit integer the first part is exact in f32", 24)
    split("LN2_F64", mp.log(2), 2, 41, "ln 2; times a 12-bit integer the first part is exact in f64")


def logarithms() -> None:
    lo, hi = mp.sqrt(mp.mpf("0.5")) - 1, mp.sqrt(2) - 1
    cubic: Function = lambda f: (mp.log1p(f) - f + f * f / 2) / f**3  # noqa: E731
    weight: Function = lambda f: abs(f**3 / mp.log1p(f))  # noqa: E731
    polynomial("LOG_F32", "(log1p(f) - f + f**2 / 2) / f**3", cubic, lo, hi, 7, weight, single=True)
    top = (hi / (2 + hi)) ** 2
    atanh: Function = lambda z: (2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z) - 2) / z  # noqa: E731
    what = "(2 atanh(s) - 2 s) / s**3 in s**2"
    polynomial("LOG_F64", what, atanh, 0, top, 6, lambda z: z / 2)
    polynomial("LOG_SHORT", what, atanh, 0, top, 4, lambda z: z / 2)
    deep: Function = lambda z: (atanh(z) / 2 - mp.mpf(1) / 3) / z  # noqa: E731
    polynomial("LOG_PAIR", "(atanh(s) - s - s**3 / 3) / s**5 in s**2", deep, 0, top, 7, lambda z: z * z)
    split("THIRD", mp.mpf(1) / 3, 2, 53, "1/3")
    split("LOG2_E_F32", 1 / mp.log(2), 2, 24, "log2(e)", 24)
    split("LOG2_E_F64", 1 / mp.log(2), 2, 53, "log2(e)")
    split("LOG10_E_F32", 1 / mp.log(10), 2, 24, "log10(e)", 24)
    split("LOG10_E_F64", 1 / mp.log(10), 2, 53, "log10(e)")
    split(
        "LOG10_2_F32", mp.log10(2), 2, 15, "log10(2); the first part exact times a 9-bit integer in f32", 24
    )
    split("LOG10_2_F64", mp.log10(2), 2, 41, "log10(2); the first part exact times a 12-bit integer in f64")


def hyperbolics() -> None:
    one: Function = lambda z: z  # noqa: E731
    for name, f, top, single, double in (
        ("TANH", mp.tanh, mp.mpf("0.36"), 4, 11),
        ("SINH", mp.sinh, mp.mpf(1), 3, 7),
        ("ASINH", mp.asinh, mp.mpf("0.36"), 6, 15),
        ("ATANH", mp.atanh, mp.mpf("0.25"), 6, 14),
    ):
        what = f"({name.lower()}(x) - x) / x**3 in x**2"
        polynomial(f"{name}_F32", what, odd_tail(f), 0, top, single, one, single=True)
        polynomial(f"{name}_F64", what, odd_tail(f), 0, top, double, one)
    interval_table("TANH", mp.tanh, "9.02", 6)


def trigonometry() -> None:
    one: Function = lambda z: z  # noqa: E731
    top = (mp.pi / 4) ** 2 * mp.mpf("1.01")
    cosine: Function = lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2  # noqa: E731
    for name, f, weight, single, double in (
        ("SIN", odd_tail(mp.sin), one, 2, 5),
        ("TAN", odd_tail(mp.tan), one, 6, 14),
        ("COS", cosine, lambda z: z * z, 2, 5),
    ):
        what = "(cos(x) - 1 + x**2 / 2) / x**4" if name == "COS" else f"({name.lower()}(x) - x) / x**3"
        polynomial(f"{name}_F32", f"{what} in x**2", f, 0, top, single, weight, single=True)
        polynomial(f"{name}_F64", f"{what} in x**2", f, 0, top, double, weight)
    atan, asin = odd_tail(mp.atan), odd_tail(mp.asin)
    relative: Function = lambda z: z / (1 + z * atan(z))  # noqa: E731
    polynomial("ATAN_F32", "(atan(x) - x) / x**3 in x**2", atan, 0, 1, 8, relative, single=True)
    polynomial("ATAN_F64", "(atan(x) - x) / x**3 in x**2", atan, 0, 1, 20, relative)
    polynomial("ASIN_F32", "(asin(x) - x) / x**3 in x**2", asin, 0, 0.25, 5, one, single=True)
    polynomial("ASIN_F64", "(asin(x) - x) / x**3 in x**2", asin, 0, 0.25, 12, one)
    split("HALF_PI_F32", mp.pi / 2, 2, 24, "pi / 2", 24)
    split("HALF_PI_F64", mp.pi / 2, 2, 53, "pi / 2")
    sinpi: Function = lambda z: mp.sin(mp.pi * mp.sqrt(z)) / mp.sqrt(z) - mp.pi  # noqa: E731
    polynomial(
        "SINPI_F64",
        "sin(pi x) / x - pi over x**2, in x**2",
        lambda z: sinpi(z) / z,
        0,
        0.25,
        8,
        lambda z: z / 3,
    )
    split("PI_F64", mp.pi, 2, 53, "pi")


def two_over_pi() -> None:
    """Chunks of 2/pi for the reduction of large angles, see ``reduction``."""
    with mp.workprec(1400):
        value = 2 / mp.pi
        chunks: list[float] = []
        for k in range(25):
            unit = mp.mpf(2) ** (-48 * (k + 1))
            part = mp.floor(value / unit) * unit
            value -= part
            # scaled so that no chunk is subnormal; the angle is scaled down by the same power
            chunks.append(float(part * mp.mpf(2) ** 300))
        emit("TWO_OVER_PI_F64", "2/pi in chunks of 48 bits, times 2**300", chunks)
        for name, cut in (("TWO_OVER_PI_LOW", 0), ("TWO_OVER_PI_HIGH", 51)):
            # x >= 2**76 is a multiple of 2**53: bits of 2/pi of weight 2**-51 and above add multiples of 4
            value = 2 / mp.pi
            if cut:
                value -= mp.floor(value * mp.mpf(2) ** cut) / mp.mpf(2) ** cut
            split(name, value, 3, 53, f"2/pi without its first {cut} binary places")


def _centre(f: Function, start: Number, tries: int) -> tuple[Number, Number]:
    """An f32 number behind `start` where f is almost exactly an f32 number, so that a constant term there costs no accuracy; and
    that number."""
    centre = np.float32(float(start))
    best = (mp.mpf(1), centre)
    for _ in range(tries):
        value = f(float(centre))
        best = min(best, (abs(value - float(np.float32(float(value)))), centre), key=lambda pair: pair[0])
        centre = np.nextafter(centre, np.float32(99))
    at = mp.mpf(float(best[1]))
    return at, mp.mpf(float(np.float32(float(f(at)))))


def interval_table(name: str, f: Function, top: str, degree: int) -> None:
    """f, which rises from 0 to 1 and has the derivative 1 or so at 0, around 16 centres, one in each interval of equal width
    up to `top`. The polynomials add to the larger of t and f at the centre: t in the first interval, where the centre is 0,
    and f in the others, since t is smaller."""
    width = mp.mpf(top) / mp.mpf("15.49")
    columns: list[list[float]] = []
    worst = 0.0
    for i in range(16):
        centre, constant = (mp.mpf(0), mp.mpf(0)) if i == 0 else _centre(f, i * width, 400)

        def slope(t: Number, centre: Number = centre, constant: Number = constant) -> Number:
            return (f(centre + t) - max(t, constant)) / t

        def weight(t: Number, centre: Number = centre) -> Number:
            return abs(t) / f(centre + t)

        low = mp.mpf("1e-6") if i == 0 else (i - mp.mpf("0.5")) * width - centre
        coefficients, error = fit(slope, low, (i + mp.mpf("0.5")) * width - centre, degree, weight, True)
        worst = max(worst, error)
        columns.append([float(centre), float(constant), *coefficients])
    emit(
        f"{name}_WIDTH_F32",
        "the width of the intervals of the table, inverted",
        [float(np.float32(float(1 / width)))],
    )
    of = name.lower()
    emit(
        f"{name}_TABLE_F32",
        f"for intervals a centre, {of} there, and ({of}(c + t) - max(t, {of}(c))) / t; error 2**{math.log2(worst):.1f}",
        [column[row] for row in range(degree + 3) for column in columns],
    )


def _normal_tail_table() -> None:
    """1 minus the normal distribution function around multiples of 1/2, to an error that is absolute. The last interval is
    there for what is far away: its tail is 0."""
    columns: list[list[float]] = []
    worst = 0.0
    for i in range(15):
        centre = mp.mpf(i) / 2

        def tail(t: Number, centre: Number = centre) -> Number:
            return mp.ncdf(-(centre + t))

        low = mp.mpf(0) if i == 0 else mp.mpf("-0.25")
        coefficients, error = fit(tail, low, mp.mpf("0.25"), 5, lambda t: mp.mpf(1), True)
        worst = max(worst, error)
        columns.append(coefficients)
    columns.append([0.0] * 6)
    emit(
        "NORMAL_TAIL_F32",
        f"1 - the normal distribution function at c + t, for centres c; absolute error 2**{math.log2(worst):.1f}",
        [column[row] for row in range(6) for column in columns],
    )


def error_functions() -> None:
    erf: Function = lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1  # noqa: E731
    absolute: Function = lambda z: 1 / (1 + erf(z))  # noqa: E731
    polynomial("ERF_F32", "erf(x) / x - 1 in x**2", erf, 0, 1.21, 7, absolute, single=True)
    polynomial("ERF_F64", "erf(x) / x - 1 in x**2", erf, 0, 1, 12, absolute)
    t0, c0 = _centre(mp.erf, 2.3, 3000)
    emit(
        "ERF_CENTRE_F32",
        "a number whose erf is an f32 number to 2**-39, and that erf",
        [float(t0), float(c0)],
    )
    polynomial(
        "ERF_LARGE_F32", "(erf(c + t) - erf(c)) / t", lambda t: (mp.erf(t0 + t) - c0) / t,
        mp.mpf("1.1") - t0, mp.mpf("3.93") - t0, 12, abs, single=True,
    )  # fmt: skip
    interval_table("ERF", mp.erf, "3.93", 4)
    _normal_tail_table()
    for name, k, largest, degree in (("ERFCX_SHORT", 2.5, "10.1", 9), ("ERFCX_F64", 4.0, "27.3", 20)):

        def scaled(t: Number, k: Number = k) -> Number:
            u = (1 - t) / (2 * k)
            a = 1 / u - k
            return mp.erfc(a) * mp.exp(a * a) / u

        lo, hi = ((mp.mpf(a) - mp.mpf(k)) / (mp.mpf(a) + mp.mpf(k)) for a in ("0.49", largest))
        what = f"exp(a**2) erfc(a) (a + {k}) in (a - {k}) / (a + {k})"
        polynomial(name, what, scaled, lo, hi, degree, lambda t, g=scaled: 1 / g(t))


def inverse_error_function() -> None:
    def ratio(w: Number) -> Number:
        x = mp.sqrt(-mp.expm1(-w))
        return mp.erfinv(x) / x if w else mp.sqrt(mp.pi) / 2

    for name, lo, hi, centre, root, degree in (
        ("ERFINV_SMALL_F32", "0", "2", "0", False, 6),
        ("ERFINV_F32", "1.9", "5", "2.5", False, 7),
        ("ERFINV_TAIL_F32", "5", "16", "3", True, 9),
        ("ERFINV_SMALL_F64", "0", "2", "0", False, 14),
        ("ERFINV_F64", "1.9", "6.25", "3.75", False, 18),
        ("ERFINV_TAIL_F64", "6.25", "16", "3.25", True, 20),
        ("ERFINV_FAR_F64", "16", "38", "5", True, 20),
    ):
        c = mp.mpf(centre)
        edge: Function = mp.sqrt if root else mp.mpf
        argument: Function = (lambda t, c=c: (t + c) ** 2) if root else (lambda t, c=c: t + c)
        f: Function = lambda t, a=argument: ratio(a(t))  # noqa: E731
        start, end = edge(mp.mpf(lo)) - c, edge(mp.mpf(hi)) - c
        fitted, error = fit(f, start, end, degree, lambda t, f=f: 1 / f(t), single=False)
        first = float(np.float32(fitted[0]))
        rest = [fitted[0] - first, *fitted[1:]]
        if "32" in name:
            rest = [float(np.float32(x)) for x in rest]
        what = f"{'sqrt(w)' if root else 'w'} - {centre}, w = -log(1 - x**2) in [{lo}, {hi}]"
        print(f"\n{name}_FIRST = {first!r}")
        emit(
            name,
            f"erfinv(x) / x - {name}_FIRST in {what}; error 2**{math.log2(error):.1f}",
            rest,
        )


def gamma_functions() -> None:
    def lgamma(x: Number) -> Number:
        if abs((x - 1) * (x - 2)) < mp.mpf(10) ** -40:
            x += mp.mpf(10) ** -35
        return mp.loggamma(x) / ((x - 1) * (x - 2)) - 0.5

    p, q, error = rational(lgamma, 0.5, 2.5, 10, 10, lambda x: 1 / (lgamma(x) + 0.5))
    print(
        "\n# A middle value, so that P / Q is small and its rounding errors count less.\nLGAMMA_MIDDLE = 0.5"
    )
    what = "lgamma(x) / ((x - 1) (x - 2)) - LGAMMA_MIDDLE on [0.5, 2.5] = P / Q"
    emit("LGAMMA_P", f"{what}; error 2**{math.log2(error):.1f}", p)
    emit("LGAMMA_Q", "its denominator", q)

    def stirling(z: Number) -> Number:
        x = 1 / mp.sqrt(z)
        return (mp.loggamma(x) - (x - 0.5) * mp.log(x) + x - mp.log(2 * mp.pi) / 2) * x

    weight: Function = lambda z: mp.sqrt(z) / mp.loggamma(1 / mp.sqrt(z))  # noqa: E731
    what = "x (lgamma(x) - (x - 1/2) log x + x - log(2 pi) / 2) in 1 / x**2"
    polynomial("STIRLING", what, stirling, mp.mpf(10) ** -8, 1 / mp.mpf("4.5") ** 2, 8, weight)
    split("HALF_LOG_TWO_PI", mp.log(2 * mp.pi) / 2, 2, 53, "log(2 pi) / 2")

    root = mp.findroot(mp.digamma, 1.4616)
    split("DIGAMMA_ROOT", root, 3, 30, "the positive zero of digamma")

    def digamma(x: Number) -> Number:
        return (mp.digamma(x) / (x - root) if abs(x - root) > 1e-35 else mp.psi(1, root)) - 0.75

    half = mp.mpf("0.5")
    p, q, error = rational(
        lambda t: digamma(t + half), 0.5, 4.5, 8, 8, lambda t: 1 / (digamma(t + half) + 0.75)
    )
    print("\nDIGAMMA_MIDDLE = 0.75")
    what = "digamma(t + 1/2) / (t + 1/2 - root) - DIGAMMA_MIDDLE on [1/2, 9/2] = P / Q"
    emit("DIGAMMA_P", f"{what}; error 2**{math.log2(error):.1f}", p)
    emit("DIGAMMA_Q", "its denominator", q)

    def tail(z: Number) -> Number:
        x = 1 / mp.sqrt(z)
        return (mp.digamma(x) - mp.log(x) + 1 / (2 * x)) * x * x

    weight = lambda z: z / mp.digamma(1 / mp.sqrt(z))  # noqa: E731
    what = "x**2 (digamma(x) - log x + 1 / (2 x)) in 1 / x**2"
    polynomial("DIGAMMA_TAIL", what, tail, mp.mpf(10) ** -8, mp.mpf(1) / 25, 10, weight)


def cube_root() -> None:
    root: Function = lambda m: 1 / mp.cbrt(m)  # noqa: E731
    polynomial("CBRT", "m**(-1/3)", root, 1, 8, 5, mp.cbrt)


def main() -> None:
    mp.mp.dps = 80
    print(
        '"""Coefficients, constant term first. Written by ``tests/lowering/mathlib_derive.py``; do not edit."""'
    )
    exponentials()
    logarithms()
    hyperbolics()
    trigonometry()
    two_over_pi()
    error_functions()
    inverse_error_function()
    gamma_functions()
    cube_root()


if __name__ == "__main__":
    main()
