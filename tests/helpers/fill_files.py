"""Text files, `mlm-fill` on them, and the rows that it writes."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from mlm_infer.shared.samples import movie_reviews

__all__ = ["OPTIONS", "TEXTS", "rows", "run", "write"]

TEXTS = [f"{sentence} [MASK], “quoted”" for sentence in movie_reviews("validation")[:300]]
OPTIONS = ("--column", "body", "-k", "2")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run mlm-fill."""
    return subprocess.run(["mlm-fill", *arguments], capture_output=True, text=True, check=False)


def write(path: Path, texts: list[str]) -> Path:
    """Write texts to a file in the format of its extension."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, ["id", "body"])
            table.writeheader()
            table.writerows({"id": number, "body": text} for number, text in enumerate(texts))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"body": texts, "n": list(range(len(texts)))}), path)
    else:
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def rows(path: Path) -> list[Any]:
    """Return the rows of an output."""
    if path.suffix == ".parquet":
        found: list[Any] = parquet.read_table(path).to_pylist()
        return found
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
