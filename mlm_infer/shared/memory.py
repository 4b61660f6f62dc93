"""Recognizes errors of PyTorch that mean that memory ran out."""

__all__ = ["is_out_of_memory"]

# On the CPU PyTorch raises a plain RuntimeError, and on MPS too; the last one is oneDNN's, which does not say why.
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, and not that something cannot be computed."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
    )
