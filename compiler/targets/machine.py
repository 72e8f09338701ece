"""LLVM as a code generator: target descriptions, the optimisation pipeline, object files.

The text that comes in is LLVM IR of one module; the bytes that go out are a relocatable object. llvmlite (and
LLVM's libraries) are loaded at the first call, never at import.

Levels of optimisation (`opt_level`):

- 0: none but forced inlining, and a plain code generator;
- 1: clean-up only (memory to registers, control flow, instruction combining), and LLVM's best code generator. Code
  that comes scheduled and vectorised needs no more: measured on contractions, softmax, reductions and pointwise
  chains, the kernels run as fast as at level 3 and LLVM takes a third of the time;
- 2, 3: LLVM's standard pipelines O2 and O3, loop and SLP vectorisation on: for code that relies on LLVM's loop passes.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flambeau.compiler import options
from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.targets.caches import TYPICAL, cache_sizes


class CodegenError(CompilationError):
    """LLVM rejected a module or a target: a fault of the emitter, or of the requested target's name."""


@dataclass(frozen=True)
class TargetDescription:
    """What the schedules and emitters need to know of a CPU. Sizes in bytes; `features` in LLVM's form, "+avx2,-sse4a".

    `vector_bits` is the widest vector register worth using (at least 64), `vector_registers` how many there are.
    `l3_bytes` is shared by all cores; the others belong to one core.
    """

    triple: str
    cpu: str
    features: str
    data_layout: str
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int

    @property
    def architecture(self) -> str:
        """The triple's first part in LLVM's spelling: "x86_64", "aarch64", "wasm32", …"""
        return self.triple.split("-", 1)[0]

    @property
    def pointer_bits(self) -> int:
        """Width of a pointer: 64, or 32 on 32-bit architectures."""
        return 64 if "64" in self.architecture or self.architecture == "s390x" else 32

    def has(self, feature: str) -> bool:
        """Whether `features` switches this feature on. A feature that only the CPU's name implies is not seen."""
        return f"+{feature}" in self.features.split(",")


_lock = threading.Lock()
_native_ready = False
_all_ready = False


def _binding(*, every_target: bool = False) -> Any:
    """llvmlite.binding with the native target, or every target, initialised once."""
    global _native_ready, _all_ready
    import llvmlite.binding as llvm

    with _lock:
        if not _native_ready:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            llvm.initialize_native_asmparser()  # exported libraries ask the CPU for its features (cpuid)
            _native_ready = True
        if every_target and not _all_ready:
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
            _all_ready = True
    return llvm


# Vector features, widest first: (LLVM feature, bits, registers). RISC-V has 32, one of them for masks; with tiles that
# need 27, LLVM loads the vectors of several steps at once and stores sums on the stack.
_VECTOR_FEATURES = (
    ("avx512f", 512, 32),
    ("avx", 256, 16),
    ("sse2", 128, 16),
    ("neon", 128, 32),
    ("simd128", 128, 16),
    ("v", 128, 24),
    ("altivec", 128, 32),
)
# What a register of each width looks like in assembly: for CPUs known by name only.
_REGISTER_PATTERNS = (
    (r"%zmm\d", 512, 32),
    (r"%ymm\d", 256, 16),
    (r"%xmm\d", 128, 16),
    (r"\bv\d+\.4s|fadd\.4s", 128, 32),
)
_PROBE = """
define <16 x float> @f(<16 x float> %a, <16 x float> %b) {
  %r = fadd <16 x float> %a, %b
  ret <16 x float> %r
}
"""
# What every Linux distribution for RISC-V builds for (RV64GC), with its hard-float ABI.
_RISCV_LINUX = "+m,+a,+f,+d,+c"


@functools.cache
def host_target() -> TargetDescription:
    """The machine we run on: its CPU's name, every feature that LLVM detects, its caches, the CPUs we may use."""
    llvm = _binding()
    features = llvm.get_host_cpu_features()
    bits, registers = _widest(name for name, on in features.items() if on)
    l1, l2, l3 = _host_caches()
    triple = llvm.get_process_triple()
    cpu, flat = llvm.get_host_cpu_name(), features.flatten()
    layout = str(_machine(triple, cpu, flat, 3).target_data)
    if bits == 0:  # a platform whose features LLVM cannot detect
        bits, registers = _probe_vectors(triple, cpu, flat)
    return TargetDescription(triple, cpu, flat, layout, bits, registers, l1, l2, l3)


