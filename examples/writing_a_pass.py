"""A pass of one's own: repeated doubling, x + x, becomes one multiplication by a power of two.

A pass is a frozen dataclass with a name and a `run` from graph to graph; its fields are its options. `rebuild` walks
the graph and asks, for each operation, whether something else shall stand in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Operation, Value, rebuild
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.passes import Pass, PassManager, parse_pipeline
from flambeau.compiler.ir.printer import print_module
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.passes.simplify import Simplify


@dataclass(frozen=True)
class DoublingToProduct(Pass):
    """x + x becomes 2 x, and 2 (2 x) becomes 4 x, up to `limit`. Both are exact in floating point."""

    name: ClassVar[str] = "doubling-to-product"
    limit: int = 1024

    def run(self, graph: Graph) -> Graph:
        factors: dict[Value, tuple[Value, int]] = {}  # what a value is a multiple of, and by how much

        def replace(operation: Operation, operands: tuple[Value, ...]) -> Sequence[Value] | None:
            if operation.name != "graph.add" or operands[0] is not operands[1]:
                return None
            base, factor = factors.get(operands[0], (operands[0], 1))
            if 2 * factor > self.limit:
                return None
            product = build.mul(base, float(2 * factor))
            factors[product] = (base, 2 * factor)
            return (product,)

        return rebuild(graph, replace)


x = Value(tensor((4,), f32))
y = x
for _ in range(5):
    y = build.add(y, y)
graph = Graph([x], [build.exp(y)])

# Run it alone, as the command line would, with the verifier on and a look at the graph after each pass.
manager = PassManager(
    parse_pipeline("doubling-to-product{limit=64},simplify", [DoublingToProduct, Simplify]),
    verify=True,
    after=lambda name, g: print(f"after {name}: {[o.name for o in g.operations]}"),
)
print(f"before: {[o.name for o in graph.operations]}")
better = manager.run(graph)
print(print_module(better, locations=False))

# Before and after compute the same.
at = np.array([-0.5, 0.0, 0.01, 0.1], np.float32)
assert np.array_equal(evaluate(graph, [at])[0], evaluate(better, [at])[0])
assert sum(o.name == "graph.multiply" for o in better.operations) == 1
assert not any(o.name == "graph.add" for o in better.operations)
