"""Utilities: loading data."""

from flambeau.utils import data

__all__ = ["data"]
