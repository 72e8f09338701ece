"""What a loader needs of a 64-bit little-endian ELF shared library: segments, relocations, symbols.

Source: System V gABI, chapter 5 (program loading and dynamic linking), and the psABIs of x86-64, AArch64 and RISC-V for
the numbers of relocations.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_LOAD, _DYNAMIC = 1, 2
_STRTAB, _SYMTAB, _RELA, _RELASZ, _JMPREL, _PLTRELSZ = 5, 6, 7, 8, 23, 2
_DYNSYM = 11

#: By e_machine: the relocations "base + addend", and those that are a symbol's address (+ addend).
RELATIVE = {62: 8, 183: 1027, 243: 3}
ABSOLUTE = {62: (1, 6, 7), 183: (257, 1025, 1026), 243: (2, 5)}


@dataclass(frozen=True)
class Relocation:
    """The 8 bytes at `offset` are to be `addend` plus the address of `symbol`, or plus the image's base if that is empty."""

    offset: int
    symbol: str
    addend: int


class Image:
    """A shared library as it lies in memory, from address 0 on: `memory`, `symbols` (defined ones), `relocations`."""

    def __init__(self, file: bytes) -> None:
        if file[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        kind, self.machine = struct.unpack_from("<HH", file, 16)
        if kind != 3 or self.machine not in RELATIVE:
            raise ValueError(
                f"expected a shared library for a known machine, got type {kind}, {self.machine}"
            )
        (table,) = struct.unpack_from("<Q", file, 32)
        size, count = struct.unpack_from("<HH", file, 54)
        headers = [struct.unpack_from("<IIQQQQQQ", file, table + n * size) for n in range(count)]
        self.memory = bytearray(max(h[3] + h[6] for h in headers if h[0] == _LOAD))
        for kind, _, offset, address, _, length, _, _ in headers:
            if kind == _LOAD:
                self.memory[address : address + length] = file[offset : offset + length]
        dynamic = next(h for h in headers if h[0] == _DYNAMIC)
        self._tags = dict(struct.iter_unpack("<qQ", self.memory[dynamic[3] : dynamic[3] + dynamic[5]]))
        self._table = [self._symbol(n) for n in range(_symbol_count(file))]
        self.symbols = {name: value for name, value in self._table if value}
        self.relocations = [*self._relocations(_RELA, _RELASZ), *self._relocations(_JMPREL, _PLTRELSZ)]

    def _symbol(self, number: int) -> tuple[str, int]:
        name, _, _, section, value = struct.unpack_from(
            "<IBBHQ", self.memory, self._tags[_SYMTAB] + 24 * number
        )
        start = self._tags[_STRTAB] + name
        return self.memory[start : self.memory.index(0, start)].decode(), value if section else 0

    def _relocations(self, table: int, size: int) -> Iterator[Relocation]:
        start = self._tags.get(table, 0)
        for offset, info, addend in struct.iter_unpack(
            "<QQq", self.memory[start : start + self._tags.get(size, 0)]
        ):
            kind, symbol = info & 0xFFFFFFFF, self._table[info >> 32][0]
            if kind == RELATIVE[self.machine]:
                yield Relocation(offset, "", addend)
            elif kind in ABSOLUTE[self.machine]:
                yield Relocation(offset, symbol, addend)
            else:
                raise ValueError(f"relocation {kind} of {symbol or 'nothing'} is not known here")


def _symbol_count(file: bytes) -> int:
    """Entries of the table of dynamic symbols, which only the sections tell."""
    (table,) = struct.unpack_from("<Q", file, 40)
    size, count = struct.unpack_from("<HH", file, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", file, table + n * size) for n in range(count)]
    return next(s[5] // s[9] for s in sections if s[1] == _DYNSYM)