def process_target() -> TargetDescription:
    """What code of this process is made for: the machine we run on, or what the CPU named by the option `cpu` has of it."""
    cpu = options.current().cpu
    return _as_cpu(cpu) if cpu else host_target()


@functools.cache
def _as_cpu(cpu: str) -> TargetDescription:
    host = host_target()
    named = cross_target(host.triple, cpu)
    return replace(named, l1_bytes=host.l1_bytes, l2_bytes=host.l2_bytes, l3_bytes=host.l3_bytes)


@functools.cache
def cross_target(triple: str, cpu: str = "", features: str = "") -> TargetDescription:
    """Any target that LLVM generates code for; an empty `cpu` is the architecture's base line. Caches are those
    that `targets.caches` knows of the CPU, or typical ones.

    Raises CodegenError for a triple or a CPU that LLVM does not know.
    """
    triple = normalize_triple(triple)
    if cpu and not _knows(triple, cpu, features):
        raise CodegenError(
            f"no CPU of {triple!r} is called {cpu!r}; LLVM's names are like 'haswell', 'x86-64-v3', 'cortex-a76'"
        )
    if triple.startswith("riscv64") and not cpu and not features:
        features = _RISCV_LINUX
    layout = str(_machine(triple, cpu, features, 3).target_data)
    bits, registers = _widest(item[1:] for item in features.split(",") if item.startswith("+"))
    if bits == 0:
        bits, registers = _probe_vectors(triple, cpu, features)
    return TargetDescription(triple, cpu, features, layout, bits, registers, *cache_sizes(cpu))


def normalize_triple(triple: str) -> str:
    """LLVM's spelling of a target: with a vendor ("x86_64-windows-gnu" → "x86_64-pc-windows-gnu") and Apple's own names
    ("aarch64-macos" → "arm64-apple-macosx11.0"). LLVM takes a missing vendor for an unknown system.
    """
    parts = triple.split("-")
    systems = ("linux", "windows", "macos", "darwin", "wasi", "freestanding", "freebsd", "netbsd", "openbsd")
    if len(parts) < 2 or not parts[1].startswith(systems):
        return triple
    if parts[1].startswith(("macos", "darwin")):
        name = "arm64" if parts[0] == "aarch64" else parts[0]
        return f"{name}-apple-{'macosx11.0' if parts[1] == 'macos' else parts[1]}"
    vendor = "pc" if parts[1].startswith("windows") else "unknown"
    return "-".join([parts[0], vendor, *parts[1:]]).replace("freestanding", "unknown")


def optimize(ir_text: str, target: TargetDescription, opt_level: int = 3, *, link: Sequence[str] = ()) -> str:
    """The module's text after the passes of `opt_level`.

    `link` gives further modules to merge in first (the runtime's native part, say).
    """
    return str(_optimized(ir_text, target, opt_level, link))


def emit_object(
    ir_text: str, target: TargetDescription, opt_level: int = 3, *, link: Sequence[str] = ()
) -> bytes:
    """Optimises the module and generates position-independent machine code: an object file's bytes.

    Raises CodegenError with LLVM's message and the offending line if the text does not parse or verify.
    """
    module = _optimized(ir_text, target, opt_level, link)
    object_code: bytes = _machine(target.triple, target.cpu, target.features, opt_level).emit_object(module)
    return object_code


def emit_assembly(
    ir_text: str, target: TargetDescription, opt_level: int = 3, *, link: Sequence[str] = ()
) -> str:
    """As `emit_object`, but assembly for people to read."""
    module = _optimized(ir_text, target, opt_level, link)
    return str(_machine(target.triple, target.cpu, target.features, opt_level).emit_assembly(module))


def verify(ir_text: str) -> None:
    """Raises CodegenError unless LLVM parses and verifies the module."""
    llvm = _binding()
    _parse(llvm, ir_text, llvm.create_context())


