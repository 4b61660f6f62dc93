"""What a process hands to its forked children: the threads of its sessions do not come along.

To end such a session in a child would be to wait for threads that are not there, so a child never ends one.
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
    """Return how many forks lie between this process and the first: another number, another process."""
    return _generation


def no_forks() -> AbstractContextManager[bool]:
    """Return the lock under which a library is loaded or opens a model: a fork waits for it.

    A library that is half-way through its own set-up in another thread would stay so in the child for ever.
    """
    _register()
    return _lock


def outlive_forks(thing: _T) -> _T:
    """Have forked children keep a thing for ever, even at their end.

    Args:
        thing: A session, or what else must not be destroyed where its threads are not.

    Returns:
        The thing.
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
    # Before the hook of the child is called, Python has dropped what the other threads held.
    _held.extend(_things)


def _after_in_parent() -> None:
    _held.clear()
    _lock.release()


def _after_in_child() -> None:
    global _generation, _lock, _things  # noqa: PLW0603
    _generation += 1
    # One reference too many: Python's shutdown clears every module, and would end the sessions with it.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(list(_held)))
    _held.clear()
    _things = WeakSet()
    _lock = threading.RLock()
    _leave_without_destructors()
    if "TOKENIZERS_PARALLELISM" in os.environ:
        # tokenizers notices a fork by itself, but not against what it was told.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _leave_without_destructors() -> None:
    """Have this process end before the destructors of C++ that its parent has set up.

    ONNX Runtime's own wait for threads of the parent: to have imported it is enough.
    """
    libc = ctypes.CDLL(None)
    # glibc alone has it, and calls what was set last first: what is set up from here on is still torn down.
    on_exit = getattr(libc, "on_exit", None)
    if on_exit is not None:
        atexit.register(libc.fflush, None)
        on_exit(libc._exit, None)
