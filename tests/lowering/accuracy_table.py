"""Measures mathlib and prints ``docs/accuracy.md``.

    python -m tests.lowering.accuracy_table > docs/accuracy.md

Half a minute of one core for each function; with ``--quick`` every 257th f32 number only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import mpmath as mp
import numpy as np
import torch

from flambeau.compiler.lowering.mathlib import FUNCTIONS
from tests.lowering.llvm_builder import Compiled, LlvmBuilder, Value
from tests.lowering.mathlib_reference import (
    AVX512,
    DOMAINS,
    EXACT,
    NUMPY,
    all_f32_errors,
    f32_patterns,
    f64_samples,
    ulp_error_f64,
    ulp_errors_f32,
)
from tests.lowering.test_mathlib import binary_samples

HEADER = """# Accuracy of the elementary functions

Largest errors measured, in units in the last place of the exact result; 0.5 is a correctly rounded result. Special
values (infinities, NaN, signed zeros, subnormal numbers) are as in C99. Written by
`python -m tests.lowering.accuracy_table`.

- **f32**: {coverage} as argument (two arguments: samples), against our own f64 function, or PyTorch's for the
  functions that are computed in f64; *at* is an argument with this error.
- **f32 without FMA**: every 257th f32 number, on a target where a fused multiply-add becomes two instructions.
- **f32 with AVX-512**: as the first column, for functions that have another form there.
- **f64**: samples against mpmath, over the whole domain and close to the hard points.
- **operations**: scalar instructions of the f32 (f64) function; there are no branches and no calls.

| function | f32 | at | f32 without FMA | f32 with AVX-512 | f64 | at | operations |
|---|---|---|---|---|---|---|---|"""

FOOTER = """
sin, cos and tan hold for every finite argument. lgamma and digamma of negative arguments in f64 are not in the table:
near their zeros on the negative axis they are accurate absolutely (1e-15 of the larger term of the reflection
formula), not relatively.

gelu, x times the normal distribution function at x, is accurate relative to x rather than to the result, as every formula
with 1 + erf is: its error is at most 1.38 2**-24 |x| in f32 with AVX-512, 1.88 2**-24 |x| without (PyTorch's: 5.85), at
every 17th f32 number (tests/lowering/test_gelu.py)."""


def operations(name: str, type: str) -> int:
    b = LlvmBuilder()
    FUNCTIONS[name, type](b, *(Value(f"%x{i}", type) for i in range(1 if name in DOMAINS else 2)))
    return len(b.lines)


def worst_f32(name: str, quick: bool, avx512: bool = False) -> tuple[float, str]:
    if quick:
        x = f32_patterns(257)
        y = Compiled(FUNCTIONS[name, "f32"], "f32", avx512=avx512)(x)
        pairs: Iterable[tuple[np.ndarray, np.ndarray]] = [
            (x, ulp_errors_f32(y, NUMPY[name](x.astype(np.float64))))
        ]
    else:
        pairs = all_f32_errors(name, avx512)
    worst, where = 0.0, ""
    for x, errors in pairs:
        i = int(np.argmax(errors))
        if errors[i] > worst:
            worst, where = float(errors[i]), f"{x[i]:.9g}"
    return worst, where


def row(name: str, quick: bool) -> str:
    count = f"{operations(name, 'f32')} ({operations(name, 'f64')})"
    rng = np.random.default_rng(11)
    if name in DOMAINS:
        single, single_at = worst_f32(name, quick)
        x = f32_patterns(257)
        unfused = Compiled(FUNCTIONS[name, "f32"], "f32", exact_fma=False)(x)
        plain = float(
            ulp_errors_f32(unfused, Compiled(FUNCTIONS[name, "f64"], "f64")(x.astype(np.float64))).max()
        )
        samples: tuple[np.ndarray, ...] = (f64_samples(name, 8000, rng),)
    else:
        samples = binary_samples(name, 3000)
        x, y = (v.astype(np.float32) for v in binary_samples(name, 1_000_000))
        exact = NUMPY[name](x.astype(np.float64), y.astype(np.float64))
        errors = ulp_errors_f32(Compiled(FUNCTIONS[name, "f32"], "f32", 2)(x, y), exact)
        i = int(np.argmax(errors))
        single, single_at = float(errors[i]), f"{x[i]:.9g}, {y[i]:.9g}"
        plain = float(ulp_errors_f32(Compiled(FUNCTIONS[name, "f32"], "f32", 2, False)(x, y), exact).max())
    values = Compiled(FUNCTIONS[name, "f64"], "f64", len(samples))(*samples)
    double = [
        ulp_error_f64(v, EXACT[name](*(mp.mpf(float(a)) for a in arguments)))
        for v, *arguments in zip(values, *samples)
    ]
    i = int(np.argmax(double))
    double_at = ", ".join(f"{a[i]:.17g}" for a in samples)
    wide = f"{worst_f32(name, quick, avx512=True)[0]:.2f}" if name in AVX512 else ""
    return f"| {name} | {single:.2f} | {single_at} | {plain:.2f} | {wide} | {double[i]:.2f} | {double_at} | {count} |"


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    torch.set_num_threads(1)
    print(HEADER.format(coverage="every 257th f32 number" if quick else "every f32 number"))
    with np.errstate(all="ignore"), mp.workprec(200):
        for name in sorted(NUMPY):
            start = time.monotonic()
            print(row(name, quick), flush=True)
            print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(FOOTER)


if __name__ == "__main__":
    main()
