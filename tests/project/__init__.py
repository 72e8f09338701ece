"""Tests of the project itself: what it builds, what importing costs, which way imports run."""
