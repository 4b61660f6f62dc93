"""Rows of input files: counting them into parts, and reading a part with all of its columns."""

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import fsspec
import pyarrow
from pyarrow import parquet

from mlm_infer.errors import DataError, InputError, first_line
from mlm_infer.tasks.chunks import chunked

from .files import InputFile, Part

__all__ = ["Rows", "read_part", "split_file"]

_FEW = 64
"""Rows that are read at once from parquet: a cell may have many megabytes."""
_TOGETHER = 512
"""Rows whose texts are filled together, if they are short."""
_LONGEST_FIELD = 1 << 30

Rows = tuple[pyarrow.Table, dict[int, str]]
"""Rows, and by their number in the table why some of them could not be read."""


def split_file(file: InputFile, column: str, new: Sequence[str], rows: int) -> list[Part]:
    """Return the parts of a file.

    Args:
        file: The file; a csv or jsonl file is read once to the end.
        column: The column of the texts.
        new: Columns that will be added.
        rows: Number of rows of a part.

    Raises:
        DataError: It cannot be read, or lacks the column, or has one of the new columns already.
    """
    with _reading(str(file.name)), fsspec.open(file.url, "rb") as stream:
        if file.kind == ".parquet":
            table = parquet.ParquetFile(stream)
            names, count = table.schema_arrow.names, table.metadata.num_rows
            parts = [Part(file, start, min(rows, count - start)) for start in range(0, count, rows)]
        elif file.kind == ".csv":
            names, parts = _split_csv(file, stream, rows)
        else:
            names, parts = _split_jsonl(file, stream, rows)
    if parts and column not in names:
        near = difflib.get_close_matches(column, names, 1)
        hint = f"is it {near[0]!r}" if near else f"there are {', '.join(names) or 'none'}"
        raise DataError(f"{file.name} has no column {column!r}; {hint}; name it with --column")
    taken = next((name for name in names if name in new), None)
    if taken:
        raise DataError(f"{file.name} has a column {taken!r}, which the results need; rename it first")
    return parts


def _split_csv(file: InputFile, stream: Any, rows: int) -> tuple[list[str], list[Part]]:
    read = _csv_rows(stream)
    fields = tuple(next(read, ((), 0))[0])
    twice = next((name for number, name in enumerate(fields) if name in fields[:number]), None)
    if twice is not None:
        raise DataError(f"{file.name} has the column {twice!r} twice; rename one")
    row_type = pyarrow.struct([(name, pyarrow.string()) for name in fields])
    starts = _Starts(rows)
    for _, offset in read:
        starts.add(offset)
    return list(fields), starts.parts(file, fields, row_type)


def _split_jsonl(file: InputFile, stream: Any, rows: int) -> tuple[list[str], list[Part]]:
    schema = pyarrow.schema([])
    starts = _Starts(rows)
    for lines in chunked(_jsonl_rows(stream), _TOGETHER, lambda pair: len(pair[0])):
        for _, offset in lines:
            starts.add(offset)
        objects = [row for row in (_object(line)[0] for line, _ in lines) if row is not None]
        try:
            found = pyarrow.schema(list(pyarrow.array(objects or [{}]).type))
            # Whole numbers and fractions, and nothing and anything, become one type; texts and numbers do not.
            schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
            raise DataError(
                f"{file.name}: a key has values of several types ({first_line(error)}); write it with one"
            ) from error
    return schema.names, starts.parts(file, (), pyarrow.struct(list(schema)))


class _Starts:
    """Counts rows, and keeps where each part begins: a file may have billions of rows."""

    def __init__(self, rows: int) -> None:
        self._rows, self._count = rows, 0
        self._offsets: list[int] = []

    def add(self, offset: int) -> None:
        """Count a row that begins here."""
        if self._count % self._rows == 0:
            self._offsets.append(offset)
        self._count += 1

    def parts(self, file: InputFile, fields: tuple[str, ...], row_type: Any) -> list[Part]:
        """Return the parts of the file."""
        starts = range(0, self._count, self._rows)
        return [
            Part(file, start, min(self._rows, self._count - start), offset, fields, row_type)
            for start, offset in zip(starts, self._offsets, strict=True)
        ]


