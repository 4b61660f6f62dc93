"""Loads documents from a data set's name, a file or a folder, and splits them."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from numpy.typing import NDArray

from mlm_infer.errors import DataError, InputError, first_line
from mlm_infer.shared.samples import movie_reviews

from .config import TrainConfig
from .files import find_files, is_saved_dataset

__all__ = ["BUILT_IN", "Documents", "load_documents", "load_splits"]

BUILT_IN = "movie-reviews"


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents of one or more splits of a source.

    Attributes:
        texts: A data set with the single column `text`, without empty documents.
        empty: Number of empty documents that were left out; empty lines of a .txt file are not counted.
        unused_splits: Splits of a local source that were not asked for.
    """

    texts: datasets.Dataset
    empty: int
    unused_splits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Splits:
    """Training and validation documents.

    Attributes:
        train: A data set with the single column `text`, one document per row.
        validation: The same.
        empty: Number of empty documents that were left out.
        repeated: Number of validation documents that are training documents, too, letter by letter.
        unused_splits: Splits of local sources that are in neither.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
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
        train, validation = _hold_out(first.texts, config)
        empty, unused = first.empty, first.unused_splits
    else:
        second = _load(config, source, split)
        train, validation, empty = first.texts, second.texts, first.empty + second.empty
        # A split of the same source that the other one uses is used.
        unused = tuple(name for name in first.unused_splits if name in second.unused_splits)
    seen = np.isin(_digests(validation), _digests(train))
    repeated = int(seen.sum())
    if config.deduplicate and repeated:
        if repeated == len(validation):
            raise DataError(f"all {repeated} validation documents are training documents; name other --validation-data")
        validation = validation.select(np.flatnonzero(~seen))
    return Splits(train, validation, empty, repeated, unused)


def _hold_out(documents: datasets.Dataset, config: TrainConfig) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split by document, before blocks are cut: a document must not be in both sets."""
    if len(documents) < 2:
        raise DataError(
            f"{config.data} holds {len(documents)} document, which cannot be split into training and validation text; "
            "give more (one document a line in a .txt file) or name --validation-data"
        )
    try:
        parts = documents.train_test_split(test_size=config.validation_fraction, seed=config.seed)
    except ValueError as error:
        raise InputError(
            f"validation_fraction is {config.validation_fraction}, which leaves no training document of "
            f"{len(documents)}; choose a smaller --validation-fraction, or name --validation-data"
        ) from error
    return parts["train"], parts["test"]


def _digests(documents: datasets.Dataset) -> NDArray[np.uint64]:
    """Return 8 bytes for each document; two different ones among a million have the same with probability 3e-8."""
    found = np.empty(len(documents), np.uint64)
    at = 0
    for rows in documents.iter(batch_size=1000):
        for text in rows["text"]:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            found[at] = int.from_bytes(digest, "little")
            at += 1
    return found


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
        source: `movie-reviews`, a file, a folder of files of one type, a folder of `save_to_disk`, or a data set's
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
    raw, unused = _load_raw(source, split, data_config, data_revision)
    column, keys = _find_column(source, raw.features.arrow_schema, text_column)
    joined = raw.select_columns([column]).map(
        lambda rows: {"text": [" ".join(_strings(value, keys)) for value in rows[column]]},
        batched=True,
        remove_columns=[column],
        desc="Reading text",
    )
    texts = joined.filter(lambda rows: [bool(text) for text in rows["text"]], batched=True, desc="Reading text")
    if not len(texts):
        raise DataError(f"{source} holds no text in the column {text_column!r}, split {split!r}")
    empty = 0 if source.lower().endswith(".txt") else len(joined) - len(texts)
    return Documents(texts, empty, unused)


