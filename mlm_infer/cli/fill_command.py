"""The command line of `mlm-fill`."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlm_infer.errors import DataError, InputError
from mlm_infer.shared.command import command_errors
from mlm_infer.shared.tables import format_table, without_controls

from .read_texts import ReadText, read_lines, read_texts

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from mlm_infer.filler import MaskFiller
    from mlm_infer.options import FillKeywords
    from mlm_infer.results import FillResult
    from mlm_infer.text.encoder import LongText

__all__ = ["main"]


@click.command()
@click.argument("texts", nargs=-1)
@click.option("--model", "-m", help="Bundle, ONNX export, checkpoint or Hub id.  [default: the model in the package]")
@click.option(
    "--input",
    "-i",
    "paths",
    multiple=True,
    help="Input file: a column of a .csv, .jsonl or .parquet file, or the lines of any other file. With --engine ray: "
    "files, folders and quoted patterns.",
)
@click.option("--column", default="text", show_default=True, help="Column of the texts in a table.")
@click.option("--output", "-o", help="Output file, .jsonl or .parquet. With --engine ray: a folder.")
@click.option("--resume", is_flag=True, help="Continue an --output that was interrupted.")
@click.option("--top-k", "-k", default=5, show_default=True, help="Predictions per mask.")
@click.option(
    "--targets", "-t", multiple=True, help="Predict only these words; repeat the option, or separate words with commas."
)
@click.option("--allow", multiple=True, help="Permitted words; repeat the option, or separate words with commas.")
@click.option("--deny", multiple=True, help="Excluded words; repeat the option, or separate words with commas.")
@click.option("--words-only", is_flag=True, help="Exclude special tokens, punctuation, numbers and parts of words.")
@click.option("--pattern", help="Regular expression that must match the whole word.")
@click.option("--min-score", default=0.0, show_default=True, help="Minimum probability of a prediction.")
@click.option("--renormalize", is_flag=True, help="Normalize probabilities over the permitted words.")
@click.option(
    "--long-text", default="error", show_default=True, help="error, or window: predict from a window around the mask."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, fp16, int8; OpenVINO: bf16.")
@click.option("--backend", default="auto", show_default=True, help="auto, onnx, openvino or torchscript.")
@click.option("--threads", type=int, help="Threads per run.  [default: all; with --engine ray: 1 per actor]")
@click.option("--engine", help="ray: bulk work on Ray Data, on this machine or a cluster.")
@click.option("--address", help="Ray: address of a cluster.  [default: RAY_ADDRESS, or a cluster on this machine]")
@click.option("--actors", type=int, help="Ray: number of copies of the model.  [default: as many as have room]")
@click.option("--rows-per-part", default=8192, show_default=True, help="Ray: rows of an input in one output file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per text.")
@click.version_option(package_name="mlm-infer")
@command_errors
def main(
    texts: tuple[str, ...],
    model: str | None,
    paths: tuple[str, ...],
    column: str,
    output: str | None,
    resume: bool,
    top_k: int,
    targets: tuple[str, ...],
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    words_only: bool,
    pattern: str | None,
    min_score: float,
    renormalize: bool,
    long_text: "LongText",
    device: str,
    precision: str,
    backend: str,
    threads: int | None,
    engine: str | None,
    address: str | None,
    actors: int | None,
    rows_per_part: int,
    as_json: bool,
) -> None:
    """Fill the masks of TEXTS; a text of - reads lines from standard input.

    \b
    mlm-fill "This is a great [MASK]."
    cat sentences.txt | mlm-fill - --json
    mlm-fill --input reviews.csv --column body --output filled.jsonl
    mlm-fill --input 'reviews/*.parquet' --output filled --engine ray

    \f
    Long because click passes every option by its name; what follows the form feed is not shown.
    """  # noqa: D301
    if not texts and not paths:
        raise InputError('no text; try: mlm-fill "This is a great [MASK]."')
    options: FillKeywords = {
        "top_k": top_k,
        "targets": _words(targets),
        "allow": _words(allow),
        "deny": _words(deny),
        "words_only": words_only,
        "pattern": pattern,
        "min_score": min_score,
        "renormalize": renormalize,
        "long_text": long_text,
    }
    if engine == "ray":
        from .ray_command import fill_on_ray

        if texts:
            raise InputError("--engine ray takes the texts of --input, not arguments")
        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f"--device is {device!r}; with --engine ray it is cpu, or cuda for a GPU for each actor")
        fill_on_ray(
            paths,
            output,
            options,
            model=model,
            column=column,
            precision=precision,
            backend=backend,
            threads=1 if threads is None else threads,
            gpu=device == "cuda",
            actors=actors,
            address=address,
            rows_per_part=rows_per_part,
            resume=resume,
        )
        return
    if engine is not None:
        raise InputError(f"--engine is {engine!r}; leave it out, or give ray")
    if address is not None or actors is not None:
        raise InputError("--address and --actors belong to --engine ray; add it")
    from mlm_infer.filler import MaskFiller

    filler = MaskFiller(model, device=device, precision=precision, threads=threads, backend=backend)
    # Options are validated by the filler and not by click, so that Python and the command give the same messages.
    if output is not None:
        _to_file(filler, texts, list(map(Path, paths)), column, Path(output), resume, options)
        return
    _to_stdout(filler, texts, list(map(Path, paths)), column, options, as_json=as_json)


def _to_stdout(
    filler: "MaskFiller",
    texts: Sequence[str],
    paths: Sequence[Path],
    column: str,
    options: "FillKeywords",
    *,
    as_json: bool,
) -> None:
    """Fill the texts and print the answers."""
    from .answers import answer_texts

    # A progress bar is useful only if a person watches and the answers go elsewhere.
    hidden = not sys.stderr.isatty() or sys.stdout.isatty()
    total = _count(texts, paths, column)
    bar: ProgressBar[int]
    with click.progressbar(length=total or 0, label="Filling", file=sys.stderr, hidden=hidden or total is None) as bar:
        for read, result in answer_texts(filler, _lines(texts, paths, column), options):
            if isinstance(result, InputError):
                # An invalid argument is wrong usage (exit status 2), an invalid line of a file is not.
                raise DataError(str(result)) if read.place else result
            click.echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else _for_people(result))
            bar.update(1)


def _words(given: Sequence[str]) -> list[str] | None:
    """Return the words of an option that is repeated or comma-separated; None if it is not given."""
    return [word for each in given for word in each.split(",")] or None


def _to_file(
    filler: "MaskFiller",
    texts: Sequence[str],
    paths: Sequence[Path],
    column: str,
    output: Path,
    resume: bool,
    options: "FillKeywords",
) -> None:
    """Fill a file of texts, writing an output file, with a progress bar and the throughput."""
    from .fill_file import fill_file

    if texts or len(paths) != 1:
        raise InputError("--output takes the texts of one --input")
    total = _count([], paths, column)
    started = time.perf_counter()
    bar: ProgressBar[int]
    try:
        with click.progressbar(
            length=total or 0, label="Filling", file=sys.stderr, show_pos=True, hidden=not sys.stderr.isatty()
        ) as bar:
            done, wrong = fill_file(
                filler, paths[0], output, column=column, options=options, resume=resume, on_text=bar.update
            )
    except KeyboardInterrupt:
        click.echo("stopped; the same command with --resume goes on from here", err=True)
        sys.exit(1)
    # The time of an earlier run is not known, so a resumed run has no throughput.
    rate = "" if resume else f" ({done / (time.perf_counter() - started):.0f} a second)"
    errors = f", {wrong} of them with an error instead of predictions" if wrong else ""
    click.echo(f"written: {output}, {done} texts{errors}{rate}", err=True)


def _lines(texts: Sequence[str], paths: Sequence[Path], column: str) -> Iterator[ReadText]:
    """Yield the arguments, and the lines of standard input and files; blank lines are skipped."""
    for text in texts:
        if text == "-":
            yield from read_lines("standard input", sys.stdin)
        else:
            yield ReadText("", text)
    for path in paths:
        yield from read_texts(path, column)


def _count(texts: Sequence[str], paths: Sequence[Path], column: str) -> int | None:
    """Return the number of texts, or None if an input can be read only once."""
    if "-" in texts or any(path.exists() and not path.is_file() for path in paths):
        return None
    return len(texts) + sum(1 for path in paths for _ in read_texts(path, column))


def _for_people(result: "FillResult") -> str:
    parts = [without_controls(result.text)]
    for number, mask in enumerate(result.masks, 1):
        if len(result.masks) > 1:
            parts.append(f"mask {number}")
        rows = [
            [f"{each.score:.3f}", without_controls(each.text), without_controls(each.sequence)]
            for each in mask.predictions
        ]
        parts.append(format_table(["score", "word", "sequence"], rows))
    return "\n".join(parts) + "\n"
