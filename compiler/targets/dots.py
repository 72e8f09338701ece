"""Instructions that multiply short elements and add neighbouring products: which a target has for which element types.

A *word* is `group` neighbouring elements in 32 bits; an instruction takes two vectors of words and adds, in each lane, the
`group` products of their elements to a sum of 32 bits. Sources: Intel's and Arm's instruction references.

- AVX512_BF16 `vdpbf16ps`: two products of bf16, summed in f32. Subnormal numbers count as zero;
  `vcvtneps2bf16`, which rounds such sums, keeps to that.
- AVX512_VNNI and AVX-VNNI `vpdpbusd`: four products of an unsigned and a signed byte. Of two signed bytes, one gets 128
  added; 128 times the sum of the other's is subtracted. Sums wrap, so the result is exact modulo 2^32.
- SSE2, AVX2, AVX512BW `pmaddwd`: two products of 16-bit integers: bytes are widened first.
- Armv8.4 `sdot`, `udot`, `usdot` (the last with I8MM), `bfdot` (BF16). The second factor may be a lane of a vector, so of
  bytes of one kind B comes first. (LLVM 22 does not find `bfdot` by a lane.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from flambeau.compiler.ir.types import ElementType, bf16, i8, i16, u8
from flambeau.compiler.targets.machine import TargetDescription

#: x86 CPUs by name that have the instructions; features that only a name implies are not in the description.
BF16_NAMES = re.compile(r"cooperlake|sapphirerapids|emeraldrapids|graniterapids.*|diamondrapids|znver[45]")
VNNI_NAMES = re.compile(rf"cascadelake|icelake.*|tigerlake|rocketlake|{BF16_NAMES.pattern}")
_ARM_DOT_NAMES = re.compile(
    r"apple-(m\d+|a1[1-9])|neoverse-.*|cortex-a(7[6-9]|7[1-9]\d|5[15]\d|55).*|cortex-x\d.*"
)


@dataclass(frozen=True)
class DotInstruction:
    """`intrinsic` of LLVM takes (sums, x, y) as vectors of `piece`, `group` of them a word; without `accumulates` it takes
    (x, y), and its result is to be added. x is B if `exchanged`, else A.

    `flip` is the exclusive or of A's words that makes its elements fit the instruction; the sums then start from
    `correction` times the sum of B's elements, or of A's if `by_rows`. `narrowing`: the intrinsic that rounds sums
    of f32 to bf16.
    """

    intrinsic: str
    piece: ElementType
    group: int
    accumulates: bool = True
    exchanged: bool = False
    flip: int = 0
    correction: int = 0
    by_rows: bool = False
    narrowing: str = ""

    def with_flipped_b(self) -> DotInstruction:
        """The instruction for a B whose bytes are flipped already, instead of A's."""
        return replace(self, exchanged=not self.exchanged, flip=0, by_rows=True)

    def swapped(self) -> DotInstruction:
        """The instruction for A as B and B as A: bytes of two kinds change sides, those of one kind do not."""
        assert not self.by_rows
        return self if self.flip or not self.of_bytes else replace(self, exchanged=not self.exchanged)

    @property
    def of_bytes(self) -> bool:
        """Does it multiply bytes as they are?"""
        return self.piece is i8


def dot_instruction(a: ElementType, b: ElementType, target: TargetDescription) -> DotInstruction | None:
    """The best instruction for products of `a` and `b` in vectors as wide as the target's; None if there is none."""
    if a is bf16 and b is bf16:
        return _of_bf16(target)
    if a in (i8, u8) and b in (i8, u8):
        return _of_bytes(a is i8, b is i8, target)
    return None


def _of_bf16(target: TargetDescription) -> DotInstruction | None:
    bits = _bits(target)
    if _is_arm(target):
        bfdot = DotInstruction("llvm.aarch64.neon.bfdot.v4f32.v8bf16", bf16, 2)
        return bfdot if target.has("bf16") else None
    if not (target.has("avx512bf16") or BF16_NAMES.fullmatch(target.cpu)) or target.vector_bits < 128:
        return None
    prefix = "llvm.x86.avx512bf16"
    narrowing = f"{prefix}.cvtneps2bf16.{bits}" if bits > 128 else ""
    return DotInstruction(f"{prefix}.dpbf16ps.{bits}", bf16, 2, narrowing=narrowing)


def _of_bytes(a_signed: bool, b_signed: bool, target: TargetDescription) -> DotInstruction | None:
    bits = _bits(target)
    if _is_arm(target):
        return _of_bytes_on_arm(a_signed, b_signed, target)
    if target.architecture != "x86_64" or target.vector_bits < 128:
        return None
    short = target.has("avxvnni") and bits <= 256
    if target.has("avx512vnni") or short or VNNI_NAMES.fullmatch(target.cpu):
        correction = (-128 if a_signed else 128) if a_signed is b_signed else 0
        # Of two kinds of bytes the unsigned one comes first; of one kind, A is made the other.
        return DotInstruction(
            f"llvm.x86.avx512.vpdpbusd.{bits}",
            i8,
            4,
            exchanged=not b_signed,
            flip=0x80808080 if correction else 0,
            correction=correction,
        )
    if bits == 512 and not (target.has("avx512bw") or target.cpu.startswith(("x86-64-v4", "skylake-avx512"))):
        return None
    if bits == 256 and not (
        target.has("avx2") or target.cpu in ("x86-64-v3", "haswell", "broadwell", "skylake")
    ):
        return None
    names = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}
    return DotInstruction(f"llvm.x86.{names[bits]}", i16, 2, accumulates=False)


def _of_bytes_on_arm(a_signed: bool, b_signed: bool, target: TargetDescription) -> DotInstruction | None:
    if a_signed is not b_signed:
        if not target.has("i8mm"):
            return None
        return DotInstruction("llvm.aarch64.neon.usdot.v4i32.v16i8", i8, 4, exchanged=a_signed)
    if not (target.has("dotprod") or _ARM_DOT_NAMES.fullmatch(target.cpu)):
        return None
    kind = "sdot" if a_signed else "udot"
    return DotInstruction(f"llvm.aarch64.neon.{kind}.v4i32.v16i8", i8, 4, exchanged=True)


def _is_arm(target: TargetDescription) -> bool:
    return target.architecture in ("aarch64", "arm64")


def _bits(target: TargetDescription) -> int:
    """Width of the vectors that contractions use (`schedule.cpu_contraction.cpu_shape`)."""
    return max(128, target.vector_bits)
