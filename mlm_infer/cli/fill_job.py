"""The temporary files of an output: identification of their run, and a lock so that one process writes them."""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlm_infer.errors import InputError, OutputExistsError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FillJob"]

logger = logging.getLogger(__name__)

_OURS = re.compile(rb'\{"mlm-fill": "[0-9a-f]{64}"\}')


@dataclass(frozen=True, slots=True)
class FillJob:
    """One run that writes an output, possibly over several resumed processes.

    Attributes:
        output: The output file.
    """

    output: Path

    @property
    def part(self) -> Path:
        """The finished rows."""
        return self.output.with_name(f"{self.output.name}.part")

    @property
    def table(self) -> Path:
        """The rows as parquet; complete once `part` is gone."""
        return self.output.with_name(f"{self.output.name}.part.parquet")

    @property
    def record(self) -> Path:
        """Identifies the run that the other files belong to; locked while a process writes them."""
        return self.output.with_name(f"{self.output.name}.job.json")

    @contextmanager
    def held(self, identity: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
        """Lock the output while rows are written; the record is removed at the end.

        Args:
            identity: What must be unchanged for a run to be resumed.
            resume: Continue an earlier run.

        Raises:
            OutputExistsError: Another process writes the output, or an existing file must not be replaced.
            InputError: The earlier run has another identity.
        """
        self._check(known=self.record.exists(), resume=resume)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        mine = json.dumps({"mlm-fill": digest}).encode()
        # Opened for appending: a file that is not ours must stay unchanged, and its content is checked under the lock.
        with self.record.open("a+b") as stream:
            if not self._lock(stream):
                raise OutputExistsError(f"another mlm-fill is writing {self.output}; wait for it, or name another file")
            found = stream.read(len(mine) + 1)
            if found and not _OURS.fullmatch(found):
                raise OutputExistsError(f"{self.record} is not of mlm-fill; move it away, or name another output")
            self._check(known=bool(found), resume=resume)
            left = next((path for path in (self.part, self.table, self.output) if path.exists()), None)
            if left is not None and found != mine:
                raise InputError(f"{left} belongs to another model or other options; finish that, or remove it")
            if found != mine:
                stream.truncate(0)
                stream.write(mine)
                stream.flush()
            yield
        # Windows cannot remove an open file.
        self.record.unlink()

    def check_free(self) -> None:
        """Raise OutputExistsError if another process created the output meanwhile."""
        if self.output.exists():
            raise OutputExistsError(f"{self.output} was written meanwhile; move it away, then go on with --resume")

    def _check(self, *, known: bool, resume: bool) -> None:
        """Reject existing files, unless they belong to a recorded run that is to be resumed."""
        rows = [path for path in (self.part, self.table) if path.exists()]
        # Output and record without rows: a kill came between the rename and the removal of the record.
        if self.output.exists() and (rows or not (known and resume)):
            raise OutputExistsError(f"{self.output} exists; name another file, or remove it")
        if rows and not known:
            raise OutputExistsError(f"{rows[0]} is not of a run that can be taken up; move it away, or remove it")
        if rows and not resume:
            raise OutputExistsError(f"{rows[0]} was left by a run that stopped; go on with --resume, or remove it")

    def _lock(self, stream: BinaryIO) -> bool:
        """Try to take the lock, which ends with the process; return whether it was free and the file still exists."""
        stream.seek(0)
        try:
            if sys.platform == "win32":
                msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): see that no second run writes it", self.record, error.strerror)
        # The process that had the lock may have removed the file after this one opened it; then the lock is worthless.
        return self.record.exists() and os.path.samestat(self.record.stat(), os.fstat(stream.fileno()))
