"""Processes that keep the machine busy."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlm_infer.runtime.cpu import available_cpus

__all__ = ["busy_processes"]


@contextmanager
def busy_processes(count: int | None = None) -> Iterator[list[int]]:
    """Keep processors busy, half of them by default, and give the ids of the processes."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count or max(1, available_cpus() // 2))]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
