"""Schedules: how loops are tiled, vectorised and made parallel."""
