"""The Flambeau compiler: graph IR, passes, lowering to loops, and code generation through LLVM."""
