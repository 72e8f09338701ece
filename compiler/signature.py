"""What a compiled graph looks like from outside: its entry, sizes, symbols, and what tells it from other graphs.

Little is imported here: a program whose code is in the cache needs no more of the compiler to run it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.dims import Dim, Index, Symbol
from flambeau.compiler.ir.types import TensorType

#: The name of a compiled graph's function.
ENTRY = "flambeau_entry"


def tensor_of(value: Value) -> TensorType:
    """The value's type, which is a tensor's."""
    assert isinstance(value.type, TensorType)
    return value.type


def byte_size(value: Value) -> Index:
    """Bytes of a value's elements."""
    type = tensor_of(value)
    return type.size * type.element.itemsize


def symbols_of(types: Sequence[TensorType]) -> tuple[Symbol, ...]:
    """The shape symbols in the types, in the order of their first appearance."""
    found: dict[Symbol, None] = {}
    for type in types:
        for extent in type.shape:
            if isinstance(extent, Dim):
                for symbol in sorted(extent.symbols(), key=lambda s: s.name):
                    found[symbol] = None
    return tuple(found)


def fingerprint(graph: Graph) -> str:
    """A digest of the graph's structure, the same in every process; part of cache keys."""
    return hashlib.blake2b(repr(graph.key()).encode(), digest_size=20).hexdigest()