def _find_column(source: str, schema: pyarrow.Schema, text_column: str) -> tuple[str, list[str]]:
    """Return the column, and the keys of the structs in it that lead to the text."""
    parts = text_column.split(".")
    for length in range(len(parts), 0, -1):
        column, keys = ".".join(parts[:length]), parts[length:]
        if column not in schema.names:
            continue
        kind = _inner_type(schema.field(column).type, keys)
        if kind is None:
            continue
        if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.null()):
            raise DataError(
                f"the column {text_column!r} of {source} holds {kind}; it must hold strings or lists of strings"
            )
        return column, keys
    columns = ", ".join(name for field in schema for name in _leaves(field.name, field.type)) or "none"
    raise DataError(f"{source} has no column {text_column!r}; its columns are {columns}: name one with --text-column")


def _inner_type(kind: pyarrow.DataType, keys: Sequence[str]) -> pyarrow.DataType | None:
    while _is_list(kind):
        kind = kind.value_type
    if not keys:
        return kind
    if not pyarrow.types.is_struct(kind) or kind.get_field_index(keys[0]) < 0:
        return None
    return _inner_type(kind.field(keys[0]).type, keys[1:])


def _is_list(kind: pyarrow.DataType) -> bool:
    checks = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    return any(check(kind) for check in checks)


def _leaves(name: str, kind: pyarrow.DataType) -> Iterator[str]:
    while _is_list(kind):
        kind = kind.value_type
    if not pyarrow.types.is_struct(kind):
        yield name
        return
    for field in kind:
        yield from _leaves(f"{name}.{field.name}", field.type)


def _strings(value: Any, keys: Sequence[str]) -> Iterator[str]:
    """Yield the texts in a cell: of a string, of a list, or of the structs that the keys lead into."""
    if isinstance(value, list):
        for each in value:
            yield from _strings(each, keys)
    elif isinstance(value, dict):
        yield from _strings(value[keys[0]], keys[1:])
    elif value is not None and value.strip():
        yield value.strip()


def _load_raw(
    source: str, split: str, data_config: str | None, data_revision: str | None
) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """Return the rows of a split, and the names of the other splits of a local source."""
    names = [match[1] for match in re.finditer(r"(?:^|\+)\s*(\w+(?:[.-]\w+)*)", split)]
    if not names:
        raise InputError(f"the split is {split!r}; write it like train, train[:5000] or train+test")
    path = Path(source).expanduser()
    try:
        if source == BUILT_IN:
            return _select(_built_in(), source, names, split)
        if path.is_dir() and is_saved_dataset(path):
            saved = datasets.load_from_disk(str(path))
            return _select(saved if isinstance(saved, dict) else {"train": saved}, source, names, split)
        if not path.exists():
            return datasets.load_dataset(source, data_config, revision=data_revision, split=split), ()
        files = find_files(path)
        unused = _check_splits(files.splits, source, names)
        # Only what is needed: `datasets` would convert the others, too.
        wanted = {name: files.splits[name] for name in names}
        return datasets.load_dataset(files.builder, data_files=wanted, split=split, **files.options), unused
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        hint = "" if path.exists() else " (it is neither a file here nor a data set that can be reached)"
        raise DataError(f"cannot read {source}{hint}: {first_line(error.__cause__ or error)}") from error


def _built_in() -> dict[str, datasets.Dataset]:
    return {name: datasets.Dataset.from_dict({"text": movie_reviews(name)}) for name in ("train", "validation")}


def _check_splits(splits: dict[str, Any], source: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the splits that are not asked for, after checking that those that are exist."""
    for name in names:
        if name not in splits:
            raise DataError(f"{source} has no split {name!r}; it has {', '.join(splits)}")
    return tuple(name for name in splits if name not in names)


def _select(
    splits: dict[str, datasets.Dataset], source: str, names: Sequence[str], split: str
) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """Return the rows that a split with slices and sums means."""
    unused = _check_splits(splits, source, names)
    lengths = {name: len(each) for name, each in splits.items()}
    parts = [
        splits[each.splitname].select(range(each.from_, each.to))
        for each in datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    ]
    return (parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)), unused
