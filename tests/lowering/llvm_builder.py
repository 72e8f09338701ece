"""A builder that writes LLVM IR text and runs it as a vectorised loop over arrays: how mathlib's tests run fast."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import llvmlite.binding as llvm
import numpy as np

_LLVM = {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64", "i1": "i1"}
_BITS = {"f32": 32, "f64": 64, "i32": 32, "i64": 64}


@dataclass(frozen=True)
class Value:
    text: str
    type: str


@dataclass
class LlvmBuilder:
    """Satisfies mathlib's ``Builder`` protocol. With ``exact_fma`` False, fma is a multiplication and an addition. With
    ``avx512``, the instructions that mathlib wants there are made from others, so that any machine tests them."""

    exact_fma: bool = True
    avx512: bool = False
    lines: list[str] = field(default_factory=list)
    declarations: set[str] = field(default_factory=set)

    def emit(self, type: str, text: str) -> Value:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return Value(name, type)

    def call(self, name: str, *operands: Value) -> Value:
        t = _LLVM[operands[0].type]
        full = f"@llvm.{name}.{operands[0].type}"
        self.declarations.add(f"declare {t} {full}({', '.join([t] * len(operands))})")
        return self.emit(operands[0].type, f"call {t} {full}({', '.join(f'{t} {o.text}' for o in operands)})")

    def binary(self, op: str, x: Value, y: Value) -> Value:
        assert x.type == y.type, (op, x, y)
        return self.emit(x.type, f"{op} {_LLVM[x.type]} {x.text}, {y.text}")

    def convert(self, op: str, x: Value, type: str) -> Value:
        return self.emit(type, f"{op} {_LLVM[x.type]} {x.text} to {_LLVM[type]}")

    def const(self, type: str, value: float | int) -> Value:
        if type.startswith("i"):
            return Value(str(value), type)
        number = float(np.float32(value)) if type == "f32" else float(value)
        return Value(f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}", type)

    def fadd(self, x: Value, y: Value) -> Value:
        return self.binary("fadd", x, y)

    def fsub(self, x: Value, y: Value) -> Value:
        return self.binary("fsub", x, y)

    def fmul(self, x: Value, y: Value) -> Value:
        return self.binary("fmul", x, y)

    def fdiv(self, x: Value, y: Value) -> Value:
        return self.binary("fdiv", x, y)

    def fneg(self, x: Value) -> Value:
        return self.emit(x.type, f"fneg {_LLVM[x.type]} {x.text}")

    def fabs(self, x: Value) -> Value:
        return self.call("fabs", x)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        return self.call("fma", x, y, z) if self.exact_fma else self.fadd(self.fmul(x, y), z)

    def scale(self, x: Value, n: Value) -> Value:
        known = self.fcmp("oeq", n, n)
        number = self.floor(self.select(known, n, self.const(n.type, 0.0)))
        low, high = (
            self.const(n.type, limit) for limit in ((-900.0, 900.0) if x.type == "f32" else (-5e3, 5e3))
        )
        number = self.select(self.fcmp("olt", number, low), low, number)
        number = self.select(self.fcmp("ogt", number, high), high, number)
        if x.type == "f64":
            self.declarations.add("declare double @llvm.ldexp.f64.i32(double, i32)")
            power = self.convert("fptosi", number, "i32")
            scaled = self.emit("f64", f"call double @llvm.ldexp.f64.i32(double {x.text}, i32 {power.text})")
            return self.select(known, scaled, n)
        # f64 has room for the product, so that only the conversion rounds.
        biased = self.iadd(self.convert("fptosi", number, "i64"), self.const("i64", 1023))
        power = self.bitcast(self.shl(biased, self.const("i64", 52)), "f64")
        return self.select(known, self.fptrunc(self.fmul(self.fpext(x, "f64"), power), "f32"), n)

    def table(self, entries: Sequence[float], position: Value) -> Value:
        values = ", ".join(f"float {self.const('f32', e).text}" for e in entries)
        name = f"@table{len(self.lines)}"
        self.declarations.add(f"{name} = internal constant [{len(entries)} x float] [{values}]")
        place = self.iand(position, self.const("i32", len(entries) - 1))
        address = self.emit("ptr", f"getelementptr [16 x float], ptr {name}, i32 0, i32 {place.text}")
        return self.emit("f32", f"load float, ptr {address.text}")

    def bounded(self, x: Value, limit: float, unsigned: bool = False) -> Value:
        a, bound = self.fabs(x), self.const(x.type, limit)
        magnitude = self.select(self.fcmp("olt", a, bound), a, bound)
        if unsigned:
            return magnitude
        return self.select(self.fcmp("uno", x, x), bound, self.copysign(magnitude, x))

    def sqrt(self, x: Value) -> Value:
        return self.call("sqrt", x)

    def floor(self, x: Value) -> Value:
        return self.call("floor", x)

    def ceil(self, x: Value) -> Value:
        return self.call("ceil", x)

    def round_even(self, x: Value) -> Value:
        return self.call("roundeven", x)

    def trunc(self, x: Value) -> Value:
        return self.call("trunc", x)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self.call("copysign", magnitude, sign)

    def fcmp(self, predicate: str, x: Value, y: Value) -> Value:
        return Value(self.binary(f"fcmp {predicate}", x, y).text, "i1")

    def iadd(self, x: Value, y: Value) -> Value:
        return self.binary("add", x, y)

    def isub(self, x: Value, y: Value) -> Value:
        return self.binary("sub", x, y)

    def imul(self, x: Value, y: Value) -> Value:
        return self.binary("mul", x, y)

    def iand(self, x: Value, y: Value) -> Value:
        return self.binary("and", x, y)

    def ior(self, x: Value, y: Value) -> Value:
        return self.binary("or", x, y)

    def ixor(self, x: Value, y: Value) -> Value:
        return self.binary("xor", x, y)

    def shl(self, x: Value, y: Value) -> Value:
        return self.binary("shl", x, y)

    def lshr(self, x: Value, y: Value) -> Value:
        return self.binary("lshr", x, y)

    def ashr(self, x: Value, y: Value) -> Value:
        return self.binary("ashr", x, y)

    def icmp(self, predicate: str, x: Value, y: Value) -> Value:
        return Value(self.binary(f"icmp {predicate}", x, y).text, "i1")

    def not1(self, x: Value) -> Value:
        return self.emit("i1", f"xor i1 {x.text}, true")

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        assert condition.type == "i1" and x.type == y.type
        t = _LLVM[x.type]
        return self.emit(x.type, f"select i1 {condition.text}, {t} {x.text}, {t} {y.text}")

    def bitcast(self, x: Value, type: str) -> Value:
        return self.convert("bitcast", x, type)

    def sitofp(self, x: Value, type: str) -> Value:
        return self.convert("sitofp", x, type)

    def fpext(self, x: Value, type: str) -> Value:
        return self.convert("fpext", x, type)

    def fptrunc(self, x: Value, type: str) -> Value:
        return self.convert("fptrunc", x, type)

    def trunci(self, x: Value, type: str) -> Value:
        return self.convert("trunc", x, type)

    def extsi(self, x: Value, type: str) -> Value:
        return self.convert("sext", x, type)


def loop_text(function: Callable[..., Any], type: str, arity: int, b: LlvmBuilder) -> str:
    """A module with void f(in0, ..., out, n) that applies ``function`` to arrays."""
    result = function(b, *(Value(f"%x{i}", type) for i in range(arity)))
    t = _LLVM[type]
    loads = "\n".join(
        f"  %p{i} = getelementptr {t}, ptr %in{i}, i64 %i\n  %x{i} = load {t}, ptr %p{i}"
        for i in range(arity)
    )
    parameters = ", ".join([f"ptr noalias %in{i}" for i in range(arity)] + ["ptr noalias %out", "i64 %n"])
    body = "\n".join(b.lines)
    return f"""
