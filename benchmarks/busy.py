"""Tells whether other processes kept the machine busy during a measurement, and keeps it busy on purpose."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm_infer.errors import MlmInferError

__all__ = ["MOST_BUSY", "BusyError", "OtherLoad", "busy_processes", "refuse_busy", "refuse_busy_now"]

MOST_BUSY = 0.05
"""Largest share of the processors' time that others may take during a measurement."""
_IDLE = (3, 4)
_GUEST = 8
"""Columns of /proc/stat: idle, and waiting for a disk; and the first of two that others contain already."""


_SETTLE_SECONDS = 0.1
"""How long busy processes run before anything is timed beside them."""


class BusyError(MlmInferError):
    """Other processes took too much of the machine for figures that anybody should read."""


class OtherLoad:
    """Measures the share of the processors' time that others take from its creation on.

    Others are all processes but one and its descendants, the kernel, and the neighbours of a virtual machine (steal).
    Only the processors on which this process may run count.

    Args:
        pid: Root of the processes that are not others; this one by default.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid or os.getpid()
        self._start = self._times()

    def share(self) -> float:
        """Return the share from 0 to 1."""
        total, busy, own = (now - then for now, then in zip(self._times(), self._start, strict=True))
        # Both clocks tick, so a quiet machine may come out slightly below zero.
        return min(1.0, max(0.0, (busy - own) / total)) if total else 0.0

    def _times(self) -> tuple[int, int, int]:
        """Return the ticks of the processors, those of them that were busy, and those of our own processes."""
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        total = busy = 0
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *columns = line.split()
            if name in allowed:
                ticks = [int(each) for each in columns[:_GUEST]]
                total += sum(ticks)
                busy += sum(ticks) - sum(ticks[column] for column in _IDLE)
        return total, busy, _ticks_of_family(self._pid)


def _ticks_of_family(root: int) -> int:
    """Return the ticks that a process and its descendants have used, those that ended and were waited for included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # The name of the program is in brackets and may contain spaces and brackets.
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(entry.name)
        parents[pid] = int(fields[1])
        # User and system time, and both of the children that it has waited for.
        ticks[pid] = sum(map(int, fields[11:15]))
    family, new = set(), {root}
    while new:
        family |= new
        new = {pid for pid, parent in parents.items() if parent in new} - family
    return sum(ticks.get(pid, 0) for pid in family)


def refuse_busy(share: float, *, allowed: bool, what: str) -> None:
    """Refuse a measurement during which others took too much.

    Args:
        share: Their share.
        allowed: Whether `--even-if-busy` was given, which refuses nothing.
        what: What was measured, for the message.

    Raises:
        BusyError: The share is above `MOST_BUSY`.
    """
    if share > MOST_BUSY and not allowed:
        raise BusyError(
            f"other processes took {share:.0%} of the processors' time during {what}, and at most {MOST_BUSY:.0%} is "
            "allowed: stop them (see top) and run this again, or take --even-if-busy, which writes the share into the "
            "table"
        )


def refuse_busy_now(*, allowed: bool, seconds: float = 2.0) -> None:
    """Refuse at once, before hours of measuring, if others are busy now.

    Args:
        allowed: Whether `--even-if-busy` was given.
        seconds: How long to watch.
    """
    load = OtherLoad()
    time.sleep(seconds)
    refuse_busy(load.share(), allowed=allowed, what=f"{seconds:g} seconds of waiting")


@contextmanager
def busy_processes(count: int) -> Iterator[Callable[[bool], None]]:
    """Start processes that keep a processor busy each; yield a function that lets them run, or stops them."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]

    def burn(on: bool) -> None:
        for process in processes:
            os.kill(process.pid, signal.SIGCONT if on else signal.SIGSTOP)
        time.sleep(_SETTLE_SECONDS)

    try:
        burn(False)
        yield burn
    finally:
        for process in processes:
            process.kill()
            process.wait()
