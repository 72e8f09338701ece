"""The `flambeau` command line."""
