"""The Flambeau runtime: memory, threads, the JIT engine, linking and loading of exported libraries."""
