"""The best of some tokens."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "best_of"]

Answer = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids and their log-probabilities for one mask, best first."""


def best_of(ids: NDArray[np.int64], logprobs: NDArray[np.float32], count: int) -> Answer:
    """Return the most probable of some tokens, best first; of equals, the one given first."""
    chosen = np.arange(len(logprobs))
    if 0 < count < len(logprobs):
        # Thousands are sorted only down to what ties with the last that is wanted.
        above = np.flatnonzero(logprobs >= np.partition(logprobs, -count)[-count])
        chosen = above if len(above) >= count else chosen
    order = chosen[np.argsort(-logprobs[chosen], kind="stable")[:count]]
    return ids[order], logprobs[order]
