"""Backends and processors: all give the same answers."""
