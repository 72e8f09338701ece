"""Where the time goes: each kernel's runs and seconds.

Code that is compiled while the option `profile` is set (``FLAMBEAU_PROFILE=1``, or `profile()` around the first calls)
counts. Each count costs two clock readings, about 50 ns; code of the persistent cache is not used meanwhile.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from flambeau.compiler import options
from flambeau.runtime import abi

if TYPE_CHECKING:  # the compiler is imported when something is compiled
    from flambeau.compiler.passes.fuse import KernelCall
    from flambeau.compiler.pipeline import Compilation

#: Names of operations beyond which a kernel's line is cut.
SHOWN = 6


@dataclass(frozen=True)
class KernelTime:
    """One kernel call of one compiled program: how often it ran, and for how many seconds in all.

    `work` counts multiplications and additions of a contraction's one run (0 for other families, and where sizes are
    symbolic), `traffic` the bytes that it reads and writes at least.
    """

    program: str
    kernel: str
    family: str
    operations: str
    shapes: str
    runs: int
    seconds: float
    work: int
    traffic: int


class _Watched:
    """The counters of one loaded program."""

    def __init__(self, module: Any, compilation: Compilation) -> None:
        assert compilation.program is not None
        self.module = module  # keeps the counters' memory
        self.calls = list(zip(compilation.names, compilation.program.calls, strict=True))
        place = next((o.location for o in compilation.graph.operations if o.location is not None), None)
        self.program = f"{place}" if place is not None else compilation.graph.name
        count = 2 * len(self.calls)
        self.counters = (ctypes.c_int64 * count).from_address(module.address(abi.PROFILE)) if count else []

    def times(self) -> Iterator[KernelTime]:
        for number, (name, call) in enumerate(self.calls):
            runs, nanoseconds = self.counters[2 * number], self.counters[2 * number + 1]
            if runs:
                yield KernelTime(
                    self.program,
                    name,
                    call.kernel.family,
                    _operations(call),
                    _shapes(call),
                    runs,
                    nanoseconds * 1e-9,
                    _work(call),
                    _traffic(call),
                )


def _operations(call: KernelCall) -> str:
    names = [o.name.removeprefix("graph.") for o in call.kernel.graph.operations]
    names = [n for n in names if n not in ("constant", "broadcast_in_dim", "reshape")] or names
    return " ".join(names[:SHOWN]) + (f" … ({len(names)})" if len(names) > SHOWN else "")


def _shapes(call: KernelCall) -> str:
    def shown(values: Any) -> str:
        return " ".join("x".join(map(str, v.type.shape)) or "scalar" for v in values)

    return f"{shown(call.operands)} → {shown(call.results)}"


def _work(call: KernelCall) -> int:
    for operation in call.kernel.graph.operations:
        products = getattr(operation.definition, "products", None)
        if products is not None:
            count = prod(operation.results[0].type.shape) * products(*[v.type for v in operation.operands])  # type: ignore[attr-defined]
            return 2 * count if isinstance(count, int) else 0
        describe = getattr(operation.definition, "contraction", None)
        if describe is None:
            continue
        contraction = describe(*[v.type for v in operation.operands[:2]])
        sizes = (*contraction.batch, contraction.m, contraction.n, contraction.k)
        return 2 * prod(sizes) if all(isinstance(size, int) for size in sizes) else 0
    return 0


def _traffic(call: KernelCall) -> int:
    sizes = [(v.type.shape, v.type.element.itemsize) for v in (*call.operands, *call.results)]
    if not all(isinstance(extent, int) for shape, _ in sizes for extent in shape):
        return 0
    return sum(prod(shape) * itemsize for shape, itemsize in sizes)  # type: ignore[arg-type]


_watched: list[_Watched] = []


def watch(module: Any, compilation: Compilation) -> None:
    """Remember a loaded program's counters; the table is printed when the process ends, if the option is set then."""
    if not _watched:
        atexit.register(_at_exit)
    _watched.append(_Watched(module, compilation))


def times() -> list[KernelTime]:
    """What has run since the last `reset`, in the order of compilation and of the kernels within a program."""
    return [t for watched in _watched for t in watched.times()]


def reset() -> None:
    """Start counting anew."""
    for watched in _watched:
        for number in range(len(watched.counters)):
            watched.counters[number] = 0


@contextmanager
def profile() -> Iterator[None]:
    """Code that is compiled inside the ``with`` block counts, there and after it."""
    with options.override(profile=True):
        yield


def table(limit: int = 40) -> str:
    """The kernels that took longest, equal lines added up: share of the time, milliseconds, runs, microseconds of a run,
    rate (GF/s of contractions, else GB/s of the buffers that a run reads and writes), kernel, shapes."""
    merged: dict[tuple[str, ...], list[KernelTime]] = {}
    for t in times():
        merged.setdefault((t.family, t.operations, t.shapes), []).append(t)
    total = sum(t.seconds for group in merged.values() for t in group)
    ordered = sorted(merged.values(), key=lambda group: -sum(t.seconds for t in group))
    lines = [f"{'share':>6} {'ms':>9} {'runs':>6} {'us/run':>9} {'rate':>11}  kernel"]
    for group in ordered[:limit]:
        seconds, runs = sum(t.seconds for t in group), sum(t.runs for t in group)
        each = seconds / runs
        first = group[0]
        rate = (
            f"{first.work / each / 1e9:.1f} GF/s" if first.work else f"{first.traffic / each / 1e9:.1f} GB/s"
        )
        lines.append(
            f"{seconds / total:6.1%} {seconds * 1e3:9.3f} {runs:6} {each * 1e6:9.1f} {rate:>11}  "
            f"{first.family}: {first.operations}  {first.shapes}"
        )
    if len(ordered) > limit:
        lines.append(f"… and {len(ordered) - limit} more")
    return "\n".join([*lines, f"{total * 1e3:.3f} ms in all"])


def _at_exit() -> None:
    if options.current().profile and times():
        print(table(), file=sys.stderr)
