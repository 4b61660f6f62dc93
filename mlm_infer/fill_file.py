"""A file of texts in, a file of results out: in order, in bounded memory, and to be taken up again where it stopped."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import DataError, InputError, OutputExistsError
from .filler import MaskFiller
from .read_texts import pyarrow_parquet, read_texts
from .results import FillResult

__all__ = ["fill_file"]

_SAMPLE = 1 << 20
_FLUSH_EVERY = 512


def fill_file(
    filler: MaskFiller,
    source: Path,
    output: Path,
    *,
    column: str,
    options: Mapping[str, Any],
    resume: bool,
    on_text: Callable[[int], None],
) -> tuple[int, int]:
    """Fill the masks of all texts of a file, a row of the output for each.

    Rows are written beside the output, to `OUTPUT.part`, which takes its place when the last is there. A text that
    cannot be filled gives a row with its `error`.

    Args:
        filler: What answers.
        source: As for `read_texts`.
        output: A file that ends in .jsonl or .parquet.
        column: Column of the text.
        options: Keyword arguments for `MaskFiller.fill_stream`.
        resume: Go on after the last whole row of an `OUTPUT.part` of the same input, model and options.
        on_text: Called with the number of texts done, as they are done.

    Returns:
        How many texts there were, and how many of them could not be filled.

    Raises:
        OutputExistsError: The output is there.
        InputError: The output's name ends otherwise, or what is there to resume belongs to something else.
        DataError: The file cannot be read.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"the output {output} must end in .jsonl or .parquet")
    if output.exists():
        raise OutputExistsError(f"{output} exists; name another file, or remove it")
    parquet = pyarrow_parquet() if output.suffix == ".parquet" else None
    part, job = output.with_name(f"{output.name}.part"), output.with_name(f"{output.name}.job.json")
    identity = _identity(filler, source, column, options)
    done = wrong = number = 0
    if resume and part.exists():
        if not job.exists() or json.loads(job.read_text(encoding="utf-8")) != identity:
            raise InputError(f"{part} belongs to another input, model or options; finish that, or remove it")
        done, wrong = _whole_rows(part)
        on_text(done)
    elif part.exists():
        raise OutputExistsError(f"{part} was left by a run that stopped; go on with --resume, or remove it")
    # Before the rows, so that a part without its job is never taken up.
    job.write_text(json.dumps(identity), encoding="utf-8")
    texts = islice(read_texts(source, column), done, None)
    with part.open("a", encoding="utf-8") as rows:
        for number, (place, text, result) in enumerate(_answers(filler, texts, options), 1):
            if isinstance(result, InputError):
                wrong += 1
                # The stream counts from where it was taken up; a person counts from the top of the file.
                row = {"text": text, "error": str(result).replace(f"text {number - 1}", place, 1)}
            else:
                row = result.to_dict()
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
            if number % _FLUSH_EVERY == 0:
                rows.flush()
                on_text(_FLUSH_EVERY)
            done += 1
        on_text(number % _FLUSH_EVERY)
    if parquet is not None:
        _to_parquet(parquet, part)
    part.replace(output)
    job.unlink()
    return done, wrong


def _answers(
    filler: MaskFiller, texts: Iterator[tuple[str, str]], options: Mapping[str, Any]
) -> Iterator[tuple[str, str, FillResult | InputError]]:
    """Put each result with its text and where that stands: an error holds neither."""
    pending: deque[tuple[str, str]] = deque()

    def remembered() -> Iterator[str]:
        for place, text in texts:
            pending.append((place, text))
            yield text

    for result in filler.fill_stream(remembered(), on_error="return", **options):
        yield (*pending.popleft(), result)


def _identity(filler: MaskFiller, source: Path, column: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same for a run to be taken up: the input by size, beginning and end."""
    if not source.is_file():
        raise DataError(f"there is no file {source}")
    size = source.stat().st_size
    with source.open("rb") as stream:
        digest = hashlib.sha256(stream.read(_SAMPLE))
        stream.seek(max(0, size - _SAMPLE))
        digest.update(stream.read())
    return {
        "input": [size, digest.hexdigest()],
        "column": column,
        "model": {name: each.sha256 for name, each in sorted(filler.engine.manifest.files.items())},
        "precision": filler.info.precision,
        "options": json.loads(json.dumps(options)),
    }


def _whole_rows(part: Path) -> tuple[int, int]:
    """Cut off a row that a kill left half-written; return how many rows are whole, and how many are errors."""
    whole = rows = wrong = 0
    with part.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            rows += 1
            wrong += "error" in json.loads(line)
        stream.truncate(whole)
    return rows, wrong


def _to_parquet(parquet: Any, part: Path) -> None:
    """Turn rows of JSON into a parquet file of the same name, a batch at a time."""
    import pyarrow

    prediction = pyarrow.struct(
        [
            ("token", pyarrow.string()),
            ("token_id", pyarrow.int64()),
            ("text", pyarrow.string()),
            ("starts_word", pyarrow.bool_()),
            ("score", pyarrow.float64()),
            ("logprob", pyarrow.float64()),
            ("sequence", pyarrow.string()),
        ]
    )
    mask = pyarrow.struct(
        [
            ("position", pyarrow.int64()),
            ("span", pyarrow.list_(pyarrow.int64())),
            ("predictions", pyarrow.list_(prediction)),
            ("window", pyarrow.list_(pyarrow.int64())),
        ]
    )
    schema = pyarrow.schema([("text", pyarrow.string()), ("masks", pyarrow.list_(mask)), ("error", pyarrow.string())])
    scratch = part.with_name(f"{part.name}.parquet")
    with part.open(encoding="utf-8") as rows, parquet.ParquetWriter(scratch, schema) as writer:
        while batch := [json.loads(row) for row in islice(rows, 4096)]:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
    scratch.replace(part)
