"""Texts to token ids, in this process or in several; imports nothing that would make another process slow to start."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mlm_infer.errors import InputError

__all__ = ["CONTINUES", "Encoded", "Encoder", "FastEncoder", "SlowEncoder", "encode_all", "token_ids"]

CONTINUES = np.uint32(1 << 31)
"""Added to the id of a token that continues the word of the token before it."""

_SPACES = ("Ġ", "▁")
"""How byte-level BPE and SentencePiece write a space."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of several texts, one after the other, and the number of tokens of each."""

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]


Encoder = Callable[[list[str]], Encoded]


class FastEncoder:
    """Token ids of a tokenizer of the package tokenizers, without special tokens.

    A word is what the tokenizer's own first step (its pre-tokenizer) makes of a text: for BERT and RoBERTa, punctuation
    is a word of its own. Where that step leaves several words together, as for Gemma's tokenizer, a token that begins
    with a space begins a word.

    Args:
        tokenizer: The tokenizer.
        words: Add `CONTINUES` to the ids of tokens that continue a word.
    """

    def __init__(self, tokenizer: Tokenizer, *, words: bool) -> None:
        self._tokenizer, self._words = tokenizer, words
        vocabulary = tokenizer.get_vocab() if words else {}
        self._opens = np.zeros(max(vocabulary.values(), default=0) + 1, np.bool_)
        self._opens[[number for token, number in vocabulary.items() if token.startswith(_SPACES)]] = True

    def __call__(self, texts: list[str]) -> Encoded:
        """Encode texts."""
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        lengths = np.array([len(each) for each in found], np.int64)
        ids = _flat([each.ids for each in found], np.uint32)
        if self._words and len(ids):
            words = _flat([[-1 if word is None else word for word in each.word_ids] for each in found], np.int64)
            continues = np.append(False, words[1:] == words[:-1]) & (words >= 0) & ~self._opens[ids]
            ends = lengths.cumsum()
            continues[ends[ends < len(ids)]] = False  # the first token of a text
            ids[continues] += CONTINUES
        return Encoded(ids, lengths)


class SlowEncoder:
    """Token ids of a tokenizer that is written in Python.

    Args:
        tokenizer: A tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> Encoded:
        """Encode texts."""
        found = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return Encoded(_flat(found, np.uint32), np.array([len(ids) for ids in found], np.int64))


def token_ids(tokens: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the ids alone of tokens that may be marked with `CONTINUES`."""
    return (tokens & ~CONTINUES).astype(np.int64)


def _flat(rows: list[list[int]], kind: Any) -> NDArray[Any]:
    return np.array([value for row in rows for value in row], kind)


def encode_all(batches: Iterable[list[str]], encoder: Encoder, workers: int) -> Iterator[Encoded]:
    """Encode batches of texts, in their order.

    Args:
        batches: The texts.
        encoder: Encodes a batch.
        workers: Number of processes besides this one; 0 encodes in this one, with threads of the tokenizer's own.

    Raises:
        InputError: The processes cannot be started.
    """
    if not workers:
        yield from map(encoder, batches)
        return
    # A fork would copy the locks of threads that this process has, for instance those of the tokenizer.
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, _start, (encoder,)) as pool:
            waiting: deque[Future[Encoded]] = deque()
            for batch in batches:
                waiting.append(pool.submit(_encode, batch))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "the processes of --workers could not start or were killed; leave --workers out, and in a program "
            'call fine_tune below: if __name__ == "__main__"'
        ) from error


_encoder: Encoder


def _start(encoder: Encoder) -> None:
    """Prepare a process for its work."""
    global _encoder  # noqa: PLW0603
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C is for the first process, and the others end with it, even if it is killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(texts: list[str]) -> Encoded:
    return _encoder(texts)