def _csv_rows(stream: Any) -> Iterator[tuple[list[str], int]]:
    """Yield the rows that are not blank, and where each begins, in bytes."""
    offset = stream.tell()

    def lines() -> Iterator[str]:
        nonlocal offset
        for line in stream:
            first, offset = offset == 0, offset + len(line)
            yield line.decode("utf-8-sig" if first else "utf-8")

    csv.field_size_limit(_LONGEST_FIELD)
    begin = offset
    # The reader takes lines one at a time, so after a row the offset is that of the next one.
    for row in csv.reader(lines()):
        if row:
            yield row, begin
        begin = offset


def _jsonl_rows(stream: Any) -> Iterator[tuple[bytes, int]]:
    """Yield the lines that are not blank, and where each begins, in bytes."""
    offset = stream.tell()
    for line in stream:
        if line.strip():
            yield line, offset
        offset += len(line)


def _object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return the object of a line, or why there is none, which costs this row alone."""
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            return None, f"the row is no JSON object, but {row!r:.40}"
        if b"\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, "the row has half a surrogate pair, which is no text; remove it"
    except (ValueError, RecursionError) as error:
        return None, f"the row is not JSON: {first_line(error)}"
    return row, ""


def read_part(part: Part) -> Iterator[Rows]:
    """Yield the rows of a part, some hundreds at a time.

    Args:
        part: The part.

    Raises:
        DataError: They cannot be read.
    """
    with _reading(str(part)), fsspec.open(part.file.url, "rb") as stream:
        if part.file.changed():
            raise DataError(f"{part.file.name} has changed since the run began; run again with another output")
        if part.file.kind == ".parquet":
            yield from ((table, {}) for table in _read_parquet(part, parquet.ParquetFile(stream)))
            return
        stream.seek(part.offset)
        read = _read_csv if part.file.kind == ".csv" else _read_jsonl
        for rows in chunked(islice(read(part, stream), part.rows), _TOGETHER, lambda row: row[2]):
            array = pyarrow.array([row for row, _, _ in rows], part.row_type)
            yield (
                pyarrow.Table.from_struct_array(array),
                {number: wrong for number, (_, wrong, _) in enumerate(rows) if wrong},
            )


def _read_parquet(part: Part, table: Any) -> Iterator[Any]:
    groups, first, skipped = [], 0, 0
    for number in range(table.metadata.num_row_groups):
        count = table.metadata.row_group(number).num_rows
        if first + count <= part.start:
            skipped += count
        elif first < part.start + part.rows:
            groups.append(number)
        first += count
    # Rows of the first group that belong to the part before.
    skip, left = part.start - skipped, part.rows

    def batches() -> Iterator[Any]:
        nonlocal skip, left
        for batch in table.iter_batches(_FEW, row_groups=groups):
            kept = batch.slice(skip, left)
            skip, left = max(0, skip - batch.num_rows), left - kept.num_rows
            if kept.num_rows:
                yield kept
            if not left:
                return

    for together in chunked(batches(), _TOGETHER // _FEW, lambda batch: int(batch.nbytes)):
        yield pyarrow.Table.from_batches(together)


def _read_csv(part: Part, stream: Any) -> Iterator[tuple[dict[str, str], str, int]]:
    """Yield rows, why they are wrong, and their numbers of characters."""
    for row, _ in _csv_rows(stream):
        wrong = ""
        if len(row) != len(part.fields):
            wrong = f"the row has {len(row)} fields, and the header {len(part.fields)}; quote fields with commas"
        yield dict(zip(part.fields, row, strict=False)), wrong, sum(map(len, row))


def _read_jsonl(_part: Part, stream: Any) -> Iterator[tuple[dict[str, Any], str, int]]:
    for line, _ in _jsonl_rows(stream):
        row, wrong = _object(line)
        yield row or {}, wrong, len(line)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever reading raises into a DataError with a name."""
    try:
        yield
    except (DataError, InputError, GeneratorExit):
        raise
    except Exception as error:  # pyarrow's and fsspec's errors share no base but Exception
        raise DataError(f"{name}: cannot be read: {first_line(error)}") from error
