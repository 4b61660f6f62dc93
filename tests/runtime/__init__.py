"""Backends and processors: each gives the same answers."""
