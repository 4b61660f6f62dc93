"""Data files of this machine: which belong to which split, and how they are encoded."""

import codecs
import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Any

from mlm_infer.errors import DataError

__all__ = ["DataFiles", "check_encoding", "find_files", "is_saved_dataset"]

_BUILDERS = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_METADATA = {"dataset_info.json", "dataset_infos.json"}
_KEYWORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
"""Words in names of files and folders that mark a split, as for `datasets.load_dataset`."""
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Files that `datasets.load_dataset` can read together.

    Attributes:
        builder: Name of the builder: text, csv, json or parquet.
        splits: Files of each split.
        options: Options of the builder.
    """

    builder: str
    splits: dict[str, list[str]]
    options: dict[str, Any]


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of a data set or of several splits."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def find_files(path: Path) -> DataFiles:
    """Find the data files of a path.

    Args:
        path: A file, or a folder of files of one kind. If a file or sub-folder is named after training, validation or
            test, each file belongs to the split of its name; otherwise all files are the split `train`.

    Raises:
        DataError: There are none, they are of several kinds or unknown, empty, in UTF-16, or no gzip as they are named.
    """
    splits = _splits_of_folder(path) if path.is_dir() else {"train": [path]}
    files = [file for group in splits.values() for file in group]
    builders = {_BUILDERS.get(_kind(file)) for file in files}
    if len(builders) != 1:
        found = ", ".join(sorted({_kind(file) for file in files})) or "none"
        raise DataError(f"the folder {path} must hold data files of one kind ({', '.join(_BUILDERS)}); found {found}")
    builder = builders.pop()
    if builder is None:
        raise DataError(f"{path} is not of a kind that can be read: {', '.join(_BUILDERS)}, all but the last also .gz")
    if all(file.stat().st_size == 0 for file in files):
        raise DataError(f"{path} is empty")
    options: dict[str, Any] = {}
    if builder != "parquet":
        starts = {file: _start(file) for file in files}
        for file, start in starts.items():
            _reject_wide(file, start)
        if any(start.startswith(codecs.BOM_UTF8) for start in starts.values()):
            options["encoding"] = "utf-8-sig"
    if builder == "csv":
        options["sep"] = _delimiter(files)
    return DataFiles(builder, {name: [str(file) for file in group] for name, group in splits.items()}, options)


def check_encoding(files: Sequence[Path]) -> None:
    """Read files to their ends, and check that they hold UTF-8.

    Raises:
        DataError: A file does not; names the place, and the command to convert it.
    """
    for file in files:
        _check_utf8(file)


def _kind(file: PurePath) -> str:
    """Return the suffix that tells how a file is read; `.txt` for `a.txt.gz`."""
    kind = PurePath(file.name.lower().removesuffix(".gz")).suffix
    # Compressed parquet is compressed within.
    return file.suffix.lower() if kind == ".parquet" else kind


def _stem(file: PurePath) -> str:
    return file.name[: len(file.name.lower().removesuffix(".gz")) - len(_kind(file))]


def _open(file: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")


def _splits_of_folder(folder: Path) -> dict[str, list[Path]]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if _kind(file) in _BUILDERS
        and file.name not in _METADATA
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    marked = {file: _marked_split(file.relative_to(folder)) for file in files}
    if not any(marked.values()):
        return {"train": files}
    splits: dict[str, list[Path]] = {}
    for file, name in marked.items():
        splits.setdefault(name or _other_split(file.relative_to(folder)), []).append(file)
    return splits


def _marked_split(path: PurePath) -> str | None:
    """Return the split that a file's name marks, or one of its folders from the inside out."""
    for part in (_stem(path), *reversed(path.parts[:-1])):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, keywords in _KEYWORDS.items():
            if words & keywords:
                return split
    return None


def _other_split(path: PurePath) -> str:
    """Return the split of a file beside files of marked splits, such as `unsupervised-00000-of-00001`."""
    shard = re.fullmatch(r"([A-Za-z_]\w*)-\d+(-of-\d+.*)?", _stem(path))
    name = shard[1] if shard else path.parts[0] if len(path.parts) > 1 else _stem(path)
    return re.sub(r"\W", "_", name)


def _start(file: Path) -> bytes:
    try:
        with _open(file) as stream:
            return stream.read(1000)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> DataError:
    return DataError(f"{file} is no complete gzip file; test it with: gzip -t {file}")


def _delimiter(files: Sequence[Path]) -> str:
    """Return what separates the columns of CSV files, judged by their headers."""
    found = {}
    for file in files:
        with _open(file) as stream:
            header = re.sub(r'"[^"]*"', "", stream.readline().decode("utf-8-sig", "replace"))
        # A single column has no separator at all; the first of the list is the default then.
        found[max(_DELIMITERS, key=header.count)] = file
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise DataError(f"{first} separates columns by {one!r}, but {second} by {other!r}; make them equal")
    return next(iter(found))


def _check_utf8(file: Path) -> None:
    # Incremental: a character may be split between two chunks.
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with _open(file) as stream:
            while True:
                chunk = stream.read(1 << 20)
                decoder.decode(chunk, final=not chunk)
                if not chunk:
                    return
                offset += len(chunk)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} near byte {offset + error.start}; "
            f"convert it first, for instance with: iconv -f latin1 -t utf-8 {file}"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(file) from error


def _reject_wide(file: Path, start: bytes) -> None:
    """Reject UTF-16 and UTF-32; without its mark, text in them is valid UTF-8 with a zero byte at every other place."""
    encoding = ""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in start[:1000]:
        encoding = "utf-16be" if start[0] == 0 else "utf-16le"
    if encoding:
        raise DataError(
            f"{file} is {encoding.upper()}, not UTF-8; convert it first with: iconv -f {encoding} -t utf-8 {file}"
        )
