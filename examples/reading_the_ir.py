"""The way of a small program through the compiler: its text after each stage, and the text read back."""

import numpy as np

from flambeau.compiler.dialects.graph import build
from flambeau.compiler.ir.core import Graph, Value
from flambeau.compiler.ir.interpreter import evaluate
from flambeau.compiler.ir.parser import parse_graph
from flambeau.compiler.ir.printer import print_module
from flambeau.compiler.ir.types import f32, tensor
from flambeau.compiler.pipeline import compile_stages
from flambeau.execution import run_graph

# A layer with an activation, as the frontend would record it. Values have types; a graph is parameters and results.
x, w = Value(tensor((4, 8), f32)), Value(tensor((8, 3), f32))
graph = Graph([x, w], [build.tanh(build.matmul(x, w))], "layer")

text = print_module(graph, locations=False)
print(text)

# The text is MLIR's generic form, and it parses back to an equal graph.
assert parse_graph(text) == graph

# Stage by stage: how many kernels, which loops, how much memory, how much LLVM IR and machine code.
stages = compile_stages(graph)
for name, kernel in stages.kernels.items():
    loops = print_module(kernel.functions, locations=False)
    print(f"{name}: {len(kernel.functions)} functions, {len(loops.splitlines())} lines of loops")
print(f"arena {stages.memory.size} bytes, {len(stages.llvm.splitlines())} lines of LLVM IR")
print(f"{len(stages.object_code)} bytes of machine code for {stages.target.cpu}")
print("  ".join(f"{stage} {1e3 * seconds:.1f} ms" for stage, seconds in stages.seconds.items()))

# Three ways to the same numbers: the operations' NumPy rules, the compiled code, and NumPy itself.
rng = np.random.default_rng(0)
arrays = [rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal((8, 3)).astype(np.float32)]
(interpreted,), (compiled,) = evaluate(graph, arrays), run_graph(graph, arrays)
np.testing.assert_allclose(compiled, interpreted, rtol=1e-5, atol=1e-6)
np.testing.assert_allclose(compiled, np.tanh(arrays[0] @ arrays[1]), rtol=1e-5, atol=1e-6)
print("interpreter, compiled code and NumPy agree")
