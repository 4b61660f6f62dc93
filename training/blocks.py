"""Cuts documents into blocks of token ids, which stay on the disk."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from mlm_infer.errors import DataError, InputError
from mlm_infer.shared.checkpoint import special_ends

from .cache import cached
from .data import Documents
from .encoders import CONTINUES, Encoded, Encoder, FastEncoder, SlowEncoder, encode_all

__all__ = ["Blocks", "make_blocks", "make_encoder"]

_CHARACTERS = 1 << 20
"""Characters that are encoded at a time, unless a single document has more."""


class Blocks:
    """Blocks of token ids with the special tokens that a text has at inference.

    A block is read from the disk when it is asked for. It holds 4 bytes for each token; `CONTINUES` is added to the ids
    of tokens that continue a word if words are known.

    Args:
        folder: Contains `ids`, the tokens of all blocks without special ones, `bounds`, where each block begins and
            the last one ends, and `digest`, a digest of both.
        ends: Ids before and after each block.
        rows: The blocks of the folder that are meant; None means all.
    """

    def __init__(self, folder: Path, ends: tuple[list[int], list[int]], rows: NDArray[np.int64] | None = None) -> None:
        self._folder, self._rows = folder, rows
        self._begin, self._end = (np.array(ids, np.uint32) for ids in ends)
        self._count = (folder / "bounds").stat().st_size // 8 - 1 if rows is None else len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> NDArray[np.uint32]:
        if not 0 <= row < self._count:
            raise IndexError(row)
        at = row if self._rows is None else int(self._rows[row])
        # Not mapped: pages of a mapping would count as this process's memory.
        start, stop = np.fromfile(self._folder / "bounds", np.int64, 2, offset=8 * at).tolist()
        ids = np.fromfile(self._folder / "ids", np.uint32, stop - start, offset=4 * start)
        return np.concatenate([self._begin, ids, self._end])

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        return (self[row] for row in range(self._count))

    def sample(self, count: int | None, seed: int) -> "Blocks":
        """Return at most `count` blocks, drawn without replacement, in their original order."""
        if count is None or count >= self._count:
            return self
        drawn = np.sort(np.random.default_rng(seed).permutation(self._count)[:count])
        ends = self._begin.tolist(), self._end.tolist()
        return Blocks(self._folder, ends, drawn if self._rows is None else self._rows[drawn])

    def digest(self) -> str:
        """Return a digest of all blocks."""
        found = hashlib.sha256((self._folder / "digest").read_bytes())
        for ids in (self._begin, self._end, np.arange(0) if self._rows is None else self._rows):
            found.update(str(len(ids)).encode() + ids.tobytes())
        return found.hexdigest()


def make_blocks(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    per_line: bool = False,
    whole_words: bool = False,
    workers: int = 0,
) -> Blocks:
    """Tokenize documents, join them with the separator token, and cut the result into blocks.

    What was computed before, by this or another process, is taken from the cache.

    Args:
        documents: The documents.
        tokenizer: Adds the special tokens that the model sees at inference.
        block_size: Tokens per block, special tokens included.
        per_line: Begin a block with each document instead of joining them.
        whole_words: Note which tokens belong to one word.
        workers: Processes that tokenize; the blocks do not depend on it.

    Returns:
        The blocks; no token of the text is dropped.

    Raises:
        InputError: A block has no room besides its special tokens, or words are not known.
        DataError: The text has no tokens.
    """
    begin, end = special_ends(tokenizer)
    room = block_size - len(begin) - len(end)
    if room < 1:
        raise InputError(f"block_size is {block_size}, but the special tokens alone take {block_size - room}")
    encoder, identity = make_encoder(tokenizer, whole_words=whole_words)
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    cutter = _PerDocument(room) if per_line else _Joined(room, separator)

    def write(folder: Path) -> None:
        bar = datasets.utils.tqdm(desc="Tokenizing", unit=" documents", total=len(documents))
        with bar:
            _write(folder, encode_all(_bounded(documents), encoder, workers), cutter, bar.update)

    key = [documents.identity(), identity, room, separator, per_line, whole_words]
    blocks = Blocks(cached("blocks", key, write), (begin, end))
    if not len(blocks):
        raise DataError(
            f"no block results from the text (documents: {len(documents)}, tokens with this tokenizer: 0); take other "
            "text, or a tokenizer that knows its characters"
        )
    return blocks


def make_encoder(tokenizer: PreTrainedTokenizerBase, *, whole_words: bool = False) -> tuple[Encoder, str]:
    """Return what encodes texts, and a digest of all that it does.

    Args:
        tokenizer: The tokenizer.
        whole_words: Whether tokens that continue a word are to be told.

    Raises:
        InputError: The tokenizer does not know words.
    """
    own = _copy(tokenizer)
    if own is not None:
        encoder = FastEncoder(own, words=whole_words)
        if whole_words and (encoder(["two words"]).ids < CONTINUES).sum() < 2:
            raise InputError("whole_words needs a tokenizer that divides text into words; leave --whole-words out")
        text = f"{own.encode_special_tokens}{own.to_str()}"
        return encoder, hashlib.sha256(text.encode()).hexdigest()
    if whole_words:
        raise InputError(
            f"whole_words needs a fast tokenizer, which tells words apart; {type(tokenizer).__name__} is written in "
            "Python: leave --whole-words out, or take a checkpoint with a tokenizer.json"
        )
    found = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            found.update(path.name.encode() + path.read_bytes())
    return SlowEncoder(tokenizer), found.hexdigest()


def _copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """Return a copy of a fast tokenizer without what its last call left in it; None if it has a step in Python."""
    if not tokenizer.is_fast:
        return None
    try:
        own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception:  # what tokenizers raises has no class of its own
        return None
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = tokenizer.split_special_tokens
    return own


def _bounded(documents: Documents) -> Iterator[list[str]]:
    """Yield the documents in batches that take little memory while they are encoded."""
    for texts in documents.batches():
        batch: list[str] = []
        characters = 0
        for text in texts:
            batch.append(text)
            characters += len(text)
            if characters > _CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch


class _Joined:
    """Joins documents with the separator. Tokens that do not fill a block start the next one."""

    def __init__(self, room: int, separator: int | None) -> None:
        self._room, self._separator = room, separator
        self._filled = self._total = 0

    def add(self, encoded: Encoded) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the tokens that documents add, and the ends of blocks among them."""
        ids = encoded.ids
        if self._separator is not None:
            # Where a block ends with a document, its own separator stands for it.
            places, at = [], 0
            for length in encoded.lengths.tolist():
                if self._filled:
                    places.append(at)
                    self._filled += 1
                self._filled = (self._filled + length) % self._room
                at += length
            ids = np.insert(ids, places, self._separator)
        first = (self._total // self._room + 1) * self._room
        self._total += len(ids)
        return ids, np.arange(first, self._total + 1, self._room)

    def last(self) -> NDArray[np.int64]:
        """Return the end of the last block, which may be shorter."""
        return np.arange(self._total, self._total + (self._total % self._room > 0))


class _PerDocument:
    """Begins a block with each document, and another one wherever a block is full."""

    def __init__(self, room: int) -> None:
        self._room, self._total = room, 0

    def add(self, encoded: Encoded) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the tokens that documents add, and the ends of blocks among them."""
        ends: list[int] = []
        for length in encoded.lengths.tolist():
            stop = self._total + length
            ends += range(self._total + self._room, stop, self._room)
            ends += [stop] if length else []
            self._total = stop
        return encoded.ids, np.array(ends, np.int64)

    def last(self) -> NDArray[np.int64]:
        """Return nothing: every block is complete."""
        return np.empty(0, np.int64)


def _write(folder: Path, encoded: Iterator[Encoded], cutter: _Joined | _PerDocument, done: Any) -> None:
    digests = {"ids": hashlib.sha256(), "bounds": hashlib.sha256()}
    with (folder / "ids").open("wb") as ids, (folder / "bounds").open("wb") as bounds:

        def write(tokens: NDArray[np.uint32], ends: NDArray[np.int64]) -> None:
            for stream, name, values in ((ids, "ids", tokens), (bounds, "bounds", ends)):
                stream.write(values.tobytes())
                digests[name].update(values.tobytes())

        write(np.empty(0, np.uint32), np.zeros(1, np.int64))
        for each in encoded:
            write(*cutter.add(each))
            done(len(each.lengths))
        write(np.empty(0, np.uint32), cutter.last())
    text = "\n".join(digest.hexdigest() for digest in digests.values())
    (folder / "digest").write_text(text, encoding="ascii")
