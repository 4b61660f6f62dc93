"""Fills a file of texts into a file of results: in order, in bounded memory, and resumable after an interruption."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlm_infer.errors import InputError
from mlm_infer.filler import MaskFiller
from mlm_infer.options import FillKeywords
from mlm_infer.tasks.chunks import chunked
from mlm_infer.tasks.columns import answer_schema
from mlm_infer.text.vocabulary import is_text

from .answers import answer_texts
from .fill_job import FillJob
from .read_texts import ReadText, pyarrow_parquet, read_texts

__all__ = ["fill_file"]

_FLUSH_EVERY = 512
"""Rows between flushes; a kill loses at most these."""


def fill_file(
    filler: MaskFiller,
    source: Path,
    output: Path,
    *,
    column: str,
    options: FillKeywords,
    resume: bool,
    on_text: Callable[[int], None],
) -> tuple[int, int]:
    """Fill the masks of all texts of a file, and write one row per text.

    Rows are written to `OUTPUT.part`, which is renamed after the last one. A text that cannot be filled, or a line that
    is too long to be read, gives a row with an `error`.

    Args:
        filler: The filler to use.
        source: As for `read_texts`.
        output: A .jsonl or .parquet file.
        column: Column of the text.
        options: Keyword arguments for `MaskFiller.fill_stream`.
        resume: Continue after the last complete row of an `OUTPUT.part` of the same model and options, if its rows
            belong to the first texts of the input.
        on_text: Called with the number of newly finished texts.

    Returns:
        The number of texts, and how many of them could not be filled.

    Raises:
        OutputExistsError: The output exists, another process writes it, or another program's file is in the place of a
            temporary file.
        InputError: The output has another suffix, or the rows to resume belong to another run.
        DataError: The file cannot be read.
    """
    kind = output.suffix.lower()
    if kind not in (".jsonl", ".parquet"):
        raise InputError(f"the output {output} must end in .jsonl or .parquet")
    parquet = pyarrow_parquet() if kind == ".parquet" else None
    texts = read_texts(source, column)
    job = FillJob(output)
    with job.held(_identity(filler, column, options), resume=resume):
        if output.exists():
            return _count(output, parquet)
        if parquet is None:
            done, wrong = _write_rows(filler, texts, job, options, on_text)
            job.check_free()
            job.part.replace(output)
            return done, wrong
        if job.part.exists() or not job.table.exists():
            _write_rows(filler, texts, job, options, on_text)
            _to_parquet(parquet, job.part, job.table)
            # The absence of the part marks the table as complete: a run that is resumed from here only renames it.
            job.part.unlink()
        job.check_free()
        job.table.replace(output)
        return _count(output, parquet)


def _write_rows(
    filler: MaskFiller,
    texts: Iterator[ReadText],
    job: FillJob,
    options: FillKeywords,
    on_text: Callable[[int], None],
) -> tuple[int, int]:
    """Write the missing rows; return the total number of rows, and how many are errors."""
    done, wrong = _take_up(job.part, texts) if job.part.exists() else (0, 0)
    on_text(done)
    number = 0
    with job.part.open("a", encoding="utf-8") as rows:
        for number, (read, result) in enumerate(answer_texts(filler, texts, options), 1):
            if isinstance(result, InputError):
                wrong += 1
                rows.write(_to_line({"text": read.text, "error": str(result)}))
            else:
                rows.write(_to_line(result.to_dict()))
            if number % _FLUSH_EVERY == 0:
                rows.flush()
                on_text(_FLUSH_EVERY)
        on_text(number % _FLUSH_EVERY)
    return done + number, wrong


def _to_line(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False)
    # A lone surrogate cannot be encoded as UTF-8, so such a line is written with JSON escapes.
    return (line if is_text(line) else json.dumps(row)) + "\n"


def _identity(filler: MaskFiller, column: str, options: FillKeywords) -> dict[str, Any]:
    """Return what must be unchanged for a run to be resumed, apart from the finished texts."""
    return {
        "column": column,
        "model": {name: each.sha256 for name, each in sorted(filler.model.manifest.files.items())},
        "precision": filler.info.precision,
        "options": dict(options),
    }


def _take_up(part: Path, texts: Iterator[ReadText]) -> tuple[int, int]:
    """Skip the texts that have a row, and truncate a row that a kill left incomplete.

    Returns:
        The number of complete rows, and how many of them are errors.

    Raises:
        InputError: A row belongs to a different text than the input has at this place.
    """
    # Compared with the input text by text, so that an edited input cannot give rows of two versions.
    whole = rows = wrong = 0
    with part.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                text = row["text"]
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{part}, line {rows + 1} is damaged; remove it, and begin anew") from error
            read = next(texts, None)
            if read is None or read.text != text:
                now = "its texts end before that" if read is None else f"{read.place} is {read.text!r:.60}"
                raise InputError(
                    f"{part} belongs to another input: row {rows + 1} is of {text!r:.60}, but {now}; "
                    "remove it to begin anew"
                )
            whole += len(line)
            rows += 1
            wrong += "error" in row
        stream.truncate(whole)
    return rows, wrong


def _count(output: Path, parquet: Any) -> tuple[int, int]:
    """Return the number of rows of a finished output, and how many are errors."""
    if parquet is None:
        with output.open("rb") as rows:
            errors = ["error" in json.loads(row) for row in rows]
        return len(errors), sum(errors)
    file = parquet.ParquetFile(output)
    # Only one column is read: the rows may be much larger than memory.
    nulls = sum(batch.column(0).null_count for batch in file.iter_batches(columns=["error"]))
    return file.metadata.num_rows, file.metadata.num_rows - nulls


def _to_parquet(parquet: Any, part: Path, table: Path) -> None:
    """Convert JSON rows to a parquet file, in batches."""
    import pyarrow

    schema = pyarrow.schema([("text", pyarrow.string()), *answer_schema()])
    with part.open(encoding="utf-8") as rows, parquet.ParquetWriter(table, schema) as writer:
        for lines in chunked(rows, 4096, len):
            batch = [_to_utf8(json.loads(line)) for line in lines]
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def _to_utf8(row: dict[str, Any]) -> dict[str, Any]:
    """Escape lone surrogates, since parquet stores UTF-8; only rows with errors can contain them."""
    if "error" not in row:
        return row
    return {name: text.encode(errors="backslashreplace").decode() for name, text in row.items()}
