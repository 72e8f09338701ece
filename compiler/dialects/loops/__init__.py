"""The loop level's operations, with MLIR's names and rules: arith math memref scf vector x86vector llvm func gpu."""

from flambeau.compiler.dialects.loops import arith, func, gpu, llvm, math, memref, scf, vector, x86vector

__all__ = ["arith", "func", "gpu", "llvm", "math", "memref", "scf", "vector", "x86vector"]
