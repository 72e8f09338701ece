"""The import arrows of the design, as import-linter contracts, and the command that checks them.

    cli → frontend → compiler → runtime.abi        frontend → runtime

import-linter's own contract types want every module of a layer listed by name; the frontend is "everything in
`flambeau` that is not one of the other three", which only a contract of our own can say.
`python tests/project/arrows.py` runs all contracts of pyproject.toml over the installed layout and exits with 1 where
one is broken.
"""

import sys
import tempfile
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cli", "compiler", "runtime")

# Which part may import which; a name with a dot is the only module of that part that may be imported.
ALLOWED = {
    "cli": ("frontend", "compiler", "runtime"),
    "frontend": ("compiler", "runtime"),
    "compiler": ("runtime.abi",),
    "runtime": (),
}


def part_of(module: str) -> str:
    """'cli', 'compiler', 'runtime' or 'frontend': the folder that a module of `flambeau` comes from."""
    second = module.split(".")[1] if "." in module else ""
    return second if second in PARTS else "frontend"


def allowed(importer: str, imported: str) -> bool:
    """Whether module `importer` may import module `imported`, both of `flambeau`."""
    source, target = part_of(importer), part_of(imported)
    if source == target or target in ALLOWED[source]:
        return True
    # `flambeau.runtime.abi` and everything below it, when only `runtime.abi` is allowed.
    return any(f"{imported}.".startswith(f"flambeau.{name}.") for name in ALLOWED[source] if "." in name)


class Arrows(Contract):  # type: ignore[misc]
    """Every import between the four parts follows `ALLOWED`."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Looks at every direct import: a chain breaks the rule only where one of its links does."""
        broken = []
        for importer in sorted(_own(graph)):
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if imported.split(".")[0] == "flambeau" and not allowed(importer, imported):
                    for place in graph.get_import_details(importer=importer, imported=imported):
                        where, text = f"{importer}:{place['line_number']}", place["line_contents"].strip()
                        broken.append(f"{where}: {part_of(importer)} must not import {imported}: {text}")
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each import that points the wrong way."""
        for line in check.metadata["broken"]:
            output.print_error(line)


class Acyclic(Contract):  # type: ignore[misc]
    """No module imports itself through others, whether at the top of the file or inside a function."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Finds the groups of modules that import each other and, of each, one shortest cycle."""
        cycles, seen = [], set[str]()
        for module in sorted(_own(graph)):
            if module in seen:
                continue
            chains = [
                chain
                for imported in sorted(graph.find_modules_directly_imported_by(module))
                if (chain := graph.find_shortest_chain(importer=imported, imported=module))
            ]
            if chains:
                shortest = min(chains, key=len)
                seen.update(shortest)
                cycles.append(" → ".join([module, *shortest]))
        return ContractCheck(kept=not cycles, metadata={"cycles": cycles})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each cycle."""
        for line in check.metadata["cycles"]:
            output.print_error(line)


def _own(graph: ImportGraph) -> set[str]:
    return {module for module in graph.modules if module.split(".")[0] == "flambeau"}


def main() -> int:
    """Runs the contracts of pyproject.toml; returns the exit status."""
    from importlinter.cli import lint_imports

    from tests.project.layout import lay_out

    # An editable install maps packages by a finder of its own, which would hide the tree that we lay out.
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(lay_out(Path(folder) / "tree")))
        return int(lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for `tests.project`, where the contracts are
    sys.exit(main())
