"""Benchmarks, each of which checks results before it times anything."""
