"""The tests, in the folders of what they test. A package, so that helpers import as `tests.<folder>.<module>`."""
