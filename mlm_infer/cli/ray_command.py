"""`mlm-fill --engine ray`."""

import sys
from collections.abc import Sequence

import click

from mlm_infer.errors import DependencyError, InputError
from mlm_infer.options import FillKeywords

__all__ = ["fill_on_ray"]

_SHOWN = 10
"""Files that could not be read, of which each gets a line."""


def fill_on_ray(
    paths: Sequence[str],
    output: str | None,
    options: FillKeywords,
    *,
    model: str | None,
    column: str,
    device: str,
    precision: str,
    backend: str,
    threads: int | None,
    address: str | None,
    actors: int | None,
    rows_per_part: int,
    resume: bool,
) -> None:
    """Fill whole folders of files, and tell what was done; the status is 1 if a file could not be read.

    Args:
        paths: Files, folders and patterns.
        output: Folder of the results.
        options: The options of `fill`.
        model: As for `MaskFiller`.
        column: Column of the texts.
        device: `auto`, `cpu` or `cuda`.
        precision: As for `MaskFiller`.
        backend: As for `MaskFiller`.
        threads: Threads of each actor.
        address: Address of a cluster.
        actors: Number of actors.
        rows_per_part: Rows of an input in one output file.
        resume: Continue an interrupted run.

    Raises:
        DependencyError: Ray is not installed.
        InputError: An option is invalid.
    """
    if not paths or output is None:
        raise InputError("--engine ray takes --input with files, and --output with a folder for the results")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is {device!r}; with --engine ray it is cpu, or cuda for a GPU for each actor")
    try:
        from mlm_infer.ray import FillQuestion, run_files
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"--engine ray needs {error.name}; install it with: pip install 'mlm-infer[ray]'"
        ) from error
    try:
        report = run_files(
            paths,
            output,
            question=FillQuestion(options),
            model=model,
            column=column,
            precision=precision,
            backend=backend,
            threads=1 if threads is None else threads,
            gpu=device == "cuda",
            actors=actors,
            rows_per_part=rows_per_part,
            address=address,
            resume=resume,
        )
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
