"""`flambeau ops`: the operations, from the registry that defines them."""

from __future__ import annotations

import inspect
import json
from typing import Any

import click


@click.command("ops", short_help="List the operations, or show one.")
@click.argument("name", required=False)
@click.option("--dialect", help="Only this dialect: graph, arith, scf, …")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(name: str | None, dialect: str | None, as_json: bool) -> None:
    """List every operation with one line, or show NAME (`graph.add`, or `add` for the graph dialect)."""
    import flambeau.compiler.dialects.graph
    import flambeau.compiler.dialects.loops  # noqa: F401  registers the operations
    from flambeau.compiler.ir.opdef import REGISTRY

    if name is not None:
        full = name if name in REGISTRY else f"graph.{name}"
        if full not in REGISTRY:
            raise click.ClickException(_unknown(name, list(REGISTRY)))
        facts = _facts(full, REGISTRY[full])
        click.echo(json.dumps(facts) if as_json else _page(facts))
        return
    names = [n for n in sorted(REGISTRY) if dialect is None or n.split(".")[0] == dialect]
    if not names:
        dialects = sorted({n.split(".")[0] for n in REGISTRY})
        raise click.ClickException(f"there is no dialect {dialect!r}; there are {', '.join(dialects)}")
    if as_json:
        click.echo(json.dumps([_facts(n, REGISTRY[n]) for n in names]))
        return
    width = max(map(len, names))
    for n in names:
        click.echo(f"{n:<{width}}  {_first(inspect.getdoc(REGISTRY[n]) or '')}")


def _unknown(name: str, names: list[str]) -> str:
    import difflib

    short = {n.partition(".")[2]: n for n in names}
    close = difflib.get_close_matches(name.rpartition(".")[2], short, 3)
    hint = f"; did you mean {', '.join(short[c] for c in close)}?" if close else "; `flambeau ops` lists them"
    return f"there is no operation {name!r}{hint}"


def _first(text: str) -> str:
    return text.strip().split("\n\n")[0].replace("\n", " ")


def _facts(name: str, cls: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": name,
        "summary": _first(inspect.getdoc(cls) or ""),
        "doc": inspect.getdoc(cls),
    }
    facts["attributes"] = [{"name": f.name, "type": str(f.type)} for f in cls.attribute_fields()]
    facts["operands"] = [p for p in inspect.signature(cls.infer).parameters if p != "self"]
    if name.startswith("graph."):
        vjp = cls.vjp
        facts["family"] = getattr(cls, "schedule_family", None)
        facts["composite"] = "decompose" in {
            k for c in cls.__mro__[:-1] for k in vars(c) if c.__name__ != "GraphOp"
        }
        facts["differentiable"] = inspect.isfunction(vjp)
        if not inspect.isfunction(vjp) and getattr(vjp, "why", None):
            facts["not_differentiable_because"] = vjp.why
    return facts


def _page(facts: dict[str, Any]) -> str:
    attributes = ", ".join(f"{a['name']}: {a['type']}" for a in facts["attributes"])
    lines = [f"{facts['name']}({', '.join(facts['operands'])})", "", facts["doc"], ""]
    lines.append(f"attributes: {attributes or 'none'}")
    if "family" in facts:
        lines.append(f"kind: {'composite' if facts['composite'] else facts['family']}")
        because = facts.get("not_differentiable_because")
        lines.append(
            f"derivative: {'yes' if facts['differentiable'] else 'no' + (f', {because}' if because else '')}"
        )
    return "\n".join(lines)
