"""Folders of input files for bulk work, and their results."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from mlm_infer.shared.samples import movie_reviews

__all__ = ["masked_reviews", "results", "write_csv", "write_jsonl", "write_parquet"]


def masked_reviews(count: int) -> list[str]:
    """Return review sentences, each with its third word masked."""
    words = (line.split() for line in movie_reviews())
    found = [" ".join([*each[:2], "[MASK]", *each[3:]]) for each in words if len(each) > 4]
    return found[:count]


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> None:
    """Write rows as a parquet file with row groups of a size."""
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a csv file."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def results(folder: Path, stem: str = "") -> list[dict[str, Any]]:
    """Return the rows of all parts of the files whose names begin so, in order."""
    paths = sorted(folder.glob(f"{stem}*.parquet"))
    return [row for path in paths for row in parquet.read_table(path).to_pylist()]
