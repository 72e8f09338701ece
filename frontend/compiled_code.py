"""What of a compilation has to be kept to run it again: the persistent cache's entries."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

import flambeau.compiler
from flambeau.compiler import options
from flambeau.compiler.dialects.graph.base import GraphOp
from flambeau.compiler.ir.core import Graph
from flambeau.compiler.ir.dims import Index, parse
from flambeau.compiler.ir.opdef import REGISTRY
from flambeau.compiler.ir.types import element_type, from_numpy
from flambeau.compiler.passes.split_weights import Layout, separate_layouts
from flambeau.compiler.signature import byte_size, fingerprint
from flambeau.compiler.targets.machine import TargetDescription, process_target
from flambeau.runtime import abi
from flambeau.runtime.cache import DiskCache, default_cache_dir
from flambeau.runtime.engine import default_engine
from flambeau.runtime.threads import num_threads

if TYPE_CHECKING:
    from flambeau.compiler.pipeline import Compilation


@dataclass(frozen=True)
class CompiledCode:
    """An object file, the literals that it reads, and the size of its arena in bytes.

    It takes `parameters` arguments besides; `results` are the bytes of its results that are known. Behind the graph's own
    arguments it takes what is prepared from the weights: `layouts` say which of that is a weight in another layout, and
    `preparation` computes the rest (None if there is none). `reads`: numbers of the weights that the code or `preparation`
    reads itself. `overwrites`: the pairs (result, parameter) that may be given the same memory.
    """

    object_code: bytes
    constants: tuple[np.ndarray[Any, Any], ...]
    arena: Index
    parameters: int = 0
    results: tuple[int, ...] = ()
    preparation: CompiledCode | None = None
    overwrites: tuple[tuple[int, int], ...] = ()
    layouts: tuple[Layout, ...] = ()
    reads: tuple[int, ...] = ()

    @staticmethod
    def of(compilation: Compilation) -> CompiledCode:
        """What to keep. What the preparation needs is compiled now."""
        assert compilation.memory is not None
        layouts: tuple[Layout, ...] = ()
        preparation, reads = None, set(compilation.read_weights())
        if compilation.preparation is not None:
            layouts, rest = separate_layouts(compilation.preparation)
            if rest is not None:
                preparation = compiled(rest)[0]
                read = {v for operation in rest.operations for v in operation.operands}
                reads |= {n for n, p in enumerate(rest.parameters) if p in read or p in rest.results}
        sizes = [byte_size(r) for r in compilation.graph.results]
        return CompiledCode(
            compilation.object_code,
            compilation.constants,
            compilation.memory.size,
            len(compilation.graph.parameters),
            tuple([s for s in sizes if isinstance(s, int)]),
            preparation,
            compilation.overwrites(),
            layouts,
            tuple(sorted(reads)),
        )

    def to_bytes(self) -> bytes:
        """A JSON line, then the preparation, then the constants, then the object file."""
        prepared = b"" if self.preparation is None else self.preparation.to_bytes()
        head = {
            "arena": str(self.arena),
            "constants": [[from_numpy(a.dtype).name, list(a.shape)] for a in self.constants],
            "object": len(self.object_code),
            "parameters": self.parameters,
            "results": self.results,
            "preparation": len(prepared),
            "overwrites": self.overwrites,
            "layouts": [
                [x.result, x.weight, x.definition.name, x.definition.attributes] for x in self.layouts
            ],
            "reads": self.reads,
        }
        parts = [prepared, *[a.tobytes() for a in self.constants], self.object_code]
        return b"".join([json.dumps(head).encode() + b"\n", *parts])

    @staticmethod
    def from_bytes(data: bytes) -> CompiledCode:
        """What `to_bytes` wrote. ValueError or KeyError if it did not write this."""
        line, _, rest = data.partition(b"\n")
        head = json.loads(line)
        prepared, rest = rest[: head["preparation"]], rest[head["preparation"] :]
        constants = []
        for name, shape in head["constants"]:
            dtype = element_type(name).numpy
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            constants.append(np.frombuffer(rest[:size], dtype).reshape(shape))
            rest = rest[size:]
        if len(rest) != head["object"]:
            raise ValueError(f"the object file has {len(rest)} bytes instead of {head['object']}")
        preparation = CompiledCode.from_bytes(prepared) if prepared else None
        return CompiledCode(
            rest,
            tuple(constants),
            parse(head["arena"]),
            head["parameters"],
            tuple(head["results"]),
            preparation,
            tuple([(result, parameter) for result, parameter in head["overwrites"]]),
            tuple([_layout(*x) for x in head["layouts"]]),
            tuple(head["reads"]),
        )


def _layout(result: int, weight: int, name: str, attributes: dict[str, Any]) -> Layout:
    """KeyError for an unknown operation."""
    definition = REGISTRY[name](**attributes)
    if not isinstance(definition, GraphOp) or not definition.layout:
        raise ValueError(f"{name} is no layout")
    return Layout(result, weight, definition)


@cache
def _compiler_version() -> str:
    """A digest of the compiler's own source files: code of another version is never taken for ours."""
    (folder,) = flambeau.compiler.__path__
    files = "".join(_stamps(folder, ""))
    return f"{abi.VERSION}-{hashlib.blake2b(files.encode(), digest_size=16).hexdigest()}"


