"""Splits a stream into chunks of bounded number and size."""

from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["chunked"]

T = TypeVar("T")

_LARGEST = 1 << 21
"""Maximum number of characters per chunk: 512 texts of 4,096, so only unusually long texts reach it."""


def chunked(items: Iterator[T], most: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield lists of at most `most` items and two million characters; a larger item is yielded alone.

    Args:
        items: The items; read at most one item ahead of the yielded list.
        most: Maximum number of items per list.
        size: Returns the number of characters of an item.
    """
    chunk: list[T] = []
    held = 0
    for item in items:
        length = size(item)
        if chunk and held + length > _LARGEST:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += length
        if len(chunk) == most:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
