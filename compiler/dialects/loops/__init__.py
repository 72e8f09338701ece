"""The loop level's operations, with the names and rules of upstream MLIR: arith math memref scf vector x86vector func gpu."""

from flambeau.compiler.dialects.loops import arith, func, gpu, math, memref, scf, vector, x86vector

__all__ = ["arith", "func", "gpu", "math", "memref", "scf", "vector", "x86vector"]
