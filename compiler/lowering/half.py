"""f16 and bf16 in f32 registers: conversions to and from their bits, and rounding, by integer operations.

Targets without instructions for these formats would call library functions that we do not ship. Everything works on
scalars and on vectors. Source of the f16 sequences: F. Giesen, "float->half variants", rounding to nearest even.
"""

from __future__ import annotations

from flambeau.compiler.ir.builder import LoopBuilder
from flambeau.compiler.ir.core import Value
from flambeau.compiler.ir.types import ElementType, bf16, f16


class HalfFormats:
    """f16 and bf16 through a builder. `f16_instructions`: the target converts f16 itself."""

    def __init__(self, b: LoopBuilder, f16_instructions: bool) -> None:
        self.b, self.f16_instructions = b, f16_instructions

    def widen(self, x: Value, element: ElementType) -> Value:
        """An f16 or bf16 value as f32, exactly."""
        b = self.b
        if element is f16 and self.f16_instructions:
            return b.fpext(x, "f32")
        bits = b.extui(b.bitcast(x, "i16"), "i32")
        if element is bf16:
            return b.bitcast(b.shl(bits, b.const("i32", 16)), "f32")
        return self._f16_decode(bits)

    def narrow(self, x: Value, element: ElementType) -> Value:
        """An f32 value that `element` (f16 or bf16) can represent, as `element`."""
        b = self.b
        if element is f16 and self.f16_instructions:
            return b.fptrunc(x, f16)
        if element is f16:
            return b.bitcast(b.trunci(self._f16_encode(x), "i16"), f16)
        bits = b.lshr(b.bitcast(x, "i32"), b.const("i32", 16))
        return b.bitcast(b.trunci(bits, "i16"), bf16)

    def round(self, x: Value, element: ElementType) -> Value:
        """The f32 number nearest to `x` that `element` (f16 or bf16) can represent, ties to even."""
        b = self.b
        if element is f16:
            if self.f16_instructions:
                return b.fpext(b.fptrunc(x, f16), "f32")
            return self._f16_decode(self._f16_encode(x))
        bits = b.bitcast(x, "i32")
        odd = b.iand(b.lshr(bits, b.const("i32", 16)), b.const("i32", 1))
        rounded = b.iadd(b.iadd(bits, b.const("i32", 0x7FFF)), odd)
        quiet = b.ior(bits, b.const("i32", 0x400000))
        chosen = b.select(b.fcmp("uno", x, x), quiet, rounded)
        return b.bitcast(b.iand(chosen, b.const("i32", -0x10000)), "f32")

    def _f16_encode(self, x: Value) -> Value:
        """The bits of `x` rounded to f16, in an i32."""
        b = self.b

        def n(value: int) -> Value:
            return b.const("i32", value)

        word = b.bitcast(x, "i32")
        size = b.iand(word, n(0x7FFFFFFF))
        sign = b.iand(b.lshr(word, n(16)), n(0x8000))
        huge = b.select(b.icmp("ugt", size, n(0x7F800000)), n(0x7E00), n(0x7C00))
        magic = ((127 - 15) + (23 - 10) + 1) << 23  # adding this float shifts and rounds a subnormal result
        small = b.isub(b.bitcast(b.fadd(b.bitcast(size, "f32"), b.bitcast(n(magic), "f32")), "i32"), n(magic))
        odd = b.iand(b.lshr(size, n(13)), n(1))
        normal = b.lshr(b.iadd(b.iadd(size, n(((15 - 127) << 23) + 0xFFF)), odd), n(13))
        finite = b.select(b.icmp("ult", size, n(113 << 23)), small, normal)
        return b.ior(b.select(b.icmp("uge", size, n(0x47800000)), huge, finite), sign)

    def _f16_decode(self, bits: Value) -> Value:
        """The f32 of f16 bits that are in an i32."""
        b = self.b

        def n(value: int) -> Value:
            return b.const("i32", value)

        shifted = b.shl(b.iand(bits, n(0x7FFF)), n(13))
        exponent = b.iand(shifted, n(0x7C00 << 13))
        normal = b.iadd(shifted, n((127 - 15) << 23))
        infinite = b.iadd(normal, n((128 - 16) << 23))
        raised = b.bitcast(b.iadd(normal, n(1 << 23)), "f32")
        small = b.bitcast(b.fsub(raised, b.bitcast(n(113 << 23), "f32")), "i32")
        finite = b.select(b.icmp("eq", exponent, n(0)), small, normal)
        size = b.select(b.icmp("eq", exponent, n(0x7C00 << 13)), infinite, finite)
        sign = b.shl(b.iand(bits, n(0x8000)), n(16))
        return b.bitcast(b.ior(size, sign), "f32")
