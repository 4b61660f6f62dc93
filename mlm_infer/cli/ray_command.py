"""`mlm-fill --engine ray`."""

import sys
from collections.abc import Sequence
from typing import TypedDict, Unpack

import click

from mlm_infer.errors import DependencyError, InputError
from mlm_infer.options import FillKeywords

__all__ = ["fill_on_ray"]

_SHOWN = 10
"""Files that could not be read, of which each gets a line."""


class _RunKeywords(TypedDict):
    """Arguments of `mlm_infer.ray.run_files` that the command passes on."""

    model: str | None
    column: str
    precision: str
    backend: str
    threads: int
    gpu: bool
    actors: int | None
    address: str | None
    rows_per_part: int
    resume: bool


def fill_on_ray(paths: Sequence[str], output: str | None, options: FillKeywords, **run: Unpack[_RunKeywords]) -> None:
    """Fill whole folders of files, and tell what was done; the status is 1 if a file could not be read.

    Args:
        paths: Files, folders and patterns.
        output: Folder of the results.
        options: The options of `fill`.
        **run: As for `run_files`.

    Raises:
        DependencyError: Ray is not installed.
        InputError: An option is invalid.
    """
    if not paths or output is None:
        raise InputError("--engine ray takes --input with files, and --output with a folder for the results")
    try:
        from mlm_infer.ray import FillQuestion, run_files
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"--engine ray needs {error.name}; install it with: pip install 'mlm-infer[ray]'"
        ) from error
    try:
        report = run_files(paths, output, question=FillQuestion(options), **run)
    except KeyboardInterrupt:
        click.echo("stopped; the same command with --resume goes on from here", err=True)
        sys.exit(1)
    for line in report.broken[:_SHOWN]:
        click.echo(f"not read: {line}", err=True)
    if len(report.broken) > _SHOWN:
        click.echo(f"not read: {len(report.broken) - _SHOWN} more", err=True)
    earlier = f" ({report.before} were there before)" if report.before else ""
    errors = f", {report.wrong} of them with an error instead of predictions" if report.wrong else ""
    rate = f" ({report.rows / report.seconds:.0f} a second)" if report.seconds else ""
    click.echo(f"written: {output}, {report.parts} parts{earlier}, {report.rows} rows{errors}{rate}", err=True)
    if report.broken:
        click.echo("once these files are mended, the same command with --resume adds their rows", err=True)
        sys.exit(1)
