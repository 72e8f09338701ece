"""Writes the operation reference from `REGISTRY`, a page for each module of operations.

By itself: ``python docs/generate_operations.py FOLDER``.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from pathlib import Path

from flambeau.compiler.dialects import graph as _graph  # noqa: F401  (fills the registry)
from flambeau.compiler.dialects.graph.base import GraphOp, NotDifferentiable
from flambeau.compiler.ir.opdef import REGISTRY, OpDef

GRAPH = "flambeau.compiler.dialects.graph."


def operations() -> dict[str, list[type[GraphOp]]]:
    """The graph operations by the module that defines them, both in the order of their names."""
    found: dict[str, list[type[GraphOp]]] = defaultdict(list)
    for _, cls in sorted(REGISTRY.items()):
        if issubclass(cls, GraphOp) and cls.__module__.startswith(GRAPH):
            found[cls.__module__.removeprefix(GRAPH)].append(cls)
    return dict(sorted(found.items()))


def generate(folder: Path) -> list[Path]:
    """Write the pages; returns them, the index first."""
    folder.mkdir(parents=True, exist_ok=True)
    families = operations()
    count = sum(map(len, families.values()))
    lines = [
        "# Operations",
        "",
        f"The {count} operations of the graph level, from their classes. Names and meaning follow the",
        "[StableHLO specification](https://openxla.org/stablehlo/spec) where it has the operation.",
        "",
        "```{toctree}",
        ":maxdepth: 1",
        "",
        *families,
        "```",
    ]
    pages = [_write(folder / "operations.md", "\n".join(lines))]
    for family, classes in families.items():
        module = inspect.getmodule(classes[0])
        intro = inspect.getdoc(module) or ""
        body = "\n\n".join(_section(cls) for cls in classes)
        title = family.replace("_", " ").capitalize()
        pages.append(_write(folder / f"{family}.md", f"# {title}\n\n{intro}\n\n{body}"))
    return pages


def _section(cls: type[GraphOp]) -> str:
    lines = [f"## `{cls.name}`", "", inspect.getdoc(cls) or "", ""]
    for field in cls.attribute_fields():
        lines.append(f"- attribute `{field.name}`: `{field.type}`{_default(cls, field.name)}")
    lines.append(f"- {_kind(cls)}")
    lines.append(f"- {_derivative(cls)}")
    return "\n".join(lines)


def _default(cls: type[OpDef], name: str) -> str:
    default = cls.__dict__.get(name, inspect.getattr_static(cls, name, inspect.Parameter.empty))
    required = default is inspect.Parameter.empty or inspect.ismemberdescriptor(default)
    return "" if required else f", default `{default!r}`"


def _kind(cls: type[GraphOp]) -> str:
    if cls.decompose is not GraphOp.decompose:
        return "composite: decomposes into primitives"
    if cls.schedule_family == "element":
        return "primitive: fuses by its element function"
    return f"primitive: kernels of the family `{cls.schedule_family}`"


def _derivative(cls: type[GraphOp]) -> str:
    rule = cls.vjp
    if not isinstance(rule, NotDifferentiable):
        return "differentiable, to any order"
    return f"derivative zero: {rule.why}" if rule.zero else f"not differentiable: {rule.why}"


def _write(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    for page in generate(Path(sys.argv[1])):
        print(page)
