"""Top-k of a list of tokens."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "best_of"]

Answer = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids and their log-probabilities for one mask, best first."""


def best_of(ids: NDArray[np.int64], logprobs: NDArray[np.float32], count: int) -> Answer:
    """Return the `count` most probable tokens, best first; ties keep the given order."""
    chosen = np.arange(len(logprobs))
    if 0 < count < len(logprobs):
        # Partitioning is linear, so only the tokens that reach the k-th best value are sorted. Ties with that value are
        # kept for the stable sort below to decide.
        above = np.flatnonzero(logprobs >= np.partition(logprobs, -count)[-count])
        # NaN compares as false and could leave too few.
        chosen = above if len(above) >= count else chosen
    order = chosen[np.argsort(-logprobs[chosen], kind="stable")[:count]]
    return ids[order], logprobs[order]
