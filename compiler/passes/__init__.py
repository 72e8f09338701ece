"""Passes over graphs, one a file; a file's name is the pass's name on the command line."""
