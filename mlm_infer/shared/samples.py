"""Text in the package, sufficient to try it, to calibrate int8 and to check an export."""

import gzip
from importlib.resources import files
from typing import Literal

__all__ = ["movie_reviews"]


def movie_reviews(split: Literal["train", "validation"] = "train") -> list[str]:
    """Return sentences of movie reviews (Hutto and Gilbert 2014, MIT licence).

    Args:
        split: Every tenth of the 10,603 sentences is for validation, the others for training.

    Returns:
        The sentences of that split, in the order of their source.
    """
    packed = files("mlm_infer").joinpath("resources/movie-reviews.txt.gz").read_bytes()
    sentences = gzip.decompress(packed).decode().splitlines()
    return [text for row, text in enumerate(sentences) if (row % 10 == 9) == (split == "validation")]
