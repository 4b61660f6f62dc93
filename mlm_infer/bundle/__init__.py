"""The folder that an export writes, and whether to believe it."""
