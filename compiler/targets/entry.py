"""The entry function of an executable, as LLVM IR: fetches pointers and sizes, and calls the kernels in order.

Its signature is the runtime's (`flambeau.runtime.abi`): ``i32 (ptr args, ptr dims, ptr arena, ptr pool)``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from flambeau.compiler.ir.dims import Compound, Index, Symbol
from flambeau.runtime.abi import PARALLEL_FOR, PROFILE


@dataclass(frozen=True)
class EntryCall:
    """One kernel call: its name, where each buffer is, the workspace's place, and the sizes that it takes. Neighbours with one
    `step` run at the same time: these have no workspace, and all their sizes are numbers."""

    kernel: str
    buffers: tuple[Place, ...]
    workspace: Index | None
    sizes: tuple[Index, ...]
    step: int


@dataclass(frozen=True)
class Place:
    """Where a buffer is: argument number `argument`, or `offset` bytes into the arena."""

    argument: int | None
    offset: Index = 0


@dataclass(frozen=True)
class EntryCopy:
    """`size` bytes from one argument to another."""

    source: int
    target: int
    size: Index


class EntryWriter:
    """Writes straight-line LLVM IR; `prefix` starts the names of its values."""

    def __init__(self, symbols: Sequence[Symbol], prefix: str = "t") -> None:
        self.lines: list[str] = []
        self.count = 0
        self.prefix = prefix
        self.dims: dict[Symbol, str] = {}
        for number, symbol in enumerate(symbols):
            address = self.define(f"getelementptr i64, ptr %dims, i64 {number}")
            self.dims[symbol] = self.define(f"load i64, ptr {address}")
        self.arguments: dict[int, str] = {}

    def define(self, text: str) -> str:
        self.count += 1
        name = f"%{self.prefix}{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def argument(self, number: int) -> str:
        found = self.arguments.get(number)
        if found is None:
            address = self.define(f"getelementptr ptr, ptr %args, i64 {number}")
            found = self.arguments[number] = self.define(f"load ptr, ptr {address}")
        return found

    def number(self, expression: Index) -> str:
        if isinstance(expression, int):
            return str(expression)
        total = ""
        for monomial, coefficient in expression.terms.items():
            product = str(coefficient)
            for atom in monomial:
                product = self.define(f"mul i64 {product}, {self.atom(atom)}")
            total = self.define(f"add i64 {total}, {product}") if total else product
        return total

    def atom(self, atom: Symbol | Compound) -> str:
        if isinstance(atom, Symbol):
            return self.dims[atom]
        a, b = self.number(atom.a), self.number(atom.b)
        if atom.kind in ("floordiv", "mod"):
            return self.define(f"{'udiv' if atom.kind == 'floordiv' else 'urem'} i64 {a}, {b}")
        test = self.define(f"icmp {'sgt' if atom.kind == 'max' else 'slt'} i64 {a}, {b}")
        return self.define(f"select i1 {test}, i64 {a}, i64 {b}")

    def arena(self, offset: Index) -> str:
        return self.define(f"getelementptr i8, ptr %arena, i64 {self.number(offset)}")

    def call(self, call: EntryCall, pool: str) -> None:
        """Calls a kernel on a pool."""
        operands = [f"ptr {self.place(p)}" for p in call.buffers]
        operands.append(f"ptr {self.arena(call.workspace)}" if call.workspace is not None else "ptr null")
        operands.append(f"ptr {pool}")
        operands.extend(f"i64 {self.number(size)}" for size in call.sizes)
        self.lines.append(f"  call void @{call.kernel}({', '.join(operands)})")

    def parallel(self, body: str, count: int) -> None:
        """Runs a function that `_at_once` made."""
        context = self.define("alloca { ptr, ptr }")
        self.lines.append(f"  store ptr %args, ptr {context}")
        arena = self.define(f"getelementptr {{ ptr, ptr }}, ptr {context}, i32 0, i32 1")
        self.lines.append(f"  store ptr %arena, ptr {arena}")
        self.lines.append(f"  call void @{PARALLEL_FOR}(ptr %pool, ptr {body}, ptr {context}, i64 {count})")

    def place(self, place: Place) -> str:
        return self.argument(place.argument) if place.argument is not None else self.arena(place.offset)


def emit_entry(
    name: str,
    symbols: Sequence[Symbol],
    calls: Sequence[EntryCall],
    copies: Sequence[EntryCopy] = (),
    attributes: str = "",
    *,
    profile: bool = False,
) -> str:
    """LLVM IR text of the entry; the kernels are functions of the same module.

    `profile`: it counts in `PROFILE`, by the C library's monotonic clock, so this is for code that runs in this process.
    """
    w = EntryWriter(symbols)
    clock = _Clock(w) if profile else None
    bodies: list[str] = []
    for number, (_, neighbours) in enumerate(groupby(calls, lambda call: call.step)):
        step = list(neighbours)
        if len(step) == 1:
            w.call(step[0], "%pool")
        else:
            body = f'@"{name}.together{len(bodies)}"'
            bodies.append(_at_once(body, step))
            w.parallel(body, len(step))
        if clock is not None:
            clock.count(number)
    for copy in copies:
        source, target = w.argument(copy.source), w.argument(copy.target)
        w.lines.append(
            f"  call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {w.number(copy.size)}, i1 false)"
        )
    body = "\n".join(w.lines)
    together = "\n".join(bodies)
    declare = "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)\n\n" if copies else ""
    if profile:
        declare += f"@{PROFILE} = global [{2 * len(calls)} x i64] zeroinitializer\n"
        declare += "declare i32 @clock_gettime(i32, ptr)\n\n"
    head = f"define i32 @{name}(ptr %args, ptr %dims, ptr %arena, ptr %pool) {attributes} {{"
    return f"{declare}{together}{head}\n{body}\n  ret i32 0\n}}\n"


def _at_once(name: str, calls: Sequence[EntryCall]) -> str:
    """The body of a parallel loop over kernel calls, none of which is parallel itself."""
    targets = " ".join(f"i64 {number}, label %call{number}" for number in range(len(calls)))
    lines = [
        f"define internal void {name}(ptr %ctx, i64 %begin, i64 %end, i64 %worker) {{",
        "entry:",
        "  %args = load ptr, ptr %ctx",
        "  %second = getelementptr { ptr, ptr }, ptr %ctx, i32 0, i32 1",
        "  %arena = load ptr, ptr %second",
        "  br label %head",
        "head:",
        "  %i = phi i64 [ %begin, %entry ], [ %next, %tail ]",
        "  %more = icmp slt i64 %i, %end",
        "  br i1 %more, label %choose, label %exit",
        "choose:",
        f"  switch i64 %i, label %tail [ {targets} ]",
    ]
    for number, call in enumerate(calls):
        w = EntryWriter((), f"c{number}.")
        w.call(call, "null")
        lines += [f"call{number}:", *w.lines, "  br label %tail"]
    lines += ["tail:", "  %next = add i64 %i, 1", "  br label %head", "exit:", "  ret void", "}", ""]
    return "\n".join(lines)


class _Clock:
    """Emits the reading of a clock: after each call, what has passed since the last reading."""

    def __init__(self, w: EntryWriter) -> None:
        self.w = w
        self.memory = w.define("alloca [2 x i64]")
        self.last = self._read()

    def _read(self) -> str:
        w = self.w
        w.lines.append(f"  call i32 @clock_gettime(i32 {time.CLOCK_MONOTONIC}, ptr {self.memory})")
        seconds = w.define(f"load i64, ptr {self.memory}")
        address = w.define(f"getelementptr i64, ptr {self.memory}, i64 1")
        rest = w.define(f"load i64, ptr {address}")
        whole = w.define(f"mul i64 {seconds}, 1000000000")
        return w.define(f"add i64 {whole}, {rest}")

    def count(self, number: int) -> None:
        """One more run of call `number`, which has just ended."""
        w, now = self.w, self._read()
        passed = w.define(f"sub i64 {now}, {self.last}")
        for at, amount in ((2 * number, "1"), (2 * number + 1, passed)):
            address = w.define(f"getelementptr i64, ptr @{PROFILE}, i64 {at}")
            total = w.define(f"load i64, ptr {address}")
            w.lines.append(f"  store i64 {w.define(f'add i64 {total}, {amount}')}, ptr {address}")
        self.last = now
