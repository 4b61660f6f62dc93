"""Ends a run at the next step on Ctrl-C or SIGTERM, after a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .processes import any_process

__all__ = ["StopRequest", "StopWhenAsked", "StoppedError"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """An evaluation ended early, because the run is to stop."""


class StopRequest:
    """Remembers Ctrl-C or SIGTERM within a `with` block instead of raising at once; the same signal again raises.

    Signals reach the main thread only; in other threads nothing is changed.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # A launcher answers Ctrl-C with SIGTERM to its processes, so one of each kind is still the first request.
        if number in self._seen:
            raise KeyboardInterrupt
        self._seen.add(number)

    def made(self) -> bool:
        """Return whether any process was asked to stop; all processes must call this together."""
        return any_process(bool(self._seen))


class StopWhenAsked(TrainerCallback):
    """Saves and stops at the end of a step once that was requested.

    Args:
        request: The request.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self.stopped = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object
    ) -> None:
        """Look for a request."""
        if self._request.made():
            self.stopped = control.should_save = control.should_training_stop = True