def _optimized(ir_text: str, target: TargetDescription, opt_level: int, link: Sequence[str]) -> Any:
    llvm = _binding()
    machine = _machine(target.triple, target.cpu, target.features, opt_level)
    # A context of its own, so that types and constants are freed with the module.
    context = llvm.create_context()
    module = _parse(llvm, ir_text, context, target)
    for other in link:
        module.link_in(_parse(llvm, other, context, target))
    tuning = llvm.create_pipeline_tuning_options(speed_level=opt_level)
    tuning.loop_vectorization = tuning.slp_vectorization = opt_level >= 2
    tuning.loop_interleaving = tuning.loop_unrolling = opt_level >= 2
    builder = llvm.create_pass_builder(machine, tuning)
    passes = builder.getModulePassManager() if opt_level >= 2 else _short_pipeline(llvm, opt_level)
    passes.run(module, builder)
    return module


def _short_pipeline(llvm: Any, opt_level: int) -> Any:
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    if opt_level >= 1:
        passes.add_sroa_pass()
        passes.add_simplify_cfg_pass()
        passes.add_instruction_combine_pass()
    passes.add_global_dead_code_eliminate_pass()  # what was merged in and is not used
    return passes


def _parse(llvm: Any, ir_text: str, context: Any, target: TargetDescription | None = None) -> Any:
    try:
        module = llvm.parse_assembly(ir_text, context)
        module.verify()
    except RuntimeError as error:
        raise CodegenError(_explain(str(error), ir_text)) from None
    if target is not None:
        module.triple = target.triple
        module.data_layout = target.data_layout
    return module


def _explain(message: str, ir_text: str) -> str:
    """LLVM's message with the line that it speaks of (LLVM itself truncates long lines)."""
    found = re.search(r"<string>:(\d+):(\d+)", message)
    if found is None:
        return message.strip()
    lines = ir_text.splitlines()
    number = int(found[1])
    line = lines[number - 1] if number <= len(lines) else ""
    return f"{message.strip()}\n  at line {number} of the module: {line.strip()}"


@functools.cache
def _machine(triple: str, cpu: str, features: str, opt_level: int) -> Any:
    """A target machine, made once. One thread at a time may use it; llvmlite's global lock sees to that."""
    llvm = _binding()
    if triple != llvm.get_process_triple():
        llvm = _binding(every_target=True)
    try:
        target = llvm.Target.from_triple(triple)
        machine = target.create_target_machine(
            cpu=cpu,
            features=features,
            # LLVM's code generator at its level 0 aborts the process on AVX-512 kernels ("Cannot emit physreg copy").
            opt=3 if opt_level else 1,
            reloc="pic",
            codemodel="default",
            abiname="lp64d" if triple.startswith("riscv64") and "+d" in features.split(",") else "",
        )
    except RuntimeError as error:
        raise CodegenError(f"no code generator for target {triple!r}, cpu {cpu!r}: {error}") from None
    return machine


def _knows(triple: str, cpu: str, features: str) -> bool:
    """Does LLVM know the CPU? It says only on standard error if not, and goes on, until it may abort the process."""
    try:
        saved = os.dup(2)
    except OSError:  # there is none: nobody can tell
        return True
    with tempfile.TemporaryFile() as said:
        try:
            os.dup2(said.fileno(), 2)
            _machine(triple, cpu, features, 3)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        said.seek(0)
        text = said.read()
    if b"not a recognized processor" in text:
        _machine.cache_clear()  # so that it says so again
        return False
    if text:
        os.write(2, text)
    return True


def _widest(features: Any) -> tuple[int, int]:
    present = set(features)
    for name, bits, registers in _VECTOR_FEATURES:
        if name in present:
            return bits, registers
    return 0, 0


def _probe_vectors(triple: str, cpu: str, features: str) -> tuple[int, int]:
    """Which vector registers LLVM picks for a 512-bit sum: the only way to ask what a CPU's name implies."""
    llvm = _binding()
    module = _parse(llvm, f'target triple = "{triple}"\n{_PROBE}', llvm.create_context())
    assembly = _machine(triple, cpu, features, 3).emit_assembly(module)
    for pattern, bits, registers in _REGISTER_PATTERNS:
        if re.search(pattern, assembly):
            return bits, registers
    return 64, 16


def _host_caches() -> tuple[int, int, int]:
    """Data cache sizes from sysfs; typical sizes where it does not tell (other systems, some virtual machines)."""
    sizes = dict(zip((1, 2, 3), TYPICAL, strict=True))
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = _size((index / "size").read_text().strip())
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size > 0:
            sizes[level] = size
    return sizes[1], sizes[2], sizes[3]


def _size(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    return int(text[:-1]) << units[text[-1]] if text[-1:] in units else int(text)
