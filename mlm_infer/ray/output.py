"""The folder of the results: which run it belongs to, and which parts are there."""

import json
import re
from collections.abc import Sequence
from typing import Any

import fsspec

from mlm_infer.errors import InputError, OutputExistsError

from .actors import UNFINISHED
from .files import InputFile

__all__ = ["Output"]

_RECORD = "_mlm_fill.json"
"""Says which run a folder of results belongs to."""

_PART = re.compile(r"(?P<stem>.+-[0-9a-f]{12})-(?P<version>[0-9a-f]{12})-\d{12}\.parquet")


class Output:
    """The folder of the results.

    Args:
        output: Its path, or its URL for fsspec.

    Attributes:
        url: Its URL.
    """

    def __init__(self, output: str) -> None:
        self._system, self._path = fsspec.core.url_to_fs(output)
        self.url = self._system.unstrip_protocol(self._path)

    def check_apart(self, inputs: Sequence[str]) -> None:
        """Refuse an output within an input: its parts would be read by the next run.

        Raises:
            InputError: The folder is, or lies in, one of the inputs.
        """
        for given in inputs:
            system, path = fsspec.core.url_to_fs(given)
            if f"{self.url}/".startswith(f"{system.unstrip_protocol(path.rstrip('/'))}/"):
                raise InputError(f"the output {self._path} lies in the input {given}; name a folder outside of it")

    def take(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Make the folder, or check that it belongs to this run."""
        system, record = self._system, f"{self._path}/{_RECORD}"
        wanted = json.loads(json.dumps({"mlm-fill": 1} | identity))
        if not system.exists(record) or not self.parts():
            if system.exists(self._path) and not self._is_ours_or_empty():
                raise OutputExistsError(f"{self._path} exists and is not of mlm-fill --engine ray; name another folder")
            system.makedirs(self._path, exist_ok=True)
            with system.open(record, "w") as stream:
                json.dump(wanted, stream, indent=2)
            return
        if not resume:
            raise OutputExistsError(f"{self._path} exists; go on with --resume, or name another folder")
        try:
            with system.open(record, "r") as stream:
                found = json.load(stream)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{record} is damaged; remove {self._path}, and begin anew")
        other = next((name for name in wanted if found.get(name) != wanted[name]), None)
        if other is not None:
            raise InputError(
                f"{self._path} belongs to a run with another {other} ({found.get(other)!s:.80}); "
                "name another folder, or take the same"
            )

    def _is_ours_or_empty(self) -> bool:
        if not self._system.isdir(self._path):
            return False
        names = (each.rsplit("/", 1)[-1] for each in self._system.ls(self._path, detail=False))
        return all(name == _RECORD or name.endswith(UNFINISHED) for name in names)

    def parts(self) -> set[str]:
        """Return the names of the parts that are there."""
        names = (each.rsplit("/", 1)[-1] for each in self._system.ls(self._path, detail=False, refresh=True))
        return {name for name in names if _PART.fullmatch(name)}

    def check_versions(self, files: Sequence[InputFile]) -> None:
        """Refuse parts of files that have changed, or that are none of the input: their rows would be there twice.

        Raises:
            InputError: There is such a part.
        """
        known = {file.stem: file for file in files}
        for name in sorted(self.parts()):
            match = _PART.fullmatch(name)
            file = known.get(match["stem"]) if match else None
            if file is None:
                raise InputError(
                    f"{self._path} has parts of a file that is not in the input ({name}); name the same files, or "
                    "another output"
                )
            if match and match["version"] != file.version:
                raise InputError(
                    f"{file.name} has changed since {self._path} was begun; name another output, or remove "
                    f"{file.stem}-{match['version']}-* from it"
                )

    def tidy(self) -> None:
        """Remove what workers that were killed left; all parts are there."""
        for path in self._system.ls(self._path, detail=False, refresh=True):
            if path.endswith(UNFINISHED):
                self._system.rm(path)
