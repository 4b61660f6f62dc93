"""Input files, their parts, and the names of their outputs. Any file system of fsspec serves."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from mlm_infer.errors import DataError, InputError

__all__ = ["KINDS", "InputFile", "Part", "find_files"]

KINDS = (".parquet", ".csv", ".jsonl")

_CHANGES = ("mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "created")
"""What file systems call the time, or the hash, of the content."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read.

    Attributes:
        url: Where it is, with its protocol.
        name: Its path below the folder, or the folder of the pattern, that the user gave.
        version: Identifies the content: a hash of size and time.
    """

    url: str
    name: str
    version: str

    @property
    def kind(self) -> str:
        """The suffix, in lower case."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def stem(self) -> str:
        """The beginning of the names of its parts, the same for all versions of the content."""
        shown = re.sub(r"[^\w.-]", "_", PurePosixPath(self.name).name, flags=re.ASCII)[:80].lstrip("._")
        return f"{shown}-{_digest(self.name)}"

    def changed(self) -> bool:
        """Return whether the content is another one now."""
        system, path = fsspec.core.url_to_fs(self.url)
        return _version(system.info(path)) != self.version


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a file; their results become one file.

    Attributes:
        file: The file.
        start: Number of the first row, from 0.
        rows: Number of rows.
        offset: Where the first row begins, in bytes; not used for parquet.
        fields: The names in the header of a csv file.
        row_type: The Arrow type of a row (a struct); not used for parquet.
    """

    file: InputFile
    start: int
    rows: int
    offset: int = 0
    fields: tuple[str, ...] = ()
    row_type: Any = None

    @property
    def name(self) -> str:
        """The name of the output, which follows from the input."""
        return f"{self.file.stem}-{self.file.version}-{self.start:012d}.parquet"

    def __str__(self) -> str:
        return f"{self.file.name}, rows {self.start + 1} to {self.start + self.rows}"


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """Return the files of folders and patterns, ordered by name.

    Args:
        inputs: Files, folders (all files of `KINDS` in them, at any depth) and patterns such as `folder/*.parquet`,
            each as a path or as a URL of fsspec.

    Raises:
        DataError: There is no such file, or one of another kind.
        InputError: Two files have the same name in their folders.
    """
    found: dict[str, InputFile] = {}
    for each in inputs:
        for file in _found(each):
            other = found.setdefault(file.name, file)
            if other.url != file.url:
                raise InputError(
                    f"{other.url} and {file.url} have the same name; name the folder that holds both, or take two runs"
                )
    return [found[name] for name in sorted(found)]


def _found(given: str) -> Iterator[InputFile]:
    """Yield the files of one input."""
    try:
        system, path = fsspec.core.url_to_fs(given)
    except (ImportError, ValueError) as error:
        raise DataError(f"{given} cannot be opened: {error}") from error
    root = path.rstrip("/")
    if system.isdir(path):
        inside = [(each, each[len(root) + 1 :]) for each in system.find(path)]
        # Names that begin with _ or . are records and unfinished files, here as for other programs.
        paths = [
            each
            for each, name in inside
            if PurePosixPath(name).suffix.lower() in KINDS
            and not any(part.startswith(("_", ".")) for part in PurePosixPath(name).parts)
        ]
        if not paths:
            raise DataError(f"the folder {given} has no file that ends in {', '.join(KINDS)}")
    else:
        paths = [each for each in system.glob(path) if system.isfile(each)] if _is_pattern(path) else [path]
        root = str(PurePosixPath(*_before_pattern(path)))
        if not paths:
            raise DataError(f"no file matches {given}; quote a pattern, so that the shell leaves it as it is")
    for each in paths:
        name = each[len(root) :].lstrip("/")
        if PurePosixPath(name).suffix.lower() not in KINDS:
            raise DataError(f"{each} does not end in {', '.join(KINDS)}; name files or a pattern of these kinds")
        try:
            version = _version(system.info(each))
        except FileNotFoundError as error:
            raise DataError(f"there is no file {each}") from error
        yield InputFile(system.unstrip_protocol(each), name, version)


def _is_pattern(path: str) -> bool:
    return any(letter in path for letter in "*?[")


def _before_pattern(path: str) -> tuple[str, ...]:
    """Return the folders before the first pattern, or before the file."""
    parts = PurePosixPath(path).parts
    first = next((number for number, part in enumerate(parts) if _is_pattern(part)), len(parts) - 1)
    return parts[: min(first, len(parts) - 1)]


def _version(info: dict[str, Any]) -> str:
    changed = next((info[name] for name in _CHANGES if info.get(name) is not None), "")
    return _digest(f"{info['size']} {changed}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
