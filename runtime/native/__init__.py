"""The runtime's native part, as LLVM IR text: linked into the JIT and into every exported library."""
