"""The command `mlm-fill`, with file input and output."""