def _stamps(folder: str, name: str) -> Iterator[str]:
    """Path, size and time of each source file in a folder, in one order. (Every program's start pays for this.)"""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.endswith(".py"):
            status = entry.stat()
            yield f"{name}{entry.name}:{status.st_size}:{status.st_mtime_ns};"
        elif entry.is_dir() and entry.name != "__pycache__":
            yield from _stamps(entry.path, f"{name}{entry.name}/")


_caches: dict[tuple[str, int], DiskCache] = {}


def disk_cache() -> DiskCache | None:
    """The persistent cache that the options name; None if it is switched off."""
    chosen = options.current().cache_dir
    if chosen == "off":
        return None
    key = chosen or str(default_cache_dir()), options.current().cache_mib
    if key not in _caches:
        _caches[key] = DiskCache(key[0], key[1] << 20)
    return _caches[key]


def _version(target: TargetDescription, opt_level: int) -> str:
    """What all code depends on: the compiler and the machine."""
    machine = f"{target.triple}:{target.cpu}:{target.features}:{target.l1_bytes}:{target.l2_bytes}"
    return f"{_compiler_version()}:{machine}:O{opt_level}"


def _key(graph: Graph, target: TargetDescription, opt_level: int, weights: Sequence[int]) -> str:
    knobs = options.current()
    kept = ",".join(map(str, weights))
    choices = f"winograd={knobs.winograd}:tune={num_threads() if knobs.tune else 0}:w{kept}"
    return f"{_version(target, opt_level)}:{choices}:{fingerprint(graph)}"


def compiled(graph: Graph, weights: Sequence[int] = ()) -> tuple[CompiledCode, Compilation | None]:
    """Code for `graph` on this machine: from the cache (then without its compilation), or compiled now and kept.

    `weights`: numbers of the parameters whose content stays the same from call to call.
    """
    target, opt_level = process_target(), options.current().opt_level
    knobs = options.current()
    # A dump shows every stage, and a profile names the kernels: they need a compilation.
    store = None if knobs.dump or knobs.profile else disk_cache()
    default_engine().cache = disk_cache()  # for the native functions that code calls
    key = _key(graph, target, opt_level, weights) if store is not None else ""
    if store is not None:
        data = store.get(key)
        if data is not None:
            try:
                return CompiledCode.from_bytes(data), None
            except (ValueError, KeyError):  # an entry that is none is a miss
                store.remove(key)
    # Not before: with code in the cache, the compiler's import would be a good part of a start.
    from flambeau.compiler.dump import details, dump, summary
    from flambeau.compiler.pipeline import compile_stages
    from flambeau.tuning import Tuner

    tuner = Tuner(disk_cache(), _version(target, opt_level)) if knobs.tune else None
    compilation = compile_stages(
        graph, target, opt_level=opt_level, profile=knobs.profile, weights=weights, tuner=tuner
    )
    code = CompiledCode.of(compilation)
    if knobs.dump:
        dump(compilation, knobs.dump)
    if knobs.debug >= 1:
        lines = [summary(compilation), *(details(compilation) if knobs.debug >= 2 else [])]
        print("\n".join(f"flambeau: {line}" for line in lines), file=sys.stderr)
    if store is not None:
        store.put(key, code.to_bytes())
    return code, compilation
