"""Reads texts one at a time from files of any size and line length: lines, or a column of a table."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mlm_infer.errors import DataError, DependencyError, first_line

__all__ = ["ReadText", "pyarrow_parquet", "read_lines", "read_texts"]

_LONGEST_LINE = 1 << 23
"""Maximum characters of a line in memory: a text may have a million, and JSON escapes take six for each."""

_KEPT = 1000
"""Characters of a longer line that the output keeps."""

_ROWS = 64
"""Rows of a parquet file in memory: a cell may have many megabytes."""


class ReadText(NamedTuple):
    """A text and its position.

    Attributes:
        place: File and line, or row; empty for an argument of a command.
        text: The text, or the beginning of a line that is too long.
        wrong: Why it cannot be read; empty for a readable text.
    """

    place: str
    text: str
    wrong: str = ""


def read_texts(path: Path, column: str) -> Iterator[ReadText]:
    """Yield the texts of a file; blank texts are skipped.

    Args:
        path: A .csv, .jsonl or .parquet file (suffix in any case), or any other file with one text per line; except
            for .parquet, it may be a pipe.
        column: Column, or key, of the text in a table.

    Raises:
        DataError: The file is missing, does not match its suffix, or lacks the column.
        DependencyError: A parquet file, and pyarrow is not installed.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise DataError(f"there is no file {path}")
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path, column)
    return _read_open(path, kind, column)


def _read_open(path: Path, kind: str, column: str) -> Iterator[ReadText]:
    # The csv module requires unmodified line breaks.
    with path.open(encoding="utf-8", newline="" if kind == ".csv" else None) as stream:
        if kind == ".csv":
            yield from _csv(path, stream, column)
        elif kind == ".jsonl":
            yield from _jsonl(path, stream, column)
        else:
            yield from read_lines(str(path), stream)


def read_lines(name: str, stream: TextIO) -> Iterator[ReadText]:
    """Yield the non-blank lines of a stream without line breaks; of a line that is too long, the beginning.

    Args:
        name: Name of the stream in messages.
        stream: The stream.

    Raises:
        DataError: It is not UTF-8.
    """
    for each in _lines(name, stream):
        if not each.text.isspace():
            yield each._replace(text=each.text.rstrip("\r\n"))


def _lines(name: str, stream: TextIO) -> Iterator[ReadText]:
    """Yield every line with its line break and without a byte-order mark; of a long line, the beginning."""
    number = 0
    try:
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            place = f"{name}, line {number}"
            if number == 1:
                line = line.removeprefix("\ufeff")
            if len(line) < _LONGEST_LINE or line.endswith(("\n", "\r")):
                yield ReadText(place, line or "\n")
                continue
            # Skip the rest of the line in small blocks.
            rest = line
            while rest and not rest.endswith(("\n", "\r")):
                rest = stream.readline(1 << 16)
            yield _too_long(place, line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 ({error.reason} at byte {error.start} of a block); convert it first"
        ) from error


def _csv(path: Path, stream: TextIO, column: str) -> Iterator[ReadText]:
    # The default limit, 131,072 characters, is less than a text may have.
    csv.field_size_limit(_LONGEST_LINE)
    table = csv.DictReader(_csv_lines(path, stream))
    try:
        _check_column(path, column, list(table.fieldnames or []))
        for number, row in enumerate(table, 1):
            text = row[column]
            if text and not text.isspace():
                yield ReadText(f"{path}, row {number}", text)
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num} is not CSV: {error}") from error


def _csv_lines(path: Path, stream: TextIO) -> Iterator[str]:
    for each in _lines(str(path), stream):
        if each.wrong:
            # A quoted field may continue after this line, so the start of the next row is unknown.
            raise DataError(each.wrong)
        yield each.text


def _jsonl(path: Path, stream: TextIO, column: str) -> Iterator[ReadText]:
    for each in read_lines(str(path), stream):
        if each.wrong:
            yield each
            continue
        try:
            row = json.loads(each.text)
        except ValueError as error:
            raise DataError(f"{each.place} is not JSON: {error}") from error
        except RecursionError as error:
            raise DataError(f"{each.place} is JSON that is nested too deep; a row is an object of texts") from error
        _check_column(each.place, column, list(row) if isinstance(row, dict) else [])
        text = row[column]
        if not isinstance(text, str):
            raise DataError(f"{each.place}: {column} is {text!r:.40}, not a text")
        if text and not text.isspace():
            yield ReadText(each.place, text)


def _parquet(path: Path, column: str) -> Iterator[ReadText]:
    parquet = pyarrow_parquet()
    if not path.is_file():
        raise DataError(f"{path} is a pipe, and parquet is read from a file; write it to one first")
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's errors share no base but Exception
        raise DataError(f"{path} is no parquet file: {first_line(error)}") from error
    _check_column(path, column, file.schema_arrow.names)
    number = 0
    for batch in file.iter_batches(columns=[column], batch_size=_ROWS):
        for text in batch.column(0).to_pylist():
            number += 1
            if text is not None and not isinstance(text, str):
                raise DataError(f"{path}: the column {column} holds {text!r:.40}, not texts")
            if text and not text.isspace():
                place = f"{path}, row {number}"
                yield ReadText(place, text) if len(text) < _LONGEST_LINE else _too_long(place, text)


def _too_long(place: str, text: str) -> ReadText:
    wrong = f"{place} has {_LONGEST_LINE:,} characters or more, too many to be read; cut it into several"
    return ReadText(place, text[:_KEPT], wrong)


def pyarrow_parquet() -> Any:
    """Return `pyarrow.parquet`.

    Raises:
        DependencyError: It is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError("parquet files need pyarrow; install it with: pip install pyarrow") from error
    return parquet


def _check_column(place: Path | str, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise DataError(f"{place} has no column {column!r}, but {', '.join(columns) or 'none'}; name it with --column")
