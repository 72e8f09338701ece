"""Transcendental functions as straight-line scalar arithmetic: no branches, no tables in memory, no libm.

``FUNCTIONS[name, type]`` takes a builder (see ``protocol``) and the operands' values, and returns the result's value.
Results are those of C99, at infinities, zeros, NaN and subnormal numbers too. ``docs/accuracy.md`` has the errors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flambeau.compiler.lowering.mathlib.errorfn import erf, erfc, erfinv, gelu
from flambeau.compiler.lowering.mathlib.exponential import exp, exp2, expm1
from flambeau.compiler.lowering.mathlib.gamma import digamma, lgamma
from flambeau.compiler.lowering.mathlib.hyperbolic import acosh, asinh, atanh, cosh, sinh, tanh
from flambeau.compiler.lowering.mathlib.inverse_trig import acos, asin, atan, atan2
from flambeau.compiler.lowering.mathlib.logarithm import log, log1p, log2, log10
from flambeau.compiler.lowering.mathlib.num import F32, F64
from flambeau.compiler.lowering.mathlib.power import cbrt, pow, rsqrt
from flambeau.compiler.lowering.mathlib.protocol import Builder
from flambeau.compiler.lowering.mathlib.trig import cos, sin, tan

__all__ = ["FUNCTIONS", "Builder"]

FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("acos", "f32"): partial(acos, fmt=F32),
    ("acos", "f64"): partial(acos, fmt=F64),
    ("acosh", "f32"): partial(acosh, fmt=F32),
    ("acosh", "f64"): partial(acosh, fmt=F64),
    ("asin", "f32"): partial(asin, fmt=F32),
    ("asin", "f64"): partial(asin, fmt=F64),
    ("asinh", "f32"): partial(asinh, fmt=F32),
    ("asinh", "f64"): partial(asinh, fmt=F64),
    ("atan", "f32"): partial(atan, fmt=F32),
    ("atan", "f64"): partial(atan, fmt=F64),
    ("atan2", "f32"): partial(atan2, fmt=F32),
    ("atan2", "f64"): partial(atan2, fmt=F64),
    ("atanh", "f32"): partial(atanh, fmt=F32),
    ("atanh", "f64"): partial(atanh, fmt=F64),
    ("cbrt", "f32"): partial(cbrt, fmt=F32),
    ("cbrt", "f64"): partial(cbrt, fmt=F64),
    ("cos", "f32"): partial(cos, fmt=F32),
    ("cos", "f64"): partial(cos, fmt=F64),
    ("cosh", "f32"): partial(cosh, fmt=F32),
    ("cosh", "f64"): partial(cosh, fmt=F64),
    ("digamma", "f32"): partial(digamma, fmt=F32),
    ("digamma", "f64"): partial(digamma, fmt=F64),
    ("erf", "f32"): partial(erf, fmt=F32),
    ("erf", "f64"): partial(erf, fmt=F64),
    ("erfc", "f32"): partial(erfc, fmt=F32),
    ("erfc", "f64"): partial(erfc, fmt=F64),
    ("erfinv", "f32"): partial(erfinv, fmt=F32),
    ("erfinv", "f64"): partial(erfinv, fmt=F64),
    ("exp", "f32"): partial(exp, fmt=F32),
    ("exp", "f64"): partial(exp, fmt=F64),
    ("exp2", "f32"): partial(exp2, fmt=F32),
    ("exp2", "f64"): partial(exp2, fmt=F64),
    ("expm1", "f32"): partial(expm1, fmt=F32),
    ("expm1", "f64"): partial(expm1, fmt=F64),
    ("gelu", "f32"): partial(gelu, fmt=F32),
    ("gelu", "f64"): partial(gelu, fmt=F64),
    ("lgamma", "f32"): partial(lgamma, fmt=F32),
    ("lgamma", "f64"): partial(lgamma, fmt=F64),
    ("log", "f32"): partial(log, fmt=F32),
    ("log", "f64"): partial(log, fmt=F64),
    ("log10", "f32"): partial(log10, fmt=F32),
    ("log10", "f64"): partial(log10, fmt=F64),
    ("log1p", "f32"): partial(log1p, fmt=F32),
    ("log1p", "f64"): partial(log1p, fmt=F64),
    ("log2", "f32"): partial(log2, fmt=F32),
    ("log2", "f64"): partial(log2, fmt=F64),
    ("pow", "f32"): partial(pow, fmt=F32),
    ("pow", "f64"): partial(pow, fmt=F64),
    ("rsqrt", "f32"): partial(rsqrt, fmt=F32),
    ("rsqrt", "f64"): partial(rsqrt, fmt=F64),
    ("sin", "f32"): partial(sin, fmt=F32),
    ("sin", "f64"): partial(sin, fmt=F64),
    ("sinh", "f32"): partial(sinh, fmt=F32),
    ("sinh", "f64"): partial(sinh, fmt=F64),
    ("tan", "f32"): partial(tan, fmt=F32),
    ("tan", "f64"): partial(tan, fmt=F64),
    ("tanh", "f32"): partial(tanh, fmt=F32),
    ("tanh", "f64"): partial(tanh, fmt=F64),
}