define void @f({parameters}) "prefer-vector-width"="512" {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{loads}
{body}
  %po = getelementptr {t}, ptr %out, i64 %i
  store {t} {result.text}, ptr %po
  %next = add nuw nsw i64 %i, 1
  %done = icmp eq i64 %next, %n
  br i1 %done, label %exit, label %loop
exit:
  ret void
}}
""" + "\n".join(sorted(b.declarations))


class Compiled:
    """``function`` as a NumPy function on contiguous arrays of one type."""

    def __init__(
        self,
        function: Callable[..., Any],
        type: str,
        arity: int = 1,
        exact_fma: bool = True,
        avx512: bool = False,
    ) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(loop_text(function, type, arity, LlvmBuilder(exact_fma, avx512)))
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        llvm.create_pass_builder(machine, options).getModulePassManager().run(
            module, llvm.create_pass_builder(machine, options)
        )
        self.engine = llvm.create_mcjit_compiler(module, machine)
        self.engine.finalize_object()
        kinds = [ctypes.c_void_p] * (arity + 1) + [ctypes.c_int64]
        self.entry = ctypes.CFUNCTYPE(None, *kinds)(self.engine.get_function_address("f"))
        self.dtype = np.dtype({"f32": np.float32, "f64": np.float64}[type])

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        inputs = [np.ascontiguousarray(a, self.dtype) for a in arrays]
        out = np.empty_like(inputs[0])
        if out.size:
            self.entry(*(a.ctypes.data for a in inputs), out.ctypes.data, out.size)
        return out
