"""`mlm-export`: export a masked language model from a shell."""

import json
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from mlm_infer.bundle.interface import BACKENDS, PRECISIONS
from mlm_infer.errors import InputError
from mlm_infer.runtime.cpu import CpuKind
from mlm_infer.shared.command import command_errors

from .bundle_commands import info, verify
from .exporters import EXPORTERS, ExporterName

__all__ = ["main"]


@click.command(
    epilog="mlm-export info BUNDLE tells what is in a bundle, mlm-export verify BUNDLE checks all of it; "
    "a checkpoint of that name is ./info."
)
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Of the ONNX model: fp16 is for CUDA, int8 for the CPU; repeat it for more than one.  [default: fp32]",
)
@click.option("--quantize", is_flag=True, help="Add int8 to these.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(BACKENDS),
    default=["onnx"],
    show_default=True,
    help="torchscript serves with torch alone, in fp32; PyTorch calls it deprecated. Repeat it for both.",
)
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(typing.get_args(CpuKind)), hidden=True)
@click.option(
    "--calibration-data",
    type=click.Path(path_type=Path),
    help="Text for int8, one text a line.  [default: reviews, or what the model writes where they do not suit it]",
)
@click.option(
    "--max-perplexity-increase", type=float, default=0.01, show_default=True, help="Most that int8 or fp16 may cost."
)
@click.option(
    "--min-agreement",
    type=float,
    help="Minimum top-1 agreement with fp32.  [default: 0.983, or 0.963 where perplexity is above 100]",
)
@click.option("--strict", is_flag=True, help="Fail rather than take further columns or fp32 for layers to meet these.")
@click.option("--no-pass", "without", multiple=True, help="Leave a graph pass out: fusions, attention or rows.")
@click.option(
    "--exporter",
    type=click.Choice(EXPORTERS),
    help="What makes the graph of a checkpoint.  [default: what fits the installed transformers]",
)
@click.option("--force", is_flag=True, help="Replace the output folder if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison with PyTorch as JSON.")
@click.version_option(package_name="mlm-infer")
@command_errors
def export(
    model: str,
    output: Path,
    precisions: tuple[str, ...],
    quantize: bool,
    formats: tuple[str, ...],
    cpus: tuple[CpuKind, ...],
    calibration_data: Path | None,
    max_perplexity_increase: float,
    min_agreement: float | None,
    strict: bool,
    without: tuple[str, ...],
    exporter: ExporterName | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export MODEL (a Hub id or a folder) to the bundle OUTPUT, and compare it with PyTorch.

    \b
    mlm-export distilbert/distilroberta-base out --quantize
    mlm-fill --model out "The Milky Way is a <mask> galaxy."
    """  # noqa: D301
    chosen = dict.fromkeys((*(precisions or ("fp32",)), *(("int8",) if quantize else ())))
    if cpus:
        click.echo("note: int8 is one file for every kind of processor; --cpu has nothing left to choose", err=True)
    if "onnx" not in formats and list(chosen) != ["fp32"]:
        raise InputError(f"TorchScript is fp32, so {', '.join(chosen)} needs --format onnx as well")

    from . import Budget, export_bundle

    with _bar() as (say, show):
        report = export_bundle(
            model,
            output,
            precisions=list(chosen),
            formats=formats,
            budget=Budget(max_perplexity_increase, min_agreement, strict),
            calibration_data=calibration_data,
            without_passes=without,
            exporter=exporter,
            overwrite=force,
            on_step=say,
            on_progress=show,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    click.echo(report.table())
    click.echo(f'next: mlm-fill --model {output} "..."', err=True)


@contextmanager
def _bar() -> Iterator[tuple[Callable[[str], None], Callable[[float], None]]]:
    """Give what tells of steps and of progress: a bar over the whole with the steps above it, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: click.echo(f"{text} ...", err=True), lambda _share: None
        return
    from tqdm import tqdm

    with tqdm(total=100, bar_format="{percentage:3.0f}% |{bar}| {elapsed}", leave=False) as bar:

        def show(share: float) -> None:
            bar.n = 100 * share
            bar.refresh()

        yield lambda text: tqdm.write(f"{text} ...", file=sys.stderr), show


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, unless the first argument names a command on bundles.

    Args:
        arguments: Those of the command line; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = {"info": info, "verify": verify}.get(given[0]) if given else None
    if command is None:
        export(given, prog_name="mlm-export")
    else:
        command(given[1:], prog_name=f"mlm-export {given[0]}")
