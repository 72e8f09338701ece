"""Scalar operations as LLVM text: one row an operation. A new scalar operation is a new row.

In a row, ``{r}`` is the result's name, ``{0}`` ... the operands', ``{t}`` the operands' LLVM type, ``{to}`` the
result's, ``{s}`` and ``{ts}`` the suffixes of these types in intrinsics' names, ``{f}`` the flags with a blank after
them, ``{p}`` the predicate. Vectors use the same rows. Each target has a table.
"""

from __future__ import annotations


def _unary(name: str) -> str:
    return "{r} = call {f}{t} @llvm." + name + ".{s}({t} {0})"


def _binary(name: str, flags: str = "") -> str:
    return "{r} = call " + flags + "{f}{t} @llvm." + name + ".{s}({t} {0}, {t} {1})"


# floor(a / b): the truncated quotient, less one where the remainder is not 0 and has not the divisor's sign
_FLOOR_DIVIDE = """\
{r}.q = sdiv {t} {0}, {1}
  {r}.m = mul {t} {r}.q, {1}
  {r}.d = sub {t} {0}, {r}.m
  {r}.z = icmp ne {t} {r}.d, {zero}
  {r}.x = xor {t} {r}.d, {1}
  {r}.n = icmp slt {t} {r}.x, {zero}
  {r}.a = and {mask} {r}.z, {r}.n
  {r}.e = sext {mask} {r}.a to {t}
  {r} = add {t} {r}.q, {r}.e"""

CPU: dict[str, str] = {
    "arith.addf": "{r} = fadd {f}{t} {0}, {1}",
    "arith.subf": "{r} = fsub {f}{t} {0}, {1}",
    "arith.mulf": "{r} = fmul {f}{t} {0}, {1}",
    "arith.divf": "{r} = fdiv {f}{t} {0}, {1}",
    "arith.remf": "{r} = frem {f}{t} {0}, {1}",
    "arith.negf": "{r} = fneg {f}{t} {0}",
    # Of two zeros either may come out: with a constant this is one instruction of x86, else three.
    "arith.maximumf": _binary("maximum", "nsz "),
    "arith.minimumf": _binary("minimum", "nsz "),
    "arith.maxnumf": _binary("maxnum"),
    "arith.minnumf": _binary("minnum"),
    "arith.cmpf": "{r} = fcmp {p} {t} {0}, {1}",
    "arith.addi": "{r} = add {f}{t} {0}, {1}",
    "arith.subi": "{r} = sub {f}{t} {0}, {1}",
    "arith.muli": "{r} = mul {f}{t} {0}, {1}",
    "arith.divsi": "{r} = sdiv {t} {0}, {1}",
    "arith.divui": "{r} = udiv {t} {0}, {1}",
    "arith.remsi": "{r} = srem {t} {0}, {1}",
    "arith.remui": "{r} = urem {t} {0}, {1}",
    "arith.floordivsi": _FLOOR_DIVIDE,
    "arith.maxsi": _binary("smax"),
    "arith.minsi": _binary("smin"),
    "arith.maxui": _binary("umax"),
    "arith.minui": _binary("umin"),
    "arith.andi": "{r} = and {t} {0}, {1}",
    "arith.ori": "{r} = or {t} {0}, {1}",
    "arith.xori": "{r} = xor {t} {0}, {1}",
    "arith.shli": "{r} = shl {f}{t} {0}, {1}",
    "arith.shrsi": "{r} = ashr {t} {0}, {1}",
    "arith.shrui": "{r} = lshr {t} {0}, {1}",
    "arith.cmpi": "{r} = icmp {p} {t} {0}, {1}",
    "arith.bitcast": "{r} = bitcast {t} {0} to {to}",
    "arith.extf": "{r} = fpext {t} {0} to {to}",
    "arith.truncf": "{r} = fptrunc {t} {0} to {to}",
    "arith.extsi": "{r} = sext {t} {0} to {to}",
    "arith.extui": "{r} = zext {t} {0} to {to}",
    "arith.trunci": "{r} = trunc {t} {0} to {to}",
    "arith.fptosi": "{r} = fptosi {t} {0} to {to}",
    "arith.fptoui": "{r} = fptoui {t} {0} to {to}",
    "arith.sitofp": "{r} = sitofp {t} {0} to {to}",
    "arith.uitofp": "{r} = uitofp {t} {0} to {to}",
    "llvm.intr.fptosi.sat": "{r} = call {to} @llvm.fptosi.sat.{ts}.{s}({t} {0})",
    "llvm.intr.fptoui.sat": "{r} = call {to} @llvm.fptoui.sat.{ts}.{s}({t} {0})",
    "math.absf": _unary("fabs"),
    "math.absi": "{r} = call {t} @llvm.abs.{s}({t} {0}, i1 false)",
    "math.ceil": _unary("ceil"),
    "math.floor": _unary("floor"),
    "math.roundeven": _unary("roundeven"),
    "math.trunc": _unary("trunc"),
    "math.sqrt": _unary("sqrt"),
    "math.copysign": _binary("copysign"),
    "math.ctlz": "{r} = call {t} @llvm.ctlz.{s}({t} {0}, i1 false)",
    "math.cttz": "{r} = call {t} @llvm.cttz.{s}({t} {0}, i1 false)",
    "math.ctpop": _unary("ctpop"),
    "math.fma": "{r} = call {f}{t} @llvm.fma.{s}({t} {0}, {t} {1}, {t} {2})",
    "vector.bitcast": "{r} = bitcast {t} {0} to {to}",
    "vector.fma": "{r} = call {t} @llvm.fma.{s}({t} {0}, {t} {1}, {t} {2})",
}

_SPECIAL = "{r}.w = call i32 @llvm.nvvm.read.ptx.sreg.{special}.{p}()\n  {r} = zext i32 {r}.w to i64"


def _special(name: str) -> str:
    return _SPECIAL.replace("{special}", name)


NVPTX: dict[str, str] = {
    **CPU,
    "gpu.thread_id": _special("tid"),
    "gpu.block_id": _special("ctaid"),
    "gpu.block_dim": _special("ntid"),
    "gpu.grid_dim": _special("nctaid"),
}

#: vector.reduction's kinds: the intrinsic, and the start value that the float sums and products take.
REDUCTIONS: dict[str, str] = {
    "add": "add",
    "mul": "mul",
    "minsi": "smin",
    "minui": "umin",
    "maxsi": "smax",
    "maxui": "umax",
    "minimumf": "fminimum",
    "maximumf": "fmaximum",
    "and": "and",
    "or": "or",
    "xor": "xor",
}

ATOMICS: dict[str, str] = {
    "addf": "fadd",
    "addi": "add",
    "maxs": "max",
    "mins": "min",
    "maxu": "umax",
    "minu": "umin",
    "andi": "and",
    "ori": "or",
    "assign": "xchg",
}
