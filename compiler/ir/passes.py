"""Passes: small frozen dataclasses from graph to graph, and the manager that runs, times and dumps them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flambeau.compiler.diagnostics import CompilationError
from flambeau.compiler.ir.core import Graph, untraced
from flambeau.compiler.ir.verifier import verify_graph


@dataclass(frozen=True)
class Pass:
    """A function from graph to graph; its fields are its options, settable on the command line."""

    #: The name on the command line, which is that of the pass's file.
    name: ClassVar[str] = ""

    def run(self, graph: Graph) -> Graph:
        raise NotImplementedError(f"the pass {self.name} has no run()")


@dataclass
class PassManager:
    """Runs passes in order. `after` sees each one's name and result; `seconds` has what each took."""

    passes: Sequence[Pass]
    verify: bool = False
    after: Callable[[str, Graph], None] | None = None
    seconds: list[tuple[str, float]] = field(default_factory=list)

    def run(self, graph: Graph) -> Graph:
        """The graph after all passes. With `verify`, VerificationError if one breaks a rule."""
        for item in self.passes:
            started = time.perf_counter()
            with untraced():
                graph = item.run(graph)
            self.seconds.append((item.name, time.perf_counter() - started))
            if self.verify:
                verify_graph(graph)
            if self.after is not None:
                self.after(item.name, graph)
        return graph


def parse_pipeline(text: str, available: Iterable[type[Pass]]) -> list[Pass]:
    """Read ``name,name{option=value option=value}``. Raises CompilationError."""
    known = {cls.name: cls for cls in available}
    found: list[Pass] = []
    for part in [p.strip() for p in text.split(",") if p.strip()]:
        name, brace, rest = part.partition("{")
        cls = known.get(name.strip())
        if cls is None:
            raise CompilationError(f"there is no pass {name.strip()!r}; there are {', '.join(sorted(known))}")
        if brace and not rest.endswith("}"):
            raise CompilationError(f"the options of {name.strip()!r} must end in '}}'")
        found.append(cls(**_options(cls, rest[:-1] if brace else "")))
    if not found:
        raise CompilationError("an empty pipeline; name at least one pass")
    return found


_READERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: text in ("1", "true"),
    "str": str,
}


def _options(cls: type[Pass], text: str) -> dict[str, Any]:
    # A field's type is a class, or its name where annotations are not evaluated.
    kinds = {
        f.name: f.type.__name__ if isinstance(f.type, type) else str(f.type) for f in dataclasses.fields(cls)
    }
    options: dict[str, Any] = {}
    for item in text.split():
        key, equals, value = item.partition("=")
        key = key.replace("-", "_")
        if key not in kinds or not equals:
            raise CompilationError(
                f"the pass {cls.name} has no option {item!r}; it has {', '.join(kinds) or 'none'}"
            )
        try:
            options[key] = _READERS[kinds[key]](value)
        except ValueError:
            raise CompilationError(
                f"{cls.name}: {key} expects a value of type {kinds[key]}, got {value!r}"
            ) from None
    return options
