"""A stream in parts that are bounded by number and by size."""

from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["chunked"]

T = TypeVar("T")

_LARGEST = 1 << 21
"""Characters of a chunk: 512 texts of 4,096, so that texts of ordinary length are bounded by their number alone."""


def chunked(items: Iterator[T], most: int, size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield lists of at most `most` items and two million characters; an item that is larger comes alone.

    Args:
        items: Taken no further than one item ahead of what is yielded.
        most: Most items of a list.
        size: Characters of an item.
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
