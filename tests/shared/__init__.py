"""Shared code of the commands: output folders, samples, one-line errors."""
