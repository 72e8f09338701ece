"""Tensor operations, one family a file. Importing this package registers all of them."""
