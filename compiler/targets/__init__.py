"""Code generation: loop-level IR to LLVM IR for CPUs, and to PTX."""
