"""Selects text that suits a model, for the calibration of int8 and the comparison of every export."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mlm_infer.errors import DataError
from mlm_infer.shared.samples import movie_reviews

from .batches import Batch, feeds, padded, token_ids
from .run_model import open_model

__all__ = ["Texts", "own_texts", "random_texts", "read_texts", "review_texts", "sampled_texts"]

_CALIBRATION, _HELD_OUT = 400, 600
"""Numbers of texts to calibrate on, and to measure on. More of the latter: an agreement of 98.3 % needs many masks."""

_SHORTEST = 40
"""Minimum number of lines of a calibration file."""

_MOST_UNKNOWN, _LEAST_WHOLE = 0.1, 0.6
"""Limits for a text to suit a vocabulary: the share of unknown tokens, and the share of words that are one token."""

_SAMPLED, _ROUNDS, _LONGEST_SAMPLED = 400, 4, 24
"""Number of generated texts, rounds in which each is filled, and maximum length in tokens."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts as token ids, without special tokens.

    Attributes:
        name: `movie-reviews`, the name of a file, or `sampled from the model`.
        seen: Text for calibration.
        unseen: Text for measurement.
        unknown: Share of unknown tokens.
        whole: Share of words that are one token, relative to an ideal vocabulary of the same size for this text; 1 if
            not computed.
    """

    name: str
    seen: list[list[int]]
    unseen: list[list[int]]
    unknown: float = 0.0
    whole: float = 1.0

    @property
    def fit(self) -> bool:
        """Whether the model's vocabulary suits the text."""
        return self.unknown <= _MOST_UNKNOWN and self.whole >= _LEAST_WHOLE

    @property
    def why_not(self) -> str:
        """The reason why it does not, for a message."""
        if self.unknown > _MOST_UNKNOWN:
            return f"{self.unknown:.0%} of the tokens of {self.name} are unknown to it"
        return f"it splits most words of {self.name} ({self.whole:.0%} of what its vocabulary could hold are whole)"

    def describe(self) -> str:
        """Return a description for a message."""
        return (
            f"{self.name}: {len(self.seen)} texts to calibrate on and {len(self.unseen)} to measure on, "
            f"{self.unknown:.1%} unknown tokens"
        )


def own_texts(tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Return the built-in reviews as token ids of the model."""
    sentences = movie_reviews()[: _CALIBRATION + _HELD_OUT]
    return _texts("movie-reviews", tokenizer, sentences)


def review_texts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return reviews that are never used for calibration, for comparisons."""
    return [ids for ids in token_ids(tokenizer, movie_reviews("validation")) if ids]


def random_texts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return texts of random tokens."""
    # Meaningless text suffices to compare the logits of two graphs, but not to calibrate.
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    random = np.random.default_rng(0)
    return [random.choice(ordinary, 16).tolist() for _ in range(200)]


def read_texts(path: Path, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Return the lines of a file as token ids of the model.

    Raises:
        DataError: The file cannot be read, has too few lines, or most of its tokens are unknown.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataError(f"there is no calibration file {path}") from error
    except IsADirectoryError as error:
        raise DataError(f"the calibration file {path} is a folder; name a file with one text a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the calibration file {path} is not UTF-8; convert it first") from error
    if len(lines) < _SHORTEST:
        raise DataError(
            f"the calibration file {path} has {len(lines)} lines of text; give at least {_SHORTEST}, better some "
            "hundreds, or leave --calibration-data out for the built-in text"
        )
    texts = _texts(path.name, tokenizer, lines[: _CALIBRATION + _HELD_OUT])
    if texts.unknown > 0.5:
        raise DataError(
            f"{texts.unknown:.0%} of the tokens of the calibration file {path} are unknown to this model: give text in "
            "its own language and alphabet, or leave --calibration-data out to have the model write its own"
        )
    return texts


def _texts(name: str, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> Texts:
    encoded = token_ids(tokenizer, sentences)
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded) / max(1, sum(map(len, encoded)))
    known = [ids for ids in encoded if ids]
    middle = min(_CALIBRATION, len(known) // 2)
    return Texts(name, known[:middle], known[middle:], unknown, _whole_words(tokenizer, sentences))


def _whole_words(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> float:
    """Return the share of words that are one token, relative to an ideal vocabulary of this size for this text.

    The ideal vocabulary of size n contains the n most frequent words of the text.
    """
    counts = Counter(word for sentence in sentences for word in re.findall(r"[^\W\d_]+", sentence))
    words = list(counts)
    # With a space, since byte-level vocabularies distinguish words within a text from those at its start.
    pieces = token_ids(tokenizer, [f" {word}" for word in words])
    held = sum(
        counts[word]
        for word, ids in zip(words, pieces, strict=True)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    )
    possible = sum(count for _, count in counts.most_common(len(tokenizer)))
    return held / max(1, possible)


def sampled_texts(model: ir.Model, inputs: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> Texts:
    """Generate text with the model: start from masks only and fill them, a part per round, with sampled predictions.

    This needs no data and suits any vocabulary: proteins, code, another language.

    Args:
        model: The serving graph.
        inputs: Names of the encoder's inputs.
        tokenizer: The model's tokenizer.
        longest: Maximum number of tokens in a text, without special tokens.
    """
    session = open_model(model)
    random = np.random.default_rng(0)
    special = np.array(tokenizer.all_special_ids)
    texts: list[list[int]] = []
    for start in range(0, _SAMPLED, 20):
        # Lengths similar to those of the reviews, equal within a batch.
        length = max(2, min(longest, _LONGEST_SAMPLED if start % 40 else _LONGEST_SAMPLED // 2))
        ids = np.full((20, length), tokenizer.mask_token_id)
        for turn in range(_ROUNDS):
            holes = np.argwhere(ids == tokenizer.mask_token_id)
            batch = _with_holes(tokenizer, ids, holes)
            (logits,) = session.run(["logits"], feeds(batch, inputs))
            # A special token inside a text does not occur in real input.
            logits[:, special] = -np.inf
            drawn = _draw(logits, random)
            # A quarter of the masks in the first round, all that are left in the last: later tokens see earlier ones.
            chosen = random.random(len(holes)) < 1 / (_ROUNDS - turn)
            ids[tuple(holes[chosen].T)] = drawn[chosen]
        texts.extend(ids.tolist())
    middle = len(texts) // 2
    return Texts("sampled from the model", texts[:middle], texts[middle:])


def _with_holes(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int64], holes: NDArray[np.int64]) -> Batch:
    whole, attention, begin = padded(tokenizer, ids.tolist())
    chosen = np.zeros(whole.shape, bool)
    chosen[holes[:, 0], holes[:, 1] + begin] = True
    return Batch.of(whole, attention, chosen, np.zeros(len(holes), np.int64))


def _draw(logits: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.int64]:
    """Sample a token for each row from its softmax, with the Gumbel-max trick (Gumbel 1954)."""
    noise = -np.log(-np.log(random.random(logits.shape, np.float32) + 1e-12) + 1e-12)
    drawn: NDArray[np.int64] = (logits + noise).argmax(axis=1)
    return drawn
