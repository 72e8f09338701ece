"""Runs an exported shared library of another architecture, by the CPU emulator Unicorn (QEMU's translator).

The image, the stack and the heap lie in one piece of this process's memory, which the emulated CPU sees at the same
addresses. What the library imports is a stub that returns at once; before it does, `CLibrary` has done the work.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unicorn
from unicorn import arm64_const, riscv_const, x86_const

from tests.targets.emulation.c_library import CLibrary, Heap
from tests.targets.emulation.elf import Image

_STUBS, _STUB, _STACK = 1 << 16, 16, 8 << 20


def _arm(engine: Any) -> None:
    engine.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # floating point is not trapped


def _riscv(engine: Any) -> None:
    engine.reg_write(riscv_const.UC_RISCV_REG_MSTATUS, 1 << 13)  # its floating-point unit is on


def _nothing(engine: Any) -> None:
    pass


@dataclass(frozen=True)
class Architecture:
    """A CPU of Unicorn's and how its C functions are called (AAPCS64, the RISC-V and System V AMD64 psABIs): `arguments` are
    registers of integers and pointers, the rest is on the stack; `link` has the return address, or the stack if None."""

    machine: int
    kind: int
    mode: int
    model: int
    arguments: tuple[int, ...]
    result: int
    stack: int
    link: int | None
    returns: bytes
    prepare: Callable[[Any], None]


ARCHITECTURES = {
    "aarch64": Architecture(
        183,
        unicorn.UC_ARCH_ARM64,
        unicorn.UC_MODE_ARM,
        arm64_const.UC_CPU_ARM64_MAX,
        tuple(range(arm64_const.UC_ARM64_REG_X0, arm64_const.UC_ARM64_REG_X0 + 8)),
        arm64_const.UC_ARM64_REG_X0,
        arm64_const.UC_ARM64_REG_SP,
        arm64_const.UC_ARM64_REG_LR,
        bytes.fromhex("c0035fd6"),
        _arm,
    ),
    "riscv64": Architecture(
        243,
        unicorn.UC_ARCH_RISCV,
        unicorn.UC_MODE_RISCV64,
        riscv_const.UC_CPU_RISCV64_ANY,
        tuple(range(riscv_const.UC_RISCV_REG_A0, riscv_const.UC_RISCV_REG_A0 + 8)),
        riscv_const.UC_RISCV_REG_A0,
        riscv_const.UC_RISCV_REG_SP,
        riscv_const.UC_RISCV_REG_RA,
        bytes.fromhex("67800000"),
        _riscv,
    ),
    "x86_64": Architecture(
        62,
        unicorn.UC_ARCH_X86,
        unicorn.UC_MODE_64,
        x86_const.UC_CPU_X86_QEMU64,
        (
            x86_const.UC_X86_REG_RDI,
            x86_const.UC_X86_REG_RSI,
            x86_const.UC_X86_REG_RDX,
            x86_const.UC_X86_REG_RCX,
            x86_const.UC_X86_REG_R8,
            x86_const.UC_X86_REG_R9,
        ),
        x86_const.UC_X86_REG_RAX,
        x86_const.UC_X86_REG_RSP,
        None,
        b"\xc3",
        _nothing,
    ),
}


class Emulator:
    """One library, loaded; `heap` for what its functions are to work on, `c` with what they asked of the C library."""

    def __init__(self, path: Path, architecture: str, memory: int = 1 << 29) -> None:
        image = Image(path.read_bytes())
        self._how = how = ARCHITECTURES[architecture]
        if image.machine != how.machine:
            raise ValueError(f"{path}: not a library for {architecture}")
        # Pages that nobody touches cost nothing.
        self._memory = mmap.mmap(-1, memory)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._stubs, self._stack = begin, begin + _STUBS + _STACK
        base = self._stack + mmap.PAGESIZE
        self.heap = Heap(base + len(image.memory), begin + memory)
        self.c = CLibrary(self.heap)
        self._imports: list[str] = []
        self._symbols = {name: base + value for name, value in image.symbols.items()}
        ctypes.memmove(base, bytes(image.memory), len(image.memory))
        for relocation in image.relocations:
            target = base if not relocation.symbol else self._address(relocation.symbol)
            ctypes.c_uint64.from_address(base + relocation.offset).value = target + relocation.addend
        for n in range(len(self._imports) + 1):  # the first is where calls return to
            ctypes.memmove(self._stubs + n * _STUB, how.returns, len(how.returns))
        self._engine = engine = unicorn.Uc(how.kind, how.mode)
        engine.ctl_set_cpu_model(how.model)
        how.prepare(engine)
        engine.mem_map_ptr(begin, memory, unicorn.UC_PROT_ALL, begin)
        engine.hook_add(
            unicorn.UC_HOOK_CODE, self._import, begin=self._stubs + _STUB, end=self._stubs + _STUBS - 1
        )

    def _address(self, name: str) -> int:
        if name not in self._symbols:
            self._imports.append(name)
            self._symbols[name] = self._stubs + len(self._imports) * _STUB
        return self._symbols[name]

    def _import(self, engine: Any, address: int, size: int, data: Any) -> None:
        function = self.c.function(self._imports[(address - self._stubs) // _STUB - 1])
        count = function.__code__.co_argcount - 1  # type: ignore[attr-defined]
        given = [engine.reg_read(register) for register in self._how.arguments[:count]]
        engine.reg_write(self._how.result, function(*given) & (1 << 64) - 1)

    def call(self, name: str, *arguments: int) -> int:
        """The 64 bits that an exported function of integers and pointers returns. UcError if the CPU faults, MemoryFault if
        the function wrote where it must not."""
        how, engine = self._how, self._engine
        for register, value in zip(how.arguments, arguments):
            engine.reg_write(register, value & (1 << 64) - 1)
        rest = arguments[len(how.arguments) :]
        stack = self._stack - (8 * len(rest) + 15) // 16 * 16
        for n, value in enumerate(rest):
            ctypes.c_uint64.from_address(stack + 8 * n).value = value & (1 << 64) - 1
        if how.link is None:
            stack -= 8
            ctypes.c_uint64.from_address(stack).value = self._stubs
        else:
            engine.reg_write(how.link, self._stubs)
        engine.reg_write(how.stack, stack)
        engine.emu_start(self._symbols[name], self._stubs)
        for block in self.heap.blocks:
            self.heap.check(block)
        found: int = engine.reg_read(how.result)
        return found

    def imports(self) -> Sequence[str]:
        """The names that the library takes from elsewhere."""
        return self._imports
