"""Several processes that answer on one address, and the process that watches over them."""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from mlm_infer.errors import MlmInferError
from mlm_infer.filler import MaskFiller
from mlm_infer.shared.command import log_to_stderr

from .app import make_app
from .limits import Limits
from .metrics import SHARED_FIGURES

__all__ = ["Server", "serve_in_workers"]

logger = logging.getLogger(__name__)

_WAITING = 2048
"""Connections that wait to be accepted."""
_TRIES = 5
"""Workers in a row that end before they answer; then the server ends."""
_SPARE = 10
"""Seconds for a worker to end, beyond those in which it answers what waits."""


class Server(uvicorn.Server):
    """The server of one process.

    Args:
        filler: The model.
        limits: The limits.
        token: What `Authorization: Bearer` must hold; None asks for nothing.
        on_ready: Called once it answers.
    """

    def __init__(self, filler: MaskFiller, limits: Limits, token: str | None, on_ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            make_app(filler, limits, token=token),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=limits.seconds,
            # Longer than proxies keep one (60 s): a connection closed as a request arrives is an error to the client.
            timeout_keep_alive=75,
            # An event loop accepts as many connections at once, and other workers shall get some of them.
            backlog=1,
        )
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell it."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_WAITING)
        self._on_ready()


@dataclass(slots=True)
class _Worker:
    """A process. It sends None through the pipe once it answers, or its error; it ends when the pipe is closed."""

    number: int
    process: SpawnProcess
    pipe: Connection
    failures: int
    """How many before it, in a row, ended before they answered."""
    answers: bool = False


def serve_in_workers(
    count: int,
    filler: MaskFiller,
    listener: socket.socket,
    limits: Limits,
    token: str | None,
    on_ready: Callable[[], None],
) -> None:
    """Answer in several processes until SIGTERM or Ctrl-C, and then answer what waits.

    Args:
        count: Number of processes.
        filler: The model, which each process opens; it may be closed here.
        listener: The address; the processes share it.
        limits: The limits of each process.
        token: What `Authorization: Bearer` must hold; None asks for nothing.
        on_ready: Called once, when all processes answer.

    Raises:
        MlmInferError: A process cannot open the model, or several in a row ended at their start, or there is no place
            for temporary files.
        KeyboardInterrupt: It came before the server was ready, or a second time.
    """
    # What pickling does, but in a place where a worker can tell an error.
    reopen, arguments = filler.__reduce__()
    with _temporary_folder() as figures:
        os.environ[SHARED_FIGURES] = figures
        workers: list[_Worker] = []

        def start(number: int, failures: int) -> _Worker:
            return _start(number, failures, (listener, limits, token, reopen, arguments))

        try:
            workers += [start(number, 0) for number in range(1, count + 1)]
            for worker in workers:
                _receive(worker)
            on_ready()
            with suppress(KeyboardInterrupt):
                while True:
                    _replace_ended(workers, start)
        finally:
            _end(workers, limits.seconds + _SPARE)


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="mlm-serve-")
    except OSError as error:
        raise MlmInferError(
            f"workers share their figures in a temporary folder: {error.strerror}; set TMPDIR to a folder that can be "
            "written to, or take --workers 1"
        ) from error


def _start(number: int, failures: int, arguments: tuple[Any, ...]) -> _Worker:
    # It would be started by the first process, and end the delay of signals.
    resource_tracker.ensure_running()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(there, *arguments), name=f"mlm-serve worker {number}", daemon=True
    )
    with _no_signals(), there:
        process.start()
    return _Worker(number, process, here, failures)


@contextmanager
def _no_signals() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM, here and in processes that start, so that none is started and then forgotten."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(worker: _Worker) -> None:
    """Wait for what a worker tells.

    Raises:
        MlmInferError: It told an error, or has ended.
    """
    try:
        error = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        hint = " before it could answer; take fewer --workers if memory is short" if not worker.answers else ""
        raise MlmInferError(f"process {worker.process.pid} ended {how}{hint}") from None
    if error is not None:
        raise error
    worker.answers = True


def _replace_ended(workers: list[_Worker], start: Callable[[int, int], _Worker]) -> None:
    """Wait until workers tell something, and replace those that ended.

    Raises:
        MlmInferError: One failed at its start, as those before it in its place.
    """
    told = wait([worker.pipe for worker in workers])
    for place, worker in enumerate(workers):
        if worker.pipe not in told:
            continue
        try:
            _receive(worker)
        except MlmInferError as error:
            failures = 0 if worker.answers else worker.failures + 1
            if failures == _TRIES:
                raise MlmInferError(f"worker {worker.number} failed {_TRIES} times at its start: {error}") from error
            logger.warning("worker %d: %s; a new process takes its place", worker.number, error)
            worker.pipe.close()
            worker.process.join()
            mark_process_dead(worker.process.pid)
            workers[place] = start(worker.number, failures)


def _end(workers: list[_Worker], seconds: float) -> None:
    """Let all workers answer what waits, and end."""
    for worker in workers:
        worker.pipe.close()
        if not worker.answers:
            worker.process.terminate()
    end = time.monotonic() + seconds
    try:
        for worker in workers:
            worker.process.join(max(0.0, end - time.monotonic()))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()


def _work(
    pipe: Connection,
    listener: socket.socket,
    limits: Limits,
    token: str | None,
    reopen: Callable[..., MaskFiller],
    arguments: tuple[Any, ...],
) -> None:
    """Answer as one of several processes, until the one that watches closes the pipe, or is no more."""
    # Ctrl-C reaches every process of a terminal. It stays blocked here: the process that watches ends the workers.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    log_to_stderr()
    try:
        filler = reopen(*arguments)
    except MlmInferError as error:
        with suppress(OSError):
            pipe.send(error)
        return
    with filler:

        def tell() -> None:
            with suppress(OSError):
                pipe.send(None)

        server = Server(filler, limits, token, tell)

        def end_with_parent() -> None:
            with suppress(EOFError, OSError):
                pipe.recv()
            server.should_exit = True

        threading.Thread(target=end_with_parent, daemon=True).start()
        server.run(sockets=[listener])
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        shutil.rmtree(Path(os.environ[SHARED_FIGURES]), ignore_errors=True)
