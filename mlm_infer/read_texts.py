"""Texts from files of any size, one at a time: lines, or a column of a table."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DataError, DependencyError

__all__ = ["pyarrow_parquet", "read_texts"]

_LARGEST_FIELD = 1 << 24


def read_texts(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """Yield where each text stands, and the text; blank ones are left out.

    Args:
        path: A file that ends in .csv, .jsonl or .parquet, or any other with one text a line.
        column: Column, or key, of the text in the first three.

    Raises:
        DataError: The file is missing, is not what its name says, or lacks the column.
        DependencyError: A parquet file, and pyarrow is not installed.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix == ".parquet":
        rows = _parquet(path, column)
    else:
        rows = {".csv": _csv, ".jsonl": _jsonl}.get(path.suffix, _lines)(path, column)
    try:
        for number, text in enumerate(rows, 1):
            if text.strip():
                yield f"{path}, {'row' if path.suffix in ('.csv', '.parquet') else 'line'} {number}", text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start} of a block); convert it first"
        ) from error


def _lines(path: Path, _column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield line.rstrip("\r\n")


def _csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(_LARGEST_FIELD)
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        _check_column(path, column, list(table.fieldnames or []))
        try:
            for row in table:
                yield row[column] or ""
        except csv.Error as error:
            raise DataError(f"{path}, line {table.line_num} is not CSV: {error}") from error


def _jsonl(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, column), 1):
        if not line.strip():
            yield ""
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        _check_column(f"{path}, line {number}", column, list(row) if isinstance(row, dict) else [])
        if not isinstance(row[column], str):
            raise DataError(f"{path}, line {number}: {column} is {row[column]!r:.40}, not a text")
        yield row[column]


def _parquet(path: Path, column: str) -> Iterator[str]:
    parquet = pyarrow_parquet()
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's errors share no base but Exception
        raise DataError(f"{path} is no parquet file: {str(error).splitlines()[0]}") from error
    _check_column(path, column, file.schema_arrow.names)
    for batch in file.iter_batches(columns=[column], batch_size=4096):
        for text in batch.column(0).to_pylist():
            if text is not None and not isinstance(text, str):
                raise DataError(f"{path}: the column {column} holds {text!r:.40}, not texts")
            yield text or ""


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
