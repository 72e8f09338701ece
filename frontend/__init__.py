"""Flambeau: PyTorch's programming model on an ahead-of-time compiler."""

__version__ = "0.1.0"
