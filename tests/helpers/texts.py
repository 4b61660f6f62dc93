"""Documents and blocks from what stands in a test."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mlm_infer.training.blocks import Blocks
from mlm_infer.training.data import Documents, load_documents

__all__ = ["blocks_of", "documents_of"]


def documents_of(texts: Iterable[str], folder: Path) -> Documents:
    """Write texts to a file, and load it."""
    path = folder / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return load_documents(str(path))


def blocks_of(rows: Sequence[Sequence[int]], folder: Path) -> Blocks:
    """Return blocks of these token ids."""
    np.array([token for row in rows for token in row], np.uint32).tofile(folder / "ids")
    np.cumsum([0, *map(len, rows)]).astype(np.int64).tofile(folder / "bounds")
    (folder / "digest").write_text("")
    return Blocks(folder, ([], []))
