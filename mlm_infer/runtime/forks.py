"""Makes sessions survive forks.

A forked child inherits the memory of its parent's sessions but not their threads. Destroying such a session waits for
threads that do not exist, so a child never destroys one: it keeps it until it exits and opens its own.
"""

import atexit
import ctypes
import os
import sys
import threading
from contextlib import AbstractContextManager
from typing import TypeVar
from weakref import WeakSet

__all__ = ["generation", "no_forks", "outlive_forks"]

_T = TypeVar("_T")

_things: WeakSet[object] = WeakSet()
_held: list[object] = []
_lock = threading.RLock()
_generation = 0
_registered = False


def generation() -> int:
    """Return the number of forks between the first process and this one; it identifies a session's process."""
    return _generation


def no_forks() -> AbstractContextManager[bool]:
    """Return a lock that delays forks; libraries are loaded and models opened under it.

    A library that another thread is initializing during a fork would stay half-initialized in the child for ever.
    """
    _register()
    return _lock


def outlive_forks(thing: _T) -> _T:
    """Keep an object alive in forked children until they exit, without destroying it even then.

    Args:
        thing: A session, or another object that must not be destroyed without its threads.

    Returns:
        The object.
    """
    with no_forks():
        _things.add(thing)
    return thing


def _register() -> None:
    global _registered  # noqa: PLW0603
    if not _registered:
        _registered = True
        if sys.platform != "win32":
            os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def _before() -> None:
    _lock.acquire()
    # Strong references must exist before the fork: by the time the child's hook runs, Python has already dropped the
    # references that other threads held, and with them perhaps the last one to a session.
    _held.extend(_things)


def _after_in_parent() -> None:
    _held.clear()
    _lock.release()


def _after_in_child() -> None:
    global _generation, _lock, _things  # noqa: PLW0603
    _generation += 1
    # One reference too many, on purpose: it leaks the list. Python's shutdown clears every module, which would destroy
    # the sessions otherwise.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(list(_held)))
    _held.clear()
    _things = WeakSet()
    # A new lock: the inherited one has been held since `_before`.
    _lock = threading.RLock()
    _leave_without_destructors()
    if "TOKENIZERS_PARALLELISM" in os.environ:
        # tokenizers disables its threads after a fork by itself, unless this variable requests them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _leave_without_destructors() -> None:
    """Make this process exit before the C++ destructors that its parent registered.

    Those of ONNX Runtime wait for threads that only the parent has. They are registered on import, session or not.
    """
    libc = ctypes.CDLL(None)
    # Only glibc has on_exit. Handlers run last registered first, so whatever this process registers from here on still
    # runs; then _exit skips the parent's.
    on_exit = getattr(libc, "on_exit", None)
    if on_exit is not None:
        atexit.register(libc.fflush, None)
        on_exit(libc._exit, None)
