"""Shared behaviour of the command lines: one-line errors, exit status, logging to stderr."""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import click

from mlm_infer.errors import MlmInferError

__all__ = ["command_errors", "log_to_stderr", "message_of"]

P = ParamSpec("P")


def command_errors(function: Callable[P, None]) -> Callable[P, None]:
    """Make a click command print errors as one line on stderr and exit with status 2 (usage) or 1 (otherwise)."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        _open_closed_streams()
        # SIGTERM cleans up in the same way as Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        log_to_stderr()
        try:
            function(*args, **kwargs)
        except MlmInferError as error:
            click.echo(f"error: {message_of(error)}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt as interrupt:
            click.echo(str(interrupt) or "stopped", err=True)
            sys.exit(1)
        except BrokenPipeError:
            # The reader closed the pipe, as `head` does. That is not an error. Without a stdout, Python does not try to
            # flush it on exit.
            sys.stdout = None
            sys.exit(0)
        except OSError as error:
            click.echo(f"error: {message_of(error)}", err=True)
            sys.exit(1)

    return run


def log_to_stderr() -> None:
    """Write warnings to stderr, each as one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)


def message_of(error: MlmInferError | OSError) -> str:
    """Return the one-line message of an error, with the file if the operating system names one."""
    if isinstance(error, MlmInferError):
        return str(error)
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def _open_closed_streams() -> None:
    """Open streams that the shell closed (`2>&-`), so that no other file gets their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
