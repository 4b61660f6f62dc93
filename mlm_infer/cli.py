"""`mlm-fill`: fill masks from a shell."""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from .command import command_errors
from .errors import DataError, InputError
from .tables import format_table

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from .filler import MaskFiller
    from .results import FillResult

__all__ = ["main"]

_CHUNK = 256


@click.command()
@click.argument("texts", nargs=-1)
@click.option("--model", "-m", help="Folder of a bundle.  [default: the small English model of the package]")
@click.option(
    "--file",
    "-f",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Text file, one text a line.",
)
@click.option("--top-k", "-k", default=5, show_default=True, help="Predictions a mask.")
@click.option("--targets", "-t", multiple=True, help="Word to choose among; repeat it, or separate with commas.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, fp16 or int8.")
@click.option("--backend", default="auto", show_default=True, help="auto, onnx or torchscript.")
@click.option("--threads", type=int, help="Threads of one run.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a text.")
@click.version_option(package_name="mlm-infer")
@command_errors
def main(
    texts: tuple[str, ...],
    model: str | None,
    paths: tuple[Path, ...],
    top_k: int,
    targets: tuple[str, ...],
    device: str,
    precision: str,
    backend: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Fill the masks of TEXTS; a text of - reads lines from standard input.

    \b
    mlm-fill "This is a great [MASK]."
    cat sentences.txt | mlm-fill - --json
    """  # noqa: D301
    if not texts and not paths:
        raise InputError('no text; try: mlm-fill "This is a great [MASK]."')
    from .filler import MaskFiller

    words = [word for target in targets for word in target.split(",")]
    filler = MaskFiller(model, device=device, precision=precision, threads=threads, backend=backend)
    lines = _lines(texts, paths)
    # A bar is of use only to a person who does not see the answers scroll by.
    hidden = not sys.stderr.isatty() or sys.stdout.isatty()
    total = _count(texts, paths)
    bar: ProgressBar[int]
    with click.progressbar(length=total or 0, label="Filling", file=sys.stderr, hidden=hidden or total is None) as bar:
        while chunk := list(islice(lines, _CHUNK)):
            for result in _fill(filler, chunk, top_k, words or None):
                click.echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else _for_people(result))
            bar.update(len(chunk))


def _fill(
    filler: "MaskFiller", chunk: list[tuple[str, str]], top_k: int, targets: list[str] | None
) -> "Iterator[FillResult]":
    """Yield the results of a chunk; where a text is wrong, those before it come first, then its error."""
    try:
        yield from filler.fill_batch([text for _, text in chunk], top_k=top_k, targets=targets)
    except InputError:
        for place, text in chunk:
            try:
                result = filler.fill(text, top_k=top_k, targets=targets)
            except InputError as error:
                if not place:
                    raise
                raise DataError(f"{place}: {error}") from error
            yield result


def _lines(texts: Sequence[str], paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield where a text stands (empty for an argument) and the text; blank lines are left out."""
    for text in texts:
        if text == "-":
            yield from _read("standard input", sys.stdin)
        else:
            yield "", text
    for path in paths:
        if not path.is_file():
            raise DataError(f"there is no file {path}")
        with path.open(encoding="utf-8") as stream:
            yield from _read(str(path), stream)


def _read(name: str, stream: TextIO) -> Iterator[tuple[str, str]]:
    try:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield f"{name}, line {number}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 ({error.reason} at byte {error.start} of a block); convert it first"
        ) from error


def _count(texts: Sequence[str], paths: Sequence[Path]) -> int | None:
    """Return how many texts there are, or None where standard input is among them."""
    if "-" in texts:
        return None
    count = len(texts)
    for path in paths:
        if path.is_file():
            with path.open("rb") as stream:
                count += sum(1 for line in stream if line.strip())
    return count


def _for_people(result: "FillResult") -> str:
    parts = [result.text]
    for number, mask in enumerate(result.masks, 1):
        if len(result.masks) > 1:
            parts.append(f"mask {number}")
        rows = [[f"{each.score:.3f}", each.text, each.sequence] for each in mask.predictions]
        parts.append(format_table(["score", "word", "sequence"], rows))
    return "\n".join(parts) + "\n"
