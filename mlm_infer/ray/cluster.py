"""The connection to a Ray cluster, or one on this machine for the time of a run."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from mlm_infer.errors import InputError, first_line
from mlm_infer.runtime.cpu import available_cpus

__all__ = ["cluster"]

_OBJECTS = 200_000_000
"""Bytes of Ray's object store on this machine: only numbers of parts and reports go through it."""
_SECONDS = 10


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one; a connection of the caller stays as it is.

    Args:
        address: As for `ray.init`; None takes `RAY_ADDRESS`, or starts a cluster on this machine;
            `auto` joins one that runs here.

    Raises:
        InputError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    local: dict[str, Any] = {}
    if address is None:
        # Nothing is sent anywhere, unless the user's environment says otherwise.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # "local", as Ray would join any cluster that happens to run on this machine.
        local = {"num_cpus": available_cpus(), "include_dashboard": False, "object_store_memory": _OBJECTS}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_reachable(address)
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or "this machine"
        raise InputError(f"no Ray cluster at {where} ({first_line(error)}); check --address, or RAY_ADDRESS") from error
    if callable(handler) and threading.current_thread() is threading.main_thread():
        # Ray's own ends the process without a word.
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        _await_readers()
        ray.shutdown()


def _await_readers() -> None:
    """Wait for the threads of Ray Data that read results ahead.

    They outlive a loop over results that an error ends. One that releases its last result while Ray shuts down ends the
    whole process, before the error is told.
    """
    for thread in threading.enumerate():
        if thread.name == "iter_threaded":
            thread.join(_SECONDS)


def _check_reachable(address: str | None) -> None:
    """Raise OSError if nothing listens at an address: Ray itself asks for many minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
